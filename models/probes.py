"""Tiles on which engines are compared: real crops of the bundle, and patterns that real crops lack.

The first six (those that a loaded engine must answer) hold real content, a nodata edge, noise, corners and slopes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, load_probes
from models.engines.base import Batch
from models.spec import ModelSpec

Pattern = Callable[[int, int, np.random.Generator], tuple[NDArray[Any], NDArray[np.bool_]]]
"""(bands, tile, generator) -> values (C, T, T) from 0 to 1, valid (T, T)."""

REAL, FEWEST, PIXELS = 8, 6, 8 << 20
"""Real probes; probes at least; pixels beyond which no further probes are made."""
POISON = {"uint8": 255, "uint16": 65535, "int16": -9999, "float32": np.nan}
"""Stored value of invalid pixels: none of it may reach a valid one."""


@dataclass(frozen=True, eq=False)
class Probe:
    """One tile with its radiometry."""

    name: str
    real: bool
    """Whether it shows what the bundle was trained for."""
    batch: Batch
    """Of one tile."""
    varied: bool = True
    """Whether it has content; else it is the same all over."""
    squares: bool = False
    """Whether one answer fills a square: a probe then holds so few of them that a near tie must not decide."""


def probes(bundle: Bundle, tile: int, dtype: str) -> Iterator[Probe]:
    """Twenty probes of one edge and type, fewer on large tiles; always the same ones in the same order."""
    spec, crops = bundle.spec, load_probes(bundle)
    patterns = [partial(_artificial, spec, name, tile, dtype) for name in PATTERNS]
    real = [partial(_real, spec, crops, turn, tile, dtype) for turn in range(REAL)] if crops else []
    order = [*real[:2], *patterns[:3], *real[2:3], *patterns[3:], *real[3:]]
    for make in order[: max(FEWEST, PIXELS // tile**2)]:
        yield replace(make(), squares=spec.cell > 1)


def _real(spec: ModelSpec, crops: list[tuple[Any, Any]], turn: int, tile: int, dtype: str) -> Probe:
    """The tile covered by the crops in turn, each one mirrored where it repeats; turn 1 has a nodata edge."""
    edge = min(tile, *(size for crop, _ in crops for size in crop.shape[1:]))
    cells = -(-tile // edge)
    pixels = np.empty((crops[0][0].shape[0], cells * edge, cells * edge), crops[0][0].dtype)
    valid = np.empty(pixels.shape[1:], bool)
    for cell in range(cells * cells):
        crop, mask = crops[(turn + cell) % len(crops)]
        step = -1 if (turn + cell) // len(crops) % 2 else 1
        rows, cols = (slice(at * edge, (at + 1) * edge) for at in divmod(cell, cells))
        pixels[:, rows, cols], valid[rows, cols] = crop[:, :edge, :edge][:, ::step], mask[:edge, :edge][::step]
    if turn == 1:
        valid &= _edge(tile, len(valid))
    scale, offset = _radiometry_of(spec, [crop for crop, _ in crops])
    values = pixels * scale[:, None, None] + offset[:, None, None]
    return Probe(f"real-{turn}", True, _store(spec, values[:, :tile, :tile], valid[:tile, :tile], dtype))


def _artificial(spec: ModelSpec, name: str, tile: int, dtype: str) -> Probe:
    generator = np.random.default_rng(list(PATTERNS).index(name))
    values, valid = PATTERNS[name](len(spec.bands), tile, generator)
    low, high = _range(spec)
    return Probe(name, False, _store(spec, low + values * (high - low), valid, dtype), varied=name not in UNIFORM)


def _store(spec: ModelSpec, values: NDArray[Any], valid: NDArray[np.bool_], dtype: str) -> Batch:
    """Values (C, T, T) in the bands' units as a scene of type `dtype` would store them: over its whole range."""
    low, high = (bound[:, 0, 0] for bound in _range(spec))
    bottom, top = (0, 1) if dtype == "float32" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    scale = (high - low) / (top - bottom)
    offset = low - bottom * scale
    stored = (values - offset[:, None, None]) / scale[:, None, None]
    if dtype != "float32":
        stored = np.clip(np.rint(stored), bottom, top)
    stored = np.where(valid, stored, POISON[dtype]).astype(dtype)
    return Batch(stored[None], valid[None], scale.astype(np.float32), offset.astype(np.float32))


def _range(spec: ModelSpec) -> tuple[NDArray[Any], NDArray[Any]]:
    """Range seen in training, (C, 1, 1) each, in the bands' units."""
    low = np.array([band.low for band in spec.bands], np.float64).reshape(-1, 1, 1)
    high = np.array([band.high for band in spec.bands], np.float64).reshape(-1, 1, 1)
    return low, np.maximum(high, low + 1e-6)


def _radiometry_of(spec: ModelSpec, crops: list[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scale and offset (C,) of the crops: none if they are in the bands' units, else their range is stretched to it."""
    low, high = (bound[:, 0, 0] for bound in _range(spec))
    least = np.min([crop.min(axis=(1, 2)) for crop in crops], axis=0).astype(np.float64)
    most = np.max([crop.max(axis=(1, 2)) for crop in crops], axis=0).astype(np.float64)
    slack = (high - low) / 2
    if (least >= low - slack).all() and (most <= high + slack).all():
        return np.ones_like(low), np.zeros_like(low)
    scale = (high - low) / np.maximum(most - least, 1e-6)
    return scale, low - least * scale


def _everything(tile: int) -> NDArray[np.bool_]:
    return np.ones((tile, tile), bool)


def _edge(tile: int, size: int) -> NDArray[np.bool_]:
    rows, cols = np.indices((size, size))
    return np.asarray(rows * 2 + cols < 2 * tile)


def _board(cell: int) -> Pattern:
    def pattern(bands: int, tile: int, _: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        rows, cols = np.indices((tile, tile)) // cell
        return np.stack([(rows + cols + band) % 2 for band in range(bands)]), _everything(tile)

    return pattern


def _flat(value: float) -> Pattern:
    return lambda bands, tile, _: (np.full((bands, tile, tile), value), _everything(tile))


def _noise(cell: int) -> Pattern:
    def pattern(bands: int, tile: int, generator: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        cells = -(-tile // cell)
        values = generator.random((bands, cells, cells)).repeat(cell, 1).repeat(cell, 2)
        return values[:, :tile, :tile], _everything(tile)

    return pattern


def _ramp(bands: int, tile: int, _: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    rows, cols = np.indices((tile, tile)) / max(tile - 1, 1)
    return np.stack([(rows, cols, 1 - rows, 1 - cols)[band % 4] for band in range(bands)]), _everything(tile)


def _waves(bands: int, tile: int, _: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    rows, cols = np.indices((tile, tile))
    return np.stack([np.sin((rows + (band + 2) * cols) / 7) / 2 + 0.5 for band in range(bands)]), _everything(tile)


def _masked(pattern: Pattern, mask: Callable[[int, np.random.Generator], NDArray[np.bool_]]) -> Pattern:
    return lambda bands, tile, generator: (pattern(bands, tile, generator)[0], mask(tile, generator))


def _rim(tile: int, _: np.random.Generator) -> NDArray[np.bool_]:
    valid = _everything(tile)
    valid[-tile // 4 :], valid[:, -tile // 8 :] = False, False
    return valid


PATTERNS: dict[str, Pattern] = {
    "noise": _noise(1),
    "board": _board(8),
    "ramp": _ramp,
    "patches": _noise(16),
    "holes": _masked(_noise(16), lambda tile, generator: generator.random((tile, tile)) > 0.05),
    "rim": _masked(_noise(4), _rim),
    "edge": _masked(_waves, lambda tile, _: _edge(tile, tile)),
    "waves": _waves,
    "pixels": _board(1),
    "zeros": _flat(0),
    "most": _flat(1),
    "invalid": _masked(_noise(1), lambda tile, _: np.zeros((tile, tile), bool)),
}
UNIFORM = ("zeros", "most", "invalid")
"""Patterns without content."""
