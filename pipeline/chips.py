"""Scenes and labels to chips.zarr, the training samples that `models.dataset` reads.

The circle "training needs the grid, the grid needs the model" is cut here: chips on disk know neither.
"""

import csv
import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipeline.errors import LabelError, SceneError
from pipeline.grid import Window
from pipeline.labels import IGNORE, Labels, find_labels, open_labels
from pipeline.scene import Radiometry, Scene, SceneAddress, open_scene

SCHEMA = 1
SPLITS = ("train", "val")
VAL_SHARE = 0.2
"""Share of the ground cells that a hash puts into `val`, where no split is given."""
CELL = 2048
"""Edge of a ground cell, in pixels: chips of one cell never part."""
RESOLUTION_MARGIN = 1.5
"""A model trained on chips may meet pixels this much smaller or larger."""


@dataclass(frozen=True)
class ChipsSummary:
    """What was written."""

    train: int
    """Chips to train on."""
    val: int
    """Chips to choose by."""
    dropped: int
    """Windows without a valid, labelled pixel, and images that could not be read."""
    shares: dict[str, float]
    """Share of the labelled pixels, of each class."""


@dataclass(frozen=True)
class Chip:
    """One chip on its way to the disk."""

    scene: str
    row: int
    col: int
    split: str
    pixels: NDArray[Any]
    """(C, S, S), in the scene's own type."""
    valid: NDArray[np.uint8]
    """(S, S), 1 where the scene has data."""
    labels: NDArray[np.uint8]
    """(S, S), class ids or `IGNORE`."""
    radiometry: Radiometry


def read_split(table: Path) -> dict[str, str]:
    """Split of each scene from a CSV with the columns `scene` (a file's stem) and `split` (`train` or `val`)."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"scene", "split"} <= rows[0].keys():
        raise LabelError(f"{table} needs the columns scene and split")
    return {row["scene"]: row["split"] for row in rows}


def split_of(stem: str, row: int, col: int, *, size: int, seed: int, split: Mapping[str, str] | None) -> str:
    """`train` or `val` for the chip at (`row`, `col`): as `split` says, as the name ends, else by ground cell.

    A cell is a whole number of chips, so that no chip belongs to two.
    """
    if split is not None:
        if split.get(stem) not in SPLITS:
            raise LabelError(f"the split says {split.get(stem)!r} for the scene {stem}: allowed are train and val")
        return split[stem]
    for name in SPLITS:
        if stem.endswith(f"-{name}"):
            return name
    cell = max(CELL // size, 1) * size
    digest = hashlib.sha256(f"{seed}/{stem}/{row // cell}/{col // cell}".encode()).digest()
    return "val" if int.from_bytes(digest[:8]) < VAL_SHARE * 2**64 else "train"


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
) -> ChipsSummary:
    """Cuts scenes and their labels into squares of `size` pixels and replaces `out` by them.

    The chips of a scene partition it; those at its edge are padded with invalid, unlabelled pixels. `labels` is one
    file for each image, one for all, or a folder (see `find_labels`); `classes` are names in the order of their ids.

    Raises:
        LabelError: labels missing, elsewhere, or of unknown classes.
        SceneError: scenes that differ in bands or type.
    """
    stems = [image.stem for image in images]
    if len(set(stems)) < len(stems):
        raise SceneError(f"two images have one name among {', '.join(sorted(stems))}: chips tell scenes by name")
    paths = [find_labels(image, labels) for image in images] if isinstance(labels, Path) else list(labels)
    with ExitStack() as stack:
        wanted = None if bands is None else tuple(bands)
        scenes = [stack.enter_context(open_scene(SceneAddress(str(image), bands=wanted))) for image in images]
        _agree(scenes)
        read = [open_labels(path, scene, classes, attribute) for path, scene in zip(paths, scenes, strict=True)]
        partial = stack.enter_context(replacing_chips(out))
        most = sum(-(-scene.height // size) * -(-scene.width // size) for scene in scenes)
        attributes = _attributes(scenes, classes, seed)
        first = scenes[0]
        group = create_chips(partial, most, bands=len(first.bands), dtype=first.dtype, size=size, attributes=attributes)
        splitter = _Splitter(size, seed, split)
        cuts = (_cut(scene, classified, splitter) for scene, classified in zip(scenes, read, strict=True))
        return fill_chips(group, chain.from_iterable(cuts), classes)


@dataclass(frozen=True)
class _Splitter:
    size: int
    seed: int
    split: Mapping[str, str] | None

    def __call__(self, stem: str, row: int, col: int) -> str:
        return split_of(stem, row, col, size=self.size, seed=self.seed, split=self.split)


def _agree(scenes: Sequence[Scene]) -> None:
    """One set of bands and one type for all chips."""
    if not scenes:
        raise SceneError("no images: chips need at least one scene")
    first = scenes[0]
    for scene in scenes[1:]:
        if (scene.bands, scene.dtype) != (first.bands, first.dtype):
            got = f"{scene.address.path} has bands {', '.join(scene.bands)} of {scene.dtype}"
            raise SceneError(f"{got}, {first.address.path} {', '.join(first.bands)} of {first.dtype}: choose bands")


def create_chips(
    path: Path, count: int, *, bands: int, dtype: str, size: int, attributes: Mapping[str, Any]
) -> zarr.Group:
    """Arrays for at most `count` chips; `fill_chips` cuts them to those that there are."""
    group = zarr.create_group(store=path, attributes={"schema": SCHEMA, "chips": [], **attributes})
    codec = ZstdCodec(level=1, checksum=True)
    for name, shape, kind, fill in (
        ("pixels", (bands, size, size), dtype, 0),
        ("valid", (size, size), "uint8", 0),
        ("labels", (size, size), "uint8", IGNORE),
        ("scale", (bands,), "float32", 1),
        ("offset", (bands,), "float32", 0),
    ):
        group.create_array(
            name, shape=(count, *shape), chunks=(1, *shape), dtype=kind, fill_value=fill, compressors=codec
        )
    return group


def fill_chips(group: zarr.Group, chips: Iterable[Chip], classes: Sequence[str]) -> ChipsSummary:
    """Writes chips, each of which holds a labelled pixel, and what is known of them.

    Raises:
        LabelError: there are none.
    """
    arrays: dict[str, Any] = {name: group[name] for name in ("pixels", "valid", "labels", "scale", "offset")}
    most, counts = arrays["pixels"].shape[0], np.zeros(256, np.int64)
    records: list[dict[str, Any]] = []
    with zarr.config.set({"array.write_empty_chunks": True}):
        for chip in chips:
            index = len(records)
            arrays["pixels"][index], arrays["valid"][index] = chip.pixels, chip.valid
            arrays["labels"][index] = chip.labels
            arrays["scale"][index], arrays["offset"][index] = chip.radiometry.scale, chip.radiometry.offset
            counts += np.bincount(chip.labels.ravel(), minlength=256)
            records.append({"scene": chip.scene, "row": chip.row, "col": chip.col, "split": chip.split})
    if not records:
        raise LabelError("no chip holds a valid, labelled pixel")
    for array in arrays.values():
        array.resize((len(records), *array.shape[1:]))
    group.update_attributes({"chips": records})
    splits = [record["split"] for record in records]
    labelled = int(counts[:IGNORE].sum())
    shares = {name: float(counts[index] / labelled) for index, name in enumerate(classes)}
    return ChipsSummary(splits.count("train"), splits.count("val"), most - len(records), shares)


@contextmanager
def replacing_chips(out: Path) -> Iterator[Path]:
    """A folder to write chips into, which takes the place of `out` when the block ends without an error."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _attributes(scenes: Sequence[Scene], classes: Sequence[str], seed: int) -> dict[str, Any]:
    sizes = [scene.georef.resolution(scene.height, scene.width) for scene in scenes]
    return {
        "task": "segment",
        "bands": list(scenes[0].bands),
        "dtype": scenes[0].dtype,
        "classes": [{"id": index, "name": name} for index, name in enumerate(classes)],
        "seed": seed,
        "resolution": resolution_range(sizes),
        "scenes": {Path(scene.address.path).stem: scene.fingerprint for scene in scenes},
        "extent": _extent(scenes),
    }


def resolution_range(sizes: Sequence[float | None]) -> list[float] | None:
    """Smallest and largest pixels that a model may meet, in metres; None where the size of one image is not known."""
    known = [value for value in sizes if value is not None and math.isfinite(value)]
    if len(known) < len(sizes):
        return None
    return [min(known) / RESOLUTION_MARGIN, max(known) * RESOLUTION_MARGIN]


def _extent(scenes: Sequence[Scene]) -> list[float] | None:
    """`[west, south, east, north]` of all scenes in degrees; None where one has no georeference."""
    rings = [scene.georef.footprint(scene.height, scene.width) for scene in scenes]
    if any(ring is None for ring in rings):
        return None
    points = np.array([point for ring in rings for point in ring or []])
    return [float(value) for value in (*points.min(axis=0), *points.max(axis=0))]


def _cut(scene: Scene, labels: Labels, splitter: _Splitter) -> Iterator[Chip]:
    """The chips of one scene, row by row, without those that hold no labelled pixel."""
    whole, size = Window(0, 0, scene.height, scene.width), splitter.size
    stem = Path(scene.address.path).stem
    for row in range(0, scene.height, size):
        for col in range(0, scene.width, size):
            part = Window(row, col, size, size).intersect(whole)
            assert part is not None  # noqa: S101 - the loops stay inside
            pixels, valid = scene.read(part)
            classes = np.where(valid, labels.read(part), IGNORE).astype(np.uint8)
            if (classes != IGNORE).any():
                rim = ((0, size - part.height), (0, size - part.width))
                yield Chip(
                    scene=stem,
                    row=row,
                    col=col,
                    split=splitter(stem, row, col),
                    pixels=np.pad(pixels, ((0, 0), *rim)),
                    valid=np.pad(valid.astype(np.uint8), rim),
                    labels=np.pad(classes, rim, constant_values=IGNORE),
                    radiometry=scene.radiometry,
                )
