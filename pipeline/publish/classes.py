"""How classes look wherever they are shown: one number, name and colour in the raster, the style and the preview."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.spec import NODATA, WIDE_NODATA, Class

BACKGROUND = "background"
"""The class of this name is drawn clear: maps show the scene through it."""


@dataclass(frozen=True)
class Legend:
    """The numbers that stand for classes in what is published; `mask.zarr` holds indices whatever the legend."""

    values: tuple[int, ...]
    """By index: codes where the classes have them."""
    nodata: int
    """255 where that is above all values, else 65535."""

    @property
    def dtype(self) -> str:
        """Pixel type of a published mask."""
        return "uint8" if self.nodata == NODATA else "uint16"

    @property
    def is_plain(self) -> bool:
        """Whether indices are published as they are."""
        return self.values == tuple(range(len(self.values)))

    @property
    def table(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """(256,): what is published for each number in a plane of labels."""
        table = np.full(256, self.nodata, np.dtype(self.dtype).newbyteorder("<"))
        table[: len(self.values)] = self.values
        return table


def legend_of(classes: Sequence[Class]) -> Legend:
    """The legend of a bundle's classes."""
    values = tuple(number(entry) for entry in classes)
    return Legend(values, NODATA if max(values, default=0) < NODATA else WIDE_NODATA)


def number(entry: Class) -> int:
    """What stands for the class in a published mask."""
    return entry.id if entry.code is None else entry.code


def label(entry: Class) -> str:
    """What people read."""
    return entry.title or entry.name


def numbered(entry: Class) -> str:
    """What people read in a legend: with the code, if there is one."""
    return label(entry) if entry.code is None else f"{entry.code} {label(entry)}"


def rgb(entry: Class) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255."""
    red, green, blue = bytes.fromhex(entry.color.removeprefix("#"))
    return red, green, blue


def is_clear(entry: Class) -> bool:
    """Whether the class is drawn as nothing."""
    return entry.name == BACKGROUND
