"""Labelled scenes as the chips' cutter takes them: what is known of each without reading pixels, and its key."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chipstore import SCHEMA
from pipeline.errors import SceneError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.labelforms.base import VECTORS
from pipeline.labels import Labels, find_labels, has_objects, label_fingerprint, open_labels, origin_of
from pipeline.scene import Scene, SceneAddress, open_scene
from pipeline.split import Ground, fixed_split

_POLYGONS = 2
"""How polygons become pixels: another number makes their chips anew."""


@dataclass(frozen=True)
class Recipe:
    """All that decides what the chips of a scene are, beside the scene and its labels."""

    classes: tuple[str, ...]
    size: int
    bands: tuple[int, ...] | None
    attribute: str | None
    boundary: int | None
    objects: tuple[int, ...] | None
    """Classes whose connected things are objects; None: nobody says."""
    split: Mapping[str, str] | None

    def open(self, labels: Path, scene: Scene) -> Labels:
        """The labels of an opened scene."""
        return open_labels(
            labels, scene, self.classes, self.attribute, boundary=self.boundary, objects=self.objects or ()
        )

    @property
    def settings(self) -> list[Any]:
        """What must not change for a chip to stay."""
        parted = None if self.boundary is None else [self.boundary, self.objects]
        return [SCHEMA, self.classes, self.size, self.bands, self.attribute, parted]


@dataclass(frozen=True)
class Source:
    """One labelled scene: what is known without reading pixels."""

    name: str
    image: Path
    labels: Path
    fingerprint: str
    label_digest: str
    origin: str
    bands: tuple[str, ...]
    dtype: str
    georef: Georef
    shape: tuple[int, int]
    fixed: str | None
    """The split that was given for all of it."""

    def key(self, recipe: Recipe, ground: Ground) -> str:
        """Names everything that its chips follow from."""
        split = self.fixed or ground.to_json()
        parts: list[Any] = [
            self.name,
            self.fingerprint,
            self.label_digest,
            self.bands,
            self.dtype,
            split,
            recipe.settings,
        ]
        if self.labels.suffix.lower() in VECTORS:
            parts.append(_POLYGONS)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def windows(self, size: int) -> Iterator[Window]:
        """The squares that partition the scene, cut off at its edge."""
        whole = Window(0, 0, *self.shape)
        for row in range(0, whole.height, size):
            for col in range(0, whole.width, size):
                part = Window(row, col, size, size).intersect(whole)
                assert part is not None  # noqa: S101 - the loops stay inside
                yield part


def read_sources(images: Sequence[Path], labels: Sequence[Path] | Path, recipe: Recipe) -> list[Source]:
    """The scenes by name.

    Raises:
        LabelError, SceneError: one cannot be read, has no labels, the name of another, or other bands.
    """
    if not images:
        raise SceneError("no images: chips need at least one scene")
    names = [image.stem for image in images]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise SceneError(f"two images have one name, {twice[0]}: chips tell scenes by name")
    paths = [find_labels(image, labels) for image in images] if isinstance(labels, Path) else list(labels)
    sources = [_source(image, path, recipe) for image, path in zip(images, paths, strict=True)]
    first = sources[0]
    for source in sources[1:]:
        if problem := unlike(first, source):
            raise SceneError(problem)
    return sorted(sources, key=lambda source: source.name)


def unlike(first: Any, other: Any) -> str | None:
    """What parts two scenes, each with `image`, `bands` and `dtype`, so that no set of chips can hold both."""
    if (other.bands, other.dtype) == (first.bands, first.dtype):
        return None
    got = f"{other.image} has {len(other.bands)} bands, {', '.join(other.bands)} of {other.dtype}"
    return f"{got}, {first.image} {len(first.bands)}, {', '.join(first.bands)} of {first.dtype}: choose bands"


def _source(image: Path, labels: Path, recipe: Recipe) -> Source:
    with open_scene(SceneAddress(str(image), bands=recipe.bands)) as scene:
        return Source(
            image.stem,
            image,
            labels,
            scene.fingerprint,
            label_fingerprint(labels, image.stem),
            origin_of(labels, image.stem, recipe.attribute),
            scene.bands,
            scene.dtype,
            scene.georef,
            (scene.height, scene.width),
            fixed_split(image.stem, recipe.split),
        )


@contextmanager
def opened(source: Source, recipe: Recipe) -> Iterator[tuple[Scene, Labels]]:
    """A scene and its labels, as long as the block runs."""
    with open_scene(SceneAddress(str(source.image), bands=recipe.bands)) as scene:
        yield scene, recipe.open(source.labels, scene)


def object_classes(sources: Sequence[Source], recipe: Recipe) -> list[int]:
    """Classes whose connected things are objects."""
    if recipe.objects is not None:
        return list(recipe.objects)
    come = any(has_objects(source.labels) for source in sources)
    return list(range(1, len(recipe.classes))) if come else []
