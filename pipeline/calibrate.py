"""How long an archive will take, from a few blocks of its own scenes, segmented as the run itself would do it.

    a scene or three ──► a window of a few blocks ──► segmented, into a folder that is thrown away ──► rates
                    └──► a look at some cores ──► share of tiles that are not empty
    plans of all scenes ──► network pixels, scene pixels ──► x share x rates ──► hours, core-hours, bytes

Staging, the engine at its workers, writing and publishing are all in the rates. Loading engines is counted once. Scenes
are tried one by one: in an archive small ones go through the engine in groups and large ones overlap, so that it takes
less than what is told.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import psutil

from pipeline import workshop
from pipeline.errors import SceneError
from pipeline.executors import Executor
from pipeline.grid import Core, TileGrid, Window, in_cells, spread
from pipeline.plan import Plan, PlanOptions, make_plan
from pipeline.scene import SceneAddress, open_scene
from pipeline.segment import Engines, SegmentRequest, carry_out, plan_request
from pipeline.store import folder_bytes

SCENES = 3
"""Scenes of an archive that are tried: the middles of as many equal shares of it, by size."""
BLOCKS = 3
"""Blocks that each worker is given of each of them at first."""
LOOKS, DOTS = 6, 32
"""Cores down and across that are looked at, and pixels down and across of each: is there a valid one?"""
MORE, SECONDS = 4, 10.0
"""A trial that took less is done again on so many times as many blocks: what any run takes once must not count."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """What is to be done, by plans."""

    scenes: int = 0
    pixels: int = 0
    """Of the scenes."""
    network_pixels: int = 0
    """Of all tiles that are not empty; of all tiles where nobody has looked yet."""
    staged_pixels: int = 0
    """Of the scenes that are staged."""

    def __add__(self, other: "Work") -> "Work":
        """Both together."""
        return Work(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


def work_of(plan: Plan, tiles: int | None = None) -> Work:
    """What one plan asks for, if so many of its tiles are not empty."""
    pixels = plan.grid.scene.pixels
    tiles = plan.costs.tiles if tiles is None else tiles
    return Work(1, pixels, tiles * plan.grid.tile**2, pixels if plan.stage else 0)


@dataclass(frozen=True)
class Asked:
    """A scene that is to be segmented, and what that asks for: all that is kept of its plan."""

    request: SegmentRequest
    work: Work


@dataclass(frozen=True)
class Look:
    """Some cores of a scene, evenly spread."""

    looked: int
    valid: int
    """Of these, those with a valid pixel."""
    place: tuple[int, int]
    """Row and column in the middle of the valid one that is nearest to the middle of the scene."""


@dataclass(frozen=True)
class Sample:
    """What segmenting a few blocks took."""

    scene: str
    work: Work
    tiles: int
    """Of the whole scene."""
    look: Look
    segment_seconds: float
    """Wall time until the last block was written, staging included; engines had been loaded before."""
    publish_seconds: float
    cpu_seconds: float
    """Of this process and its workers."""
    staged_bytes: int
    """Of image.zarr, compressed; 0 without staging."""
    written_bytes: int
    """Of the finished result."""


@dataclass(frozen=True)
class Forecast:
    """What all the work will take."""

    work: Work
    """Without the tiles that are empty, as far as the scenes that were tried tell."""
    workers: int
    start_seconds: float
    """Loading the engine, on each worker."""
    samples: tuple[Sample, ...]

    @property
    def filled(self) -> float:
        """Share of tiles that are not empty, of the scenes that were tried."""
        return _filled(self.samples)

    @property
    def sampled(self) -> Work:
        """What was done to know it."""
        return sum((sample.work for sample in self.samples), Work())

    @property
    def seconds(self) -> float:
        """Wall time: engines loaded once, then the segmenting by network pixels, the publishing by scene pixels."""
        segment = self._total("segment_seconds") * self._times("network_pixels")
        publish = self._total("publish_seconds") * self._times("pixels")
        return self.start_seconds + segment + publish

    @property
    def core_seconds(self) -> float:
        """CPU time of all processes."""
        return self._total("cpu_seconds") * self._times("network_pixels")

    @property
    def written_bytes(self) -> int:
        """Of all results."""
        return round(self._total("written_bytes") * self._times("pixels"))

    @property
    def staged_bytes(self) -> int:
        """Of all image.zarr together: scenes staged at the same time take their share of it."""
        return round(self._total("staged_bytes") * self._times("staged_pixels"))

    def _total(self, name: str) -> float:
        return float(sum(getattr(sample, name) for sample in self.samples))

    def _times(self, name: str) -> float:
        done: int = getattr(self.sampled, name)
        return getattr(self.work, name) / done if done else 0.0

    def describe(self) -> list[tuple[str, str]]:
        """(label, value) rows for people."""
        work, done = self.work, self.sampled
        tried = f"{done.pixels / 1e6:.1f} Mpx of {len(self.samples)} of {work.scenes} scenes"
        speed = work.pixels / 1e6 / self.seconds if self.seconds else 0.0
        staged = [("staged", f"about {self.staged_bytes / 1e9:.2f} GB")] if work.staged_pixels else []
        return [
            ("calibrated on", f"{tried}, {self.workers} worker{'s' * (self.workers > 1)}"),
            (
                "in all",
                f"{work.pixels / 1e6:,.1f} Mpx, {work.network_pixels / max(work.pixels, 1):.2f} network pixels each"
                + (f", {100 * (1 - self.filled):.0f} % of the tiles are empty" if self.filled < 1 else ""),
            ),
            ("time", f"{'at most ' * (work.scenes > 1)}about {duration(self.seconds)} ({speed:.2f} Mpx/s)"),
            ("core time", f"about {self.core_seconds / 3600:.3g} core-hours"),
            ("results", f"about {self.written_bytes / 1e9:.2f} GB"),
            *staged,
        ]

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "hours": self.seconds / 3600,
            "core_hours": self.core_seconds / 3600,
            "written_bytes": self.written_bytes,
            "staged_bytes": self.staged_bytes,
            "filled": self.filled,
            **asdict(self),
        }


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def calibrate(
    asked: Sequence[Asked], executor: Executor, tell: Tell = lambda _: None, engines: Engines | None = None
) -> Forecast:
    """What all that is `asked` will take: `SCENES` of the scenes are tried, each with the engine of its plan.

    A scene that cannot be segmented is told, and one of about its size stands for it. `engines`: those that have been
    prepared already.

    Raises:
        SceneError: of the scenes, none can be segmented.
        EngineError: no engine passes here.
    """
    engines, start = engines or Engines(), 0.0
    samples: list[Sample] = []
    faults: list[SceneError] = []
    for candidates in chosen(asked):
        for each in candidates:
            try:
                plan = plan_request(each.request, engines)
                look = look_at(plan)
                if not samples:
                    start = _loaded(each.request, plan, look, executor)
                samples.append(_long_enough(each.request, plan, look, executor, tell))
                break
            except SceneError as error:
                tell(f"{each.request.name}: {error}")
                faults.append(error)
    if not samples:
        raise faults[-1]
    work = sum((each.work for each in asked), Work())
    work = replace(work, network_pixels=round(work.network_pixels * _filled(samples)))
    return Forecast(work, executor.workers, start, tuple(samples))


def _filled(samples: Sequence[Sample]) -> float:
    whole = sum(sample.tiles for sample in samples)
    return sum(sample.tiles * sample.look.valid / sample.look.looked for sample in samples) / whole


def chosen(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Those that stand for all: from each of `SCENES` shares of equal size, in order of size, the middle pixel's; each
    with its nearest neighbours in that order, which stand in for it. None is named twice.
    """
    ordered = sorted(asked, key=lambda one: (one.work.pixels, one.request.name))
    total = sum(one.work.pixels for one in ordered)
    places = [total * (2 * share + 1) // (2 * SCENES) for share in range(SCENES)]
    picked, passed = [], 0
    for index, one in enumerate(ordered):
        here = range(passed, passed + one.work.pixels)
        passed = here.stop
        if any(place in here for place in places):
            picked.append(index)
    nearest: dict[int, list[int]] = {index: [index] for index in picked}
    for index in (index for index in range(len(ordered)) if index not in nearest):
        nearest[min(picked, key=lambda pick: abs(pick - index))].append(index)
    return [[ordered[at] for at in sorted(group, key=lambda at: abs(at - pick))] for pick, group in nearest.items()]


def look_at(plan: Plan) -> Look:
    """Which of some cores hold a valid pixel.

    Raises:
        UnreadableError: the file is truncated or corrupt there.
    """
    grid = plan.grid
    middle = (grid.height // 2, grid.width // 2)
    with open_scene(plan.scene) as scene:
        if scene.all_valid:
            return Look(1, 1, middle)
        cores = [core.owned for core in _some_cores(grid)]
        shapes = ((min(core.height, DOTS), min(core.width, DOTS)) for core in cores)
        valid = [core for core, shape in zip(cores, shapes, strict=True) if scene.sample(core, shape)[1].any()]
    places = [(core.row + core.height // 2, core.col + core.width // 2) for core in valid]
    place = min(places, key=lambda at: abs(at[0] - middle[0]) + abs(at[1] - middle[1]), default=middle)
    return Look(len(cores), len(valid), place)


def _some_cores(grid: TileGrid) -> Iterator[Core]:
    rows, cols = (spread(count, min(count, LOOKS)) for count in grid.shape)
    return (grid.core_at(int(row), int(col)) for row in rows for col in cols)


def part_of(plan: Plan, wanted: int, place: tuple[int, int] | None = None) -> Window:
    """About `wanted` blocks around `place`, or from the middle of a scene; of full width where its file is made of
    strips.
    """
    grid = plan.grid
    with open_scene(plan.scene) as scene:
        strips = not scene.tiled
    rows, cols = in_cells(grid.height, grid.width, plan.block)
    across = cols if strips else min(max(ceil(sqrt(wanted)), ceil(wanted / rows)), cols)
    down = min(ceil(wanted / across), rows)
    height, width = min(down * plan.block, grid.height), min(across * plan.block, grid.width)
    middle = place or (grid.height // 2, grid.width // 2)
    row, col = (
        min(max(at - size // 2, 0), length - size) // plan.block * plan.block
        for at, length, size in zip(middle, (grid.height, grid.width), (height, width), strict=True)
    )
    return Window(row, col, height, width)


def _long_enough(request: SegmentRequest, plan: Plan, look: Look, executor: Executor, tell: Tell) -> Sample:
    """Of ever larger parts of a scene, the first that takes its time, or all of it."""
    blocks = BLOCKS * executor.workers
    while True:
        part = part_of(plan, blocks, look.place)
        tell(f"{request.name}: {part.height} x {part.width} px are segmented on trial")
        found = _tried(request, plan, look, part, executor)
        if found.segment_seconds >= SECONDS or part == plan.grid.scene:
            return found
        blocks *= MORE


def _loaded(request: SegmentRequest, plan: Plan, look: Look, executor: Executor) -> float:
    """Seconds that a worker takes to load its engine; afterwards all workers have done so."""
    core, grid = plan.grid.core, plan.grid
    height, width = min(core, grid.height), min(executor.workers * core, grid.width)
    row, col = (
        min(at // core * core, (length - size) // core * core)
        for at, length, size in zip(look.place, (grid.height, grid.width), (height, width), strict=True)
    )
    with _trial(request, plan, Window(row, col, height, width), executor, block=core) as (trial, part):
        spent = carry_out(trial, part, executor)["bottleneck"]
    return float(spent["seconds"]["start"]) / max(spent["workers"], 1) if spent else 0.0


def _tried(request: SegmentRequest, plan: Plan, look: Look, window: Window, executor: Executor) -> Sample:
    with _trial(request, plan, window, executor, block=plan.block) as (trial, part):
        before = cpu_seconds()
        facts = carry_out(trial, part, executor)
        cpu = cpu_seconds() - before
        staged, written = folder_bytes(trial.staged), folder_bytes(trial.folder)
    seconds, done = facts["speed"]["seconds"], work_of(part, facts["coverage"]["tiles"])
    tiles = plan.costs.tiles
    return Sample(request.name, done, tiles, look, seconds["segment"], seconds["publish"], cpu, staged, written)


@contextlib.contextmanager
def _trial(
    request: SegmentRequest, plan: Plan, window: Window, executor: Executor, *, block: int
) -> Iterator[tuple[SegmentRequest, Plan]]:
    """A request and its plan for a part of the scene, by the very engine of the plan, into a folder that is thrown
    away: it lies where the results are to be, on the same disk.
    """
    out = request.out.absolute()
    near = next(parent for parent in (out, *out.parents) if parent.is_dir())
    options = PlanOptions(
        block=block,
        stage=plan.stage,
        any_resolution=request.options.any_resolution,
        workers=executor.workers,
        memory=executor.memory,
    )
    with tempfile.TemporaryDirectory(prefix=".widefield-calibrate-", dir=near) as folder:
        trial = replace(request, scene=_window_of(plan.scene, window), out=Path(folder), keep_staged=True)
        with open_scene(trial.scene) as scene:
            part = make_plan(scene, plan.spec, plan.bundle, plan.engine, out=trial.out, options=options)
        with workshop.locked(trial.workshop):
            yield trial, part


def _window_of(address: SceneAddress, part: Window) -> SceneAddress:
    origin = address.window
    return replace(address, window=part if origin is None else part.shift(origin.row, origin.col))


def cpu_seconds() -> float:
    """CPU seconds of this process and of its living children so far."""
    this = psutil.Process()
    total = time.process_time()
    for child in this.children(recursive=True):
        try:
            spent = child.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        total += spent.user + spent.system
    return float(total)
