"""What the next steps need, made before they ask."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """`make(step)` for each step in order, computed up to `depth` steps ahead by `threads` threads."""

    def __init__(
        self,
        make: Callable[[int], T],
        steps: range,
        depth: int = 3,
        threads: int = 1,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._steps, self._clock = make, iter(steps), clock
        self._pool = ThreadPoolExecutor(threads, "read-ahead")
        self._pending: deque[Future[T]] = deque()
        self._waited, self._since = 0.0, clock()
        for _ in range(depth):
            self._begin()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next one, as soon as it is ready, or what went wrong in making it."""
        if not self._pending:
            raise StopIteration
        began = self._clock()
        made = self._pending.popleft().result()
        self._waited += self._clock() - began
        self._begin()
        return made

    def waiting(self) -> float:
        """Share of the time since the last call, or since the start, in which the next one was not ready."""
        now = self._clock()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share

    def close(self) -> None:
        """Let go of what nobody will ask for."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        for step in islice(self._steps, 1):
            self._pending.append(self._pool.submit(self._make, step))
