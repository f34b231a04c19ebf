"""Halving a plane for an overview: each pixel stands for four, nodata left out."""

from collections.abc import Callable
from functools import reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray

from models.spec import NODATA

Plane = NDArray[np.uint8]
"""(H, W)."""
Halve = Callable[[Plane], Plane]
"""(H, W) -> (h, w), rounded up."""

_FEW = 1 / 8
"""Share of fours that differ up to which only these are looked at: picking them out is dear."""


def constant(plane: Plane) -> int | None:
    """The only value of `plane`; None where it has several."""
    value = int(plane[0, 0])
    rows = (plane[len(plane) // 2], plane[-1], plane)  # most that are not constant show it in a row
    return value if all((part == value).all() for part in rows) else None


def mode_of_four(plane: Plane) -> Plane:
    """(H, W) -> (h, w), rounded up: the most frequent value of each 2 x 2, the first in reading order where two are.

    Nodata stays only where all four are.
    """
    return _halved(plane, _mode)


def mean_of_four(plane: Plane) -> Plane:
    """(H, W) -> (h, w), rounded up: the mean of each 2 x 2, halves upward; nodata stays only where all four are."""
    return _halved(plane, _mean)


Pairs = NDArray[np.uint16]
"""Neighbours in a row, two in a number: the left one is the low byte."""


def _halved(plane: Plane, rule: Callable[[Pairs, Pairs], Plane]) -> Plane:
    """`rule` is asked where the four differ, which is rare in a mask; in noise it is asked everywhere."""
    upper, lower = _pairs(plane)
    half = upper.astype(np.uint8)
    differ = (upper != lower) | (upper >> 8 != half)
    many = np.count_nonzero(differ)
    if many > _FEW * differ.size:
        return rule(upper, lower)
    if many:
        where = np.flatnonzero(differ)
        half.ravel()[where] = rule(upper.ravel()[where], lower.ravel()[where])
    return half


def _mode(upper: Pairs, lower: Pairs) -> Plane:
    four = [pair.astype(np.uint8) for row in (upper, lower) for pair in (row, row >> 8)]
    best = four[3]
    for value in four[2::-1]:
        best = np.where(value == NODATA, best, value)
    for i, value in reversed(list(enumerate(four[:3]))):
        again = reduce(or_, (value == later for later in four[i + 1 :]))
        best = np.where(again & (value != NODATA), value, best)
    return best


def _mean(upper: Pairs, lower: Pairs) -> Plane:
    four = upper & 255, upper >> 8, lower & 255, lower >> 8
    total = four[0] + four[1] + four[2] + four[3]
    if max(value.max() for value in four) < NODATA:
        return np.asarray(total + 2 >> 2, np.uint8)
    missing = reduce(np.add, [(value == NODATA).view(np.uint8) for value in four])
    valid = np.maximum(4 - missing, 1)
    mean = (total - missing * np.uint16(NODATA) + valid // 2) // valid
    return np.where(missing == 4, NODATA, mean).astype(np.uint8)


def _pairs(plane: Plane) -> tuple[Pairs, Pairs]:
    """The upper and the lower row of each 2 x 2; beyond an odd edge lies nodata."""
    height, width = plane.shape
    if height % 2 or width % 2:
        plane = np.pad(plane, ((0, height % 2), (0, width % 2)), constant_values=NODATA)
    pairs = np.ascontiguousarray(plane).view("<u2")
    return pairs[0::2], pairs[1::2]
