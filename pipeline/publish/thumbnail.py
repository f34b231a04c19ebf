"""Small views of huge scenes and masks, made window by window in bounded memory.

A view's pixel stands for one cell: `factor` x `factor` pixels of the scene, of which all up to 7 x 7, or else 4 x 4,
evenly spaced, are looked at; those of a scene come from its overviews, if it has some. Cells at the far edges may
overhang the scene; its last row and column fill them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import Window, spread
from pipeline.scene import Source
from pipeline.shards import layout_of
from pipeline.store import read_plane

_SAMPLES = 4
"""Pixels looked at along a cell's edge, where it has twice as many."""
_WINDOW = 2048
"""Edge of what is read at once, in pixels."""
_STRIP = 64
"""Rows of cells whose labels are counted at once."""


def shrink_image(source: Source, factor: int, *, bands: int = 3) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The first `bands` bands as (C, h, w), the mean of each cell's valid pixels, and (h, w): which cells have any."""
    shape = _shape(source.height, source.width, factor)
    image = np.zeros((min(bands, len(source.bands)), *shape), np.float32)
    seen = np.zeros(shape, np.bool_)
    for window, (rows, cols) in _windows(source.height, source.width, factor):
        pixels, valid = source.sample(window, (_samples(window.height, factor), _samples(window.width, factor)))
        image[:, rows, cols], seen[rows, cols] = _mean(pixels[:bands], valid, factor)
    return image, seen


def shrink_mask(mask_store: Path, height: int, width: int, factor: int) -> NDArray[np.uint8]:
    """The most frequent label of each cell, as (h, w); the smallest where several are."""
    chunk = layout_of(mask_store / "labels").chunk[-1]
    edge = chunk * max(1, _WINDOW // chunk)  # each chunk is decoded once
    lines, columns = _positions(height, factor), _positions(width, factor)
    samples = np.empty((len(lines), len(columns)), np.uint8)
    for row in range(0, height, edge):
        for col in range(0, width, edge):
            window = Window(row, col, min(edge, height - row), min(edge, width - col))
            down, across = _between(lines, row, window.stop_row), _between(columns, col, window.stop_col)
            plane = read_plane(mask_store, "labels", window)
            samples[down, across] = plane[lines[down, None] - row, columns[across] - col]
    strip = _STRIP * _density(factor)  # strip by strip: the votes of all cells at once take three times the samples
    parts = [_majority(samples[top : top + strip], factor) for top in range(0, len(samples), strip)]
    return np.concatenate(parts)


def _positions(length: int, factor: int) -> NDArray[np.intp]:
    """The rows, or columns, of the pixels that are looked at."""
    parts = ((start, stop - start) for start, stop in _cuts(length, factor))
    return np.concatenate([start + spread(part, _samples(part, factor)) for start, part in parts])


def _between(positions: NDArray[np.intp], start: int, stop: int) -> slice:
    first, last = np.searchsorted(positions, [start, stop])
    return slice(int(first), int(last))


def _shape(height: int, width: int, factor: int) -> tuple[int, int]:
    return -(-height // factor), -(-width // factor)


def _windows(height: int, width: int, factor: int) -> Iterator[tuple[Window, tuple[slice, slice]]]:
    """Windows of whole cells, or of overhanging ones, that partition the scene; each with its slices of the view."""
    for top, bottom in _cuts(height, factor):
        for left, right in _cuts(width, factor):
            rows, cols = (slice(a // factor, -(-b // factor)) for a, b in ((top, bottom), (left, right)))
            yield Window(top, left, bottom - top, right - left), (rows, cols)


def _cuts(length: int, factor: int) -> Iterator[tuple[int, int]]:
    """Whole cells, about `_WINDOW` pixels at once; what is left stands alone, so that all windows sample alike."""
    edge, whole = factor * max(1, _WINDOW // factor), length // factor * factor
    yield from ((start, min(start + edge, whole)) for start in range(0, whole, edge))
    if whole < length:
        yield whole, length


def _density(factor: int) -> int:
    """Pixels looked at along a cell's edge."""
    return factor if factor < 2 * _SAMPLES else _SAMPLES


def _samples(length: int, factor: int) -> int:
    """How many of the rows, or columns, of a window are looked at."""
    return -(-length * _density(factor) // factor)


def _cells(samples: NDArray[Any], factor: int) -> NDArray[Any]:
    """(..., H, W) -> (..., h, w, samples): the pixels of each cell that are looked at."""
    edge = _density(factor)
    *lead, height, width = samples.shape
    down, across = _shape(height, width, edge)
    overhang = [(0, 0)] * len(lead) + [(0, down * edge - height), (0, across * edge - width)]
    cells = np.pad(samples, overhang, mode="edge").reshape(*lead, down, edge, across, edge)
    return np.moveaxis(cells, -3, -2).reshape(*lead, down, across, -1)


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
