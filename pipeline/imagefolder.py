"""Images that have one class each to chips.zarr: a folder of images with one folder a class, or a table.

FOLDER/cracked/0001.jpg           FOLDER/train/cracked/0001.jpg         path,class,split
FOLDER/whole/0002.jpg             FOLDER/val/whole/0002.jpg             0001.jpg,cracked,train
"""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.chips import resolution_range
from pipeline.chipstore import Chip, ChipsSummary, SlotWriter, create_chips, replacing_chips, summarise
from pipeline.errors import LabelError, SceneError
from pipeline.grid import Window
from pipeline.labels import IGNORE
from pipeline.legend import check_classes
from pipeline.scene import Pixels, Scene, SceneAddress, Valid, open_scene
from pipeline.sources.formats import SUFFIXES
from pipeline.split import SPLITS, Ground

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One image and its class."""

    path: Path
    name: str
    """Path below the folder: what chips call it."""
    label: str
    split: str
    """`train`, `val` or `sealed`."""


def list_examples(folder: Path, table: Path | None = None) -> list[Example]:
    """All images of a folder with their classes, by name: from a table, else from the folders that they lie in.

    Images without a split are split by a hash of their name: they never move, whatever a training's seed.

    Raises:
        LabelError: there are none, a class is missing, or the table is none.
    """
    ground = Ground()
    rows = _from_folders(folder) if table is None else _from_table(table)
    examples = [Example(folder / name, name, label, split or ground.split(name)) for name, label, split in rows]
    if not examples:
        raise LabelError(f"{folder} holds no images: give a folder with one folder of images a class, or a table")
    wrong = sorted({example.split for example in examples} - set(SPLITS))
    if wrong:
        raise LabelError(f"{table} has the split {wrong[0]!r}: allowed are {', '.join(SPLITS)}")
    return sorted(examples, key=lambda example: example.name)


def class_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """The classes in the order of their ids, if nobody gives another: by name."""
    return tuple(sorted({example.label for example in examples}))


def write_image_chips(
    examples: Sequence[Example],
    out: Path,
    *,
    classes: Sequence[str],
    size: int = 256,
    seed: int = 0,
    bands: Sequence[int] | None = None,
) -> ChipsSummary:
    """Makes each image a chip of `size` pixels with its class as the label of all of them; `out` is replaced.

    An image of another size is scaled until its shorter side fits, and the middle is taken. One that cannot be read is
    told and left out.

    Raises:
        LabelError: a class is not among `classes` or has no good name, or no image can be read.
        SceneError: images differ in bands or type.
    """
    check_classes(classes)
    strange = sorted({example.label for example in examples} - set(classes))
    if strange:
        raise LabelError(f"images have the class {strange[0]!r}: known are {', '.join(classes)}")
    reader = _Reader(classes, size, None if bands is None else tuple(bands))
    chips = reader.chips(examples)
    first, kind = next(chips, (None, None))
    if first is None or kind is None:
        raise LabelError("no image can be read: see the lines above")
    with replacing_chips(out) as partial:
        group = create_chips(partial, len(examples), bands=len(kind[0]), dtype=kind[1], size=size)
        writer = SlotWriter(group, len(classes))
        for chip in _one_kind(first, kind, chips):
            writer.put(chip)
        writer.finish(
            {
                "task": "classify",
                "bands": list(kind[0]),
                "dtype": kind[1],
                "classes": [{"id": index, "name": name} for index, name in enumerate(classes)],
                "objects": [],
                "boundary": None,
                "seed": seed,
                "resolution": resolution_range(reader.resolutions),
                "ground": Ground().to_json(),
                "scenes": {},
            }
        )
        return summarise(writer.records, classes, dropped=len(examples) - len(writer.records))


Kind = tuple[tuple[str, ...], str]
"""Names of the bands, type of the pixels."""


@dataclass(frozen=True)
class _Reader:
    classes: Sequence[str]
    size: int
    bands: tuple[int, ...] | None
    resolutions: list[float | None] = field(default_factory=list)
    """Ground size of a chip's pixels in metres, of each image that was read; None where it is not known."""

    def chips(self, examples: Sequence[Example]) -> Iterator[tuple[Chip, Kind]]:
        """Each image that can be read and has a valid pixel."""
        for example in examples:
            try:
                with open_scene(SceneAddress(str(example.path), bands=self.bands)) as scene:
                    chip, kind = self._chip(example, scene), (scene.bands, scene.dtype)
                    resolution = scene.georef.resolution(scene.height, scene.width)
            except SceneError as error:
                log.warning("left out: %s", error)
                continue
            if not chip.valid.any():
                log.warning("left out: %s has no valid pixel", example.path)
                continue
            scale = min(scene.height, scene.width) / self.size
            self.resolutions.append(None if resolution is None else resolution * scale)
            yield chip, kind

    def _chip(self, example: Example, scene: Scene) -> Chip:
        pixels, valid = squared(*scene.read(Window(0, 0, scene.height, scene.width)), self.size)
        label = self.classes.index(example.label)
        return Chip(
            scene=example.name,
            row=0,
            col=0,
            split=example.split,
            pixels=pixels,
            valid=valid.astype(np.uint8),
            labels=np.where(valid, label, IGNORE).astype(np.uint8),
            radiometry=scene.radiometry,
        )


def _one_kind(first: Chip, kind: Kind, rest: Iterator[tuple[Chip, Kind]]) -> Iterator[Chip]:
    yield first
    for chip, other in rest:
        if other != kind:
            got = f"{chip.scene} has bands {', '.join(other[0])} of {other[1]}"
            raise SceneError(f"{got}, {first.scene} {', '.join(kind[0])} of {kind[1]}: choose bands, or convert")
        yield chip


def squared(pixels: Pixels, valid: Valid, size: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """The middle (C, size, size) and (size, size) of an image (C, H, W), scaled until its shorter side fits.

    Scaling is bilinear over all pixels that a new one covers, and valid where all of them are; an image of that size
    comes out as it is.
    """
    height, width = valid.shape
    scale = size / min(height, width)
    rows, cols = max(size, round(height * scale)), max(size, round(width * scale))
    if (rows, cols) != (height, width):
        pixels = np.stack([_scaled(np.where(valid, band, 0), rows, cols) for band in pixels])
        valid = _scaled(valid.astype(np.float32), rows, cols) > 0.999
    top, left = (rows - size) // 2, (cols - size) // 2
    return pixels[:, top : top + size, left : left + size], valid[top : top + size, left : left + size]


def _scaled(band: Pixels, rows: int, cols: int) -> Pixels:
    image = Image.fromarray(np.nan_to_num(band.astype(np.float32)))
    values = np.asarray(image.resize((cols, rows), Image.Resampling.BILINEAR))
    return (values if band.dtype.kind == "f" else np.rint(values)).astype(band.dtype)


def _from_folders(folder: Path) -> list[tuple[str, str, str]]:
    """(name, class, split or nothing) of images in FOLDER/CLASS or FOLDER/SPLIT/CLASS."""
    rows = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in parts):
            continue
        split, inside = (parts[0], parts[1:]) if parts[0] in SPLITS else ("", parts)
        if len(inside) < 2:
            raise LabelError(f"{path} lies in no class folder: move it, or give a table of classes")
        rows.append(("/".join(parts), inside[0], split))
    return rows


def _from_table(table: Path) -> list[tuple[str, str, str]]:
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{table} cannot be read: {error}") from error
    if not rows or not {"path", "class"} <= rows[0].keys():
        raise LabelError(f"{table} needs the columns path and class, and may have split")
    bare = [line for line, row in enumerate(rows, 2) if not (row["path"] and row["class"])]
    if bare:
        raise LabelError(f"{table} has no path or no class in line {bare[0]}: complete it, or take the line out")
    return [(row["path"], row["class"], row.get("split") or "") for row in rows]
