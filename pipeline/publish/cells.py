"""Planes of a mask store as they are published: each pixel, or one pixel a cell.

    stored     | 3 3 3 3 | 255 1 1 1 | 2 2      a classifier's answer is the same all over a cell; 255 where invalid
    published  |    3    |     1     |  2       255 is the largest value: the smallest of a cell is its answer

A cell at the far edges may overhang the scene.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.grid import Window, in_cells
from pipeline.publish.pyramid import Plane
from pipeline.shards import layout_of, shard_windows
from pipeline.store import read_plane

_PIECE = 2048
"""About as many stored rows and columns are read at once, and at least one chunk."""


@dataclass(frozen=True)
class PublishedPlane:
    """The pixels of a published raster, each of which stands for a cell of its plane: nodata where all of it is."""

    store: Path
    plane: str
    cell: int = 1
    """Edge of a cell in stored pixels; the edge of the store's chunks is a multiple of it."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that are published."""
        height, width = layout_of(self.store / self.plane).shape
        return in_cells(height, width, self.cell)

    @property
    def chunk(self) -> int:
        """Edge of what a stored chunk becomes."""
        return layout_of(self.store / self.plane).chunk[-1] // self.cell

    def read(self, window: Window) -> Plane:
        """(H, W) of a window of what is published. Memory: that, and a few stored chunks.

        Raises:
            VerifyError: a stored chunk is corrupt.
        """
        if self.cell == 1:
            return read_plane(self.store, self.plane, window)
        published = np.empty((window.height, window.width), np.uint8)
        for part in shard_windows(window, self.chunk * max(1, _PIECE // (self.chunk * self.cell))):
            published[part.relative_to(window).slices] = self._smallest(part)
        return published

    def _smallest(self, window: Window) -> Plane:
        pixels = read_plane(self.store, self.plane, self._stored(window))
        starts = (np.arange(0, length, self.cell) for length in pixels.shape)
        for axis, at in enumerate(starts):
            pixels = np.minimum.reduceat(pixels, at, axis)
        return pixels

    def _stored(self, window: Window) -> Window:
        """The stored pixels of the cells of `window`."""
        height, width = layout_of(self.store / self.plane).shape
        row, col = window.row * self.cell, window.col * self.cell
        stop_row, stop_col = (stop * self.cell for stop in (window.stop_row, window.stop_col))
        return Window(row, col, min(stop_row, height) - row, min(stop_col, width) - col)
