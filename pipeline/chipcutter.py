"""Cuts a scene and its labels into chips: squares that partition it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.chipdraw import Place
from pipeline.chipsources import Recipe, Source, opened
from pipeline.chipstore import Chip
from pipeline.errors import LabelError
from pipeline.grid import Window
from pipeline.labels import IGNORE, Labels
from pipeline.scene import Scene
from pipeline.split import Ground, Splitter

_MOST_OBJECTS = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Cutter:
    """Cuts chips from scenes."""

    recipe: Recipe
    ground: Ground

    def cut(self, source: Source, windows: Sequence[Window]) -> Iterator[Chip]:
        """The chips at `windows`, without those that hold no labelled pixel."""
        if not windows:
            return
        splitter = self._splitter(source)
        with opened(source, self.recipe) as (scene, labels):
            for window in windows:
                chip = self._chip(scene, labels, splitter, window)
                if chip is not None:
                    yield chip

    def survey(self, source: Source) -> Iterator[tuple[Place, str]]:
        """First pixel and split of each window with a labelled pixel."""
        splitter = self._splitter(source)
        with opened(source, self.recipe) as (scene, labels):
            for window in source.windows(self.recipe.size):
                classes = _kept(labels, splitter, window)
                if (classes != IGNORE).any() and (scene.read(window)[1] & (classes != IGNORE)).any():
                    yield (window.row, window.col), splitter.split(window)

    def _splitter(self, source: Source) -> Splitter:
        return Splitter(self.ground, source.name, source.georef, source.fixed)

    def _chip(self, scene: Scene, labels: Labels, splitter: Splitter, window: Window) -> Chip | None:
        classes = _kept(labels, splitter, window)
        if not (classes != IGNORE).any():
            return None
        pixels, valid = scene.read(window)
        classes = np.where(valid, classes, np.uint8(IGNORE))
        if not (classes != IGNORE).any():
            return None
        rim = ((0, self.recipe.size - window.height), (0, self.recipe.size - window.width))
        objects = labels.objects(window)
        return Chip(
            scene=splitter.name,
            row=window.row,
            col=window.col,
            split=splitter.split(window),
            pixels=np.pad(pixels, ((0, 0), *rim)),
            valid=np.pad(valid.astype(np.uint8), rim),
            labels=np.pad(classes, rim, constant_values=IGNORE),
            radiometry=scene.radiometry,
            objects=None if objects is None else np.pad(_numbered(objects, classes), rim),
            place=scene.georef.place(window.row, window.col),
        )


def _kept(labels: Labels, splitter: Splitter, window: Window) -> NDArray[np.uint8]:
    """Labels (H, W) of the pixels whose ground is of the window's split."""
    classes, kept = labels.read(window), splitter.kept(window)
    return classes if kept is None else np.where(kept, classes, np.uint8(IGNORE))


def _numbered(objects: NDArray[np.int32], classes: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Objects (H, W) numbered from 1 within the chip, 0 where there is no label."""
    known, numbers = np.unique(np.append(np.where(classes == IGNORE, 0, objects).ravel(), 0), return_inverse=True)
    if len(known) > _MOST_OBJECTS:
        raise LabelError(f"a chip has {len(known) - 1} objects, {_MOST_OBJECTS - 1} are allowed: choose smaller chips")
    return numbers[:-1].reshape(objects.shape).astype(np.uint16)
