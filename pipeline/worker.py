"""What a worker does with a task: read, batch, infer, write, record. Addresses in, facts out, idempotent.

Inside a task three things overlap: a thread reads the next block ahead, the engine computes, and a thread writes the
last block behind. A block is read once, as one window (its tiles' union); tiles are views of it. Tasks of several
scenes may go through the engine together: where engine and radiometry agree, their tiles share its batches.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.engines.base import Batch, Engine, EngineRecord
from models.spec import NODATA
from pipeline import outputs, resources, store
from pipeline.grid import Core, Window
from pipeline.ledger import BlockRecord, Ledger
from pipeline.outputs import LEDGER, MASK, PLAN, STAGED, open_source
from pipeline.plan import GDAL_CACHE, Plan
from pipeline.scene import Source
from pipeline.staging import stage_window
from pipeline.statistics import class_sums, confidence_bins
from pipeline.stop import stopping

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A run of neighbouring blocks. Carries addresses only, so it stays under 1 kB."""

    run: str
    """Folder of the run: its plan, its store, its ledger."""
    windows: tuple[Window, ...]
    alone: bool = False
    """Whether nothing else may run meanwhile: set for a block that is suspected of killing its worker."""

    @property
    def name(self) -> str:
        """Unique among the tasks of one run."""
        first, last = self.windows[0], self.windows[-1]
        return f"blocks-{first.row}-{first.col}-{last.row}-{last.col}{'-alone' if self.alone else ''}"


@dataclass(frozen=True)
class StageTask:
    """One window of the scene to be copied into the staged store."""

    run: str
    window: Window
    alone: bool = False
    """See `Task.alone`."""

    @property
    def name(self) -> str:
        """Unique among the tasks of one run."""
        return f"stage-{self.window.row}-{self.window.col}"


@dataclass(frozen=True)
class PublishTask:
    """One output to be made of a complete store."""

    run: str
    step: str
    """A key of `pipeline.outputs.STEPS`."""
    alone: bool = False
    """See `Task.alone`."""

    @property
    def name(self) -> str:
        """Unique among the tasks of one run."""
        return f"publish-{self.step}"


@dataclass(frozen=True)
class TaskReport:
    """What one task did."""

    seconds: float
    """Wall time of the task."""
    outside_seconds: float | None
    """CPU time of everything but the engine's threads; None where the system does not tell."""
    peak_bytes: int
    """Largest resident set of the worker process so far."""
    records: tuple[BlockRecord, ...] = ()


def perform(task: Task | StageTask | PublishTask) -> TaskReport:
    """Run a task to its end: the one function that executors call."""
    resources.limit_caches(GDAL_CACHE)
    if stopping(Path(task.run)):
        return TaskReport(0.0, None, resources.peak_memory())
    engine_threads = _engine(task.run)[1] if isinstance(task, Task) else frozenset()
    start, cpu = time.perf_counter(), resources.cpu_seconds(without=engine_threads)
    records: tuple[BlockRecord, ...] = ()
    match task:
        case Task():
            records = tuple(segment_blocks(task))
        case StageTask():
            plan = _plan(task.run)
            stage_window(plan.scene, str((Path(task.run) / STAGED).resolve()), task.window)
        case PublishTask():
            outputs.STEPS[task.step](_plan(task.run), Path(task.run))
    resources.release_memory()
    after = resources.cpu_seconds(without=engine_threads)
    outside = None if cpu is None or after is None else max(after - cpu, 0.0)
    return TaskReport(time.perf_counter() - start, outside, resources.peak_memory(), records)


def segment_blocks(task: Task) -> Iterator[BlockRecord]:
    """Segment the task's blocks; each one is in the ledger when it is yielded. See `segment_together`."""
    return (record for _, record in segment_together([task]))


def segment_together(
    tasks: Sequence[Task], stopping: Callable[[Path], bool] = stopping
) -> Iterator[tuple[str, BlockRecord]]:
    """Segment the blocks of tasks that one engine serves: (run, record) of each block, once it is in its ledger.

    A block's shards are durable before its record is. Doing a block again writes the same bytes. Ends between blocks
    once `stopping` says so of a run.

    Raises:
        SceneError: a part of a scene cannot be read. Blocks yielded before stay recorded.
    """
    engine, _ = _engine(tasks[0].run)
    with (
        contextlib.ExitStack() as sources,
        ThreadPoolExecutor(1, "read") as reader,
        ThreadPoolExecutor(1, "write") as writer,
    ):
        flight: deque[_Tiles] = deque()
        finished: deque[Future[tuple[str, BlockRecord]]] = deque()

        def finish(block: _Block) -> None:
            # One block is written while the next is computed: without this wait a slow disk would fill the memory.
            wait(list(finished)[-1:])
            finished.append(writer.submit(_finish, block))

        blocks = _ahead(reader, _reading(tasks, sources, stopping))
        for planes in engine.map(_batches(_plan(tasks[0].run).engine.batch, blocks, flight, finish)):
            _keep(flight.popleft(), planes, finish)
            while finished and finished[0].done():
                yield finished.popleft().result()
        while finished:
            yield finished.popleft().result()


def _reading(
    tasks: Iterable[Task], sources: contextlib.ExitStack, stopping: Callable[[Path], bool]
) -> Iterator[Callable[[], "_Block"]]:
    """What reads each block, in order. Each source is opened by its first block and closed by its last."""
    for task in tasks:
        plan, run = _plan(task.run), Path(task.run)
        opened = _Opened(plan, run, len(task.windows))
        sources.callback(opened.close)
        for window in task.windows:
            if stopping(run):
                return
            yield partial(opened.read, window)


class _Opened:
    """The source of one task, for as long as its blocks are read: by one thread, one after the other."""

    def __init__(self, plan: Plan, run: Path, blocks: int) -> None:
        self.plan, self.run, self.left = plan, run, blocks
        self._source: Source | None = None

    def read(self, window: Window) -> "_Block":
        """One block with its tiles."""
        if self._source is None:
            self._source = open_source(self.plan, self.run)
        block = _Block.read(self.plan, self.run, self._source, window)
        self.left -= 1
        if not self.left:
            self.close()
        return block

    def close(self) -> None:
        """Release the source's handles."""
        if self._source is not None:
            self._source.close()


@dataclass
class _Block:
    """One block between reading and writing."""

    plan: Plan
    run: Path
    """Folder of the run that it belongs to."""
    window: Window
    source: Window
    """Scene pixels that were read: the union of the block's tiles."""
    pixels: NDArray[np.generic]
    """(C, H, W) of `source`, in the scene's own type."""
    valid: NDArray[np.bool_]
    """(H, W) of `source`."""
    planes: NDArray[np.uint8]
    """(P, H, W) of `window`, filled tile by tile; 255 where nothing is kept yet."""
    tiles: dict[Window, list[Core]]
    """Cores by the tile that predicts them."""
    waiting: int
    """Tiles whose answer has not come."""
    clock: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, plan: Plan, run: Path, source: Source, window: Window) -> "_Block":
        start = time.perf_counter()
        extent = plan.grid.source(window)
        pixels, valid = source.read(extent)
        planes = np.full((len(plan.spec.planes), window.height, window.width), NODATA, np.uint8)
        tiles: dict[Window, list[Core]] = {}
        for core in plan.grid.cores(window):
            if valid[core.owned.relative_to(extent).slices].any():
                tiles.setdefault(core.tile, []).append(core)
        block = cls(plan, run, window, extent, pixels, valid, planes, tiles, len(tiles))
        block.clock = {"read": time.perf_counter() - start, "start": time.perf_counter()}
        return block

    def tile(self, tile: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels (C, T, T) and valid mask (T, T) of one tile; the rim beyond the scene is filled by reflection."""
        inside = tile.intersect(self.source)
        assert inside is not None  # noqa: S101 - the source is the union of the tiles
        here = inside.relative_to(self.source).slices
        pixels, valid = self.pixels[:, *here], self.valid[here]
        rim = ((0, tile.height - inside.height), (0, tile.width - inside.width))
        if rim == ((0, 0), (0, 0)):
            return pixels, valid
        return np.pad(pixels, ((0, 0), *rim), "reflect"), np.pad(valid, rim, "reflect")

    def keep(self, core: Core, planes: NDArray[np.uint8]) -> None:
        """Copy what `core` owns out of a tile's planes (P, T, T); invalid pixels stay nodata."""
        owned = core.owned.relative_to(self.window).slices
        valid = self.valid[core.owned.relative_to(self.source).slices]
        hidden = valid.view(np.uint8) - np.uint8(1)  # 0 where valid, else NODATA: "or" takes a tenth of a masked copy
        np.bitwise_or(planes[:, *core.kept.slices], hidden, out=self.planes[:, *owned])


_Tiles = list[tuple[_Block, Window]]
"""The tiles of one batch, in its order."""


def _ahead(pool: ThreadPoolExecutor, reads: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What `reads` return, one ahead of the consumer."""
    pending: deque[Future[T]] = deque()
    for read in reads:
        pending.append(pool.submit(read))
        if len(pending) > 1:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _batches(
    size: int, blocks: Iterable[_Block], flight: deque[_Tiles], empty: Callable[[_Block], object]
) -> Iterator[Batch]:
    """Tiles of all blocks, at most `size` a batch, of one radiometry. A block without a valid pixel goes to `empty`:
    it needs no engine.
    """
    tiles: _Tiles = []
    for block in blocks:
        if not block.tiles:
            empty(block)
        for tile in block.tiles:
            if tiles and tiles[0][0].plan.radiometry != block.plan.radiometry:
                yield _launch(tiles, flight)
                tiles = []
            tiles.append((block, tile))
            if len(tiles) == size:
                yield _launch(tiles, flight)
                tiles = []
    if tiles:
        yield _launch(tiles, flight)


def _launch(tiles: _Tiles, flight: deque[_Tiles]) -> Batch:
    flight.append(tiles)
    used = tiles[0][0].plan.radiometry
    scale, offset = (np.asarray(values, np.float32) for values in (used.scale, used.offset))
    pixels, valid = zip(*(block.tile(tile) for block, tile in tiles), strict=True)
    return Batch(_stacked(pixels), _stacked(valid), scale, offset)


def _stacked(tiles: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """A batch of tiles; one alone is not copied."""
    return tiles[0][np.newaxis] if len(tiles) == 1 else np.stack(tiles)


def _keep(tiles: _Tiles, planes: NDArray[np.uint8], finish: Callable[[_Block], object]) -> None:
    """Hand a batch's planes (N, P, T, T) to the cores that own them; what is complete by it goes to `finish`."""
    for (block, tile), answer in zip(tiles, planes, strict=True):
        for core in block.tiles[tile]:
            block.keep(core, answer)
        block.waiting -= 1
        if block.waiting == 0:
            finish(block)


def _finish(block: _Block) -> tuple[str, BlockRecord]:
    """Write a complete block, then record it."""
    plan, run = block.plan, block.run
    waited, start = time.perf_counter() - block.clock["start"], time.perf_counter()
    planes = dict(zip(plan.spec.planes, block.planes, strict=True))
    digest = store.write_block(run / MASK, block.window, planes)
    valid = block.valid[block.window.relative_to(block.source).slices]
    counts, areas = class_sums(planes["labels"], block.window, plan.georef)
    record = BlockRecord(
        row=block.window.row,
        col=block.window.col,
        height=block.window.height,
        width=block.window.width,
        digest=digest,
        valid=int(np.count_nonzero(valid)),
        counts=counts,
        areas=areas,
        confidence=confidence_bins(planes["confidence"]) if "confidence" in planes else (),
        tiles=len(block.tiles),
        seconds={"read": block.clock["read"], "wait": waited, "write": time.perf_counter() - start},
    )
    Ledger(run / LEDGER).append(record)
    return str(run), record


def _plan(run: str) -> Plan:
    path = Path(run) / PLAN
    return _plan_as_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _plan_as_of(path: Path, _changed: int) -> Plan:
    return Plan.load(path)


def _engine(run: str) -> tuple[Engine, frozenset[int]]:
    """The run's engine and the threads that came with it."""
    plan = _plan(run)
    return _load(str(plan.bundle), plan.engine.to_json())


@lru_cache(maxsize=1)
def _load(bundle: str, record: str) -> tuple[Engine, frozenset[int]]:
    """Load and check an engine, once a process: the next scene of an archive finds it here."""
    from models.engines.load import load_engine

    before = resources.threads()
    engine = load_engine(bundle, EngineRecord.from_json(record))
    return engine, resources.threads() - before
