"""Boundary F1: how well the outlines of classes agree, whatever the size of what they enclose.

Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?".
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.objects import disk
from models.spec import NODATA

TOLERANCE = 2
"""Pixels that an outline may be off."""

Labels = NDArray[np.uint8]
Outlines = NDArray[np.int64]
"""(K, 4) contour pixels of each class: true, true ones that were found, predicted, predicted ones that are true."""


def contours(labels: Labels) -> Labels:
    """(H, W): the class of each pixel that touches another class by an edge, else 255.

    An edge towards 255, or the array's own, is none: nobody knows what lies beyond.
    """
    rim = np.zeros(labels.shape, np.bool_)
    for here, there in (((slice(None, -1),), (slice(1, None),)), ((..., slice(None, -1)), (..., slice(1, None)))):
        apart = (labels[here] != labels[there]) & (labels[here] != NODATA) & (labels[there] != NODATA)
        rim[here] |= apart
        rim[there] |= apart
    return np.where(rim, labels, np.uint8(NODATA))


@dataclass(frozen=True)
class Agreement:
    """The contours of labels and predictions of one array, and which of their pixels the other has nearby."""

    true: Labels
    """(H, W) class of each pixel on a contour of the labels, else 255."""
    found: NDArray[np.bool_]
    """(H, W) those of `true` that have a predicted contour of their class within the tolerance."""
    predicted: Labels
    """(H, W) class of each pixel on a contour of the predictions, else 255."""
    right: NDArray[np.bool_]
    """(H, W) those of `predicted` that have a true contour of their class within the tolerance."""

    @classmethod
    def of(cls, labels: Labels, predictions: Labels, tolerance: int = TOLERANCE) -> Self:
        """Compare where both are known.

        Args:
            labels: (H, W) class ids or 255.
            predictions: likewise.
            tolerance: largest distance between two contour pixels that agree, in pixels.
        """
        known = (labels != NODATA) & (predictions != NODATA)
        true, predicted = (contours(np.where(known, one, np.uint8(NODATA))) for one in (labels, predictions))
        return cls(true, _near(true, predicted, tolerance), predicted, _near(predicted, true, tolerance))

    def counts(self, classes: int, part: tuple[slice, slice] = (slice(None), slice(None))) -> Outlines:
        """(K, 4) of the pixels in `part`. Counts of disjoint parts add up to those of the whole."""
        true, predicted = self.true[part], self.predicted[part]
        groups = (true, true[self.found[part]], predicted, predicted[self.right[part]])
        counts = [np.bincount(group.ravel(), minlength=256)[:classes] for group in groups]
        return np.stack(counts, axis=1).astype(np.int64)


def _near(these: Labels, those: Labels, tolerance: int) -> NDArray[np.bool_]:
    """(H, W): pixels of the contours `these` with a pixel of the same class in `those` within `tolerance`.

    A contour has few pixels, and a small disk fewer: looking at each is faster than distances over the whole array.
    """
    rows, cols = np.nonzero(these != NODATA)
    wanted = these[rows, cols]
    around = np.pad(those, tolerance, constant_values=NODATA)
    hit = np.zeros(len(rows), np.bool_)
    for down, across in disk(tolerance):
        hit |= around[rows + tolerance + down, cols + tolerance + across] == wanted
    near = np.zeros(these.shape, np.bool_)
    near[rows, cols] = hit
    return near


def f1(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """(..., K) from counts (..., K, 4): harmonic mean of precision and recall; NaN where neither side has a contour."""
    true, found, predicted, right = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / predicted, found / true
        both = 2 * precision * recall / (precision + recall)
    missed = (true + predicted > 0) & ((found == 0) | (right == 0))
    return np.where(missed, 0.0, both)
