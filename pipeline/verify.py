"""Whether a published result still is what its records say: coverage, shards, sums, files, georeference, pixels."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zarr

from pipeline.errors import UsageError, WidefieldError
from pipeline.georef import Georef
from pipeline.grid import Window, in_cells
from pipeline.ledger import BlockRecord, Ledger
from pipeline.outputs import ITEM, LEDGER, MASK, PLAN, RUN, published
from pipeline.plan import Plan
from pipeline.publish.cells import PublishedPlane
from pipeline.publish.classes import legend_of
from pipeline.publish.compare import first_difference
from pipeline.publish.stac import asset_of
from pipeline.scene import SceneAddress, open_scene
from pipeline.shards import layout_of
from pipeline.sources.placement import differences
from pipeline.statistics import class_totals
from pipeline.workshop import is_intact

MASK_TIF = "mask.tif"
_SHA256_MULTIHASH = "1220"


@dataclass(frozen=True)
class Verdict:
    """What was checked, and what was found."""

    folder: Path
    blocks: int
    """Blocks whose bytes were compared with their records."""
    problems: tuple[str, ...]
    """One line each, naming the block or the file; empty if all is well."""
    notes: tuple[str, ...]
    """What could not be checked, and why."""


def results(out: Path) -> list[Path]:
    """The published results at or below `out`.

    Raises:
        UsageError: there are none.
    """
    found = sorted(
        {
            path.parent
            for name in (RUN, MASK)  # a result that has lost its report is one still
            for path in out.rglob(name)
            if not any(part.startswith(".") for part in path.relative_to(out).parts)
        }
    )
    if not found:
        raise UsageError(f"no result at or below {out}: give a folder that `widefield segment --out` made")
    return found


def verify(folder: Path) -> Verdict:
    """Check one published result against its plan, its ledger, its item and its scene."""
    try:
        facts = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        plan = Plan.from_json(facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Verdict(folder, 0, (f"{PLAN} cannot be read ({_first_line(error)}): segment the scene again",), ())
    records = Ledger(folder / LEDGER).records()
    notes: list[str] = []
    problems = [
        *([] if facts.get("key") == plan.key else [f"{PLAN}: it has changed, its key does not fit what it says"]),
        *_coverage(plan, records),
        *_shards(plan, folder, records),
        *_report(plan, folder, records),
        *_files(plan, folder),
        *_georeference(plan, folder, notes),
    ]
    if not problems:  # the bytes of both sides are as recorded: do they say the same?
        problems += _pixels(plan, folder)
    return Verdict(folder, len(records), tuple(problems), tuple(notes))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _name(window: Window) -> str:
    return f"block at row {window.row}, column {window.col}"


Records = dict[tuple[int, int], BlockRecord]


def _coverage(plan: Plan, records: Records) -> Iterator[str]:
    """Every block has one record, and in each one valid in = classified out."""
    for window in plan.remaining(records):
        yield f"{_name(window)}: no record"
    planned = set(plan.blocks)
    for record in records.values():
        if record.window not in planned:
            yield f"{_name(record.window)}: recorded, but not in {PLAN}"
        if record.valid != record.classified:
            yield f"{_name(record.window)}: {record.valid} valid pixels, {record.classified} classified"


def _shards(plan: Plan, folder: Path, records: Records) -> Iterator[str]:
    """The stored bytes of each block against its record; the store's layout and georeference against the plan."""
    try:
        georef = Georef.from_attributes(dict(zarr.open_group(folder / MASK, mode="r").attrs))
        shapes = {layout_of(folder / MASK / plane).shape for plane in plan.spec.planes}
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{MASK}: its metadata cannot be read ({_first_line(error)}): segment again to mend it"
        return
    if georef != plan.georef:
        yield f"{MASK}: its georeference is not that of {PLAN}"
    if shapes != {(plan.grid.height, plan.grid.width)}:
        yield f"{MASK}: its planes have other shapes than the scene"
    for record in records.values():
        if not is_intact(plan, folder, record):
            yield f"{_name(record.window)}: its bytes in {MASK} have changed or are missing: segment again to mend it"


def _report(plan: Plan, folder: Path, records: Records) -> Iterator[str]:
    """The sums that were published, against the records."""
    try:
        facts = json.loads((folder / RUN).read_text(encoding="utf-8"))
        key, told = facts["key"], {entry["id"]: entry["pixels"] for entry in facts["classes"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{RUN} cannot be read ({_first_line(error)})"
        return
    if key != plan.key:
        yield f"{RUN} and {PLAN} belong to different runs"
    counts = class_totals(records.values())
    if any(counts[value] != pixels for value, pixels in told.items()):
        yield f"{RUN} and the ledger disagree on the pixels of the classes"


def _files(plan: Plan, folder: Path) -> Iterator[str]:
    """The published files against the checksums of their item: a line for each that is missing or has changed."""
    try:
        item = json.loads((folder / ITEM).read_text(encoding="utf-8"))
        checksums = {
            asset["href"].removeprefix("./"): asset["file:checksum"]
            for asset in item["assets"].values()
            if "file:checksum" in asset
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{ITEM} cannot be read ({_first_line(error)})"
        return
    for name in sorted(set(published(plan)) | set(checksums)):
        path = folder / name
        if name not in checksums:
            if path.exists():
                yield f"{name}: {ITEM} holds no checksum of it"
        elif not path.is_file():
            yield f"{name}: missing"
        elif _SHA256_MULTIHASH + _sha256(path) != checksums[name]:
            yield f"{name}: its bytes have changed"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _georeference(plan: Plan, folder: Path, notes: list[str]) -> Iterator[str]:
    """The mask's georeference against the scene's, and the scene against what was planned."""
    if not (folder / MASK_TIF).is_file():
        return  # reported with the files
    try:
        with open_scene(SceneAddress(str(folder / MASK_TIF))) as mask:
            shape, georef, nodata = (mask.height, mask.width), mask.georef, mask.nodata[0]
    except WidefieldError as error:
        yield f"{MASK_TIF} cannot be read: {error}"
        return
    cell = plan.spec.cell
    reference = _reference(plan, notes).coarser(cell)
    rows, cols = in_cells(plan.grid.height, plan.grid.width, cell)
    if shape != (rows, cols):
        yield f"{MASK_TIF} has {shape[0]} x {shape[1]} pixels, the scene {rows} x {cols}" + _squares(cell)
    wanted = legend_of(plan.spec.classes).nodata
    if nodata != wanted:
        yield f"{MASK_TIF} has nodata {nodata}, not {wanted}"
    yield from (f"{MASK_TIF} has {difference}{_squares(cell)}" for difference in differences(georef, reference))


def _squares(cell: int) -> str:
    """What a line about the scene adds where one pixel of the mask stands for many of the scene's."""
    return "" if cell == 1 else f" (in squares of {cell} px)"


def _pixels(plan: Plan, folder: Path) -> Iterator[str]:
    """Each published raster against its plane."""
    for name in published(plan):
        plane = asset_of(name).plane
        if plane is None or not (folder / name).is_file():
            continue
        legend = legend_of(plan.spec.classes) if plane == "labels" else None
        try:
            found = first_difference(folder / name, PublishedPlane(folder / MASK, plane, plan.spec.cell), legend)
        except WidefieldError as error:
            yield str(error)
            continue
        if found is not None:
            yield (
                f"{name}: {found.published} at row {found.row}, column {found.col}, where {MASK} has "
                f"{found.expected}: segment again to mend it"
            )


def _reference(plan: Plan, notes: list[str]) -> Georef:
    """The scene's georeference now; the plan's copy, with a note, where the scene has gone or changed."""
    try:
        with open_scene(plan.scene) as scene:
            if scene.fingerprint == plan.fingerprint:
                return scene.georef
            notes.append(f"{plan.scene.path} has changed since: the georeference was compared with the plan's copy")
    except WidefieldError as error:
        notes.append(f"the georeference was compared with the plan's copy: {error}")
    return plan.georef
