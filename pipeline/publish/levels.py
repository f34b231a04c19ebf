"""One pass over a plane: the tiles of every level of its pyramid, each made once, in memory that a strip bounds.

    level 0   rows come in ──► [ tile | tile | tile | tile ]  a row of tiles: out they go, and their halves
    level 1                    [     tile    |     tile    ]  fill the row below; once that is full, it goes on

A scene wider than `STRIP` tiles is walked in strips of that width, from top to bottom. In the level where a strip is
less than a tile wide, its halves are gathered in one array (1/4096 of the plane), which is walked in its turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.spec import NODATA
from pipeline.grid import Window
from pipeline.publish.pyramid import Halve, Plane, constant

STRIP = 32
"""Tiles across a strip: a power of two, so that strips end where tiles of the levels below do."""
LARGEST_TILE = 512
"""Edge of a tile, in pixels, up to which `walk_bytes` holds."""
_ROWS = 1024
"""About as many rows are read at once, and at least one row of chunks."""

Shape = tuple[int, int]
Put = Callable[[int, int, int, Plane, int | None], None]
"""Takes level, row and column of a tile, the tile, and its only value where it has just one."""


def level_shapes(height: int, width: int, tile: int) -> list[Shape]:
    """(height, width) of the plane and of its overviews, each half of the one before, until one fits a tile."""
    shapes = [(height, width)]
    while max(shapes[-1]) > tile:
        height, width = shapes[-1]
        shapes.append((-(-height // 2), -(-width // 2)))
    return shapes


def walk_bytes(height: int, width: int, chunk: int) -> int:
    """Bytes that walking a plane takes at most: a strip's tiles, the rows that are read, and what is gathered."""
    return 4 * min(width, STRIP * LARGEST_TILE) * max(chunk, _ROWS) + height * width // STRIP**2 // 4


def walk(
    read: Callable[[Window], Plane], shapes: Sequence[Shape], *, chunk: int, tile: int, halve: Halve, put: Put
) -> None:
    """Read a plane of `shapes[0]` once, window by window, and `put` each tile of each of its levels once.

    Windows hold whole chunks of `chunk` x `chunk` pixels, but at the ends of strips. Tiles are (`tile`, `tile`), with
    nodata where they overhang, and belong to the receiver until it returns. Within a level they come row by row,
    strip by strip.
    """
    _walk(read, list(enumerate(shapes)), chunk, _Making(tile, halve, put))


@dataclass(frozen=True)
class _Making:
    """What all rungs have in common."""

    tile: int
    """Edge of a tile, in pixels."""
    halve: Halve
    put: Put


def _walk(read: Callable[[Window], Plane], levels: list[tuple[int, Shape]], chunk: int, making: _Making) -> None:
    height, width = levels[0][1]
    across = STRIP * making.tile
    count = len(levels) if width <= across else STRIP.bit_length()
    rest = _Rest(levels[count][1], making.tile // 2) if count < len(levels) else None
    rows = chunk * max(1, _ROWS // chunk)
    for col in range(0, width, across):
        part = range(col, min(col + across, width))
        top = _rungs(levels[:count], part, making, rest)
        for row in range(0, height, rows):
            top.push(read(Window(row, part.start, min(rows, height - row), len(part))))
        if rest is not None:
            rest.next_strip()
    if rest is not None:
        plane = rest.plane
        _walk(lambda window: plane[window.slices], levels[count:], making.tile, making)


def _rungs(levels: list[tuple[int, Shape]], part: range, making: _Making, rest: "_Rest | None") -> "_Rung":
    """The rungs of a strip, each on top of the next; the first is returned. `part`: its columns of pixels."""
    lower: _Rung | _Rest | None = rest
    for depth, (level, (height, _)) in reversed(list(enumerate(levels))):
        edge = making.tile << depth
        columns = range(part.start // edge, -(-part.stop // edge))
        lower = _Rung(level, height, columns, making, lower)
    assert isinstance(lower, _Rung)  # noqa: S101 - a plane has a first level
    return lower


class _Rung:
    """A row of tiles of one level of a strip, being filled from above."""

    def __init__(self, level: int, height: int, columns: range, making: _Making, lower: "_Rung | _Rest | None") -> None:
        self._level, self._columns, self._making, self._lower = level, columns, making, lower
        self._tiles = np.full((len(columns), making.tile, making.tile), NODATA, np.uint8)
        self._row, self._filled, self._left = 0, 0, height

    def push(self, rows: Plane) -> None:
        """Rows of the strip's width, in order."""
        tile = self._tiles.shape[1]
        while len(rows):
            part = rows[: tile - self._filled]
            for k, target in enumerate(self._tiles):
                piece = part[:, k * tile : (k + 1) * tile]
                target[self._filled : self._filled + len(part), : piece.shape[1]] = piece
            self.advance(len(part))
            rows = rows[len(part) :]

    def accept(self, col: int, half: Plane | int) -> None:
        """The half of tile `col` of the rung above, or its only value."""
        edge = self._tiles.shape[1] // 2
        left = col % 2 * edge
        self._tiles[col // 2, self._filled : self._filled + edge, left : left + edge] = half

    def advance(self, rows: int) -> None:
        """`rows` more rows are filled."""
        self._filled += rows
        self._left -= rows
        if self._filled == self._tiles.shape[1] or not self._left:
            self._tiles[:, self._filled :] = NODATA
            self._emit()
            self._row, self._filled = self._row + 1, 0

    def _emit(self) -> None:
        for col, (index, tile) in enumerate(zip(self._columns, self._tiles, strict=True)):
            value = constant(tile)
            self._making.put(self._level, self._row, index, tile, value)
            if self._lower is not None:
                self._lower.accept(col, self._making.halve(tile) if value is None else value)
        if self._lower is not None:
            self._lower.advance(-(-self._filled // 2))


class _Rest:
    """The first level in which a strip is narrower than a tile, gathered from all strips."""

    def __init__(self, shape: Shape, edge: int) -> None:
        self.plane: Plane = np.full(shape, NODATA, np.uint8)
        self._edge, self._row, self._col = edge, 0, 0

    def next_strip(self) -> None:
        """From the top again."""
        self._row, self._col = 0, self._col + self._edge

    def accept(self, col: int, half: Plane | int) -> None:
        """Likewise."""
        left = self._col + col * self._edge
        target = self.plane[self._row : self._row + self._edge, left : left + self._edge]
        target[:] = half if isinstance(half, int) else half[: target.shape[0], : target.shape[1]]

    def advance(self, rows: int) -> None:
        """Likewise."""
        self._row += rows
