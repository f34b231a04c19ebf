"""Compressed tiles on their way into a file: kept per level, as they come, and given back row by row."""

import struct
import uuid
from pathlib import Path
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

LEADER = 4
"""Bytes before a tile that say its length; behind it, its last `LEADER` bytes stand once more."""
_PIECE = 1 << 22
"""Bytes moved at once."""


class Spool:
    """The tiles of one level, (rows, columns), in temporary files: one for each strip; of these one is open."""

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        """Nothing is in it yet."""
        self._folder = folder
        self._paths: list[Path] = []
        self._file: IO[bytes] | None = None
        self._ends: list[int] = []
        self._row = 0
        self._strips, self._starts, self._frames = (np.zeros(shape, np.int64) for _ in range(3))

    def put(self, row: int, col: int, content: bytes) -> None:
        """Each tile once: row by row, strip by strip.

        Raises:
            OSError: the folder cannot be written.
        """
        if self._file is None or row < self._row:
            self._file = self._next_file()
        frame = b"".join((struct.pack("<I", len(content)), content, content[-LEADER:]))
        self._file.write(frame)
        self._strips[row, col], self._starts[row, col] = len(self._paths) - 1, self._ends[-1]
        self._frames[row, col] = len(frame)
        self._ends[-1] += len(frame)
        self._row = row

    def _next_file(self) -> IO[bytes]:
        self._close()
        path = self._folder / f"{uuid.uuid4().hex}.tiles"
        self._paths.append(path)
        self._ends.append(0)
        return path.open("xb", buffering=1 << 20)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return sum(self._ends)

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each tile, row by row, without what stands before and behind it."""
        return self._frames.ravel() - 2 * LEADER

    def offsets(self, start: int) -> NDArray[np.int64]:
        """Where each tile's content begins, row by row, if the first frame is put at `start`."""
        frames = self._frames.ravel()
        return start + LEADER + np.cumsum(frames) - frames

    def move_to(self, out: IO[bytes], start: int) -> None:
        """Put all frames, row by row, into `out` from `start` on; once only.

        The last come first: what has been moved is cut off, so that the disk never holds it twice.
        """
        self._close()
        at = start + self.size
        for strip, first, stop in reversed(self._runs()):
            with self._paths[strip].open("r+b") as file:
                for begin in reversed(range(first, stop, _PIECE)):
                    file.seek(begin)
                    piece = file.read(min(_PIECE, stop - begin))
                    at -= len(piece)
                    out.seek(at)
                    out.write(piece)
                    file.truncate(begin)

    def _runs(self) -> list[tuple[int, int, int]]:
        """Strip, first byte and end of the stretches that, one after the other, hold the frames row by row."""
        strips, starts, frames = (array.ravel() for array in (self._strips, self._starts, self._frames))
        goes_on = (strips[1:] == strips[:-1]) & (starts[1:] == (starts + frames)[:-1])
        first = np.flatnonzero(np.append(True, ~goes_on))
        last = np.append(first[1:], len(starts)) - 1
        ends = starts[last] + frames[last]
        return list(zip(strips[first].tolist(), starts[first].tolist(), ends.tolist(), strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for path in self._paths:
            path.unlink()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
