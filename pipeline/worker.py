"""What a worker does with a task: read, batch, infer, write, record. Addresses in, facts out, idempotent.

Inside a task three things overlap: a thread reads the next block ahead, the engine computes, and a thread writes the
last block behind; where the engine waits for either, more threads join (see `pipeline.pace`). A block is read once, as
one window (its tiles' union), which its readers share; tiles are views of it, and those without a valid pixel of their
own never reach the engine. Tasks of several scenes may go through the engine together: where engine and radiometry
agree, their tiles share its batches.
"""

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from models.engines.base import Batch, Engine, EngineRecord, Planes
from models.engines.meter import Meter, Times
from models.spec import NODATA
from pipeline import outputs, resources, store
from pipeline.grid import Core, Window
from pipeline.ledger import BlockRecord, Ledger
from pipeline.outputs import LEDGER, MASK, PLAN, STAGED, open_source
from pipeline.pace import Pace
from pipeline.plan import GDAL_CACHE, Plan
from pipeline.scene import Pixels, Source, Valid
from pipeline.staging import stage_window
from pipeline.statistics import class_sums, confidence_bins
from pipeline.stop import stopping

Kind = Literal["segment", "stage", "open", "publish"]

_RECORDING = threading.Lock()
"""Held while a record is appended: a process has one file in a ledger, and several threads that write blocks."""


@dataclass(frozen=True)
class Task:
    """A run of neighbouring blocks. Carries addresses only: some 35 bytes a block, 1 kB for most."""

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

    @property
    def gpu(self) -> bool:
        """Whether its engine runs on a GPU."""
        return _plan(self.run).engine.target == "cuda"


@dataclass(frozen=True)
class StageTask:
    """One window of the scene to be copied into the staged store."""

    run: str
    window: Window
    alone: bool = False
    """See `Task.alone`."""
    gpu: ClassVar[bool] = False
    """See `Task.gpu`."""

    @property
    def name(self) -> str:
        """Unique among the tasks of one run."""
        return f"stage-{self.window.row}-{self.window.col}"


@dataclass(frozen=True)
class PublishTask:
    """One output to be made of a complete store."""

    run: str
    step: str
    """One of `pipeline.outputs.steps_of`."""
    alone: bool = False
    """See `Task.alone`."""
    gpu: ClassVar[bool] = False
    """See `Task.gpu`."""

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
    kind: Kind = "segment"
    start: float = 0.0
    """Seconds that went before, to load the engine: 0 where an earlier task of this process had loaded it."""
    engine: Times = field(default_factory=Times)
    """What the engine did with its time."""
    readers: int = 0
    """Threads that read blocks, in the end."""
    writers: int = 0
    """Threads that wrote blocks, in the end."""
    worker: str = ""
    """Names the process that did it."""


def perform(task: Task | StageTask | PublishTask) -> TaskReport:
    """Run a task to its end: the one function that executors call."""
    resources.limit_caches(GDAL_CACHE)
    if stopping(Path(task.run)):
        return TaskReport(0.0, None, resources.peak_memory())
    match task:
        case Task():
            return _segment(task)
        case StageTask():
            plan, staged = _plan(task.run), str((Path(task.run) / STAGED).resolve())
            return _timed("stage", lambda: stage_window(plan.scene, staged, task.window))
        case PublishTask():
            return _timed("publish", lambda: outputs.make(task.step, _plan(task.run), Path(task.run)))


def _segment(task: Task) -> TaskReport:
    watch = EngineWatch([task])
    records = tuple(segment_blocks(task))
    resources.release_memory()
    return watch.report(records)


def _timed(kind: Kind, work: Callable[[], object]) -> TaskReport:
    watch = Watch()
    work()
    resources.release_memory()
    return watch.report(kind)


class Watch:
    """What this process does from now on; the CPU time of the threads `without` is left out."""

    def __init__(self, without: frozenset[int] = frozenset()) -> None:
        self._without = without
        self._began, self._cpu = time.perf_counter(), resources.cpu_seconds(without=without)

    def report(self, kind: Kind) -> TaskReport:
        """What it took up to now."""
        after = resources.cpu_seconds(without=self._without)
        outside = None if self._cpu is None or after is None else max(after - self._cpu, 0.0)
        worker = f"{socket.gethostname()}-{os.getpid()}"
        return TaskReport(time.perf_counter() - self._began, outside, resources.peak_memory(), kind=kind, worker=worker)


class EngineWatch:
    """What this process and the engine of some tasks do from now on. The engine is loaded first, if it is not at hand.

    It may be asked after a failure too: each watch tells of its own time.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        began = time.perf_counter()
        self._engine, threads = _engine(tasks[0].run)
        self._paces = _paces(tasks)
        self._start, self._before = time.perf_counter() - began, self._engine.meter.times()
        self._watch = Watch(without=threads)

    def report(self, records: tuple[BlockRecord, ...]) -> TaskReport:
        """What it took up to now to make `records`."""
        reading, writing = self._paces
        return replace(
            self._watch.report("segment"),
            records=records,
            start=self._start,
            engine=self._engine.meter.times() - self._before,
            readers=reading.threads,
            writers=writing.threads,
        )


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
    reading, writing = _paces(tasks)
    flight: deque[_Tiles] = deque()
    with (
        contextlib.ExitStack() as sources,
        contextlib.ExitStack() as ends,
        ThreadPoolExecutor(writing.most, "write") as writers,
    ):
        readers = [ends.enter_context(ThreadPoolExecutor(1, "read")) for _ in range(reading.most)]
        behind = _Behind(writers, writing, engine.meter)
        blocks = _ahead(readers, _reading(tasks, sources, stopping), reading, engine.meter)
        with _mapped(engine, _batches(blocks, flight, behind.write)) as answers:
            for planes in answers:
                _keep(flight.popleft(), planes, behind.write)
                yield from behind.written()
        with engine.meter.doing("output"):
            yield from behind.rest()


def _reading(
    tasks: Iterable[Task], sources: contextlib.ExitStack, stopping: Callable[[Path], bool]
) -> Iterator["_Reading"]:
    """Each block that is to be read, in order. Each source is opened by its first block and closed by its last."""
    for task in tasks:
        plan, run = _plan(task.run), Path(task.run)
        opened = _Opened(plan, run, len(task.windows))
        sources.callback(opened.close)
        for window in task.windows:
            if stopping(run):
                return
            yield _Reading(opened, window)


class _Opened:
    """The source of one task, for as long as its blocks are read, by any threads."""

    def __init__(self, plan: Plan, run: Path, blocks: int) -> None:
        self.plan, self.run, self.left = plan, run, blocks
        self._source: Source | None = None
        self._lock = threading.Lock()

    @property
    def source(self) -> Source:
        """The source, open."""
        with self._lock:
            if self._source is None:
                self._source = open_source(self.plan, self.run)
            return self._source

    def done(self) -> None:
        """One block has been read."""
        with self._lock:
            self.left -= 1
            if not self.left:
                self.close()

    def close(self) -> None:
        """Release the source's handles."""
        if self._source is not None:
            self._source.close()


class _Reading:
    """One block that is being read by some threads: each reads rows of its own, and the last one makes the block."""

    def __init__(self, opened: _Opened, window: Window) -> None:
        self._opened, self._window = opened, window
        self._extent = opened.plan.grid.source(window)
        self._read: tuple[Pixels, Valid] | None = None
        self._seconds, self._left = 0.0, 1
        self._lock = threading.Lock()

    def begin(self, threads: Sequence[ThreadPoolExecutor]) -> list[Future["_Block | None"]]:
        """Have each thread read its part; one of them answers with the block."""
        self._left = len(threads)
        return [thread.submit(self.read, number, len(threads)) for number, thread in enumerate(threads)]

    def read(self, number: int = 0, of: int = 1) -> "_Block | None":
        """Read part `number` of `of`; the block if that was the last one."""
        start, source = time.perf_counter(), self._opened.source
        if (part := bands(self._extent, of, *source.lattice)[number]) is not None:
            self._keep(part, *source.read(part))
        with self._lock:
            self._left -= 1
            self._seconds += time.perf_counter() - start
            if self._left:
                return None
        return self._finish()

    def _keep(self, part: Window, pixels: Pixels, valid: Valid) -> None:
        if part == self._extent:
            self._read = pixels, valid
            return
        shape = (self._extent.height, self._extent.width)
        with self._lock:
            self._read = self._read or (np.empty((len(pixels), *shape), pixels.dtype), np.empty(shape, np.bool_))
        rows = part.relative_to(self._extent).slices
        self._read[0][:, *rows], self._read[1][rows] = pixels, valid

    def _finish(self) -> "_Block":
        start = time.perf_counter()
        self._opened.done()
        assert self._read is not None  # noqa: S101 - all parts have been read
        block = _Block.of(self._opened, self._window, self._extent, *self._read)
        now = time.perf_counter()
        block.clock = {"read": self._seconds + now - start, "start": now}
        return block


def bands(window: Window, count: int, rows: int, first: int) -> list[Window | None]:
    """`window` cut from side to side into `count` parts, as even as it can be done without parting rows that are
    decoded together: `rows` each, of which the source's row 0 is number `first`. What is too much is None.

    Neighbours to the left and right are cut alike.
    """
    groups = range((window.row + first) // rows, -(-(window.stop_row + first) // rows))
    cut = min(count, len(groups))
    starts = [groups[len(groups) * number // cut] * rows - first for number in range(cut)]
    edges = [window.row, *starts[1:], window.stop_row]
    parts = [Window(top, window.col, end - top, window.width) for top, end in pairwise(edges)]
    return [*parts, *[None] * (count - len(parts))]


@dataclass
class _Block:
    """One block between reading and writing."""

    plan: Plan
    run: Path
    """Folder of the run that it belongs to."""
    window: Window
    source: Window
    """Scene pixels that are held: the union of the block's tiles, and once these are computed, `window`."""
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
    def of(cls, opened: _Opened, window: Window, extent: Window, pixels: Pixels, valid: Valid) -> "_Block":
        """The block at `window`, of what was read of `extent`."""
        plan = opened.plan
        planes = np.full((len(plan.spec.planes), window.height, window.width), NODATA, np.uint8)
        tiles: dict[Window, list[Core]] = {}
        for core in plan.grid.cores(window):
            if valid[core.owned.relative_to(extent).slices].any():
                tiles.setdefault(core.tile, []).append(core)
        return cls(plan, opened.run, window, extent, pixels, valid, planes, tiles, len(tiles))

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

    def release(self) -> None:
        """Let go of what only tiles need: all of them have been computed."""
        self.valid = self.valid[self.window.relative_to(self.source).slices].copy()
        self.pixels, self.source = self.pixels[:, :0, :0].copy(), self.window

    def keep(self, core: Core, planes: NDArray[np.uint8]) -> None:
        """Copy what `core` owns out of a tile's planes (P, T, T); invalid pixels stay nodata."""
        owned = core.owned.relative_to(self.window).slices
        valid = self.valid[core.owned.relative_to(self.source).slices]
        hidden = valid.view(np.uint8) - np.uint8(1)  # 0 where valid, else NODATA: "or" takes a tenth of a masked copy
        np.bitwise_or(planes[:, *core.kept.slices], hidden, out=self.planes[:, *owned])


_Tiles = list[tuple[_Block, Window]]
"""The tiles of one batch, in its order."""


@contextlib.contextmanager
def _mapped(engine: Engine, batches: Iterator[Batch]) -> Iterator[Iterator[Planes]]:
    """What `engine.map` gives; at the end, also where something failed, nothing is in flight any more."""
    planes = engine.map(batches)
    try:
        yield planes
    finally:
        if isinstance(planes, Generator):
            planes.close()


def _ahead(
    threads: Sequence[ThreadPoolExecutor], blocks: Iterator[_Reading], pace: Pace, meter: Meter
) -> Iterator[_Block]:
    """The blocks, in order; while the consumer has the last one, as many threads as `pace` says read as many ahead."""
    pace.begin()
    pending = deque(block.begin(threads[: pace.threads]) for block in islice(blocks, pace.threads))
    while pending:
        (block,) = (answer for part in pending.popleft() if (answer := part.result()) is not None)
        pace.block(block.clock["read"], meter.times())
        more = islice(blocks, max(pace.threads - len(pending), 0))
        pending.extend(block.begin(threads[: pace.threads]) for block in more)
        yield block


class _Behind:
    """Complete blocks on their way to the disk, as many at once as `pace` says: else a slow disk fills the memory."""

    def __init__(self, pool: ThreadPoolExecutor, pace: Pace, meter: Meter) -> None:
        self._pool, self._pace, self._meter = pool, pace, meter
        self._finished: deque[Future[tuple[str, BlockRecord]]] = deque()
        pace.begin()

    def write(self, block: _Block) -> None:
        """Have a block written, as soon as there is room for it."""
        block.release()
        with self._meter.doing("output"):
            while len(open_ := [future for future in self._finished if not future.done()]) >= self._pace.threads:
                wait(open_, return_when=FIRST_COMPLETED)
        self._finished.append(self._pool.submit(_finish, block))

    def written(self) -> Iterator[tuple[str, BlockRecord]]:
        """(run, record) of the blocks that are done by now, in order."""
        while self._finished and self._finished[0].done():
            yield self._first()

    def rest(self) -> Iterator[tuple[str, BlockRecord]]:
        """(run, record) of the others."""
        while self._finished:
            yield self._first()

    def _first(self) -> tuple[str, BlockRecord]:
        run, record = self._finished.popleft().result()
        self._pace.block(record.seconds["write"], self._meter.times())
        return run, record


def _batches(blocks: Iterable[_Block], flight: deque[_Tiles], empty: Callable[[_Block], object]) -> Iterator[Batch]:
    """Tiles of all blocks in batches of one radiometry, full ones where blocks have many tiles. A block without a valid
    pixel goes to `empty`: it needs no engine.
    """
    tiles: _Tiles = []
    for block in blocks:
        if not block.tiles:
            empty(block)
        elif tiles and tiles[0][0].plan.radiometry != block.plan.radiometry:
            yield _launch(tiles, flight)
            tiles = []
        for tile in block.tiles:
            tiles.append((block, tile))
            if len(tiles) == block.plan.room.batch:
                yield _launch(tiles, flight)
                tiles = []
        if tiles and not _has_room([*flight, tiles]):
            yield _launch(tiles, flight)
            tiles = []
    if tiles:
        yield _launch(tiles, flight)


def _has_room(begun: list[_Tiles]) -> bool:
    """Whether one more block may be read before the last batch is launched: then each later batch still gets one of
    its own.

    Blocks with little that is valid have few tiles each, and a full batch of these would hold more than was planned.
    Each takes its part of what its own plan pays for.
    """
    held = {id(block): block.plan.room for batch in begun for block, _ in batch}
    room = begun[-1][-1][0].plan.room
    later = Fraction(1 + room.batches - len(begun), room.blocks)
    return later + sum(Fraction(1, room.blocks) for room in held.values()) <= 1


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
    with _RECORDING:
        Ledger(run / LEDGER).append(record)
    return str(run), record


def _plan(run: str) -> Plan:
    path = Path(run) / PLAN
    return _plan_as_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _plan_as_of(path: Path, _changed: int) -> Plan:
    return Plan.load(path)


def _paces(tasks: Sequence[Task]) -> tuple[Pace, Pace]:
    """Of reading and of writing, with as many threads as all plans pay for."""
    return _paces_of(tasks[0].run, min(_plan(task.run).costs.readers for task in tasks))


@lru_cache(maxsize=16)
def _paces_of(run: str, most: int) -> tuple[Pace, Pace]:
    """What one task of a run has found out, the next one goes on with, unless the run was planned anew."""
    del run
    return Pace("input", most), Pace("output", most)


def _engine(run: str) -> tuple[Engine, frozenset[int]]:
    """The run's engine and the threads that came with it."""
    plan = _plan(run)
    key = str(plan.bundle), plan.engine.to_json()
    if key not in _loaded:
        _loaded.clear()  # the last engine's memory is free before the next one takes its own
        _loaded[key] = _load(*key)
    return _loaded[key]


_loaded: dict[tuple[str, str], tuple[Engine, frozenset[int]]] = {}
"""The engine of this process: the next scene of an archive finds it here."""


def _load(bundle: str, record: str) -> tuple[Engine, frozenset[int]]:
    """Load and check an engine; also the threads that came with it."""
    from models.engines.load import load_engine

    before = resources.threads()
    engine = load_engine(bundle, EngineRecord.from_json(record))
    return engine, resources.threads() - before
