"""Cells of ground: pixels beside one another are wrong together, so that scores are drawn by cells of them."""

from collections.abc import Iterator

from models.scoring import Part

CELL = 512
"""Edge of a cell, in pixels."""
PLACE = r"^.+/-?\d+/-?\d+$"
"""What names a pixel of the ground: `LATTICE/ROW/COL`. Pixels of one lattice are told by row and column alone, whatever
scene shows them; what has no place on the Earth is a lattice of its own."""


def cells(place: str, height: int, width: int, edge: int = CELL) -> Iterator[Part]:
    """The cells that an array lies on, by name, and where in it: they partition it. Cells are fixed in the lattice.

    Args:
        place: of the array's first pixel.
        height: of the array.
        width: likewise.
        edge: of a cell.
    """
    lattice, row, col = place.rsplit("/", 2)
    for down, rows in _cuts(int(row), height, edge):
        for across, cols in _cuts(int(col), width, edge):
            yield f"{lattice}/{down}/{across}", (rows, cols)


def _cuts(start: int, length: int, edge: int) -> Iterator[tuple[int, slice]]:
    """Numbers of the cells from `start` on, and their parts of `length` pixels."""
    for cell in range(start // edge, -(-(start + length) // edge)):
        yield cell, slice(max(cell * edge - start, 0), min((cell + 1) * edge - start, length))
