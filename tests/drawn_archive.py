"""An archive of labelled scenes, drawn for tests of the whole loop: bright squares on a noisy ground."""

import numpy as np
from affine import Affine
from drawn_scenes import write_tiff

NAMES = ("a-train", "b-train", "c-val", *(f"{letter}-sealed" for letter in "defg"))
EDGE = 128


def draw_scene(images, labels, name, *, shift=0, value=1):
    """A scene of `EDGE` pixels and its class raster, its squares of `value`, `shift` pixels too far to the right."""
    rng = np.random.default_rng(NAMES.index(name))
    truth = np.zeros((EDGE, EDGE), np.uint8)
    for row in range(8, EDGE - 32, 48):
        for col in range(8, EDGE - 32, 48):
            top, left = row + rng.integers(0, 12), col + rng.integers(0, 12)
            truth[top : top + 24, left : left + 24] = 1
    place = Affine(0.5, 0, 500000 + 1000 * NAMES.index(name), 0, -0.5, 4600000)
    images.mkdir(exist_ok=True)
    if not (images / f"{name}.tif").exists():
        pixels = rng.integers(0, 90, (3, EDGE, EDGE)) + 120 * truth
        write_tiff(images / f"{name}.tif", pixels.astype(np.uint8), transform=place)
    labels.mkdir(exist_ok=True)
    write_tiff(labels / f"{name}-labels.tif", np.roll(value * truth, shift, axis=1)[None], transform=place)
