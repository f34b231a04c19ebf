"""Scores from pooled pixels: one confusion matrix over everything, then IoU, F1, precision and recall a class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.spec import NODATA

Counts = NDArray[np.int64]
"""(K, K) pixels: row = true class, column = predicted class."""


def confusion(labels: NDArray[np.uint8], predictions: NDArray[np.uint8], classes: int) -> Counts:
    """Count pixels by (true, predicted) class. Counts of disjoint parts add up to the counts of the whole.

    Pixels that are 255 in either array do not count.

    Args:
        labels: class ids or 255, any shape.
        predictions: the same shape.
        classes: K.

    Raises:
        ValueError: the shapes differ, or an id is neither below K nor 255.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels are {labels.shape} but predictions are {predictions.shape}")
    known = (labels != NODATA) & (predictions != NODATA)
    pairs = labels[known].astype(np.int64) * 256 + predictions[known]
    counts = np.bincount(pairs, minlength=65536).reshape(256, 256)
    if counts[classes:].any() or counts[:, classes:].any():
        raise ValueError(f"labels or predictions hold ids of {classes} and more: there are {classes} classes and 255")
    return counts[:classes, :classes].astype(np.int64)


def scores(counts: Counts, names: Sequence[str]) -> dict[str, object]:
    """Scores of each class and over all, as JSON takes them; None where a score is 0/0.

    `iou`, `f1`, `precision`, `recall` by class name; `mean_iou` and `mean_f1` over the classes that have one;
    `accuracy`; `pixels`, or whatever was counted.
    """
    hit = counts.diagonal()
    true, predicted, total = counts.sum(1), counts.sum(0), int(counts.sum())
    iou = list(map(_ratio, hit, true + predicted - hit))
    f1 = [_ratio(2 * h, t + p) for h, t, p in zip(hit, true, predicted, strict=True)]
    return {
        "iou": dict(zip(names, iou, strict=True)),
        "f1": dict(zip(names, f1, strict=True)),
        "precision": dict(zip(names, map(_ratio, hit, predicted), strict=True)),
        "recall": dict(zip(names, map(_ratio, hit, true), strict=True)),
        "mean_iou": _mean(iou),
        "mean_f1": _mean(f1),
        "accuracy": _ratio(hit.sum(), total),
        "pixels": total,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
