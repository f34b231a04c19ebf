"""What would change if another bundle took over: both segment the same scenes, by the path that production takes."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import open_bundle
from models.spec import NODATA, ModelSpec
from pipeline import store
from pipeline.executors import Executor
from pipeline.grid import Window
from pipeline.outputs import MASK
from pipeline.scene import SceneAddress, open_scene
from pipeline.segment import SegmentRequest, segment_scene

LARGEST = 4096
"""Longer side of the part of a scene that is looked at, in pixels: its middle, where the scene is larger."""
STRIP = 1024
"""Rows that are compared at once."""


@dataclass(frozen=True)
class Shadow:
    """One scene under two bundles."""

    scene: str
    changed: float
    """Share of the valid pixels whose class, by name, differs."""
    areas: dict[str, tuple[float, float]]
    """Of each class under the champion and under the challenger, in `unit`."""
    unit: str
    """`m2`, or `pixels` where the scene does not say where it lies."""

    def to_json(self) -> dict[str, Any]:
        """As reports keep it."""
        areas = {name: list(pair) for name, pair in self.areas.items()}
        return {"scene": self.scene, "changed": self.changed, "unit": self.unit, "areas": areas}


def shadow(
    scenes: Sequence[Path], challenger: Path, champion: Path, pattern: SegmentRequest, executor: Executor
) -> list[Shadow]:
    """Segments each scene with both bundles, into a folder that is thrown away, and compares.

    Raises:
        WidefieldError: a scene cannot be segmented by one of the two.
    """
    pattern.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shadow-", dir=pattern.out) as folder:
        return [_one(scene, (champion, challenger), Path(folder), pattern, executor) for scene in scenes]


def _one(scene: Path, bundles: tuple[Path, Path], folder: Path, pattern: SegmentRequest, executor: Executor) -> Shadow:
    address = _middle(replace(pattern.scene, path=str(scene.absolute())))
    requests = [
        replace(pattern, scene=address, bundle=bundle, out=folder / role, name=scene.stem)
        for role, bundle in zip(("champion", "challenger"), bundles, strict=True)
    ]
    facts = [segment_scene(request, executor, lambda _: None) for request in requests]
    unit, areas = _areas(facts)
    specs = [open_bundle(bundle).spec for bundle in bundles]
    changed = _changed([request.folder / MASK for request in requests], specs, facts[0])
    return Shadow(scene.stem, changed, areas, unit)


def _middle(address: SceneAddress) -> SceneAddress:
    with open_scene(address) as scene:
        height, width = min(scene.height, LARGEST), min(scene.width, LARGEST)
        if (height, width) == (scene.height, scene.width):
            return address
        return replace(address, window=Window((scene.height - height) // 2, (scene.width - width) // 2, height, width))


def _areas(facts: Sequence[dict[str, Any]]) -> tuple[str, dict[str, tuple[float, float]]]:
    """Unit and areas by class; a class that one of them does not know has none there."""
    classes = [{entry["name"]: entry for entry in each["classes"]} for each in facts]
    names = list(dict.fromkeys(name for each in classes for name in each))
    known = all(entry["area_m2"] is not None for each in classes for entry in each.values())
    key, unit = ("area_m2", "m2") if known else ("pixels", "pixels")
    before, after = ({name: float(each[name][key]) if name in each else 0.0 for name in names} for each in classes)
    return unit, {name: (before[name], after[name]) for name in names}


def _changed(masks: Sequence[Path], specs: Sequence[ModelSpec], facts: dict[str, Any]) -> float:
    names = list(dict.fromkeys(entry.name for spec in specs for entry in spec.classes))
    tables = [np.full(256, NODATA, np.uint8) for _ in specs]
    for table, spec in zip(tables, specs, strict=True):
        table[: len(spec.classes)] = [names.index(entry.name) for entry in spec.classes]
    height, width = facts["scene"]["height"], facts["scene"]["width"]
    different = valid = 0
    for row in range(0, height, STRIP):
        window = Window(row, 0, min(STRIP, height - row), width)
        one, other = (
            table[store.read_plane(mask, "labels", window)] for table, mask in zip(tables, masks, strict=True)
        )
        different += int((one != other).sum())
        valid += int((one != NODATA).sum())
    return different / valid if valid else 0.0
