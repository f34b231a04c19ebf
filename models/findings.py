"""What was found out about a trained network on its chips: plain values, which import no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration import Reliability
from models.metrics import Counts


@dataclass(frozen=True)
class Split:
    """The chips of one split."""

    name: str
    chips: int
    scenes: int
    pixels: tuple[int, ...] | None
    """Labelled pixels of each class; None of sealed chips, whose labels the gate alone reads."""


@dataclass(frozen=True, eq=False)
class Reviewed:
    """One validation chip beside what the network makes of it."""

    scene: str
    row: int
    """First row in the scene, in pixels."""
    col: int
    pixels: NDArray[Any]
    """(C, S, S), in the scene's own type."""
    valid: NDArray[np.bool_]
    """(S, S), where the scene has data in all bands."""
    labels: NDArray[np.uint8]
    """(S, S), class ids; 255 where unlabelled or invalid."""
    prediction: NDArray[np.uint8]
    """(S, S), class ids."""
    score: float
    """Mean IoU over the classes that occur in the labels."""
    loss: float
    """Mean cross-entropy over the labelled pixels."""


@dataclass(frozen=True)
class Review:
    """The chips to look at."""

    worst: tuple[Reviewed, ...]
    """The worst one first."""
    best: tuple[Reviewed, ...]
    """The best one first; none of them is among the worst."""
    ranked: int
    """Chips that were compared."""
    unlabelled: int
    """Chips with too few labels to be ranked."""
    reliability: Reliability
    """Over the labelled pixels of all validation chips."""


@dataclass(frozen=True, eq=False)
class Tiling:
    """How a chip is cut into tiles, in the product's way: the caller takes it from the grid."""

    tile: int
    """Edge of the network's input, in pixels."""
    halo: int
    """Margin of a tile whose prediction is thrown away, in pixels."""
    cores: Sequence[tuple[tuple[slice, slice], tuple[slice, slice]]]
    """What each tile owns and what it reads, as slices of the chip; what is owned partitions the chip."""
    near: NDArray[np.bool_]
    """(S, S), the pixels near borders between cores."""
    reach: int
    """How far from a border a pixel may be to be near it, in pixels."""

    @property
    def core(self) -> int:
        """Edge of a core, in pixels."""
        return self.tile - 2 * self.halo


@dataclass(frozen=True, eq=False)
class Way:
    """One way to predict a chip, judged over all pixels that were looked at."""

    name: str
    near: Counts
    """(K, K), true by predicted class, near borders of cores."""
    inside: Counts
    """(K, K), likewise, everywhere else."""
    differ: float
    """Share of the valid pixels where the class is not the one that the whole chip at once is given."""
    compute: float
    """Pixels that the network reads for one pixel of a chip."""


@dataclass(frozen=True)
class Stitching:
    """What cutting into tiles costs: the same network, chips and pixels three ways."""

    chips: int
    edge: int
    """Of what is looked at of each chip, in pixels."""
    tiling: Tiling
    overlap: float
    """Of the windows that are blended, as a share of the tile."""
    sigma: float
    """Of their Gaussian weights, likewise."""
    ways: tuple[Way, ...]
    """Whole chip, cores, blended."""
