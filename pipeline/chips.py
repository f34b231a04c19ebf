"""Scenes and labels to chips.zarr, the training samples that `models.dataset` reads.

The circle "training needs the grid, the grid needs the model" is cut here: chips on disk know neither. Only what has
changed since the last time is written: a scene's chips follow from its fingerprint, that of its labels, and the recipe.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.chipcutter import Cutter
from pipeline.chipdraw import choose, missing
from pipeline.chipsources import Recipe, Source, object_classes, opened, read_sources
from pipeline.chipstore import SCHEMA, ChipsSummary, SlotWriter, create_chips, read_records, replacing_chips, summarise
from pipeline.legend import check_classes, object_ids
from pipeline.split import SPLITS, Ground, places_on_earth, read_split

__all__ = ["SPLITS", "ChipsSummary", "read_split", "resolution_range", "write_chips"]

RESOLUTION_MARGIN = 1.5
"""A model trained on chips may meet pixels this much smaller or larger."""


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
    sources = read_sources(images, labels, recipe)
    old = _old_attributes(out)
    ground = _ground(old, sources, ground, sealed)
    keys = {source.name: source.key(recipe, ground) for source in sources}
    slots = old is not None and _same_slots(old, sources[0], size)
    before = read_records(old) if old is not None and slots else []
    same = {name for name, key in keys.items() if old is not None and slots and old["keys"].get(name) == key}
    for source in sources:
        if source.name not in same:
            with opened(source, recipe):
                pass
    cutter = Cutter(recipe, ground)
    with ExitStack() as stack:
        group = _group(stack, out, sources[0], size, fresh=not slots)
        stay = [record for record in before if record.scene in same]
        known = {name: tuple(places) for name, places in (old or {}).get("left", {}).items() if name in same}
        chosen, left = choose(cutter.survey, sources, stay, known, most=most, seed=seed)
        stay = [record for record in stay if chosen is None or record.first in chosen[record.scene]]
        writer = SlotWriter(group, len(classes), taken=before, kept=stay)
        for source in sources:
            there = {record.first for record in stay if record.scene == source.name}
            for chip in cutter.cut(source, missing(source, same, there, chosen, size)):
                writer.put(chip)
        writer.finish(_attributes(sources, recipe, seed, ground) | {"keys": keys, "left": left})
        spare = sum(map(len, left.values()))
        windows = sum(sum(1 for _ in source.windows(size)) for source in sources)
        return summarise(
            writer.records, classes, dropped=windows - len(writer.records) - spare, kept=len(stay), left=spare
        )


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
    old: Mapping[str, Any] | None, sources: Sequence[Source], given: Ground | None, sealed: float | None
) -> Ground:
    there = None if old is None else Ground.from_json(old["ground"])
    wanted = given or there or Ground()
    if sealed is not None:
        wanted = replace(wanted, sealed=sealed)
    ground = wanted if there is None else there.unmoved(wanted)
    sizes = [source.georef.resolution(*source.shape) for source in sources if places_on_earth(source.georef)]
    return ground.on_earth(sizes)


def _same_slots(old: Mapping[str, Any], first: Source, size: int) -> bool:
    """Whether new chips fit the arrays of the old ones."""
    return (old["bands"], old["dtype"], old.get("size")) == (list(first.bands), first.dtype, size)


def _group(stack: ExitStack, out: Path, first: Source, size: int, *, fresh: bool) -> zarr.Group:
    if not fresh:
        return zarr.open_group(out, mode="r+")
    partial = stack.enter_context(replacing_chips(out))
    return create_chips(partial, 0, bands=len(first.bands), dtype=first.dtype, size=size)


def _attributes(sources: Sequence[Source], recipe: Recipe, seed: int, ground: Ground) -> dict[str, Any]:
    first = sources[0]
    return {
        "task": "segment",
        "bands": list(first.bands),
        "dtype": first.dtype,
        "size": recipe.size,
        "classes": [{"id": index, "name": name} for index, name in enumerate(recipe.classes)],
        "objects": object_classes(sources, recipe),
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


def _extent(sources: Sequence[Source]) -> list[float] | None:
    """`[west, south, east, north]` of all scenes in degrees; None where one has no georeference."""
    rings = [source.georef.footprint(*source.shape) for source in sources]
    if any(ring is None for ring in rings):
        return None
    points = np.array([point for ring in rings for point in ring or []])
    return [float(value) for value in (*points.min(axis=0), *points.max(axis=0))]
