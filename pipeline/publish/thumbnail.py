"""Small views of huge scenes and masks, made window by window in bounded memory.

A view's pixel stands for one cell: `factor` x `factor` pixels of the scene, of which at most 7 x 7, evenly spaced,
are looked at. Cells at the far edges may overhang the scene; its last row and column fill them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import NODATA
from pipeline.grid import Window
from pipeline.scene import Source
from pipeline.store import read_plane

_SAMPLES = 4
"""Pixels looked at along a cell's edge: at least this many, or all, and fewer than twice as many."""
_WINDOW = 2048
"""Edge of what is read at once, in pixels."""


def shrink_image(source: Source, factor: int, *, bands: int = 3) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The first `bands` bands as (C, h, w), the mean of each cell's valid pixels, and (h, w): which cells have any."""
    shape = _shape(source.height, source.width, factor)
    image = np.zeros((min(bands, len(source.bands)), *shape), np.float32)
    seen = np.zeros(shape, np.bool_)
    for window, (rows, cols) in _windows(source.height, source.width, factor):
        pixels, valid = source.read(window)
        image[:, rows, cols], seen[rows, cols] = _mean(pixels[:bands], valid, factor)
    return image, seen


def shrink_mask(mask_store: Path, height: int, width: int, factor: int) -> NDArray[np.uint8]:
    """The most frequent label of each cell, as (h, w); the smallest where several are."""
    labels = np.full(_shape(height, width, factor), NODATA, np.uint8)
    for window, (rows, cols) in _windows(height, width, factor):
        labels[rows, cols] = _majority(read_plane(mask_store, "labels", window), factor)
    return labels


def _shape(height: int, width: int, factor: int) -> tuple[int, int]:
    return -(-height // factor), -(-width // factor)


def _windows(height: int, width: int, factor: int) -> Iterator[tuple[Window, tuple[slice, slice]]]:
    """Windows of whole cells that partition the scene, each with its slices of the view."""
    edge = factor * max(1, _WINDOW // factor)
    for row in range(0, height, edge):
        for col in range(0, width, edge):
            window = Window(row, col, min(edge, height - row), min(edge, width - col))
            down, across = _shape(window.height, window.width, factor)
            top, left = row // factor, col // factor
            yield window, (slice(top, top + down), slice(left, left + across))


def _cells(array: NDArray[Any], factor: int) -> NDArray[Any]:
    """(..., H, W) -> (..., h, w, samples): the pixels of each cell that are looked at."""
    *lead, height, width = array.shape
    down, across = _shape(height, width, factor)
    overhang = [(0, 0)] * len(lead) + [(0, down * factor - height), (0, across * factor - width)]
    step = max(1, factor // _SAMPLES)
    cells = np.pad(array, overhang, mode="edge").reshape(*lead, down, factor, across, factor)
    samples = np.moveaxis(cells[..., ::step, :, ::step], -3, -2)
    return samples.reshape(*lead, down, across, -1)


def _mean(pixels: NDArray[Any], valid: NDArray[np.bool_], factor: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    weights = _cells(valid, factor)
    count = weights.sum(axis=-1)
    # Band by band: a quarter of the memory. Summed only where valid, so that no NaN gets in.
    sums = [np.sum(_cells(band, factor), axis=-1, where=weights, dtype=np.float32) for band in pixels]
    return np.stack(sums) / np.maximum(count, 1).astype(np.float32), count > 0


def _majority(labels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    cells = _cells(labels, factor)
    best, votes = cells[..., 0].copy(), np.zeros(cells.shape[:-1], np.intp)
    for value in np.unique(cells):
        count = (cells == value).sum(axis=-1)
        best[count > votes] = value
        votes = np.maximum(votes, count)
    return best
