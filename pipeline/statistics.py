"""What a block of a mask adds up to: pixels and areas by class, confidence by bin."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.spec import NODATA
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.ledger import BlockRecord

T = TypeVar("T")

CELL = 128
"""Edge of the cells within which a pixel's ground area counts as constant, in pixels: 2e-5 off at 0.01 degrees."""
EVEN = 1e-6
"""Relative difference up to which the pixels of two cells count as equal in area."""
BINS = 16


def histogram(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels by value, (256,). Pillow's counts bytes as they are; `numpy.bincount` widens them to 8 bytes first.

    As bands of one picture, each with counts of its own: where neighbours are alike, a count waits for the one before.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    bands = flat[: flat.size // 4 * 4].reshape(1, -1, 4)
    counts = np.bincount(flat[bands.size :], minlength=256).astype(np.int64)
    if bands.size:
        counts += np.asarray(Image.fromarray(bands).histogram(), np.int64).reshape(4, 256).sum(0)
    return counts


def class_sums(labels: NDArray[np.uint8], window: Window, georef: Georef) -> tuple[dict[int, int], dict[int, float]]:
    """Pixels and square metres by class of `labels` (H, W), which lie at `window` of the scene.

    Classes that do not occur and nodata are left out; there are no areas where `Georef.pixel_area` has none.
    """
    rows = np.arange(0, window.height, CELL)
    cols = np.arange(0, window.width, CELL)
    centre_rows = window.row + (rows + np.minimum(rows + CELL, window.height)) / 2
    centre_cols = window.col + (cols + np.minimum(cols + CELL, window.width)) / 2
    pixel = georef.pixel_area(*np.meshgrid(centre_rows, centre_cols, indexing="ij"))
    if pixel is None:
        return _occurring(histogram(labels), int), {}
    counts, areas = _sums(labels, np.nan_to_num(pixel, nan=0.0))  # beyond the Earth's limb there is no ground
    return _occurring(counts, int), _occurring(areas, float)


def _occurring(sums: NDArray[Any], kind: Callable[[Any], T]) -> dict[int, T]:
    """Sums (256,) by value, without those that are 0 and that of nodata."""
    return {int(value): kind(sums[value]) for value in np.flatnonzero(sums) if value != NODATA}


def _sums(labels: NDArray[np.uint8], pixel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels and area by value, (2, 256), of `labels` (H, W), whose cells have pixels of area `pixel`.

    Cells of equal area are counted at once.
    """
    if np.ptp(pixel) <= EVEN * pixel.max():
        counts = histogram(labels)
        return np.stack([counts, counts * pixel.mean()])
    axis = 0 if np.ptp(pixel, axis=0).max() >= np.ptp(pixel, axis=1).max() else 1
    middle = pixel.shape[axis] // 2
    parts = zip(np.split(labels, [middle * CELL], axis), np.split(pixel, [middle], axis), strict=True)
    return np.asarray(np.sum([_sums(*part) for part in parts], axis=0))


def confidence_bins(confidence: NDArray[np.uint8]) -> tuple[int, ...]:
    """Pixels by confidence (H, W; 0..254 for 0..1), in `BINS` bins of equal width, nodata left out."""
    counts = histogram(confidence)[:NODATA]
    return tuple(int(part.sum()) for part in np.array_split(counts, BINS))


def class_totals(records: Iterable[BlockRecord]) -> Counter[int]:
    """Pixels by class over all blocks."""
    return sum((Counter(record.counts) for record in records), Counter())


def area_totals(records: Iterable[BlockRecord]) -> dict[int, float] | None:
    """Square metres by class over all blocks; None where a pixel's size is not known."""
    areas: defaultdict[int, float] = defaultdict(float)
    for record in records:
        for value, area in record.areas.items():
            areas[value] += area
    return areas or None


def confidence_totals(records: Iterable[BlockRecord]) -> list[int]:
    """Valid pixels by confidence over all blocks, in `BINS` bins of equal width over 0..1."""
    return [sum(bins) for bins in zip(*(record.confidence for record in records), strict=True)]


def mean_confidence(records: Iterable[BlockRecord]) -> float | None:
    """Mean of the confidence over all blocks, to half a bin; None where no pixel has one."""
    totals = confidence_totals(records)
    pixels = sum(totals)
    return sum(count * (i + 0.5) for i, count in enumerate(totals)) / (pixels * BINS) if pixels else None
