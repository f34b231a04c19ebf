"""Scenes and labels to chips.zarr, the training samples that `models.dataset` reads.

The circle "training needs the grid, the grid needs the model" is cut here: chips on disk know neither. Only what has
changed since the last time is written: a scene's chips follow from its fingerprint, that of its labels, and the recipe.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.chipstore import (
    SCHEMA,
    Chip,
    ChipsSummary,
    Record,
    SlotWriter,
    create_chips,
    read_records,
    replacing_chips,
    summarise,
)
from pipeline.errors import LabelError, SceneError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.labels import (
    IGNORE,
    Labels,
    find_labels,
    has_objects,
    label_fingerprint,
    open_labels,
    origin_of,
)
from pipeline.legend import check_classes, object_ids
from pipeline.scene import Scene, SceneAddress, open_scene
from pipeline.split import SPLITS, Ground, Splitter, fixed_split, places_on_earth, read_split

__all__ = ["SPLITS", "ChipsSummary", "read_split", "resolution_range", "write_chips"]

RESOLUTION_MARGIN = 1.5
"""A model trained on chips may meet pixels this much smaller or larger."""
_MOST_OBJECTS = np.iinfo(np.uint16).max

Place = tuple[int, int]
Candidates = dict[Place, str]
"""Split of each window with a label, by its first row and column."""


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

    def open(self, source: "_Source", scene: Scene) -> Labels:
        """The labels of an opened scene."""
        return open_labels(
            source.labels, scene, self.classes, self.attribute, boundary=self.boundary, objects=self.objects or ()
        )

    @property
    def settings(self) -> list[Any]:
        """What must not change for a chip to stay."""
        parted = None if self.boundary is None else [self.boundary, self.objects]
        return [SCHEMA, self.classes, self.size, self.bands, self.attribute, parted]


@dataclass(frozen=True)
class _Source:
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
        parts = [self.name, self.fingerprint, self.label_digest, self.bands, self.dtype, split, recipe.settings]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def windows(self, size: int) -> Iterator[Window]:
        """The squares that partition the scene, cut off at its edge."""
        whole = Window(0, 0, *self.shape)
        for row in range(0, whole.height, size):
            for col in range(0, whole.width, size):
                part = Window(row, col, size, size).intersect(whole)
                assert part is not None  # noqa: S101 - the loops stay inside
                yield part


def write_chips(
    images: Sequence[Path],
    labels: Sequence[Path] | Path,
    out: Path,
    *,
    classes: Sequence[str],
    size: int = 512,
    seed: int = 0,
    split: Mapping[str, str] | None = None,
    bands: Sequence[int] | None = None,
    attribute: str | None = None,
    boundary: str | None = None,
    objects: Sequence[str] | None = None,
    ground: Ground | None = None,
    sealed: float | None = None,
    most: int | None = None,
) -> ChipsSummary:
    """Cuts scenes and their labels into squares of `size` pixels, which `out` holds afterwards, and no others.

    The chips of a scene partition it; those at its edge are padded with invalid, unlabelled pixels. `labels` is one
    file for each image, one for all, or a folder (see `find_labels`); `classes` are names in the order of their ids.
    `boundary` names the class that parts objects, which are of one class, `objects` those whose things are objects:
    all but class 0 and `boundary`, if labels come as objects and nobody says. Of each split at most `most` chips are
    taken, drawn with `seed`. Chips of scenes that have not changed stay untouched. A killed call leaves the chips that
    were there.

    Ground is split as the chips that are there say, and a call that asks for something else is refused, so that ground
    never moves; else as `ground` says. `sealed` is its share that only the gate reads. Pixels of a chip whose ground is
    of another split than its middle have no label.

    Raises:
        LabelError: labels missing, elsewhere, or of unknown classes; ground would move from one split to another.
        SceneError: scenes that differ in bands or type, or have one name.
    """
    check_classes(classes)
    recipe = Recipe(
        tuple(classes),
        size,
        None if bands is None else tuple(bands),
        attribute,
        *object_ids(classes, boundary, objects),
        split,
    )
    sources = _sources(images, labels, recipe)
    old = _old_attributes(out)
    ground = _ground(old, sources, ground, sealed)
    keys = {source.name: source.key(recipe, ground) for source in sources}
    slots = old is not None and _same_slots(old, sources[0], size)
    before = read_records(old) if old is not None and slots else []
    same = {name for name, key in keys.items() if old is not None and slots and old["keys"].get(name) == key}
    for source in sources:
        if source.name not in same:
            with _opened(source, recipe):
                pass
    cutter = _Cutter(recipe, ground)
    with ExitStack() as stack:
        group = _group(stack, out, sources[0], size, fresh=not slots)
        stay = [record for record in before if record.scene in same]
        known = {name: tuple(places) for name, places in (old or {}).get("left", {}).items() if name in same}
        chosen, left = _choose(cutter, sources, stay, known, most=most, seed=seed)
        stay = [record for record in stay if chosen is None or record.place in chosen[record.scene]]
        writer = SlotWriter(group, len(classes), taken=before, kept=stay)
        for source in sources:
            there = {record.place for record in stay if record.scene == source.name}
            for chip in cutter.cut(source, _missing(source, same, there, chosen, size)):
                writer.put(chip)
        writer.finish(_attributes(sources, recipe, seed, ground) | {"keys": keys, "left": left})
        spare = sum(map(len, left.values()))
        windows = sum(sum(1 for _ in source.windows(size)) for source in sources)
        return summarise(
            writer.records, classes, dropped=windows - len(writer.records) - spare, kept=len(stay), left=spare
        )


def _object_classes(sources: Sequence[_Source], recipe: Recipe) -> list[int]:
    """Classes whose connected things are objects."""
    if recipe.objects is not None:
        return list(recipe.objects)
    come = any(has_objects(source.labels) for source in sources)
    return list(range(1, len(recipe.classes))) if come else []


def _sources(images: Sequence[Path], labels: Sequence[Path] | Path, recipe: Recipe) -> list[_Source]:
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


def _source(image: Path, labels: Path, recipe: Recipe) -> _Source:
    with open_scene(SceneAddress(str(image), bands=recipe.bands)) as scene:
        return _Source(
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
def _opened(source: _Source, recipe: Recipe) -> Iterator[tuple[Scene, Labels]]:
    with open_scene(SceneAddress(str(source.image), bands=recipe.bands)) as scene:
        yield scene, recipe.open(source, scene)


def _old_attributes(out: Path) -> dict[str, Any] | None:
    """Those of chips of this schema that were cut from scenes; None: there are none."""
    try:
        attributes = dict(zarr.open_group(out, mode="r").attrs)
    except (OSError, KeyError, ValueError):
        return None
    ours = attributes.get("schema") == SCHEMA and attributes.get("task") == "segment" and "keys" in attributes
    return attributes if ours else None


def recorded_ground(out: Path) -> Ground | None:
    """How the chips at `out` split ground; None: there are none of this schema."""
    old = _old_attributes(out)
    return None if old is None else Ground.from_json(old["ground"])


def _ground(
    old: Mapping[str, Any] | None, sources: Sequence[_Source], given: Ground | None, sealed: float | None
) -> Ground:
    there = None if old is None else Ground.from_json(old["ground"])
    wanted = given or there or Ground()
    if sealed is not None:
        wanted = replace(wanted, sealed=sealed)
    ground = wanted if there is None else there.unmoved(wanted)
    sizes = [source.georef.resolution(*source.shape) for source in sources if places_on_earth(source.georef)]
    return ground.on_earth(sizes)


def _same_slots(old: Mapping[str, Any], first: _Source, size: int) -> bool:
    """Whether new chips fit the arrays of the old ones."""
    return (old["bands"], old["dtype"], old.get("size")) == (list(first.bands), first.dtype, size)


def _group(stack: ExitStack, out: Path, first: _Source, size: int, *, fresh: bool) -> zarr.Group:
    if not fresh:
        return zarr.open_group(out, mode="r+")
    partial = stack.enter_context(replacing_chips(out))
    return create_chips(partial, 0, bands=len(first.bands), dtype=first.dtype, size=size)


def _choose(
    cutter: "_Cutter",
    sources: Sequence[_Source],
    stay: Sequence[Record],
    left: Mapping[str, Sequence[Any]],
    *,
    most: int | None,
    seed: int,
) -> tuple[dict[str, set[Place]] | None, dict[str, list[list[Any]]]]:
    """Windows of each scene that become chips, None: all with a label; and those that would be too many."""
    if most is None and not any(left.values()):
        return None, {}
    candidates: dict[str, Candidates] = {source.name: {} for source in sources}
    for record in stay:
        candidates[record.scene][record.place] = record.split
    for name, places in left.items():
        candidates[name] |= {(row, col): split for row, col, split in places}
    for source in sources:
        if not candidates[source.name]:
            candidates[source.name] = dict(cutter.survey(source))
    chosen = draw(candidates, most, seed)
    spare = {
        name: [[*place, split] for place, split in sorted(found.items()) if place not in chosen[name]]
        for name, found in candidates.items()
    }
    return chosen, {name: places for name, places in spare.items() if places}


def draw(candidates: Mapping[str, Candidates], most: int | None, seed: int) -> dict[str, set[Place]]:
    """At most `most` windows of each split, evenly over the ground.

    Their order is that of a hash: a window that is drawn stays so until enough others come before it.
    """

    def rank(entry: tuple[str, Place]) -> bytes:
        name, (row, col) = entry
        return hashlib.sha256(f"{seed}/{name}/{row}/{col}".encode()).digest()

    chosen: dict[str, set[Place]] = {name: set() for name in candidates}
    for split in SPLITS:
        entries = [(name, place) for name, found in candidates.items() for place, its in found.items() if its == split]
        for name, place in sorted(entries, key=rank)[:most]:
            chosen[name].add(place)
    return chosen


def _missing(
    source: _Source, same: Collection[str], there: Collection[Place], chosen: Mapping[str, set[Place]] | None, size: int
) -> list[Window]:
    """Windows that are to be cut: of scenes that have not changed, only those that were left before."""
    if chosen is None:
        return [] if source.name in same else list(source.windows(size))
    wanted = chosen[source.name].difference(there)
    return [window for window in source.windows(size) if (window.row, window.col) in wanted]


@dataclass(frozen=True)
class _Cutter:
    """Cuts chips from scenes."""

    recipe: Recipe
    ground: Ground

    def cut(self, source: _Source, windows: Sequence[Window]) -> Iterator[Chip]:
        """The chips at `windows`, without those that hold no labelled pixel."""
        if not windows:
            return
        splitter = self._splitter(source)
        with _opened(source, self.recipe) as (scene, labels):
            for window in windows:
                chip = self._chip(scene, labels, splitter, window)
                if chip is not None:
                    yield chip

    def survey(self, source: _Source) -> Iterator[tuple[Place, str]]:
        """First pixel and split of each window with a labelled pixel."""
        splitter = self._splitter(source)
        with _opened(source, self.recipe) as (scene, labels):
            for window in source.windows(self.recipe.size):
                classes = _kept(labels, splitter, window)
                if (classes != IGNORE).any() and (scene.read(window)[1] & (classes != IGNORE)).any():
                    yield (window.row, window.col), splitter.split(window)

    def _splitter(self, source: _Source) -> Splitter:
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


def _attributes(sources: Sequence[_Source], recipe: Recipe, seed: int, ground: Ground) -> dict[str, Any]:
    first = sources[0]
    return {
        "task": "segment",
        "bands": list(first.bands),
        "dtype": first.dtype,
        "size": recipe.size,
        "classes": [{"id": index, "name": name} for index, name in enumerate(recipe.classes)],
        "objects": _object_classes(sources, recipe),
        "boundary": recipe.boundary,
        "seed": seed,
        "resolution": resolution_range([source.georef.resolution(*source.shape) for source in sources]),
        "extent": _extent(sources),
        "ground": ground.to_json(),
        "scenes": {
            source.name: {"fingerprint": source.fingerprint, "labels": source.label_digest, "origin": source.origin}
            for source in sources
        },
    }


def resolution_range(sizes: Sequence[float | None]) -> list[float] | None:
    """Smallest and largest pixels that a model may meet, in metres; None where the size of one image is not known."""
    known = [value for value in sizes if value is not None and math.isfinite(value)]
    if len(known) < len(sizes):
        return None
    return [min(known) / RESOLUTION_MARGIN, max(known) * RESOLUTION_MARGIN]


def _extent(sources: Sequence[_Source]) -> list[float] | None:
    """`[west, south, east, north]` of all scenes in degrees; None where one has no georeference."""
    rings = [source.georef.footprint(*source.shape) for source in sources]
    if any(ring is None for ring in rings):
        return None
    points = np.array([point for ring in rings for point in ring or []])
    return [float(value) for value in (*points.min(axis=0), *points.max(axis=0))]
