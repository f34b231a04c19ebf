"""A run, frozen before anything starts: its blocks, its cost, and whether it can work at all.

`make_plan` reads no pixels. The plan is written beside the output, and a task carries the path of that file: what a
worker does is decided here, once.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from models.engines.base import EngineRecord
from models.engines.slots import slots_of
from models.spec import ModelSpec
from pipeline import resources
from pipeline.errors import PlanError, SpaceError
from pipeline.fit import cell_notes, check_fit, place_notes, radiometry_for
from pipeline.georef import Georef
from pipeline.grid import TileGrid, Window, in_cells
from pipeline.publish.classes import legend_of
from pipeline.publish.levels import walk_bytes
from pipeline.scene import Radiometry, Scene, SceneAddress
from pipeline.staging import stage_windows

SCHEMA = 1
BLOCK_CORES = 2
"""Cores along the edge of a default block: four would read a seventh less, and hold four times as much in memory."""
TASK_SECONDS = 15.0
"""Wanted length of a task on a CPU."""
MOST_BLOCKS = 256
"""Blocks in a task at most. An engine on a GPU does one in some milliseconds, and waits at both ends of a task."""
GDAL_CACHE = 32 * 2**20
"""Bytes of decoded source blocks that GDAL may keep in each process."""
MOST_READERS = 12
"""Blocks that a worker reads at once at most: what an engine on a GPU asks for."""
READ_SHARE = 8
"""Reading and writing more blocks at once may add one part in so many to a worker's memory."""
SLACK = 192 * 2**20
"""Bytes for what is not counted one by one: libraries that the measured engine does without, zarr's buffers, report
pages, the allocator's fragmentation."""


@dataclass(frozen=True)
class Room:
    """What may be inside an engine and on its way into it at the same time: the memory is planned for this."""

    batch: int
    """Most tiles in a batch."""
    batches: int
    """Most batches in flight; the last of them is still being put together."""
    blocks: int
    """Most blocks whose tiles these hold: few where blocks are full of tiles, and one a batch at least."""

    @classmethod
    def of(cls, engine: EngineRecord, grid: TileGrid, block: int) -> "Room":
        """For an engine, and blocks of `block` pixels."""
        tiles = -(-grid.tiles(block) // math.prod(-(-edge // block) for edge in (grid.height, grid.width)))
        batches = slots_of(engine) + (engine.target == "cuda")  # a ring has one more
        return cls(engine.batch, batches, 1 + max(batches, -(-batches * engine.batch // tiles)))


@dataclass(frozen=True)
class Costs:
    """What a run takes, known before it starts."""

    tiles: int
    """Tiles that the engine will run."""
    overhead: float
    """Network input pixels per scene pixel."""
    blocks: int
    tasks: int
    staged_bytes: int
    """Upper bound of image.zarr; 0 without staging."""
    read_bytes: int
    """Decoded bytes that workers read, rims of blocks included."""
    written_bytes: int
    """Upper bound of what is written: the store, the outputs, and temporary files while they are made."""
    free_bytes: int
    """Free on the output's disk when the plan was made."""
    peak_bytes: int
    """Upper bound for the memory of one worker, in bytes."""
    engine_bytes: int
    """Of these, measured: a process that loaded the engine and ran it."""
    seconds: float
    """Engine time of the whole run on one worker, from the measured time of one tile; 0 where it is not known."""
    readers: int = 1
    """Most blocks that a worker reads, and most that it writes, at the same time: `peak_bytes` pays for them."""

    @property
    def needed_bytes(self) -> int:
        """Upper bound of the disk that a run takes."""
        return self.staged_bytes + self.written_bytes


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of one output, and what making them costs."""

    scene: SceneAddress
    fingerprint: str
    """Of the scene's content, without reading its pixels."""
    bands: tuple[str, ...]
    """Names of the scene's bands, in the order of the bundle's."""
    dtype: str
    radiometry: Radiometry
    georef: Georef
    spec: ModelSpec
    bundle: Path
    engine: EngineRecord
    grid: TileGrid
    block: int
    """Edge of a block, in pixels: a whole number of cores."""
    task_blocks: int
    """Blocks in one task."""
    stage: bool
    notes: tuple[str, ...]
    """What the user should know: no georeference, resolution not checked, ..."""
    costs: Costs
    origin: dict[str, Any] = field(default_factory=dict)
    """Driver, compression, trust, and what sidecars changed: for the report alone."""

    @cached_property
    def key(self) -> str:
        """Digest of all that decides the output's bytes and layout: change one and the work starts anew."""
        content = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "address": self.scene.content(),
            "radiometry": asdict(self.radiometry),
            "engine": self.engine.digest,
            "bundle": self.engine.bundle,
            "grid": asdict(self.grid),
            "block": self.block,
            "planes": self.spec.planes,
        }
        # Only what earlier versions did not carry over: their results for other scenes stay as they are.
        place = [[astuple(point) for point in self.georef.gcps], self.georef.rpcs, self.georef.pixel_size]
        if any(place):
            content["place"] = place
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def room(self) -> Room:
        """What the engine may hold."""
        return Room.of(self.engine, self.grid, self.block)

    @property
    def blocks(self) -> list[Window]:
        """All blocks, row by row."""
        return list(self.grid.blocks(self.block))

    def remaining(self, done: Iterable[tuple[int, int]]) -> list[Window]:
        """The blocks whose first (row, col) is not in `done`."""
        recorded = set(done)
        return [window for window in self.blocks if (window.row, window.col) not in recorded]

    def describe(self) -> list[tuple[str, str]]:
        """The plan as (label, value) rows for people."""
        costs, grid, engine = self.costs, self.grid, self.engine
        return [
            ("scene", f"{self.scene.path}: {grid.height} x {grid.width} px, {len(self.bands)} x {self.dtype}"),
            ("bundle", f"{self.spec.name} ({engine.bundle[:12]})"),
            ("engine", f"{engine.backend} {engine.precision}, {engine.threads} threads ({engine.digest[:12]})"),
            ("versions", engine.version),
            ("tile", f"{grid.tile} px, halo {grid.halo}, core {grid.core}"),
            *([] if self.spec.cell == 1 else [("mask", self._squares())]),
            ("tiles", f"{costs.tiles} ({costs.overhead:.2f} network pixels per scene pixel)"),
            ("blocks", f"{costs.blocks} of {self.block} px in {costs.tasks} tasks"),
            ("staged", f"{_size(costs.staged_bytes)}" if self.stage else "no: the scene is read where it lies"),
            ("read", _size(costs.read_bytes)),
            ("written", f"at most {_size(costs.written_bytes)} of {_size(costs.free_bytes)} free"),
            (
                "memory",
                f"at most {_size(costs.peak_bytes)} a worker (engine {_size(costs.engine_bytes)}, measured)",
            ),
            *([("engine time", f"{costs.seconds:.0f} s on one worker")] if costs.seconds else []),
            *(("note", note) for note in self.notes),
        ]

    def _squares(self) -> str:
        rows, cols = in_cells(self.grid.height, self.grid.width, self.spec.cell)
        return f"one class a square of {self.spec.cell} px: {rows} x {cols} px"

    def to_json(self) -> dict[str, Any]:
        """For the file that tasks point to."""
        return {"schema": SCHEMA, "key": self.key, **_adapter().dump_python(self, mode="json")}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_json`.

        Raises:
            ValueError: the facts are of another schema, or damaged.
        """
        if facts.get("schema") != SCHEMA:
            raise ValueError(f"schema {facts.get('schema')} is not known, {SCHEMA} is")
        return _adapter().validate_python({key: value for key, value in facts.items() if key not in {"schema", "key"}})

    def save(self, path: Path) -> None:
        """Write the plan where tasks find it, in one rename."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read what `save` wrote."""
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))


@cache
def _adapter() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


@dataclass(frozen=True)
class PlanOptions:
    """What a user may choose about a run; None leaves it to the plan."""

    block: int | None = None
    """Wanted edge of a block in pixels; rounded to a whole number of cores."""
    stage: bool | None = None
    any_resolution: bool = False
    workers: int = 1
    memory: int | None = None
    """Bytes that one worker may take; None: the machine's available memory, shared by its workers."""
    stored: int = 0
    """Bytes that earlier runs of this output left on its disk: they need not be found again."""


def cheapest_tile(height: int, width: int, spec: ModelSpec, largest: int) -> int:
    """The tile of the ladder, up to `largest`, with which a `height` x `width` scene takes the fewest network pixels.

    A large scene takes the largest, a scene smaller than a tile the smallest that holds it.
    """
    allowed = [tile for tile in spec.tiles if tile <= largest] or [spec.tiles[0]]
    return min(allowed, key=lambda tile: (TileGrid(height, width, tile, spec.halo, spec.stride).overhead(), -tile))


def nearest_block(grid: TileGrid, wanted: int | None) -> int:
    """Edge of a block in pixels: the whole number of cores nearest to `wanted`.

    By default `BLOCK_CORES` cores; one more where that saves a tenth of the tiles, since the last cores of a scene
    share a tile with those before them, and a block between them has it computed twice; fewer where the scene would
    then have less than four blocks to share out and smaller blocks do not part cores that share a tile.
    """
    if wanted is not None:
        return min(max(1, round(wanted / grid.core)), max(grid.shape)) * grid.core
    count = BLOCK_CORES
    if grid.tiles((count + 1) * grid.core) < 0.9 * grid.tiles(count * grid.core):
        count += 1
    while count > 1 and np.prod([-(-cores // count) for cores in grid.shape]) < 4:
        if grid.tiles((count - 1) * grid.core) > grid.tiles():
            break
        count -= 1
    return count * grid.core


def make_plan(
    scene: Scene, spec: ModelSpec, bundle: Path, engine: EngineRecord, *, out: Path, options: PlanOptions
) -> Plan:
    """Freeze a run over `scene` (its bands already chosen), or refuse what cannot work, with the numbers.

    Raises:
        PlanError: type, radiometry, resolution, memory or disk do not fit.
    """
    notes = check_fit(scene, spec, any_resolution=options.any_resolution)
    notes += place_notes(scene.georef) + cell_notes(spec)
    grid = TileGrid(scene.height, scene.width, engine.tile, spec.halo, spec.stride)
    block = nearest_block(grid, options.block)
    stage = scene.slow if options.stage is None else options.stage
    task_blocks = _task_blocks(grid, block, engine, options.workers)
    plan = Plan(
        scene=scene.address,
        fingerprint=scene.fingerprint,
        bands=scene.bands,
        dtype=scene.dtype,
        radiometry=radiometry_for(scene, spec),
        georef=scene.georef,
        spec=spec,
        bundle=bundle,
        engine=engine,
        grid=grid,
        block=block,
        task_blocks=task_blocks,
        stage=stage,
        notes=(*scene.notes, *notes),
        origin=scene.origin,
        costs=_costs(scene, spec, engine, grid, options, block=block, task_blocks=task_blocks, stage=stage, out=out),
    )
    _check_machine(plan, options)
    return plan


def _task_blocks(grid: TileGrid, block: int, engine: EngineRecord, workers: int) -> int:
    """Blocks that one worker finishes in about `TASK_SECONDS`; and where there are several workers, few enough that
    every one gets several tasks.

    At the end of a task the engine runs dry: so a task's tiles fill its streams evenly, where that takes at most twice
    as long, even if tasks are then few.
    """
    tiles = (block // grid.core) ** 2
    seconds = tiles * engine.seconds_per_tile
    by_time = min(round(TASK_SECONDS / seconds), MOST_BLOCKS) if seconds > 0 else 16
    blocks = -(-grid.height // block) * -(-grid.width // block)
    wanted, least = (4 * workers, 2 * workers) if workers > 1 else (1, 1)
    even = math.lcm(tiles, engine.streams * engine.batch) // tiles
    length = min(by_time, blocks // wanted) // even * even
    return max(1, min(max(length, min(even, 2 * max(by_time, 1))), blocks // least))


def _costs(
    scene: Scene,
    spec: ModelSpec,
    engine: EngineRecord,
    grid: TileGrid,
    options: PlanOptions,
    *,
    block: int,
    task_blocks: int,
    stage: bool,
    out: Path,
) -> Costs:
    blocks = list(grid.blocks(block))
    pixel_bytes = len(spec.bands) * np.dtype(scene.dtype).itemsize + 1
    decoded = scene.height * scene.width * pixel_bytes
    planes = len(spec.planes)
    rim = min(block + 2 * spec.halo + engine.tile - grid.core, max(grid.extent.height, grid.extent.width))
    source = min(rim, grid.extent.height) * min(rim, grid.extent.width) * pixel_bytes
    pixels = min(block, grid.height) * min(block, grid.width)
    batch = engine.batch * engine.tile**2 * (pixel_bytes + planes)
    # One block is read, one written, the others are cut into tiles or in the engine.
    room = Room.of(engine, grid, block)
    segmenting = (2 + room.blocks) * (source + pixels * planes) + (room.batches + 1) * batch
    published = [np.dtype(legend_of(spec.classes).dtype).itemsize if plane == "labels" else 1 for plane in spec.planes]
    staging = 3 * max(window.pixels for window in stage_windows(scene)) * pixel_bytes if stage else 0
    # GDAL keeps the block it decodes, however large, and its compressed or wider form beside it.
    libraries = max(GDAL_CACHE, 2 * scene.block_bytes) + SLACK
    spare = min(
        (engine.peak_bytes + segmenting) // READ_SHARE, _limit(options) - engine.peak_bytes - segmenting - libraries
    )
    # One more reader has handles of its own; one more writer a block's planes, which of its pixels are valid, and a
    # plane's shard in parts and in one piece.
    another = source + pixels * planes + (0 if stage else 2 * scene.block_bytes) + pixels * (planes + 3)
    # Where there are several readers, the parts of a block that each has just read are copied into one.
    more = max(min((spare - source) // another, _most_readers(options.workers) - 1), 0)
    segmenting += more * another + (source if more else 0)
    return Costs(
        tiles=grid.tiles(block),
        overhead=grid.overhead(block),
        blocks=len(blocks),
        tasks=-(-len(blocks) // task_blocks),
        staged_bytes=decoded if stage else 0,
        read_bytes=sum(grid.source(window).pixels for window in blocks) * pixel_bytes,
        # The store, and the levels of each file.
        written_bytes=grid.scene.pixels * planes
        + math.prod(in_cells(grid.height, grid.width, spec.cell)) * sum(4 * size // 3 + 1 for size in published),
        free_bytes=shutil.disk_usage(_existing(out)).free,
        peak_bytes=engine.peak_bytes
        + max(segmenting, staging, walk_bytes(grid.height, grid.width, grid.core))
        + libraries,
        engine_bytes=engine.peak_bytes,
        seconds=grid.tiles(block) * engine.seconds_per_tile,
        readers=1 + more,
    )


def _most_readers(workers: int) -> int:
    """Readers that a worker's share of the cores can feed; two at least, since one may wait for the disk."""
    return min(max(resources.cores() // workers, 2), MOST_READERS)


def _limit(options: PlanOptions) -> int:
    """Bytes that one worker may take. Workers that live on from the scene before hold an engine already."""
    return options.memory or (resources.available_memory() + resources.held_memory()) // options.workers


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _check_machine(plan: Plan, options: PlanOptions) -> None:
    costs = plan.costs
    needed = costs.needed_bytes
    if needed > costs.free_bytes + options.stored:
        raise SpaceError(
            f"{plan.scene.path} may need {_size(needed)} of disk, {_size(costs.free_bytes)} are free: "
            "free some, choose another --out"
            + (", or read the scene where it lies with --stage never" if plan.stage else "")
        )
    limit = _limit(options)
    if costs.peak_bytes > limit:
        raise PlanError(
            f"a worker may need {_size(costs.peak_bytes)} (block {plan.block}, tile {plan.grid.tile}), it can have "
            f"{_size(limit)}: choose a smaller --block or --tile, or fewer --workers"
        )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def runs(windows: list[Window], length: int) -> Iterator[tuple[Window, ...]]:
    """Neighbouring blocks, `length` at a time."""
    for start in range(0, len(windows), length):
        yield tuple(windows[start : start + length])
