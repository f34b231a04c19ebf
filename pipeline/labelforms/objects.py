"""One PNG an object, and the class that parts objects which touch."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.errors import LabelError
from pipeline.grid import Window
from pipeline.labelforms.base import Labels, Labels8, Objects
from pipeline.scene import Scene

TOUCHING = 2
"""Pixels up to which two objects touch."""
_FAR = np.iinfo(np.int32).max


@dataclass(frozen=True)
class ObjectMasks:
    """A folder of PNGs, each of them white where its object is; later ones, by name, lie on top. All are class 1."""

    files: tuple[Path, ...]
    shape: tuple[int, int]
    """Rows and columns of the scene and of each mask."""

    def read(self, window: Window) -> Labels8:
        """Class ids (H, W): 1 where an object is, else 0."""
        return (self.objects(window) > 0).astype(np.uint8)

    def objects(self, window: Window) -> Objects:
        """(H, W): 1 + the number of the mask that is white there."""
        return self._all[window.slices].copy()

    @cached_property
    def _all(self) -> Objects:
        whole = np.zeros(self.shape, np.int32)
        for number, file in enumerate(self.files, start=1):
            whole[read_mask(file)] = number
        return whole


def read_mask(file: Path) -> NDArray[np.bool_]:
    """(H, W) of a PNG: where it is not black."""
    try:
        with Image.open(file) as picture:
            grey = picture if picture.mode in {"L", "I", "I;16"} else picture.convert("L")
            return np.asarray(grey) > 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise LabelError(f"{file} cannot be read as the mask of an object: {error}") from error


def open_masks(folder: Path, scene: Scene) -> ObjectMasks:
    """The masks in `folder`.

    Raises:
        LabelError: one is no picture, or of another size than the scene.
    """
    shape = scene.height, scene.width
    files = tuple(sorted(file for file in folder.iterdir() if file.suffix.lower() == ".png"))
    for file in files:
        if (size := _size(file)) != shape:
            sizes = f"{size[0]} x {size[1]} pixels, {scene.address.path} {shape[0]} x {shape[1]}"
            raise LabelError(f"{file} has {sizes}: the mask of an object is as large as its image")
    return ObjectMasks(files, shape)


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise LabelError(f"{file} cannot be read as the mask of an object: {error}") from error


@dataclass(frozen=True)
class PartedLabels:
    """Objects whose pixels near another object are a class of their own.

    What is an object's stays one of the two classes, and nothing else becomes one: together they are the foreground.
    """

    labels: Labels
    boundary: int
    """Id of the class that parts objects."""
    kinds: tuple[int, ...]
    """Ids of the classes whose things are objects: no other is parted, nor parts any."""
    shape: tuple[int, int]
    """Rows and columns of the scene."""

    def read(self, window: Window) -> Labels8:
        """Class ids (H, W); `boundary` where a pixel of an object lies at most `TOUCHING` pixels from another one."""
        around = Window(
            window.row - TOUCHING, window.col - TOUCHING, window.height + 2 * TOUCHING, window.width + 2 * TOUCHING
        ).intersect(Window(0, 0, *self.shape))
        assert around is not None  # noqa: S101 - it holds the window
        labels, objects = self.labels.read(around), self.labels.objects(around)
        if objects is not None:
            near = touching(np.where(np.isin(labels, self.kinds), objects, 0))
            labels = np.where(near, np.uint8(self.boundary), labels)
        return labels[window.relative_to(around).slices]

    def objects(self, window: Window) -> Objects | None:
        """Objects (H, W), whole."""
        return self.labels.objects(window)


def touching(objects: Objects) -> NDArray[np.bool_]:
    """Where (H, W) a pixel of an object has another object within `TOUCHING` pixels, along rows and columns."""
    edge = 2 * TOUCHING + 1
    highest = ndimage.maximum_filter(objects, edge, mode="constant", cval=0)
    lowest = ndimage.minimum_filter(np.where(objects == 0, _FAR, objects), edge, mode="constant", cval=_FAR)
    return np.asarray((objects != 0) & ((highest != objects) | (lowest != objects)))
