"""How good a bundle is on whole labelled scenes, by the path that production takes: tiled, compiled, stitched.

Scenes are compared in windows, so that memory does not grow with them. AP50 takes each window for an image: a scene
of up to `WINDOW` pixels is a whole one, and of a larger one the objects that a window's edge cuts count as the pieces
that they are, in truth and prediction alike.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import open_bundle
from models.ground import CELL, cells
from models.metrics import Counts, confusion, scores
from models.scoring import Part, Scorer
from models.spec import NODATA, ModelSpec
from pipeline import store
from pipeline.executors import Executor
from pipeline.grid import Window, near_borders
from pipeline.labels import Labels, find_labels, list_images, open_labels
from pipeline.outputs import MASK
from pipeline.scene import Scene, SceneAddress, open_scene
from pipeline.schedule import Listener
from pipeline.segment import SegmentRequest, segment_scene

WINDOW = 2048
"""Edge of the windows that are compared at once, in pixels."""
REACH = 16
"""Pixels on either side of a core's border that count as near it."""


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

    `pooled` holds what `Scorer.result` says of all scenes together, and in `borders` the IoU within 16 pixels of the
    borders of cores and in the interior: equal, where stitching costs nothing. `scenes` holds the same of each scene.
    Unlabelled pixels (255) and invalid ones do not count. `request` is a pattern: its scene's path and its name are
    replaced. `watch` gives the listener for the scene of a name.

    Raises:
        LabelError: a scene has no labels, or they do not fit it; known before anything is segmented.
    """
    spec = open_bundle(request.bundle).spec
    names = [entry.name for entry in spec.classes]
    pairs = [(image, find_labels(image, labels)) for image in list_images(images)]
    for image, found in pairs:
        with open_scene(_address(request, image)) as scene:
            open_labels(found, scene, names, attribute, boundary=spec.boundary, objects=spec.objects)
    pooled = _Comparison.empty(spec)
    by_scene: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for image, found in pairs:
        one = replace(request, scene=_address(request, image), name=image.stem)
        with watch(image.stem) as listen:
            facts = segment_scene(one, executor, listen)
        with open_scene(one.scene) as scene:
            truth = open_labels(found, scene, names, attribute, boundary=spec.boundary, objects=spec.objects)
            compared = _compare(scene, truth, one.folder / MASK, spec, facts["grid"]["core"])
        pooled.include(compared)
        by_scene[image.stem] = compared.result()
    return {
        "bundle": facts["bundle"],
        "engine": {key: facts["engine"][key] for key in ("backend", "precision", "tile", "digest")},
        "halo": facts["grid"]["halo"],
        "pooled": pooled.result(),
        "scenes": by_scene,
    }


def _address(request: SegmentRequest, image: Path) -> SceneAddress:
    return replace(request.scene, path=str(image.absolute()))


@dataclass
class _Comparison:
    """What is counted of a scene, or of all of them."""

    scorer: Scorer
    near: Counts
    """(K, K) pixels near the borders of cores, as in `models.metrics.confusion`."""

    @classmethod
    def empty(cls, spec: ModelSpec) -> "_Comparison":
        """Nothing counted yet."""
        names = [entry.name for entry in spec.classes]
        scorer = Scorer(names, spec.objects, spec.boundary)
        return cls(scorer, np.zeros((len(names), len(names)), np.int64))

    def include(self, other: "_Comparison") -> None:
        """Count what another one has counted."""
        self.scorer.include(other.scorer)
        self.near = self.near + other.near

    def result(self) -> dict[str, Any]:
        """As JSON takes it."""
        parts = {f"within_{REACH}": self.near, "interior": self.scorer.counts - self.near}
        borders = {
            name: {key: value for key, value in scores(counts, self.scorer.names).items() if key in _OF_BORDERS}
            for name, counts in parts.items()
        }
        return {**self.scorer.result(), "borders": borders}


_OF_BORDERS = ("iou", "mean_iou", "pixels")


def _compare(scene: Scene, truth: Labels, mask: Path, spec: ModelSpec, core: int) -> _Comparison:
    """One scene, window by window."""
    compared = _Comparison.empty(spec)
    whole = Window(0, 0, scene.height, scene.width)
    for window in _windows(whole, WINDOW):
        predicted = store.read_plane(mask, "labels", window)
        wanted = np.where(predicted == NODATA, np.uint8(NODATA), truth.read(window))
        compared.scorer.add(
            wanted,
            predicted,
            block=_cells(scene, window),
            objects=truth.objects(window) if spec.objects else None,
            confidence=_confidence(mask, window) if "confidence" in spec.planes else None,
        )
        near = near_borders(window, core, REACH, whole)
        compared.near = compared.near + confusion(wanted[near], predicted[near], len(spec.classes))
    return compared


def _windows(whole: Window, edge: int) -> Iterator[Window]:
    """Squares of `edge` pixels, clipped to `whole`, row by row."""
    for row in range(whole.row, whole.stop_row, edge):
        for col in range(whole.col, whole.stop_col, edge):
            yield Window(row, col, min(edge, whole.stop_row - row), min(edge, whole.stop_col - col))


def _confidence(mask: Path, window: Window) -> NDArray[np.float32]:
    """(H, W) from 0 to 1, NaN where there is none; stored are 0 to 254."""
    stored = store.read_plane(mask, "confidence", window)
    return np.where(stored == NODATA, np.float32(np.nan), stored / np.float32(NODATA - 1))


def _cells(scene: Scene, window: Window) -> list[Part]:
    """The cells of ground in a window, by name. What two scenes show of one place is drawn together: they are no two
    witnesses.
    """
    place = scene.georef.place(window.row, window.col) or f"{scene.address.path}/{window.row}/{window.col}"
    return list(cells(place, window.height, window.width, CELL))
