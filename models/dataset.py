"""chips.zarr, as `pipeline/chips.py` writes it: what is in it, and what its pixels are like."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from models.errors import TrainingError
from models.ground import PLACE, cells
from models.scoring import Part
from models.spec import Band, ClassName, DType, Value, check_objects

IN_MEMORY = 2 << 30
"""Chips of up to this many bytes are read once and kept; larger sets are read chip by chip."""

PROBE_EDGE = 128
"""Edge of a probe, in pixels."""


class ChipClass(Value):
    """A class as `chips.zarr` names it."""

    id: int
    name: ClassName


class Chip(Value):
    """Where a chip was cut."""

    scene: str
    row: int
    col: int
    split: Literal["train", "val", "sealed"]
    """Sealed chips are for the gate between two models alone: neither training nor choosing sees them."""
    slot: Annotated[int, Field(ge=0)]
    """Where in the arrays it lies."""
    place: Annotated[str, Field(pattern=PLACE)] | None = None
    """Of its first pixel on the Earth: two scenes over the same ground agree. None where that is not known."""

    @property
    def ground(self) -> str:
        """The place of its first pixel: on the Earth, else in its scene."""
        return self.place or f"{self.scene}/{self.row}/{self.col}"


class ChipScene(Value):
    """A scene that chips were cut from."""

    model_config = ConfigDict(extra="ignore")

    fingerprint: str
    labels: str = ""
    """Fingerprint of its labels; not known of chips of schema 1."""
    origin: Literal["drawn", "corrected", "model"] = "drawn"
    """Who made the labels."""


class ChipsHeader(Value):
    """The attributes of `chips.zarr` that training needs."""

    model_config = ConfigDict(extra="ignore")

    schema_version: Literal[1, 2]
    bands: tuple[str, ...]
    dtype: DType
    classes: tuple[ChipClass, ...]
    chips: tuple[Chip, ...]
    seed: int
    resolution: tuple[float, float] | None
    task: Literal["segment", "classify"] = "segment"
    """Whether pixels have labels, or images: then all labelled pixels of a chip have the same."""
    objects: tuple[int, ...] = ()
    """Ids of the classes whose connected pixels are things to be counted."""
    boundary: int | None = None
    """Id of the class that keeps touching objects apart."""
    extent: tuple[float, float, float, float] | None = None
    """West, south, east and north of all scenes in degrees, where they have a georeference."""
    scenes: dict[str, ChipScene] = Field(default_factory=dict)
    """By the name that chips have for them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_objects(self.objects, self.boundary, len(self.classes))
        slots = [chip.slot for chip in self.chips]
        if len(set(slots)) < len(slots):
            raise ValueError("two chips lie in one slot")
        return self


@dataclass(frozen=True)
class Chips:
    """All chips of one folder, in the order of their records: N squares of S x S pixels with C bands."""

    header: ChipsHeader
    pixels: Any
    """(N, C, S, S), own dtype; an array, or a zarr array that reads a chip when indexed."""
    valid: Any
    """(N, S, S) uint8, 1 where the scene has data."""
    labels: Any
    """(N, S, S) uint8, class ids or 255."""
    scale: NDArray[np.float32]
    """(N, C): value = stored * scale + offset."""
    offset: NDArray[np.float32]
    """(N, C)."""
    objects: Any | None = None
    """(N, S, S) uint16, 0 where there is no object, ids of one chip; None, or 0 all over a chip, where labels have
    none."""

    @property
    def edge(self) -> int:
        """S."""
        return int(self.pixels.shape[-1])

    def digest(self) -> str:
        """SHA-256 over the classes, and each record's split, pixels, valid mask, labels, scale and offset; slots do not
        matter.
        """
        content = hashlib.sha256("/".join(entry.name for entry in self.header.classes).encode())
        for index, chip in enumerate(self.header.chips):
            content.update(chip.split.encode())
            for array in (self.pixels, self.valid, self.labels, self.scale, self.offset):
                content.update(np.asarray(array[index]).tobytes())
        return content.hexdigest()

    def indices(self, split: str) -> list[int]:
        """Chips of `train`, `val` or `sealed`, in order."""
        return [i for i, chip in enumerate(self.header.chips) if chip.split == split]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(N, K) labelled pixels of each chip, by class."""
        of = (np.bincount(np.asarray(self.labels[i]).ravel(), minlength=256) for i in range(len(self.header.chips)))
        return np.array([each[: len(self.header.classes)] for each in of], np.int64)

    def cells(self, index: int) -> list[Part]:
        """The cells of ground that one chip lies on, and where in it."""
        return list(cells(self.header.chips[index].ground, self.edge, self.edge))

    def values(self, index: int) -> NDArray[np.float32]:
        """(C, S, S) of one chip in the bands' unit; whatever is stored where the scene is invalid."""
        scale, offset = self.scale[index, :, None, None], self.offset[index, :, None, None]
        return cast("NDArray[np.float32]", np.asarray(self.pixels[index], np.float32) * scale + offset)

    def known(self, index: int) -> NDArray[np.bool_]:
        """(S, S), where one chip has data in all bands that can be computed with."""
        return cast("NDArray[np.bool_]", (self.valid[index] != 0) & np.isfinite(self.pixels[index]).all(0))


@dataclass(frozen=True)
class _Records:
    """A stored array by record instead of by slot; each chip is read when it is asked for."""

    stored: Any
    slots: list[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.slots), *self.stored.shape[1:])

    def __getitem__(self, index: int) -> NDArray[Any]:
        return np.asarray(self.stored[self.slots[index]])


def open_chips(path: Path) -> Chips:
    """The chips at `path`, read into memory where they are small.

    Raises:
        TrainingError: there are none, or they are not what `pipeline/chips.py` writes.
    """
    try:
        group = zarr.open_group(path, mode="r")
        header = _read_header(dict(group.attrs))
        stored: dict[str, Any] = {name: group[name] for name in ("pixels", "valid", "labels", "scale", "offset")}
        stored |= {"objects": group["objects"]} if "objects" in group else {}
    except (OSError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path} holds no chips of schema 1 or 2 ({error}): make them again from images and labels"
        ) from error
    slots = [chip.slot for chip in header.chips]
    if slots and max(slots) >= stored["pixels"].shape[0]:
        raise TrainingError(f"{path} lists a chip in slot {max(slots)}, but has {stored['pixels'].shape[0]} slots")
    size = len(slots) * sum(array.nbytes // max(array.shape[0], 1) for array in stored.values())
    arrays = {name: _by_record(array, slots, size <= IN_MEMORY or array.ndim == 2) for name, array in stored.items()}
    return Chips(header, **arrays)


def _read_header(attributes: dict[str, Any]) -> ChipsHeader:
    """Of schema 1, in which a chip's number was its slot and a scene had a fingerprint alone, as of schema 2."""
    attributes["schema_version"] = attributes.pop("schema", None)
    if attributes["schema_version"] == 1:
        attributes["chips"] = [{**chip, "slot": slot} for slot, chip in enumerate(attributes["chips"])]
        attributes["scenes"] = {name: {"fingerprint": mark} for name, mark in attributes.get("scenes", {}).items()}
    return ChipsHeader.model_validate(attributes)


def _by_record(stored: Any, slots: list[int], whole: bool) -> Any:
    if not whole:
        return _Records(stored, slots)
    return stored[:] if slots == list(range(stored.shape[0])) else stored.oindex[np.array(slots, int)]


def measure_bands(chips: Chips, indices: list[int], units: tuple[str, ...] = ()) -> tuple[Band, ...]:
    """Range, mean and deviation of each band over the valid pixels of the chips `indices`, in the band's unit.

    Raises:
        TrainingError: no chip has a valid pixel, or there are more or fewer units than bands.
    """
    bands = len(chips.header.bands)
    if units and len(units) != bands:
        raise TrainingError(f"the chips have {bands} bands, but {len(units)} have units, as set or as in the start")
    count, total, square = 0, np.zeros(bands), np.zeros(bands)
    low, high = np.full(bands, np.inf), np.full(bands, -np.inf)
    for index in indices:
        seen = chips.values(index)[:, chips.known(index)].astype(np.float64)
        if not seen.size:
            continue
        count += seen.shape[1]
        total, square = total + seen.sum(1), square + (seen**2).sum(1)
        low, high = np.minimum(low, seen.min(1)), np.maximum(high, seen.max(1))
    if not count:
        raise TrainingError("no training chip has a valid pixel: check the images' nodata and the split")
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    std[std == 0] = 1
    return tuple(
        Band(name=name, unit=unit, low=float(lo), high=float(hi), mean=float(m), std=float(s))
        for name, unit, lo, hi, m, s in zip(
            chips.header.bands, units or ("DN",) * bands, low, high, mean, std, strict=True
        )
    )


def draw_probes(
    chips: Chips, *, budget: int = 1_000_000, most: int = 20
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Central crops and their valid masks, from validation chips spread over the list, within `budget` bytes."""
    edge = chips.edge if chips.header.task == "classify" else min(PROBE_EDGE, chips.edge)
    start = (chips.edge - edge) // 2
    part = (..., slice(start, start + edge), slice(start, start + edge))
    each = edge * edge * (len(chips.header.bands) * np.dtype(chips.header.dtype).itemsize + 1)
    pool = chips.indices("val") or chips.indices("train")
    count = min(most, len(pool), max(budget // each, 1))
    chosen = [pool[i * len(pool) // count] for i in range(count)]
    return [np.asarray(chips.pixels[i])[part] for i in chosen], [np.asarray(chips.valid[i])[part] for i in chosen]
