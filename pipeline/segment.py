"""The whole job for one scene: plan, stage, segment, prove coverage, publish, replace. What flows and commands wrap.

A run works in `OUT/.widefield/runs/<name>/<key>/`; the folder becomes `OUT/<name>/` by one rename when all is done.
The key names everything that decides the bytes, so a rerun of the same command goes on where the last one stopped,
and a changed one starts anew without touching what is published.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from models.bundle import open_bundle
from models.engines.base import EngineRecord, EngineRequest
from models.engines.prepare import prepare
from models.spec import ModelSpec
from pipeline import report, resources, workshop
from pipeline.errors import IncompleteError, UsageError
from pipeline.executors import Executor
from pipeline.fit import check_fit, choose_bands
from pipeline.ledger import BlockRecord, Ledger
from pipeline.outputs import LEDGER, RUN, STEPS
from pipeline.plan import GDAL_CACHE, Plan, PlanOptions, cheapest_tile, make_plan
from pipeline.replace import exchange
from pipeline.scene import Scene, SceneAddress, open_scene
from pipeline.schedule import Listener, Progress, Schedule
from pipeline.store import folder_bytes
from pipeline.verify import verify
from pipeline.worker import PublishTask, TaskReport, perform
from pipeline.workshop import HIDDEN

LARGEST_TILE = 1024
"""Default limit for the tile on a CPU, in pixels: larger ones save a few percent and cost four times the memory."""


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
    backend: Literal["auto", "torch", "openvino", "null"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tile: int | None = None
    """Largest tile allowed, in pixels; None: `LARGEST_TILE`."""
    threads: int | None = None
    """Engine threads in each worker; None: the cores at hand, at most 8."""
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


def plan_request(request: SegmentRequest) -> Plan:
    """The frozen plan of a request. The engine is compiled, gated and measured by this, once for each machine.

    Raises:
        UsageError: the bundle is unusable.
        SceneError: the scene is unreadable, or does not fit the bundle or this machine.
        EngineError: no engine passes here.
    """
    bundle = open_bundle(request.bundle)
    resources.limit_caches(GDAL_CACHE)
    with open_scene(request.scene) as scene:
        address = choose_bands(scene, bundle.spec)
    with open_scene(address) as scene:
        # Before an engine is compiled for a scene that it cannot serve.
        check_fit(scene, bundle.spec, any_resolution=request.options.any_resolution)
        engine = _engine(request, bundle.path, bundle.spec, scene)
        return make_plan(scene, bundle.spec, bundle.path.absolute(), engine, out=request.out, options=request.options)


def _engine(request: SegmentRequest, bundle: Path, spec: ModelSpec, scene: Scene) -> EngineRecord:
    largest = request.tile or LARGEST_TILE
    if request.tile is not None and request.tile not in spec.tiles:
        raise UsageError(f"--tile {request.tile}: bundle '{spec.name}' has tiles {', '.join(map(str, spec.tiles))}")
    asked = EngineRequest(
        backend=request.backend,
        precision=request.precision,
        tile=cheapest_tile(scene.height, scene.width, spec, largest),
        dtype=scene.dtype,
    )
    return prepare(bundle, asked if request.threads is None else replace(asked, threads=request.threads))


def segment_scene(request: SegmentRequest, executor: Executor, listen: Listener = lambda _: None) -> dict[str, Any]:
    """Segment one scene into `request.folder`; returns the facts of its `run.json`.

    Every block whose record and shard agree is kept, so an interrupted run goes on where it stopped. With nothing left
    to do the published facts are returned as they are, and `unchanged` is set.

    Raises:
        OutputError: the folder cannot be written, or a living run holds it.
        IncompleteError: some blocks failed twice; nothing was published, a rerun tries only those.
        SceneError, EngineError: see `plan_request`.
    """
    # Workers on a foreign cluster have working folders of their own.
    request = replace(request, out=request.out.absolute())
    left = sum(folder_bytes(folder) for folder in (request.folder, request.workshop, request.staged))
    options = replace(request.options, workers=executor.workers, memory=executor.memory, stored=left)
    plan = plan_request(replace(request, options=options))
    with workshop.locked(request.workshop):
        run = request.workshop / plan.key[:16]
        if facts := _complete(plan, request.folder):
            workshop.sweep(request.workshop)
            return {**facts, "unchanged": True}
        workshop.check_place(request.folder, plan)
        workshop.adopt_published(plan, request.folder, run)
        records = workshop.open_run(plan, run)
        facts = _Job(plan, run, executor, listen, request).work(records)
        workshop.check_place(request.folder, plan)
        exchange(run, request.folder)
        workshop.sweep(request.workshop)
    return facts


def _complete(plan: Plan, folder: Path) -> dict[str, Any] | None:
    """The facts of the published result if it is of this plan, and `verify` finds nothing that is to be mended."""
    facts = workshop.published(folder, plan)
    return None if facts is None or verify(folder).problems else facts


@dataclass(frozen=True)
class _Job:
    """One run, from its first open block to the complete folder."""

    plan: Plan
    run: Path
    executor: Executor
    listen: Listener
    request: SegmentRequest

    def work(self, records: dict[tuple[int, int], BlockRecord]) -> dict[str, Any]:
        """Do what is left and write every output; returns the facts of `run.json`."""
        clock = [time.perf_counter()]
        schedule = Schedule(self.plan, self.run, records, self.listen)
        with workshop.staged(self.plan, self.run, self.request.staged, keep=self.request.keep_staged):
            schedule.start()
            for outcome in self.executor.run(perform, schedule, self.plan.key[:16]):
                schedule.finish(outcome)
            schedule.check()
            clock.append(time.perf_counter())
            reports = schedule.reports + self.publish([step for step in STEPS if step != "item"])
            clock.append(time.perf_counter())
        Ledger(self.run / LEDGER).compact(schedule.records.values())
        seconds = {"segment": clock[1] - clock[0], "publish": clock[2] - clock[1]}
        done = list(schedule.records.values())
        facts = report.facts(self.plan, done, reports, seconds, len(records), wanted=self.request.scene)
        (self.run / RUN).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        self.publish(["item"])
        return facts

    def publish(self, steps: list[str]) -> list[TaskReport]:
        """Make the outputs `steps` on workers.

        Raises:
            IncompleteError: one could not be made; the blocks are kept.
        """
        reports = []
        tasks = (PublishTask(str(self.run), step) for step in steps)
        for outcome in self.executor.run(perform, tasks, f"{self.plan.key[:16]}-publish"):
            if outcome.error is not None:
                raise IncompleteError(
                    f"{outcome.task.step} could not be published: {outcome.error}; the blocks are kept, "
                    "a rerun publishes them"
                )
            reports.append(outcome.value)
            self.listen(Progress("publish", len(reports), len(steps)))
        return reports
