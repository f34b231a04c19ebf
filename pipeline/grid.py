"""The lattice of cores, tiles and blocks: which pixels a network reads, and which of its answers are kept.

One axis of a scene (rows and columns are cut alike, independently):

    scene      |..........................................................|    `extent`, rounded up to the stride
    tile 0     [===== core =====|--halo--|--------]                            starts at the true edge
    tile 1              [--halo--|===== core =====|--halo--]
    last tile                          [------|--halo--|== core ==]            moved inward to end at the edge
    block      |################################################################|    k cores, one writer

What is read (`Core.tile`) and what is written (`Core.owned`) are two windows. Cores sit on one lattice that is
anchored at the scene's first pixel, so a pixel's answer depends neither on the block nor on the worker that made it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of pixels, rows first. It may overhang the scene."""

    row: int
    """First row."""
    col: int
    """First column."""
    height: int
    """Rows, at least 1."""
    width: int
    """Columns, at least 1."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a window of {self.height} x {self.width} pixels is empty")

    @property
    def stop_row(self) -> int:
        """One past the last row."""
        return self.row + self.height

    @property
    def stop_col(self) -> int:
        """One past the last column."""
        return self.col + self.width

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """`array[window.slices]`, for an array whose first pixel is (0, 0)."""
        return slice(self.row, self.stop_row), slice(self.col, self.stop_col)

    def contains(self, other: "Window") -> bool:
        """Whether every pixel of `other` lies in this window."""
        return self.intersect(other) == other

    def intersect(self, other: "Window") -> "Window | None":
        """The pixels in both windows, or None where there are none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.stop_row, other.stop_row) - row
        width = min(self.stop_col, other.stop_col) - col
        return Window(row, col, height, width) if height > 0 and width > 0 else None

    def shift(self, rows: int, cols: int) -> "Window":
        """The same rectangle, moved."""
        return Window(self.row + rows, self.col + cols, self.height, self.width)

    def relative_to(self, origin: "Window") -> "Window":
        """The same pixels, counted from the first pixel of `origin`."""
        return self.shift(-origin.row, -origin.col)


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step


def in_cells(height: int, width: int, cell: int) -> tuple[int, int]:
    """Rows and columns of squares of `cell` pixels that cover `height` x `width` pixels."""
    return -(-height // cell), -(-width // cell)


def spread(length: int, count: int) -> NDArray[np.intp]:
    """`count` indices below `length`, evenly spaced: each is the middle of its share."""
    return np.asarray((2 * np.arange(count) + 1) * length // (2 * count))


def near_borders(window: Window, core: int, reach: int, scene: Window | None = None) -> NDArray[np.bool_]:
    """(H, W) of `window`: at most `reach` pixels from a border between two cores, above, below, left or right.

    Cores of `core` pixels lie on the lattice of the scene's first pixel. Edges of `scene` are no borders; without it,
    the lattice goes on for ever, down and to the right.
    """
    rows = _near_lines(window.row, window.height, core, reach, scene.stop_row if scene else None)
    cols = _near_lines(window.col, window.width, core, reach, scene.stop_col if scene else None)
    return rows[:, None] | cols


def _near_lines(start: int, length: int, core: int, reach: int, end: int | None) -> NDArray[np.bool_]:
    place = np.arange(start, start + length)
    behind = place % core
    after = place - behind + core
    is_border = np.ones(length, np.bool_) if end is None else after < end
    return ((place >= core) & (behind < reach)) | (is_border & (after - place <= reach))


@dataclass(frozen=True)
class Core:
    """The pixels that one tile owns."""

    owned: Window
    """What is written: a part of the scene, in scene pixels."""
    tile: Window
    """What is read: a square of the network's input size, in scene pixels; overhangs only the rounded-up rim."""

    @property
    def kept(self) -> Window:
        """`owned`, counted from the first pixel of the tile."""
        return self.owned.relative_to(self.tile)


@dataclass(frozen=True)
class TileGrid:
    """The lattice of cores over one scene. Each scene pixel is owned by exactly one core.

    With `halo` at least the network's receptive-field radius, the owned pixels of every tile equal the prediction
    over the whole scene (`extent`): tiles never invent context at a true edge, and all share one down-sampling phase.
    """

    height: int
    """Rows of the scene."""
    width: int
    """Columns of the scene."""
    tile: int
    """Edge of the network's input, in pixels."""
    halo: int
    """Margin of a tile whose prediction is thrown away, in pixels."""
    stride: int = 32
    """Total stride of the network, in pixels."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a scene of {self.height} x {self.width} pixels is empty")
        if self.tile % self.stride or self.halo % self.stride or self.halo < 0:
            raise ValueError(f"tile {self.tile} and halo {self.halo} must be multiples of the stride {self.stride}")
        if self.core < 1:
            raise ValueError(f"tile {self.tile} leaves no core with halo {self.halo}")

    @property
    def core(self) -> int:
        """Edge of a core, in pixels."""
        return self.tile - 2 * self.halo

    @property
    def scene(self) -> Window:
        """All pixels of the scene."""
        return Window(0, 0, self.height, self.width)

    @property
    def extent(self) -> Window:
        """The scene as the network sees it: rounded up to the stride, and to the tile axis by axis if smaller."""
        rows, cols = (max(round_up(length, self.stride), self.tile) for length in (self.height, self.width))
        return Window(0, 0, rows, cols)

    @property
    def shape(self) -> tuple[int, int]:
        """Cores down and across."""
        return -(-self.height // self.core), -(-self.width // self.core)

    def core_at(self, down: int, across: int) -> Core:
        """The core in row `down` and column `across` of the lattice."""
        row, rows, tile_row = self._cut(down, self.height, self.extent.height)
        col, cols, tile_col = self._cut(across, self.width, self.extent.width)
        return Core(Window(row, col, rows, cols), Window(tile_row, tile_col, self.tile, self.tile))

    def _cut(self, index: int, length: int, extent: int) -> tuple[int, int, int]:
        start = index * self.core
        if not 0 <= start < length:
            raise IndexError(f"core {index} lies outside an axis of {length} pixels")
        tile = min(max(start - self.halo, 0), extent - self.tile)
        return start, min(self.core, length - start), tile

    def cores(self, window: Window) -> Iterator[Core]:
        """The cores inside `window`, row by row. `window` must be a whole number of cores.

        Raises:
            ValueError: an edge of the window cuts a core.
        """
        inside = self.scene.intersect(window)
        if inside is None:
            return
        for start, stop, length in (
            (inside.row, inside.stop_row, self.height),
            (inside.col, inside.stop_col, self.width),
        ):
            if start % self.core or (stop % self.core and stop != length):
                raise ValueError(f"{window} cuts a core of {self.core} pixels")
        for down in range(inside.row // self.core, -(-inside.stop_row // self.core)):
            for across in range(inside.col // self.core, -(-inside.stop_col // self.core)):
                yield self.core_at(down, across)

    def blocks(self, edge: int) -> Iterator[Window]:
        """Blocks of `edge` x `edge` pixels, clipped to the scene, row by row. They partition the scene.

        Raises:
            ValueError: `edge` is not a whole number of cores.
        """
        if edge < self.core or edge % self.core:
            raise ValueError(f"a block of {edge} pixels is no whole number of cores of {self.core}")
        for row in range(0, self.height, edge):
            for col in range(0, self.width, edge):
                yield Window(row, col, min(edge, self.height - row), min(edge, self.width - col))

    def source(self, window: Window) -> Window:
        """The scene pixels that the tiles of `window` read: the union of its tiles, clipped to the scene."""
        cores = list(self.cores(window))
        first, last = cores[0].tile, cores[-1].tile
        union = Window(first.row, first.col, last.stop_row - first.row, last.stop_col - first.col)
        clipped = union.intersect(self.scene)
        assert clipped is not None  # noqa: S101 - every tile overlaps the scene
        return clipped

    def tiles(self, block: int | None = None) -> int:
        """Tiles that the network runs with blocks of `block` pixels (None: the whole scene is one block).

        Cores of one block that read the same tile share its answer; this happens where tiles were moved inward.
        """
        per_block = max(self.shape) if block is None else block // self.core
        down, across = (
            sum(
                len({self._cut(i, length, extent)[2] for i in range(first, min(first + per_block, count))})
                for first in range(0, count, per_block)
            )
            for count, length, extent in zip(
                self.shape, (self.height, self.width), (self.extent.height, self.extent.width), strict=True
            )
        )
        return down * across

    def overhead(self, block: int | None = None) -> float:
        """Network input pixels per scene pixel, with blocks of `block` pixels."""
        return self.tiles(block) * self.tile**2 / (self.height * self.width)
