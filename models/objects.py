"""Objects: the connected things of a class, and how many of them were found (AP50)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Ids = NDArray[np.int32]
"""(H, W) number of the object that a pixel belongs to, 0 where there is none."""

REACH = 3
"""Pixels of a boundary class that an object may take back, counted from its rim."""


def instances(labels: NDArray[np.uint8], *, of: int, boundary: int | None = None, reach: int = REACH) -> Ids:
    """Objects of class `of`: its components by edges (4 neighbours: corners do not join), numbered from 1.

    Pixels of class `boundary` within `reach` pixels of an object go to the nearest one, the others to none.

    Args:
        labels: (H, W) class ids.
        of: the class whose objects are wanted.
        boundary: the class that separates touching objects; None where there is none.
        reach: largest distance of a boundary pixel from its object, in pixels.
    """
    numbered, _ = ndimage.label(labels == of)
    ids: Ids = numbered.astype(np.int32, copy=False)
    return ids if boundary is None else _grown(ids, labels == boundary, reach)


def _grown(ids: Ids, into: NDArray[np.bool_], reach: int) -> Ids:
    """`ids`, and for each pixel of `into` the nearest of them within `reach`; ties go up, then left."""
    rows, cols = np.nonzero(into)
    around, taken = np.pad(ids, reach), np.zeros(len(rows), np.int32)
    for down, across in disk(reach):
        found = around[rows + reach + down, cols + reach + across]
        taken = np.where(taken, taken, found)
    grown = ids.copy()
    grown[rows, cols] = taken
    return grown


def disk(radius: int) -> list[tuple[int, int]]:
    """Steps (rows, cols) of at most `radius` pixels, nearest first."""
    steps = [(down, across) for down in range(-radius, radius + 1) for across in range(-radius, radius + 1)]
    return sorted((s for s in steps if s[0] ** 2 + s[1] ** 2 <= radius**2), key=lambda s: s[0] ** 2 + s[1] ** 2)


@dataclass(frozen=True)
class Matches:
    """Objects of an image, or of several together."""

    tp: int
    """True objects that a predicted one covers."""
    fp: int
    """Predicted objects without a true one."""
    fn: int
    """True objects without a predicted one."""

    @property
    def score(self) -> float | None:
        """TP / (TP + FP + FN); None where there is nothing."""
        total = self.tp + self.fp + self.fn
        return self.tp / total if total else None

    def __add__(self, other: "Matches") -> "Matches":
        return Matches(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


def match(true: NDArray[np.integer], predicted: NDArray[np.integer], iou: float = 0.5) -> Matches:
    """Pairs of a true and a predicted object whose IoU is above `iou`. Above 0.5 an object has one partner at most.

    Args:
        true: (H, W) ids, 0 where there is no object.
        predicted: likewise; ids need not agree with those of `true`.
        iou: 0.5 or more.

    Raises:
        ValueError: the shapes differ, or `iou` is below 0.5.
    """
    if true.shape != predicted.shape:
        raise ValueError(f"true objects are {true.shape} but predicted ones are {predicted.shape}")
    if iou < 0.5:
        raise ValueError(f"iou is {iou}: below 0.5 an object may have several partners")
    true, predicted = compact(true), compact(predicted)
    true_area, area = np.bincount(true.ravel()), np.bincount(predicted.ravel())
    both = (true > 0) & (predicted > 0)
    pairs, common = np.unique(true[both].astype(np.int64) * len(area) + predicted[both], return_counts=True)
    one, other = np.divmod(pairs, len(area))
    tp = int(np.sum(common > iou * (true_area[one] + area[other] - common)))
    return Matches(tp, int(np.count_nonzero(area[1:])) - tp, int(np.count_nonzero(true_area[1:])) - tp)


def compact(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """The same objects under smaller numbers where theirs are so large that counting by number would not fit."""
    if not ids.size or int(ids.max()) <= 4 * ids.size + 256:
        return ids
    known, small = np.unique(ids, return_inverse=True)
    return np.asarray(small.reshape(ids.shape) + int(known[0] > 0))


def ap50(matches: Sequence[Matches]) -> float | None:
    """TP / (TP + FP + FN) of each image, mean over images: the Data Science Bowl's score at its first threshold.

    An image with neither true nor predicted objects does not count (there, each image has some); one with only
    predicted objects counts as 0. None where no image counts.
    """
    scores = [score for one in matches if (score := one.score) is not None]
    return sum(scores) / len(scores) if scores else None
