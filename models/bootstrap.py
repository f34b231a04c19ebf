"""How sure a score is: blocks of ground are drawn again and again, with replacement.

Pixels beside one another are wrong together, so that whole blocks are drawn, never pixels. A statistic takes counts
of many draws at once, (D, ...), and returns (D,) or one value for each class, (D, K); NaN where it is 0/0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
LEVEL = 0.95
_AT_ONCE = 1 << 22
"""Weights held at once: draws times blocks."""

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]


def iou(counts: NDArray[np.number]) -> Floats:
    """(..., K) of confusion matrices (..., K, K); NaN for a class that is neither there nor predicted."""
    counts = np.asarray(counts, np.float64)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(hit / (counts.sum(-1) + counts.sum(-2) - hit))


def mean_iou(counts: NDArray[np.number]) -> Floats:
    """(...) of confusion matrices (..., K, K): mean over the classes that have an IoU; NaN where none has."""
    values = iou(counts)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(-1) / known.sum(-1))


def class_iou(index: int) -> Statistic:
    """The IoU of one class, (...) of confusion matrices (..., K, K)."""
    return lambda counts: iou(counts)[..., index]


def drawn(counts: NDArray[np.number], draws: int = DRAWS, seed: int = 0) -> Floats:
    """(D, ...) sums of as many blocks as there are, drawn with replacement from counts (B, ...).

    The same seed and number of blocks draw the same blocks: two models that are counted on the same blocks are
    compared draw by draw.
    """
    blocks, rng = len(counts), np.random.default_rng(seed)
    flat = np.asarray(counts, np.float64).reshape(blocks, -1)
    step, parts = max(1, _AT_ONCE // max(1, blocks)), []
    for start in range(0, draws, step):
        weights = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=min(step, draws - start))
        parts.append(weights.astype(np.float64) @ flat)
    return np.concatenate(parts).reshape(draws, *np.shape(counts)[1:])


def intervals(
    counts: NDArray[np.number], statistic: Statistic, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Floats:
    """(2,) or (2, K): lower and upper end of a statistic's interval; NaN where it has no value.

    Blocks without a count are not drawn: nobody has looked there. NaN as well where fewer than two blocks alone have a
    value: one says nothing about others.

    Args:
        counts: (B, ...) of each block of ground, such as confusion matrices (B, K, K).
        statistic: of counts (D, ...).
        draws: D.
        level: share of the draws between the two ends.
        seed: decides the draws.
    """
    floats = np.asarray(counts, np.float64)
    floats = floats[_counted(floats)]
    few = _tellers(statistic(floats)) < 2
    if few.all():
        return np.full((2, *few.shape), np.nan)
    return np.where(few, np.nan, _between(statistic(drawn(floats, draws, seed)), level))


def _counted(counts: Floats) -> NDArray[np.bool_]:
    """(B,): blocks with a count."""
    return np.asarray((counts != 0).any(axis=tuple(range(1, counts.ndim))))


def _tellers(values: Floats) -> NDArray[np.int64]:
    """() or (K,): how many blocks alone have a value, of (B,) or (B, K)."""
    return np.asarray(np.sum(~np.isnan(values), axis=0))


def _between(values: Floats, level: float) -> Floats:
    """(2, ...) quantiles over the draws that have a value."""
    tail = (1 - level) / 2
    empty = np.isnan(values).all(axis=0)
    ends = np.nanquantile(np.where(empty, 0.0, values), [tail, 1 - tail], axis=0)
    return np.where(empty, np.nan, ends)


@dataclass(frozen=True)
class Difference:
    """By how much the challenger's statistic is above the champion's, on the same ground."""

    value: float
    """On all blocks; NaN where one of them has no value."""
    low: float
    """Lower end of the interval; minus infinity where fewer than two blocks say anything about both."""
    high: float
    """Upper end; infinity likewise."""

    def facts(self) -> dict[str, float | None]:
        """As JSON takes it: None where there is no number."""
        pairs = {"value": self.value, "low": self.low, "high": self.high}
        return {key: value if np.isfinite(value) else None for key, value in pairs.items()}


def paired(  # noqa: PLR0917 - the two sides come first, as in `intervals` the one
    challenger: NDArray[np.number],
    champion: NDArray[np.number],
    statistic: Statistic,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """The difference of a statistic between two models, by drawing the same blocks for both; none where both are empty.

    A model does not differ from itself: value and interval are then exactly 0.

    Args:
        challenger: (B, ...) counts of each block.
        champion: likewise, of the same blocks in the same order.
        statistic: of counts (D, ...), with one value a draw.
        draws: D.
        level: share of the draws between the two ends.
        seed: decides the draws.

    Raises:
        ValueError: the numbers of blocks differ.
    """
    if len(challenger) != len(champion):
        raise ValueError(f"{len(challenger)} blocks of the challenger, {len(champion)} of the champion: not the same")
    sides = [np.asarray(side, np.float64) for side in (challenger, champion)]
    whole = [float(statistic(side.sum(0)[None])[0]) for side in sides]
    value, counted = whole[0] - whole[1], _counted(sides[0]) | _counted(sides[1])
    ours, others = (side[counted] for side in sides)
    if _tellers(statistic(ours) - statistic(others)) < 2:
        return Difference(value, -np.inf, np.inf)
    low, high = _between(statistic(drawn(ours, draws, seed)) - statistic(drawn(others, draws, seed)), level)
    return Difference(value, float(low), float(high))
