"""What an engine did with its time: it computed, or it waited for its input, or for somebody to take its output.

    map's thread   pull │ start │ pull        │ start │ collect │ hold │ pull ...
    in flight           ├────────┤            ├────────────────┤
    counted as    input │ busy   │ input      │ busy                   │ output ...

Busy is the union of the intervals with a batch in flight; what is left is told apart by what `map` does meanwhile.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Doing = Literal["input", "output", "handling"]


@dataclass(frozen=True)
class Times:
    """Seconds of an engine's life inside `map`, by what they were spent on."""

    busy: float = 0.0
    """At least one batch was being computed."""
    input: float = 0.0
    """Idle: the next batch was being pulled."""
    output: float = 0.0
    """Idle: the consumer held the last planes."""
    handling: float = 0.0
    """Idle: `map` itself padded a batch, or copied its planes."""

    @property
    def total(self) -> float:
        """All of it, in seconds."""
        return self.busy + self.input + self.output + self.handling

    def __add__(self, other: "Times") -> "Times":
        return Times(*(getattr(self, name) + getattr(other, name) for name in FIELDS))

    def __sub__(self, other: "Times") -> "Times":
        return Times(*(getattr(self, name) - getattr(other, name) for name in FIELDS))


FIELDS = ("busy", "input", "output", "handling")


class Meter:
    """Counts an engine's time. Any thread may call it; between two `map`s nothing counts."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._flight = 0
        self._doing: Doing | None = None
        self._since = clock()
        self._spent = dict.fromkeys(FIELDS, 0.0)

    def begin(self) -> Callable[[], None]:
        """A batch is submitted. Call what is returned when it is computed, or has failed; once more does nothing."""
        with self._lock:
            self._count()
            self._flight += 1
        left = [True]

        def end() -> None:
            with self._lock:
                if left:
                    left.clear()
                    self._count()
                    self._flight -= 1

        return end

    @contextmanager
    def running(self) -> Iterator[None]:
        """A batch is computed inside."""
        end = self.begin()
        try:
            yield
        finally:
            end()

    @contextmanager
    def doing(self, what: Doing) -> Iterator[None]:
        """What the thread of `map` does inside, should the engine be idle. May be nested: the innermost counts."""
        before = self._turn(what)
        try:
            yield
        finally:
            self._turn(before)

    def times(self) -> Times:
        """Up to this moment."""
        with self._lock:
            self._count()
            return Times(**self._spent)

    def _turn(self, what: Doing | None) -> Doing | None:
        with self._lock:
            self._count()
            before, self._doing = self._doing, what
            return before

    def _count(self) -> None:
        """Book the time since the last event; the caller holds the lock."""
        now = self._clock()
        what = "busy" if self._flight else self._doing
        if what is not None:
            self._spent[what] += now - self._since
        self._since = now
