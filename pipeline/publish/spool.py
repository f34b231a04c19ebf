"""Compressed tiles on their way into a file: kept per level, as they come, and given back row by row."""

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

LEADER = 4
"""Bytes before a tile that say its length; behind it, its last `LEADER` bytes stand once more."""
_COPY = 1 << 22
"""Bytes copied at once."""


class Spool:
    """The tiles of one level, (rows, columns), in a temporary file without a name."""

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        """Nothing is in it yet.

        Raises:
            OSError: the folder cannot be written.
        """
        self._file = tempfile.TemporaryFile(dir=folder, buffering=1 << 20)  # noqa: SIM115 - closed with the spool
        self._starts = np.zeros(shape, np.int64)
        self._frames = np.zeros(shape, np.int64)
        self._end = 0

    def put(self, row: int, col: int, content: bytes) -> None:
        """Each tile once, in any order."""
        frame = b"".join((struct.pack("<I", len(content)), content, content[-LEADER:]))
        self._file.write(frame)
        self._starts[row, col], self._frames[row, col] = self._end, len(frame)
        self._end += len(frame)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return self._end

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each tile, row by row, without what stands before and behind it."""
        return self._frames.ravel() - 2 * LEADER

    def offsets(self, start: int) -> NDArray[np.int64]:
        """Where each tile's content begins, row by row, if the first frame is put at `start`."""
        frames = self._frames.ravel()
        return start + LEADER + np.cumsum(frames) - frames

    def copy_to(self, out: IO[bytes]) -> None:
        """All frames, row by row."""
        self._file.flush()
        for start, stop in self._runs():
            self._file.seek(start)
            for at in range(start, stop, _COPY):
                out.write(self._file.read(min(_COPY, stop - at)))

    def _runs(self) -> Iterator[tuple[int, int]]:
        """The stretches of the file that, one after the other, hold the frames row by row."""
        starts, frames = self._starts.ravel(), self._frames.ravel()
        first = np.flatnonzero(np.append(True, starts[1:] != (starts + frames)[:-1]))
        last = np.append(first[1:], len(starts)) - 1
        for a, b in zip(first, last, strict=True):
            yield int(starts[a]), int(starts[b] + frames[b])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
