"""How many threads read or write beside an engine: one, and more once the engine was seen to wait for them.

Readers share each block by rows that are decoded together (`worker.bands`). Each has a decoder of its own, and what one
has decoded for a block it finds again for the block's neighbour: of a 4096 x 8192 GeoTIFF in chunks of 512, with GDAL's
cache at its 32 MiB, 1, 2 and 4 readers decode 1.26, 1.29 and 1.29 times its bytes; with a block each, they would 1.26,
1.69 and 1.51 times.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from models.engines.meter import Times

WAITING = 0.02
"""Share of an engine's time that it may wait before threads are added."""
MEASURE = 0.1
"""Seconds of an engine's time that a decision rests on, at least: less tells of chance."""


@dataclass
class Pace:
    """Threads for one kind of work on blocks, by what was measured: as many as it takes to keep up with the engine."""

    kind: Literal["input", "output"]
    """What the engine waits for if this work is too slow."""
    most: int
    """Threads that the memory pays for."""
    threads: int = 1
    """Blocks that are worked on at the same time."""
    _since: Times | None = None
    """The engine's time when the last decision was made; None: nothing is measured yet."""
    _seconds: list[float] = field(default_factory=list)
    """Of the blocks since then."""

    def begin(self) -> None:
        """A task begins: whatever the engine waits for until its first block says nothing."""
        self._since, self._seconds = None, []

    def block(self, seconds: float, times: Times) -> None:
        """A block took `seconds` of one thread; `times` is the engine's, up to now."""
        if self._since is None:
            self._since = times
            return
        self._seconds.append(seconds)
        gone = times - self._since
        if len(self._seconds) < self.threads or gone.total < MEASURE:
            return
        idle = gone.input if self.kind == "input" else gone.output
        if idle > WAITING * gone.total:
            needed = math.ceil(sum(self._seconds) / gone.busy) if gone.busy > 0 else self.most
            self.threads = min(max(self.threads + 1, needed), self.most)
        self._since, self._seconds = times, []
