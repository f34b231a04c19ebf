"""How good a bundle is on whole labelled scenes, by the path that production takes: tiled, compiled, stitched."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import open_bundle
from models.metrics import Counts, confusion, scores
from pipeline import store
from pipeline.executors import Executor
from pipeline.grid import Window
from pipeline.labels import find_labels, list_images, open_labels
from pipeline.outputs import MASK
from pipeline.scene import SceneAddress, open_scene
from pipeline.schedule import Listener
from pipeline.segment import SegmentRequest, segment_scene

STRIP = 1024
"""Rows that are compared at once."""


def _silent(_: str) -> AbstractContextManager[Listener]:
    return nullcontext(lambda _: None)


def evaluate(
    request: SegmentRequest,
    images: Path,
    labels: Path,
    executor: Executor,
    *,
    attribute: str | None = None,
    watch: Callable[[str], AbstractContextManager[Listener]] = _silent,
) -> dict[str, Any]:
    """Scores of `request`'s bundle over all scenes in `images`, against their labels in `labels`.

    IoU and its kin come from the pooled pixels of all scenes; those of each scene stand beside. `request` is a
    pattern: its scene's path and its name are replaced. Unlabelled pixels (255) and invalid ones do not count.
    `watch` gives the listener for the scene of a name.

    Raises:
        LabelError: a scene has no labels, or they do not fit it; known before anything is segmented.
    """
    names = [entry.name for entry in open_bundle(request.bundle).spec.classes]
    pairs = [(image, find_labels(image, labels)) for image in list_images(images)]
    for image, found in pairs:
        with open_scene(_address(request, image)) as scene:
            open_labels(found, scene, names, attribute)
    pooled = np.zeros((len(names), len(names)), np.int64)
    by_scene: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for image, found in pairs:
        one = replace(request, scene=_address(request, image), name=image.stem)
        with watch(image.stem) as listen:
            facts = segment_scene(one, executor, listen)
        counts = _compare(one.scene, one.folder / MASK, found, names, attribute)
        pooled += counts
        by_scene[image.stem] = scores(counts, names)
    return {
        "bundle": facts["bundle"],
        "engine": {key: facts["engine"][key] for key in ("backend", "precision", "tile", "digest")},
        "halo": facts["grid"]["halo"],
        "pooled": scores(pooled, names),
        "scenes": by_scene,
    }


def _address(request: SegmentRequest, image: Path) -> SceneAddress:
    return replace(request.scene, path=str(image.absolute()))


def _compare(scene: SceneAddress, mask: Path, labels: Path, names: Sequence[str], attribute: str | None) -> Counts:
    """The confusion matrix of one scene, strip by strip."""
    counts = np.zeros((len(names), len(names)), np.int64)
    with open_scene(scene) as opened:
        truth = open_labels(labels, opened, names, attribute)
        for row in range(0, opened.height, STRIP):
            window = Window(row, 0, min(STRIP, opened.height - row), opened.width)
            predicted = store.read_plane(mask, "labels", window)
            wanted = np.where(predicted == store.NODATA, np.uint8(store.NODATA), truth.read(window))
            counts += confusion(wanted, predicted, len(names))
    return counts
