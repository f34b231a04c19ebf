"""chips.zarr: samples in numbered slots, and records that say which of them count.

A slot that no record names is free. New chips go to free slots, and the records are replaced last, in one step: a
writer that is killed leaves what was there.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipeline.errors import LabelError
from pipeline.labelforms.base import IGNORE
from pipeline.replace import exchange
from pipeline.scene import Radiometry

SCHEMA = 2
_PER_CHIP = ("pixels", "valid", "labels", "objects", "scale", "offset")


@dataclass(frozen=True)
class ChipsSummary:
    """What there is now."""

    train: int
    """Chips to train on."""
    val: int
    """Chips to choose by."""
    dropped: int
    """Windows without a valid, labelled pixel, and images that could not be read."""
    shares: dict[str, float]
    """Share of the labelled pixels, of each class."""
    sealed: int = 0
    """Chips that only the gate reads."""
    kept: int = 0
    """Chips of all these that were there already."""
    left: int = 0
    """Chips that would be too many."""


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
    objects: NDArray[np.uint16] | None = None
    """(S, S), which object of this chip, 0: none; None: nobody knows objects."""
    place: str | None = None
    """Of its first pixel on the Earth, as `Georef.place` names it."""


@dataclass(frozen=True, order=True)
class Record:
    """One chip that counts."""

    scene: str
    row: int
    col: int
    split: str = field(compare=False)
    slot: int = field(compare=False)
    counts: tuple[int, ...] = field(compare=False)
    """Pixels of each class."""
    place: str | None = field(default=None, compare=False)
    """Of its first pixel on the Earth, as `Georef.place` names it."""

    @property
    def first(self) -> tuple[int, int]:
        """First row and column."""
        return self.row, self.col


def create_chips(path: Path, count: int, *, bands: int, dtype: str, size: int) -> zarr.Group:
    """Slots for `count` chips, without any record."""
    group = zarr.create_group(store=path, attributes={"schema": SCHEMA, "chips": []})
    codec = ZstdCodec(level=1, checksum=True)
    for name, shape, kind, fill in (
        ("pixels", (bands, size, size), dtype, 0),
        ("valid", (size, size), "uint8", 0),
        ("labels", (size, size), "uint8", IGNORE),
        ("objects", (size, size), "uint16", 0),
        ("scale", (bands,), "float32", 1),
        ("offset", (bands,), "float32", 0),
    ):
        group.create_array(
            name, shape=(count, *shape), chunks=(1, *shape), dtype=kind, fill_value=fill, compressors=codec
        )
    return group


def read_records(attributes: Mapping[str, Any]) -> list[Record]:
    """The records of chips of this schema."""
    return [Record(**chip, counts=tuple(n)) for chip, n in zip(attributes["chips"], attributes["counts"], strict=True)]


class SlotWriter:
    """Puts chips into slots that no record names."""

    def __init__(
        self, group: zarr.Group, classes: int, *, taken: Sequence[Record] = (), kept: Sequence[Record] = ()
    ) -> None:
        """`taken` are the records of now, whose slots must not be touched; `kept` are those that will still count."""
        self.records = list(kept)
        self._group, self._classes = group, classes
        self._arrays: dict[str, Any] = {name: group[name] for name in _PER_CHIP}
        self._used = {record.slot for record in taken}
        self._next = 0

    def put(self, chip: Chip) -> None:
        """Writes a chip; it counts once `finish` has written its record."""
        slot = self._free()
        none = np.zeros(chip.labels.shape, np.uint16)
        stored = {
            "pixels": chip.pixels,
            "valid": chip.valid,
            "labels": chip.labels,
            "objects": none if chip.objects is None else chip.objects,
            "scale": chip.radiometry.scale,
            "offset": chip.radiometry.offset,
        }
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name, value in stored.items():
                self._arrays[name][slot] = value
        counts = np.bincount(chip.labels.ravel(), minlength=256)[: self._classes]
        pixels = tuple(map(int, counts))
        self.records.append(Record(chip.scene, chip.row, chip.col, chip.split, slot, pixels, chip.place))

    def _free(self) -> int:
        while self._next in self._used:
            self._next += 1
        slot = self._next
        self._next += 1
        if slot >= min(array.shape[0] for array in self._arrays.values()):  # a killed writer may leave them unequal
            self._resize(max(64, slot * 2))
        return slot

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Writes the records and `attributes` in the place of those that were there, and cuts off free slots.

        Raises:
            LabelError: there is no chip.
        """
        if not self.records:
            raise LabelError("no chip holds a valid, labelled pixel")
        self.records.sort()
        fields = ("scene", "row", "col", "split", "slot", "place")
        written = {
            "schema": SCHEMA,
            **attributes,
            "chips": [{name: getattr(record, name) for name in fields} for record in self.records],
            "counts": [list(record.counts) for record in self.records],
        }
        if dict(self._group.attrs) != written:
            self._group.attrs.put(written)
        self._resize(1 + max(record.slot for record in self.records))

    def _resize(self, count: int) -> None:
        for array in self._arrays.values():
            if array.shape[0] != count:
                array.resize((count, *array.shape[1:]))


def summarise(
    records: Sequence[Record], classes: Sequence[str], *, dropped: int, kept: int = 0, left: int = 0
) -> ChipsSummary:
    """What `records` add up to."""
    splits = [record.split for record in records]
    counts = np.sum([record.counts for record in records], 0)
    shares = {name: float(count / counts.sum()) for name, count in zip(classes, counts, strict=True)}
    return ChipsSummary(splits.count("train"), splits.count("val"), dropped, shares, splits.count("sealed"), kept, left)


@contextmanager
def replacing_chips(out: Path) -> Iterator[Path]:
    """A folder to write chips into, which takes the place of `out` when the block ends without an error."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    exchange(partial, out)
    shutil.rmtree(partial, ignore_errors=True)
