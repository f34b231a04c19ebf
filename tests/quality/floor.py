"""What needs no learning: nuclei by a Gaussian blur and Otsu's threshold of each image."""

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from models.objects import Matches, ap50, match

SIGMA = 1
"""Of the blur, in pixels."""
LEAST = 16
"""Pixels of the smallest thing that counts as a nucleus; corners join."""


def otsu(grey):
    """The threshold with the largest variance between what lies below and above it."""
    counts, edges = np.histogram(grey, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts)[:-1], np.cumsum(counts * middles)
    above = counts.sum() - below
    between = below * above * (mass[:-1] / below - (mass[-1] - mass[:-1]) / above) ** 2
    return middles[between.argmax()]


def floor(images: Iterable) -> dict[str, float]:
    """Scores over images of (grey, true ids), both (H, W)."""
    counts, found = np.zeros(3), []
    for grey, ids in images:
        blurred = ndimage.gaussian_filter(grey, SIGMA)
        foreground = blurred > otsu(blurred)
        counts += [np.sum(foreground & (ids > 0)), np.sum(foreground), np.sum(ids > 0)]
        components, _ = ndimage.label(foreground, np.ones((3, 3)))
        large = np.bincount(components.ravel()) >= LEAST
        found.append(match(ids, np.where(large[components] & foreground, components, 0)))
    hit, predicted, true = counts
    return {
        "iou": float(hit / (predicted + true - hit)),
        "f1": float(2 * hit / (predicted + true)),
        "ap50": ap50(found),
        "ap50_pooled": sum(found, Matches(0, 0, 0)).score,
    }
