"""Neighbours in a row of blocks read overlapping windows: what one has decoded is carried over to the next.

    chunks     |       |       |       |       |       |
    block 0    ...==========..                           read up to the end of its last chunk, `..`
    block 1              ~~~~~~~~==========.....         `~` is carried over, the rest is read

So each chunk is decoded once for all the blocks of a row that one task does, and for all their tiles.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from pipeline.grid import Window, round_up
from pipeline.scene import Scene, Source
from pipeline.sources.header import Pixels, Valid
from pipeline.store import StagedImage

WIDEST = 0.5
"""Widest chunks that are carried over, as a share of a window: beyond, they would take too much memory."""


@dataclass(frozen=True)
class _Step:
    """How one window is read."""

    window: Window
    start: int
    """First column that is read."""
    stop: int
    """One past the last column that is read, or carried over to this window."""
    after: int | None = None
    """First column that the next window takes over; None: it reads for itself."""

    @property
    def takes_over(self) -> bool:
        """Whether its first columns come from the window before."""
        return self.start > self.window.col


class Carry:
    """Reads windows of a source, in the given order, on any threads. Each window is read once."""

    def __init__(self, source: Source, windows: Sequence[Window]) -> None:
        self._source = source
        self._steps = _steps(windows, *_columns(source), source.width)
        self._tails: list[Future[tuple[Pixels, Valid]]] = [Future() for _ in windows]

    def read(self, index: int) -> tuple[Pixels, Valid]:
        """Pixels (C, H, W) and valid (H, W) of a window. Waits for the window before, if columns come from there.

        Raises:
            UnreadableError: the source cannot be read there, or in the window before.
        """
        step, tail = self._steps[index], self._tails[index]
        try:
            pixels, valid = self._joined(step, index)
        except BaseException as error:
            tail.set_exception(error)
            raise
        if step.after is not None:
            rest = slice(step.after - step.window.col, None)
            tail.set_result((pixels[..., rest].copy(), valid[..., rest].copy()))
        return pixels[..., : step.window.width], valid[..., : step.window.width]

    def _joined(self, step: _Step, index: int) -> tuple[Pixels, Valid]:
        """All columns of a step, those that were carried over first."""
        parts = []
        if step.stop > step.start:
            wanted = Window(step.window.row, step.start, step.window.height, step.stop - step.start)
            parts.append(self._source.read(wanted))
        if step.takes_over:
            parts.insert(0, self._tails[index - 1].result())
            self._tails[index - 1] = Future()  # nobody else asks for it
        if len(parts) == 1:
            return parts[0]
        pixels, valid = zip(*parts, strict=True)
        return np.concatenate(pixels, axis=-1), np.concatenate(valid, axis=-1)


def chunk_columns(chunk: int, width: int) -> int:
    """Columns that windows of `width` columns may be read further for chunks of `chunk` columns; 0 for none."""
    return chunk if chunk <= WIDEST * width else 0


def _columns(source: Source) -> tuple[int, int]:
    """Width of a source's chunks, and the column of its first pixel on their lattice."""
    match source:
        case Scene():
            return source.block_shape[1], source.block_origin[1]
        case StagedImage():
            return source.chunk, 0
    return 1, 0


def _steps(windows: Sequence[Window], chunk: int, origin: int, width: int) -> list[_Step]:
    steps: list[_Step] = []
    for window in windows:
        step = _Step(window, window.col, window.stop_col)
        if steps and _follows(steps[-1].window, window):
            before = steps[-1].window
            more = chunk_columns(chunk, before.width)
            stop = min(round_up(before.stop_col + origin, more) - origin, width) if more else before.stop_col
            stop = max(stop, steps[-1].start)
            steps[-1] = replace(steps[-1], stop=stop, after=window.col)
            step = replace(step, start=stop, stop=max(window.stop_col, stop))
        steps.append(step)
    return steps


def _follows(before: Window, window: Window) -> bool:
    """Whether a window overlaps the one before it, in the same rows, and goes on to the right."""
    rows = (before.row, before.height) == (window.row, window.height)
    return rows and before.col <= window.col < before.stop_col <= window.stop_col
