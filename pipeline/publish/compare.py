"""A published raster against the plane it was made from, pixel by pixel."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from pipeline.errors import UnreadableError
from pipeline.grid import Window
from pipeline.publish.cells import PublishedPlane
from pipeline.publish.classes import Legend

_ROWS, _COLS = 1024, 8192
"""What is compared at once: whole tiles of the raster."""


@dataclass(frozen=True)
class Difference:
    """The first pixel that differs, window by window from the top."""

    row: int
    col: int
    published: int
    expected: int


def first_difference(raster: Path, plane: PublishedPlane, legend: Legend | None) -> Difference | None:
    """Where the pixels of `raster` are not those of `plane`, put into numbers of `legend`; None: nowhere.

    Raises:
        UnreadableError: the raster cannot be read, or has another shape.
        VerifyError: a stored chunk is corrupt.
    """
    try:
        with rasterio.Env(GDAL_CACHEMAX=32 << 20), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(raster, driver="GTiff") as file:
                rows, cols = plane.shape
                if (file.height, file.width) != (rows, cols):
                    raise UnreadableError(f"{raster.name} has {file.height} x {file.width} pixels, not {rows} x {cols}")
                for window in _windows(file.height, file.width):
                    place = RasterWindow(window.col, window.row, window.width, window.height)
                    stored = plane.read(window)
                    expected = stored if legend is None else legend.table[stored]
                    published = file.read(1, window=place)
                    if not np.array_equal(published, expected):
                        row, col = np.argwhere(published != expected)[0]
                        values = int(published[row, col]), int(expected[row, col])
                        return Difference(window.row + int(row), window.col + int(col), *values)
    except (RasterioError, CPLE_BaseError) as error:
        raise UnreadableError(f"{raster.name} cannot be read: {error.__cause__ or error}") from error
    return None


def _windows(height: int, width: int) -> Iterator[Window]:
    for row in range(0, height, _ROWS):
        for col in range(0, width, _COLS):
            yield Window(row, col, min(_ROWS, height - row), min(_COLS, width - col))
