"""Halving a plane for an overview: each pixel stands for four, nodata left out."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray

from models.spec import NODATA

Plane = NDArray[np.uint8]
"""(H, W)."""


def mode_of_four(plane: Plane) -> Plane:
    """(H, W) -> (h, w), rounded up: the most frequent value of each 2 x 2, the first in reading order where two are.

    Nodata stays only where all four are.
    """
    return _halved(plane, _mode)


def mean_of_four(plane: Plane) -> Plane:
    """(H, W) -> (h, w), rounded up: the mean of each 2 x 2, halves upward; nodata stays only where all four are."""
    return _halved(plane, _mean)


def _halved(plane: Plane, rule: Callable[[Sequence[Plane]], Plane]) -> Plane:
    """`rule` is asked only where the four differ: that is rare in a mask, and dear."""
    four = _four(plane)
    half = four[0]
    differ = reduce(or_, (half != value for value in four[1:]))
    half[differ] = rule([value[differ] for value in four])
    return half


def _mode(four: Sequence[Plane]) -> Plane:
    best = four[3]
    for value in four[2::-1]:
        best = np.where(value == NODATA, best, value)
    for i, value in reversed(list(enumerate(four[:3]))):
        again = reduce(or_, (value == later for later in four[i + 1 :]))
        best = np.where(again & (value != NODATA), value, best)
    return best


def _mean(four: Sequence[Plane]) -> Plane:
    total, valid = (np.zeros(four[0].shape, np.uint16) for _ in range(2))
    for value in four:
        known = value != NODATA
        np.add(total, value, out=total, where=known)
        valid += known
    # Four that differ are not all nodata.
    return ((total + valid // 2) // valid).astype(np.uint8)


def _four(plane: Plane) -> list[Plane]:
    """The four pixels of each 2 x 2, in reading order; beyond an odd edge lies nodata."""
    height, width = plane.shape
    if height % 2 or width % 2:
        plane = np.pad(plane, ((0, height % 2), (0, width % 2)), constant_values=NODATA)
    return [plane[row::2, col::2].copy() for row in (0, 1) for col in (0, 1)]
