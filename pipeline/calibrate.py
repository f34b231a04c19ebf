"""How long an archive will take, from a few blocks of its own scenes, segmented as the run itself would do it.

    a scene or three ──► a window of a few blocks ──► segment_scene, into a folder that is thrown away ──► rates
    plans of all scenes ──► network pixels, scene pixels ──► x rates ──► hours, core-hours, bytes

Staging, the engine at its workers, writing and publishing are all in the rates. Loading engines is counted once.
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

from pipeline.executors import Executor
from pipeline.grid import Window, in_cells
from pipeline.outputs import PLAN
from pipeline.plan import Plan
from pipeline.scene import SceneAddress, open_scene
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.store import folder_bytes

SCENES = 3
"""Scenes of an archive that are tried: the middles of as many equal shares of it, by size."""
BLOCKS = 3
"""Blocks that each worker is given of each of them at first."""
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
    """Of all tiles."""
    staged_pixels: int = 0
    """Of the scenes that are staged."""

    def __add__(self, other: "Work") -> "Work":
        """Both together."""
        return Work(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


def work_of(plan: Plan) -> Work:
    """What one plan asks for."""
    pixels = plan.grid.scene.pixels
    return Work(1, pixels, plan.costs.tiles * plan.grid.tile**2, pixels if plan.stage else 0)


@dataclass(frozen=True)
class Sample:
    """What segmenting a few blocks took."""

    scene: str
    work: Work
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
    workers: int
    start_seconds: float
    """Loading the engine, on each worker."""
    samples: tuple[Sample, ...]

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
                f"{work.pixels / 1e6:,.1f} Mpx, {work.network_pixels / max(work.pixels, 1):.2f} network pixels each",
            ),
            ("time", f"about {duration(self.seconds)} ({speed:.2f} Mpx/s)"),
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
            **asdict(self),
        }


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def calibrate(
    requests: Sequence[tuple[SegmentRequest, Plan]], executor: Executor, tell: Tell = lambda _: None
) -> Forecast:
    """What all `requests` will take, each with its plan: `SCENES` of them are tried.

    Raises:
        WidefieldError: a scene that was tried cannot be segmented.
    """
    work = sum((work_of(plan) for _, plan in requests), Work())
    samples: list[Sample] = []
    start = 0.0
    for request, plan in chosen(requests):
        if not samples:
            start = _loaded(request, plan, executor)
        samples.append(_long_enough(request, plan, executor, tell))
    return Forecast(work, executor.workers, start, tuple(samples))


def chosen(requests: Sequence[tuple[SegmentRequest, Plan]]) -> list[tuple[SegmentRequest, Plan]]:
    """Those that stand for all: from each of `SCENES` shares of equal size, in order of size, the middle pixel's."""
    ordered = sorted(requests, key=lambda one: (one[1].grid.scene.pixels, one[0].name))
    total = sum(plan.grid.scene.pixels for _, plan in ordered)
    places = [total * (2 * share + 1) // (2 * SCENES) for share in range(SCENES)]
    picked, passed = [], 0
    for request, plan in ordered:
        here = range(passed, passed + plan.grid.scene.pixels)
        passed = here.stop
        if any(place in here for place in places):
            picked.append((request, plan))
    return picked


def part_of(plan: Plan, wanted: int) -> Window:
    """About `wanted` blocks from the middle of a scene; of full width where its file is made of strips."""
    grid = plan.grid
    with open_scene(plan.scene) as scene:
        strips = not scene.tiled
    rows, cols = in_cells(grid.height, grid.width, plan.block)
    across = cols if strips else min(max(ceil(sqrt(wanted)), ceil(wanted / rows)), cols)
    down = min(ceil(wanted / across), rows)
    height, width = min(down * plan.block, grid.height), min(across * plan.block, grid.width)
    row, col = (
        (length - size) // 2 // plan.block * plan.block for length, size in ((grid.height, height), (grid.width, width))
    )
    return Window(row, col, height, width)


def _long_enough(request: SegmentRequest, plan: Plan, executor: Executor, tell: Tell) -> Sample:
    """Of ever larger parts of a scene, the first that takes its time, or all of it."""
    blocks = BLOCKS * executor.workers
    while True:
        part = part_of(plan, blocks)
        tell(f"{request.name}: {part.height} x {part.width} px are segmented on trial")
        found = _tried(request, plan, part, executor)
        if found.segment_seconds >= SECONDS or part == plan.grid.scene:
            return found
        blocks *= MORE


def _loaded(request: SegmentRequest, plan: Plan, executor: Executor) -> float:
    """Seconds that a worker takes to load its engine; afterwards all workers have done so."""
    core = plan.grid.core
    part = Window(0, 0, min(core, plan.grid.height), min(executor.workers * core, plan.grid.width))
    with _trial(request, plan, part) as trial:
        spent = segment_scene(replace(trial, options=replace(trial.options, block=core)), executor)["bottleneck"]
    return float(spent["seconds"]["start"]) / max(spent["workers"], 1) if spent else 0.0


def _tried(request: SegmentRequest, plan: Plan, part: Window, executor: Executor) -> Sample:
    with _trial(request, plan, part) as trial:
        before = cpu_seconds()
        seconds = segment_scene(trial, executor)["speed"]["seconds"]
        cpu = cpu_seconds() - before
        done = work_of(Plan.load(trial.folder / PLAN))
        staged, written = folder_bytes(trial.staged), folder_bytes(trial.folder)
    return Sample(request.name, done, seconds["segment"], seconds["publish"], cpu, staged, written)


@contextlib.contextmanager
def _trial(request: SegmentRequest, plan: Plan, part: Window) -> Iterator[SegmentRequest]:
    """The request for a part of the scene, by the very engine of the plan, into a folder that is thrown away."""
    engine = plan.engine
    place = request.out if request.out.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="widefield-calibrate-", dir=place) as folder:
        yield replace(
            request,
            scene=_window_of(request.scene, part),
            out=Path(folder),
            options=replace(request.options, block=plan.block, stage=plan.stage),
            backend=engine.backend,
            precision=engine.precision,
            target=engine.target,
            tile=engine.tile,
            threads=engine.threads,
            streams=engine.streams,
            keep_staged=True,
        )


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
