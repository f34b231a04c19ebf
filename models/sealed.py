"""Sealed chips: ground that only the gate reads, kept with each champion as one file.

What a champion was accepted on is stored beside it, so that nothing that happens to label files later can touch it.
The file is a zip of a chips.zarr without compression of its own; the same chips give the same bytes.
"""

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import ZipStore

from models.dataset import Chips, open_chips
from models.errors import TrainingError
from models.spec import NODATA

SPLIT = "sealed"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every file in the zip."""


def counted(chips: Chips) -> list[int]:
    """Sealed chips whose labels a person made; what a model has made proves nothing about models."""
    made = {name for name, scene in chips.header.scenes.items() if scene.origin == "model"}
    return [index for index in chips.indices(SPLIT) if chips.header.chips[index].scene not in made]


def unseen(chips: Chips, old: Chips | None) -> list[int]:
    """The counted chips that `old` does not hold: of other ground, pixels or labels."""
    known = {fingerprint(old, index) for index in counted(old)} if old else set()
    return [index for index in counted(chips) if fingerprint(chips, index) not in known]


def fingerprint(chips: Chips, index: int) -> str:
    """SHA-256 over where a chip lies, its pixels and what they mean, its labels and the names of those classes."""
    chip, labels = chips.header.chips[index], np.asarray(chips.labels[index])
    present = set(np.unique(labels).tolist())
    names = [(entry.id, entry.name) for entry in chips.header.classes if entry.id in present]
    content = hashlib.sha256(repr((chip.scene, chip.row, chip.col, labels.shape, names)).encode())
    for array in (chips.pixels[index], chips.valid[index], labels, chips.scale[index], chips.offset[index]):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


def class_table(chips: Chips, names: Sequence[str]) -> NDArray[np.uint8]:
    """(256,): place in `names` of each class id of the chips; 255 stays 255."""
    table = np.full(256, NODATA, np.uint8)
    for entry in chips.header.classes:
        table[entry.id] = names.index(entry.name)
    return table


def seal(present: Chips, old: Chips | None, file: Path) -> int:
    """Write what gates will call the old ground from now on; the number of chips, and no file if that is 0.

    These are the counted chips of `present`, and those of `old` that no counted chip of `present` overlaps: ground is
    never lost because its labels have left the archive.

    Raises:
        TrainingError: the two differ in bands or type of pixels.
    """
    chosen = [_Source(present, index) for index in counted(present)]
    if old is not None:
        chosen += [source for index in counted(old) if not (source := _Source(old, index)).overlaps(chosen)]
    if not chosen:
        return 0
    if old is not None and (present.header.bands, present.header.dtype) != (old.header.bands, old.header.dtype):
        got, was = (f"bands {', '.join(each.header.bands)} of {each.header.dtype}" for each in (present, old))
        raise TrainingError(f"chips have {got}, sealed ones {was}: start a registry of its own for other bands")
    with tempfile.TemporaryDirectory(prefix="sealed-", dir=file.parent) as folder:
        _write(chosen, present, old, Path(folder))
        _pack(Path(folder), file)
    return len(chosen)


def leaked(chips: Chips, old: Chips | None) -> list[str]:
    """Names of the chips that are learnt from although a counted chip of `old` has labels of the same pixels.

    These are pixels of one scene, or of one place on the Earth. Where ground was cut anew, sealed ground may have come
    among the rest: whoever has learnt it proves nothing there.
    """
    if old is None:
        return []
    sealed: dict[str, list[tuple[int, int, int]]] = {}
    for index in counted(old):
        for lattice, row, col in _places(old, index):
            sealed.setdefault(lattice, []).append((index, row, col))
    learnt = (index for split in ("train", "val") for index in chips.indices(split))
    return [_name(chips, index) for index in learnt if _meets_any(chips, index, old, sealed)]


def _places(chips: Chips, index: int) -> Iterator[tuple[str, int, int]]:
    """Lattice, row and column of a chip's first pixel: in its scene, and on the Earth where that is known."""
    chip = chips.header.chips[index]
    yield f"scene {chip.scene}", chip.row, chip.col
    if chip.place is not None:
        lattice, row, col = chip.place.rsplit("/", 2)
        yield f"place {lattice}", int(row), int(col)


def _meets_any(chips: Chips, index: int, old: Chips, sealed: dict[str, list[tuple[int, int, int]]]) -> bool:
    """Whether a pixel with a label has one in a sealed chip too."""
    return any(
        _both_labelled(chips, index, old, other, (there - row, beside - col))
        for lattice, row, col in _places(chips, index)
        for other, there, beside in sealed.get(lattice, ())
    )


def _both_labelled(chips: Chips, index: int, old: Chips, other: int, shift: tuple[int, int]) -> bool:
    """`shift`: rows and columns from the first pixel of the one to that of the other."""
    here = tuple(slice(max(by, 0), max(min(by + old.edge, chips.edge), 0)) for by in shift)
    there = tuple(slice(max(-by, 0), max(min(chips.edge - by, old.edge), 0)) for by in shift)
    if any(part.start >= part.stop for part in here):
        return False
    mine, theirs = np.asarray(chips.labels[index])[here], np.asarray(old.labels[other])[there]
    return bool(((mine != NODATA) & (theirs != NODATA)).any())


def _name(chips: Chips, index: int) -> str:
    chip = chips.header.chips[index]
    return f"{chip.scene}, row {chip.row}, column {chip.col}"


@dataclass(frozen=True)
class _Source:
    """One chip of a set."""

    chips: Chips
    index: int

    def overlaps(self, others: "Sequence[_Source]") -> bool:
        """Whether one of the others shares ground with this one."""
        return any(self._meets(other) for other in others if other.chips is not self.chips)

    def _meets(self, other: "_Source") -> bool:
        here, there = self.chips.header.chips[self.index], other.chips.header.chips[other.index]
        mine, theirs = self.chips.edge, other.chips.edge
        rows = here.row < there.row + theirs and there.row < here.row + mine
        return here.scene == there.scene and rows and here.col < there.col + theirs and there.col < here.col + mine


def _write(chosen: Sequence[_Source], present: Chips, old: Chips | None, folder: Path) -> None:
    sets = [present] if old is None else [present, old]
    names = list(dict.fromkeys(entry.name for chips in sets for entry in chips.header.classes))
    edge = max(chips.edge for chips in sets)
    group = zarr.create_group(folder, attributes=_attributes(chosen, present, names))
    bands, tables = len(present.header.bands), {id(chips): class_table(chips, names) for chips in sets}
    arrays = {
        "pixels": _array(group, "pixels", (len(chosen), bands, edge, edge), present.header.dtype),
        "valid": _array(group, "valid", (len(chosen), edge, edge), "uint8"),
        "labels": _array(group, "labels", (len(chosen), edge, edge), "uint8", NODATA),
        "objects": _array(group, "objects", (len(chosen), edge, edge), "uint16"),
        "scale": _array(group, "scale", (len(chosen), bands), "float32"),
        "offset": _array(group, "offset", (len(chosen), bands), "float32"),
    }
    for slot, source in enumerate(chosen):
        chips, index = source.chips, source.index
        part = (slot, ..., slice(chips.edge), slice(chips.edge))
        arrays["pixels"][part], arrays["valid"][part] = chips.pixels[index], chips.valid[index]
        arrays["labels"][part] = tables[id(chips)][np.asarray(chips.labels[index])]
        if chips.objects is not None:
            arrays["objects"][part] = chips.objects[index]
        arrays["scale"][slot], arrays["offset"][slot] = chips.scale[index], chips.offset[index]


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: str, fill: int = 0) -> Any:
    codec = ZstdCodec(level=1, checksum=True)
    return group.create_array(
        name, shape=shape, chunks=(1, *shape[1:]), dtype=dtype, fill_value=fill, compressors=codec
    )


def _attributes(chosen: Sequence[_Source], present: Chips, names: Sequence[str]) -> dict[str, Any]:
    """Scenes are told as the set tells them that their chips come from: what people made stays so, whatever came later.

    Of a scene with chips of both, people made the labels in either, or its chips were not counted.
    """
    header = present.header.model_dump(mode="json", exclude={"schema_version", "chips", "classes", "scenes"})
    records = [source.chips.header.chips[source.index] for source in chosen]
    sources = [(source.chips.header.scenes, record.scene) for source, record in zip(chosen, records, strict=True)]
    scenes = {name: told[name] for told, name in reversed(sources) if name in told}
    return header | {
        "schema": 2,
        "classes": [{"id": index, "name": name} for index, name in enumerate(names)],
        "scenes": {name: scenes[name].model_dump(mode="json") for name in sorted(scenes)},
        "chips": [record.model_dump(mode="json") | {"slot": slot} for slot, record in enumerate(records)],
    }


def _pack(folder: Path, file: Path) -> None:
    partial = file.with_name(f"{file.name}.partial")
    with zipfile.ZipFile(partial, "w") as packed:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
            with path.open("rb") as source, packed.open(info, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)
    partial.replace(file)


def open_sealed(file: Path) -> Chips:
    """The chips in a file that `seal` has written.

    Raises:
        TrainingError: it holds none.
    """
    try:
        store = ZipStore(file, mode="r", read_only=True)
        chips = open_chips(cast("Path", store))
    except (OSError, zipfile.BadZipFile, TrainingError) as error:
        raise TrainingError(f"{file} holds no sealed chips: restore it ({error})") from error
    if isinstance(chips.pixels, np.ndarray):
        store.close()
    return chips
