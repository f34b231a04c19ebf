"""The whole job for one scene: plan, stage, segment, prove coverage, publish, replace. What flows and commands wrap.

A run works in `OUT/.widefield/runs/<name>/<key>/`; the folder becomes `OUT/<name>/` by one rename when all is done.
The key names everything that decides the bytes, so a rerun of the same command goes on where the last one stopped,
and a changed one starts anew without touching what is published.
"""

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from models.bundle import Bundle, open_bundle
from models.engines.base import BackendName, EngineRecord, EngineRequest, Precision, Target
from models.engines.device import default_target
from models.engines.prepare import prepare
from models.spec import ModelSpec
from pipeline import outputs, report, resources, stop, workshop
from pipeline.disk import Disk
from pipeline.errors import IncompleteError, UsageError
from pipeline.executors import Executor
from pipeline.fit import check_fit, choose_bands
from pipeline.ledger import BlockRecord, Ledger
from pipeline.outputs import LEDGER, RUN
from pipeline.plan import GDAL_CACHE, Plan, PlanOptions, cheapest_tile, make_plan
from pipeline.publish.files import write_text
from pipeline.replace import exchange
from pipeline.scene import Scene, SceneAddress, open_scene
from pipeline.schedule import Listener, Progress, Schedule
from pipeline.staging import StageCache
from pipeline.store import folder_bytes
from pipeline.verify import verify
from pipeline.worker import PublishTask, perform
from pipeline.workshop import HIDDEN

LARGEST_TILE = {"cpu": 1152, "cuda": 2048}
"""Limit for the tile where neither user nor bundle names one, in pixels: on a CPU, 2048 saves a tenth of the work and
takes three times the memory."""


@dataclass(frozen=True)
class SegmentRequest:
    """What a user asks for: one scene, one bundle, one output folder, and how."""

    scene: SceneAddress
    bundle: Path
    out: Path
    """Folder of all outputs; this scene's go to `out / name`."""
    name: str
    """Relative folder and stem of the scene."""
    options: PlanOptions = field(default_factory=PlanOptions)
    backend: Literal["auto"] | BackendName = "auto"
    precision: Literal["auto"] | Precision = "auto"
    target: Literal["auto"] | Target = "auto"
    """What the engine runs on; `auto`: a GPU where there is one."""
    tile: int | None = None
    """Largest tile allowed, in pixels; None: what the bundle names, else `LARGEST_TILE`."""
    threads: int | None = None
    """Engine threads in each worker; None: the cores at hand, at most 8."""
    streams: int = 0
    """Batches that an engine computes side by side; 0: as many as pay, by measurement."""
    batch: int = 1
    """Tiles that the engine computes at once: part of its identity."""
    tta: bool = False
    """Whether each tile is seen in its eight orientations, and their probabilities averaged."""
    planes: tuple[str, ...] = ()
    """What is stored and published of each pixel; what the bundle's spec names if empty."""
    keep_staged: bool = False

    @property
    def folder(self) -> Path:
        """Where the result appears."""
        return self.out / self.name

    @property
    def workshop(self) -> Path:
        """Where runs for this result work, and where their lock is."""
        return self.out / HIDDEN / "runs" / self.name

    @property
    def staged(self) -> Path:
        """The cache of staged scenes."""
        return self.out / HIDDEN / "staged"


class Engines:
    """Bundles and engines of many scenes, each opened and prepared once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bundles: dict[Path, Bundle] = {}
        self._records: dict[tuple[Path, EngineRequest], EngineRecord] = {}
        self.seconds = 0.0
        """Wall time that this took so far."""

    def bundle(self, path: Path) -> Bundle:
        """The bundle in a folder; its digest is checked the first time."""
        with self._lock:
            if path not in self._bundles:
                with self._counted():
                    self._bundles[path] = open_bundle(path)
            return self._bundles[path]

    def engine(self, request: SegmentRequest, scene: Scene) -> EngineRecord:
        """The engine for a scene; compiled, gated and measured if this machine has not done so yet."""
        bundle = self.bundle(request.bundle)
        asked = _asked(request, bundle.spec, scene)
        with self._lock:
            if (bundle.path, asked) not in self._records:
                with self._counted():
                    self._records[bundle.path, asked] = prepare(bundle.path, asked)
            return self._records[bundle.path, asked]

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


def _asked(request: SegmentRequest, spec: ModelSpec, scene: Scene) -> EngineRequest:
    target = default_target() if request.target == "auto" else request.target
    largest = request.tile or spec.tile or LARGEST_TILE[target]
    if request.tile is not None and request.tile not in spec.tiles:
        raise UsageError(f"--tile {request.tile}: bundle '{spec.name}' has tiles {', '.join(map(str, spec.tiles))}")
    asked = EngineRequest(
        backend=request.backend,
        precision=request.precision,
        tile=cheapest_tile(scene.height, scene.width, spec, largest),
        dtype=scene.dtype,
        batch=request.batch,
        streams=request.streams,
        target=request.target,
        tta=request.tta,
        planes=request.planes,
    )
    return asked if request.threads is None else replace(asked, threads=request.threads)


def plan_request(request: SegmentRequest, engines: Engines | None = None) -> Plan:
    """The frozen plan of a request. The engine is compiled, gated and measured by this, once for each machine.

    Raises:
        UsageError: the bundle is unusable.
        SceneError: the scene is unreadable, or does not fit the bundle or this machine.
        EngineError: no engine passes here.
    """
    engines = engines or Engines()
    bundle = engines.bundle(request.bundle)
    resources.limit_caches(GDAL_CACHE)
    with open_scene(request.scene) as scene:
        address = choose_bands(scene, bundle.spec)
    with open_scene(address) as scene:
        # Before an engine is compiled for a scene that it cannot serve.
        check_fit(scene, bundle.spec, any_resolution=request.options.any_resolution)
        engine = engines.engine(request, scene)
        spec = bundle.spec.model_copy(update={"planes": engine.planes or bundle.spec.planes})
        return make_plan(scene, spec, bundle.path.absolute(), engine, out=request.out, options=request.options)


def segment_scene(
    request: SegmentRequest,
    executor: Executor,
    listen: Listener = lambda _: None,
    disk: Disk | None = None,
    effort: report.Effort | None = None,
) -> dict[str, Any]:
    """Segment one scene into `request.folder`; returns the facts of its `run.json`.

    Every block whose record and shard agree is kept, so an interrupted run goes on where it stopped. With nothing left
    to do the published facts are returned as they are, and `unchanged` is set. `disk` is shared by scenes that are
    in flight together. What the tasks take is counted into `effort`, whatever becomes of the scene.

    Raises:
        OutputError: the folder cannot be written, or a living run holds it.
        IncompleteError: some blocks failed twice; nothing was published, a rerun tries only those.
        SceneError, EngineError: see `plan_request`.
        Stopped: this process was asked to end.
    """
    # Workers on a foreign cluster have working folders of their own.
    request = replace(request, out=request.out.absolute())
    disk = disk or Disk()
    # What other scenes in flight have staged is not at hand.
    left = StageCache(request.staged).idle_bytes() + sum(map(folder_bytes, (request.folder, request.workshop)))
    options = replace(request.options, workers=executor.workers, memory=executor.memory, stored=left)
    plan = disk.plan(lambda: plan_request(replace(request, options=options)))
    with workshop.locked(request.workshop), disk.share(max(plan.costs.needed_bytes - left, 0), request.out):
        if facts := finished(request, plan):
            return facts
        return carry_out(request, plan, executor, listen, effort)


def carry_out(
    request: SegmentRequest,
    plan: Plan,
    executor: Executor,
    listen: Listener = lambda _: None,
    effort: report.Effort | None = None,
) -> dict[str, Any]:
    """Do what is left of a plan, and put the result into `request.folder`; the workshop is locked by now.

    Raises:
        OutputError, IncompleteError, Stopped: see `segment_scene`.
    """
    executor.settle(plan.key[:16])
    job = open_job(request, plan)
    facts = _Run(job, executor, listen, effort or report.Effort(places=executor.workers)).work()
    job.exchange()
    return facts


def finished(request: SegmentRequest, plan: Plan) -> dict[str, Any] | None:
    """The facts of the published result if it is of this plan, and `verify` finds nothing that is to be mended.

    A result that answers another question too, with the same bytes, says so from now on: an archive asks no more.
    """
    facts = workshop.published(request.folder, plan)
    if facts is None or verify(request.folder).problems:
        return None
    if facts.get("asked") != report.asked(request.scene):
        facts["asked"] = report.asked(request.scene)
        write_text(request.folder / RUN, json.dumps(facts, indent=1))
        outputs.make("item", plan, request.folder)
    workshop.sweep(request.workshop)
    return {**facts, "unchanged": True}


@dataclass(frozen=True)
class Job:
    """One result in the making: its plan, the folder it is made in, and what is done there already."""

    request: SegmentRequest
    plan: Plan
    run: Path
    records: dict[tuple[int, int], BlockRecord]
    """Of blocks that earlier runs did, by first (row, col)."""

    def complete(
        self,
        records: Collection[BlockRecord],
        effort: report.Effort,
        publish: Callable[[Sequence[str]], None],
        segment: float,
        ended: float,
    ) -> dict[str, Any]:
        """Publish every output over the complete store; returns the facts, which `run.json` holds.

        `segment` is how many seconds the segmenting took, `ended` when it ended on the clock of `time.perf_counter`.
        """
        publish(outputs.steps_of(self.plan)[:-1])
        seconds = {"segment": segment, "publish": time.perf_counter() - ended}
        Ledger(self.run / LEDGER).compact(records)
        facts = report.facts(self.plan, records, effort, seconds, len(self.records), wanted=self.request.scene)
        (self.run / RUN).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        publish(["item"])
        return facts

    def exchange(self) -> None:
        """Put the complete folder where the result belongs."""
        workshop.check_place(self.request.folder, self.plan)
        exchange(self.run, self.request.folder)
        workshop.sweep(self.request.workshop)


def open_job(request: SegmentRequest, plan: Plan) -> Job:
    """The run's folder, made or gone on with; the workshop is locked by now.

    Raises:
        OutputError: something that is no result lies where the result is to be.
    """
    run = request.workshop / plan.key[:16]
    workshop.check_place(request.folder, plan)
    workshop.adopt_published(plan, request.folder, run)
    return Job(request, plan, run, workshop.open_run(plan, run))


@dataclass(frozen=True)
class _Run:
    """A job done by an executor, from its first open block to its last file."""

    job: Job
    executor: Executor
    listen: Listener
    effort: report.Effort

    def work(self) -> dict[str, Any]:
        """Do what is left and write every output; returns the facts of `run.json`."""
        plan, run, request = self.job.plan, self.job.run, self.job.request
        start = time.perf_counter()
        schedule = Schedule(plan, run, self.job.records, self.listen, self.effort)
        with (
            workshop.staged(plan, run, request.staged, keep=request.keep_staged),
            stop.current().watch(run),
            closing(self.executor.run(perform, schedule, plan.key[:16])) as outcomes,
        ):
            schedule.start()
            for outcome in outcomes:
                schedule.finish(outcome)
            stop.current().check()
            schedule.check()
            ended = time.perf_counter()
            return self.job.complete(schedule.records.values(), self.effort, self.publish, ended - start, ended)

    def publish(self, steps: Sequence[str]) -> None:
        """Make the outputs `steps` on workers; what fails is tried once more with nothing else in flight.

        Raises:
            IncompleteError: one could not be made; the blocks are kept.
        """
        tasks = deque(PublishTask(str(self.job.run), step) for step in steps)
        done = 0
        with closing(self.executor.run(perform, _popped(tasks), f"{self.job.plan.key[:16]}-publish")) as outcomes:
            for outcome in outcomes:
                if outcome.error is None:
                    done += 1
                    self.effort.add(outcome.value)
                    self.listen(Progress("publish", done, len(steps)))
                elif outcome.fatal or outcome.task.alone:
                    raise IncompleteError(
                        f"{outcome.task.step} could not be published: {outcome.error}; the blocks are kept, "
                        "a rerun publishes them"
                    )
                else:
                    tasks.append(replace(outcome.task, alone=True))
        stop.current().check()


def _popped(tasks: "deque[PublishTask]") -> "Iterator[PublishTask | None]":
    """The tasks, those that are added meanwhile included; None where there are none for now."""
    while True:
        yield tasks.popleft() if tasks else None
