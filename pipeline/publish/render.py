"""Arrays as colours: a scene as the eye expects it, and classes laid over it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.spec import NODATA, Class
from pipeline.publish.classes import is_clear, rgb

INVALID = (226, 229, 233)
"""Colour of pixels without data."""
_FILL = 0.45
"""Opacity of a class over the scene; outlines are opaque."""

RGB = NDArray[np.uint8]
"""(h, w, 3)."""


def display(pixels: NDArray[np.float32], valid: NDArray[np.bool_], *, stretch: bool) -> RGB:
    """(C, h, w) as colours: the first three bands, or the first as grey.

    With `stretch`, each band's 2nd to 98th percentile over valid pixels spans black to white; without, values are
    taken as 0 to 255. Pixels without data are pale; those that are 0 in every band, as undeclared collars are, do not
    count for the percentiles.
    """
    bands = pixels[:3] if len(pixels) >= 3 else pixels[[0, 0, 0]]
    counted = valid & bands.any(axis=0)
    if stretch and counted.any():
        low, high = np.percentile(bands[:, counted], [2, 98], axis=1)[..., None, None]
        bands = (bands - low) * (255 / np.maximum(high - low, np.finfo(np.float32).tiny))
    colours: RGB = np.moveaxis(np.clip(np.rint(bands), 0, 255).astype(np.uint8), 0, -1)
    return np.where(valid[..., None], colours, np.array(INVALID, np.uint8))


def overlay(scene: RGB, labels: NDArray[np.uint8], classes: Sequence[Class]) -> RGB:
    """The scene under its classes: each area tinted, its outline opaque; clear classes leave it as it is."""
    colours = np.zeros((256, 3), np.float32)
    opacity = np.zeros(256, np.float32)
    colours[NODATA], opacity[NODATA] = INVALID, 1
    for entry in classes:
        colours[entry.id] = rgb(entry)
        opacity[entry.id] = 0 if is_clear(entry) else _FILL
    alpha = opacity[labels]
    alpha[_outline(labels) & (alpha > 0)] = 1
    blend = scene + (colours[labels] - scene) * alpha[..., None]
    return np.rint(blend).astype(np.uint8)


def _outline(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels with a neighbour of another label, above, below, left or right."""
    edges = np.zeros(labels.shape, np.bool_)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    return edges
