"""What stitching costs: chips predicted whole, by tiles that keep their cores, and by overlapped Gaussian blending."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from models.bundle import Bundle
from models.dataset import Chips
from models.findings import Stitching, Tiling, Way
from models.metrics import confusion
from models.review import Predict, stored_network
from models.sampling import normalised
from models.spec import NODATA

OVERLAP = 0.25
"""Of neighbouring windows that are blended, as a share of the tile: the default of MONAI's sliding window."""
SIGMA = 0.125
"""Of the Gaussian weights of a window, likewise."""
LEAST_WEIGHT = 1e-3
"""Smallest weight of a pixel in its window, where the largest is 1."""
BUDGET = 4 << 20
"""Pixels of chips that are looked at."""


def stitching(bundle: Bundle, chips: Chips, tiling: Tiling, *, budget: int = BUDGET) -> Stitching:
    """Predict validation chips three ways, and compare them near the borders of cores and inside.

    Of each chip, its first rows and columns are looked at, as many as `tiling.near` has; of all chips, some that are
    spread over the list, at most about `budget` pixels.
    """
    edge, predict = len(tiling.near), stored_network(bundle)
    indices = _spread(chips.indices("val"), max(1, budget // edge**2))
    windows = blend_windows(edge, tiling.tile, OVERLAP)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "whole chip": predict,
        "cores": lambda x: by_cores(predict, x, tiling),
        "blended": lambda x: blended(predict, x, tiling.tile, windows),
    }
    near, inside = (np.zeros((len(ways), *[len(bundle.spec.classes)] * 2), np.int64) for _ in range(2))
    differ, pixels = np.zeros(len(ways), np.int64), 0
    for index in indices:
        x, known, labels = (part[..., :edge, :edge] for part in normalised(chips, index, bundle.spec.bands))
        answers = [way(x).argmax(0).to(torch.uint8).numpy() for way in ways.values()]
        pixels += int(known.sum())
        for i, answer in enumerate(answers):
            for counts, part in ((near, tiling.near), (inside, ~tiling.near)):
                truth = np.where(part, labels.numpy(), np.uint8(NODATA))
                counts[i] += confusion(truth, answer, len(bundle.spec.classes))
            differ[i] += np.count_nonzero((answer != answers[0]) & known.numpy())
    tiles = {"whole chip": edge**2, "cores": len(_read(tiling)) * tiling.tile**2}
    tiles["blended"] = len(windows) ** 2 * tiling.tile**2
    return Stitching(
        chips=len(indices),
        edge=edge,
        tiling=tiling,
        overlap=OVERLAP,
        sigma=SIGMA,
        ways=tuple(
            Way(name, near[i], inside[i], float(differ[i] / max(pixels, 1)), tiles[name] / edge**2)
            for i, name in enumerate(ways)
        ),
    )


def by_cores(predict: Predict, x: Tensor, tiling: Tiling) -> Tensor:
    """Logits (K, H, W) of x (C, H, W): each pixel's are those of the tile that owns it, alone."""
    answers = {place: predict(x[(..., *tile)]) for place, tile in _read(tiling).items()}
    out = x.new_empty((len(next(iter(answers.values()))), *x.shape[1:]))
    for (rows, cols), tile in tiling.cores:
        kept = (
            slice(rows.start - tile[0].start, rows.stop - tile[0].start),
            slice(cols.start - tile[1].start, cols.stop - tile[1].start),
        )
        out[:, rows, cols] = answers[tile[0].start, tile[1].start][(..., *kept)]
    return out


def _read(tiling: Tiling) -> dict[tuple[int, int], tuple[slice, slice]]:
    """Each tile once, by its first pixel: cores at an edge may share one."""
    return {(rows.start, cols.start): (rows, cols) for _, (rows, cols) in tiling.cores}


def blended(predict: Predict, x: Tensor, tile: int, starts: Sequence[int]) -> Tensor:
    """Logits (K, H, W) of x (C, H, W): the mean over all windows, weighted by a Gaussian around each one's centre."""
    weights = gaussian(tile)
    total, weight = torch.zeros(()), torch.zeros(x.shape[1:])
    for row in starts:
        for col in starts:
            part = (..., slice(row, row + tile), slice(col, col + tile))
            logits = predict(x[part])
            if total.ndim == 0:
                total = torch.zeros((len(logits), *x.shape[1:]))
            total[part] += logits * weights
            weight[part] += weights
    return total / weight


def blend_windows(length: int, tile: int, overlap: float) -> tuple[int, ...]:
    """First pixels of windows along an axis: in even steps, the last one moved inward to end at the edge."""
    step = int(tile * (1 - overlap))
    count = math.ceil((length - tile) / step) + 1
    return tuple(min(i * step, length - tile) for i in range(count))


def gaussian(tile: int) -> Tensor:
    """(tile, tile): weights of a window's pixels, 1 at its centre, nowhere below `LEAST_WEIGHT`."""
    place = torch.arange(tile) - (tile - 1) / 2
    line = torch.exp(-0.5 * (place / (SIGMA * tile)) ** 2)
    return (line[:, None] * line).clamp(min=LEAST_WEIGHT)


def _spread(indices: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, evenly spread."""
    count = min(len(indices), most)
    return [indices[i * len(indices) // count] for i in range(count)]
