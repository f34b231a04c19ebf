"""Whether confidence means what it says: of the pixels of confidence 0.9, nine in ten should be right."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Bins of equal width between 0 and 1."""

Sums = NDArray[np.float64]


def _zeros() -> Sums:
    return np.zeros(BINS)


@dataclass(frozen=True)
class Reliability:
    """Pixels by their confidence. Those of disjoint parts add up to those of the whole."""

    pixels: Sums = field(default_factory=_zeros)
    """(15,) pixels in each bin, the last of which holds 1 too."""
    confidence: Sums = field(default_factory=_zeros)
    """(15,) sum of their confidences."""
    hits: Sums = field(default_factory=_zeros)
    """(15,) how many of them are right."""

    @classmethod
    def of(cls, confidence: NDArray[np.floating], hits: NDArray[np.bool_]) -> Self:
        """Count pixels; NaN stands for no confidence, and does not count.

        Args:
            confidence: largest probability, 0 to 1, any shape.
            hits: whether the label is right, the same shape.

        Raises:
            ValueError: a confidence is below 0 or above 1.
        """
        known = ~np.isnan(confidence)
        values = np.asarray(confidence[known], np.float64)
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"confidences from {values.min():g} to {values.max():g}: allowed are 0 to 1")
        bins = np.minimum((values * BINS).astype(np.intp), BINS - 1)
        weights = (None, values, hits[known].astype(np.float64))
        return cls(*(np.bincount(bins, weight, BINS).astype(np.float64) for weight in weights))

    def __add__(self, other: Self) -> "Reliability":
        return Reliability(self.pixels + other.pixels, self.confidence + other.confidence, self.hits + other.hits)

    @property
    def ece(self) -> float | None:
        """Expected calibration error: distance between confidence and share of hits, mean over pixels."""
        total = float(self.pixels.sum())
        return float(np.abs(self.confidence - self.hits).sum() / total) if total else None
