"""What can be said of polygons before they are rasterised: of each scene, and of a file that serves several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.errors import LabelError
from pipeline.labelforms.base import VECTORS
from pipeline.labelforms.polygons import PolygonLabels, open_polygons
from pipeline.labelforms.vectors import VectorFile, read_vectors
from pipeline.labelreport import EVERYWHERE, Problem
from pipeline.scene import Scene

_NAMED = 3
"""Most features that a problem names."""


@dataclass
class _File:
    """A file and the scenes that it has labels of."""

    vectors: VectorFile
    scenes: list[str] = field(default_factory=list)
    outside: set[int] | None = None
    """Features that lie outside all scenes so far; None: no scene was near."""


@dataclass(frozen=True)
class PolygonChecks:
    """Looks at the polygons of one scene after the other."""

    classes: tuple[str, ...]
    attribute: str | None
    boundary: int | None
    files: dict[Path, _File] = field(default_factory=dict)

    def look(self, path: Path, scene: Scene, name: str) -> Iterator[Problem]:
        """What one scene's polygons are, but for what `of_files` says; nothing, if its labels are something else."""
        if path.is_dir() or path.suffix.lower() not in VECTORS:
            return
        vectors = read_vectors(path, self.attribute)
        file = self.files.setdefault(path, _File(vectors))
        file.scenes.append(name)
        if vectors.crs is None and len(vectors.shapes):
            yield Problem("warning", name, f"{path} says no CRS: it is taken for that of the scene")
        broken = vectors.rows[~shapely.is_valid(vectors.shapes)].tolist()
        if broken:
            what = f"has polygons that cross or touch themselves, {len(broken)} in all: {_features(broken)}"
            yield Problem("warning", name, f"{path} {what}")
        for problem in vectors.problems(self.classes, self.boundary):
            yield Problem("error", name, f"{path} {problem}")
        try:
            outside = set(vectors.rows[_outside(open_polygons(vectors, scene, None), scene)].tolist())
            file.outside = outside if file.outside is None else file.outside & outside
        except LabelError as error:
            yield Problem("error", name, str(error))
        if not len(vectors.shapes):
            yield Problem("warning", name, f"{path} is empty: it has no polygon")

    def of_files(self) -> Iterator[Problem]:
        """What is wrong with a file whatever scene it is for, once all scenes were looked at."""
        for path, file in self.files.items():
            name = file.scenes[0] if len(file.scenes) == 1 else EVERYWHERE
            if dropped := file.vectors.dropped.tolist():
                some = _many(dropped, "1 feature is no polygon", "{} features are no polygons")
                yield Problem("warning", name, f"{path}: {some}, and left out: {_features(dropped)}")
            if outside := sorted(file.outside or ()):
                some = _many(outside, "1 polygon lies outside", "{} polygons lie outside")
                scenes = "the scene" if len(file.scenes) == 1 else "all scenes"
                yield Problem("warning", name, f"{path}: {some} {scenes}: {_features(outside)}")


def _outside(polygons: PolygonLabels, scene: Scene) -> NDArray[np.bool_]:
    """Which polygons share nothing with the rectangle around the scene; those without a place do not."""
    bounds = scene.georef.bounds(scene.height, scene.width)
    assert bounds is not None  # noqa: S101 - polygons were placed on it
    outside = np.ones(len(polygons.tree), bool)
    outside[polygons.tree.query(shapely.box(*bounds), predicate="intersects")] = False
    return outside


def _features(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _NAMED} more" * (len(rows) > _NAMED)
    return f"feature {', '.join(map(str, rows[:_NAMED]))}{more}"


def _many(rows: Sequence[int], one: str, several: str) -> str:
    return one if len(rows) == 1 else several.format(len(rows))
