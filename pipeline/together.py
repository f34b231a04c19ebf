"""Small scenes, many in one task: a worker takes each from its plan to its published files, and the engine's batches
hold tiles of several of them.

A scene's mask is the same bytes as if it had been segmented by itself: its plan, its grid and its engine are. A scene
that fails is told, and the others of its group go on. A scene that turns out to be large is handed back.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipeline import outputs, resources, workshop
from pipeline.errors import OutputError, UsageError, WidefieldError
from pipeline.grid import Window
from pipeline.ledger import BlockRecord
from pipeline.plan import GDAL_CACHE, TASK_SECONDS, Plan
from pipeline.report import Effort
from pipeline.schedule import prove
from pipeline.segment import Engines, Job, SegmentRequest, finished, open_job, plan_request
from pipeline.stop import Stopped, stopping
from pipeline.worker import EngineWatch, Task, Watch, segment_together

SMALL_TILES = 8
"""Most tiles of a small scene."""
SMALL_SECONDS = 4.0
"""Most engine time of a small scene."""
CHUNK = 16
"""Scenes that go through the engine together; between two such, a worker looks at the clock."""
THREADS = 4
"""Scenes of a chunk that are opened or published at the same time: mostly they wait for the disk."""


@dataclass(frozen=True)
class SceneResult:
    """What became of one scene."""

    name: str
    path: str
    status: Literal["done", "unchanged", "failed"]
    error: str | None = None
    """One line, if it failed."""
    seconds: float = 0.0
    """Wall time from its plan to its published files, shared out among scenes that were done together."""
    megapixels: float = 0.0


@dataclass(frozen=True)
class GroupTask:
    """Scenes for one worker. Carries addresses only."""

    requests: tuple[SegmentRequest, ...]
    marker: str
    """Folder whose marker tells to stop (see `pipeline.stop`)."""
    alone: bool = False
    """Set for a scene that is suspected of killing its worker."""

    @property
    def name(self) -> str:
        """Of its first scene."""
        return f"group-{self.requests[0].name}{'-alone' if self.alone else ''}"

    @property
    def gpu(self) -> bool:
        """Whether workers with a GPU do it, where there are some: on which device is chosen there, if not before."""
        return any(request.target != "cpu" for request in self.requests)


@dataclass(frozen=True)
class GroupReport:
    """What a worker did with a group."""

    results: tuple[SceneResult, ...]
    large: tuple[str, ...] = ()
    """Names of scenes that are too large for a group."""
    left: tuple[str, ...] = ()
    """Names of scenes for which there was no time."""
    effort: Effort = field(default_factory=Effort)
    """What it took."""


def perform_group(task: GroupTask) -> GroupReport:
    """Take a group's scenes from plan to published files, until `TASK_SECONDS` are over.

    Raises:
        UsageError: the bundle is unusable, for every scene alike.
    """
    resources.limit_caches(GDAL_CACHE)
    deadline, engines, effort = time.monotonic() + TASK_SECONDS, Engines(), Effort(together=0)
    results: list[SceneResult] = []
    large: list[str] = []
    waiting = list(task.requests)
    while waiting and not stopping(Path(task.marker)) and not (time.monotonic() > deadline and (results or large)):
        chunk = _Chunk(engines, Path(task.marker), effort)
        chunk.work(waiting[:CHUNK])
        results += chunk.results
        large += chunk.large
        waiting = waiting[CHUNK:]
    resources.release_memory()
    settled = {result.name for result in results} | set(large)
    left = (request.name for request in task.requests if request.name not in settled)
    return GroupReport(tuple(results), tuple(large), tuple(left), effort)


@dataclass(frozen=True)
class _Segmented:
    """A scene whose blocks are all done, and what those took that shared its engine."""

    job: Job
    effort: Effort
    seconds: float
    """Wall time."""


class _Chunk:
    """Some scenes that go through the engine together; what it takes is counted into `effort`.

    A scene's `run.json` tells the speed and the bottleneck of all scenes that shared its engine here, but for the
    publishing: of that it tells the seconds from the last block of the chunk to its own last file.
    """

    def __init__(self, engines: Engines, marker: Path, effort: Effort) -> None:
        self.engines, self.marker, self.effort = engines, marker, effort
        self.results: list[SceneResult] = []
        self.large: list[str] = []
        self._records: defaultdict[str, list[BlockRecord]] = defaultdict(list)

    def work(self, requests: Sequence[SegmentRequest]) -> None:
        """Fill `results` and `large`; a scene in neither was not finished when this process was asked to stop."""
        start = time.perf_counter()
        with contextlib.ExitStack() as locks, ThreadPoolExecutor(THREADS, "files") as pool:
            jobs = self._open_all(requests, locks, pool)
            done = self._segment(jobs)
            ended, watch = time.perf_counter(), Watch()
            list(pool.map(lambda scene: self._publish(scene, ended), done))
            self.effort.add(watch.report("publish"))
        seconds = (time.perf_counter() - start) / max(len(requests), 1)
        self.results = [replace(result, seconds=seconds) for result in self.results]

    def _open_all(
        self, requests: Sequence[SegmentRequest], locks: contextlib.ExitStack, pool: ThreadPoolExecutor
    ) -> list[Job]:
        watch, before = Watch(), self.engines.seconds
        opened = list(pool.map(lambda request: self._open(request, locks), requests))
        report, preparing = watch.report("open"), self.engines.seconds - before
        self.effort.others["prepare", report.worker] += preparing
        self.effort.add(replace(report, seconds=report.seconds - preparing))
        return [job for job in opened if job is not None]

    def _open(self, request: SegmentRequest, locks: contextlib.ExitStack) -> Job | None:
        """The job of a scene; None where there is none: it failed, is large, or has a result already."""
        with self._told(request):
            here = replace(request.options, stage=bool(request.options.stage))  # strips too are read where they lie
            plan = plan_request(replace(request, options=here), self.engines)
            if not is_small(plan):
                self.large.append(request.name)
                return None
            locks.enter_context(workshop.locked(request.workshop))
            if finished(request, plan) is None:
                return open_job(request, plan)
            self.results.append(_result(request, plan, "unchanged"))
        return None

    @contextlib.contextmanager
    def _told(self, request: SegmentRequest) -> Iterator[None]:
        """A failure of one scene is its result; one that all would share is raised."""
        try:
            yield
        except Stopped:
            raise
        except Exception as error:  # whatever a scene raises must not stop the others
            if isinstance(error, UsageError) and not isinstance(error, OutputError):
                raise
            self.results.append(SceneResult(request.name, request.scene.path, "failed", line(error)))

    def _segment(self, jobs: Sequence[Job]) -> list[_Segmented]:
        """Segment all blocks that are left."""
        done: list[_Segmented] = []
        by_engine: defaultdict[str, list[Job]] = defaultdict(list)
        for job in jobs:
            by_engine[job.plan.engine.digest].append(job)
        for alike in by_engine.values():
            start, effort = time.perf_counter(), Effort(together=sum(bool(_left(job, ())) for job in alike))
            if not self._run_all(alike, effort):
                self._one_by_one(alike, effort)
            seconds = time.perf_counter() - start
            self.effort.join(effort)
            whole = (job for job in alike if not _left(job, self._records[str(job.run)]))
            done += [_Segmented(job, effort, seconds) for job in whole]
        return done

    def _run_all(self, jobs: Sequence[Job], effort: Effort) -> bool:
        """Whether they went through together; if not, nothing of that is held any more."""
        try:
            self._run(jobs, effort)
        except Stopped:
            raise
        except Exception:  # noqa: BLE001 - one scene's fault: it is found scene by scene
            return False
        return True

    def _run(self, jobs: Sequence[Job], effort: Effort) -> None:
        tasks = [Task(str(job.run), tuple(left)) for job in jobs if (left := _left(job, self._records[str(job.run)]))]
        if not tasks:
            return
        watch, fresh = EngineWatch(tasks), list[BlockRecord]()
        try:
            for run, record in segment_together(tasks, lambda _: stopping(self.marker)):
                self._records[run].append(record)
                fresh.append(record)
        finally:
            effort.add(watch.report(tuple(fresh)))

    def _one_by_one(self, jobs: Sequence[Job], effort: Effort) -> None:
        for job in jobs:
            with self._told(job.request):
                self._run([job], effort)

    def _publish(self, scene: _Segmented, ended: float) -> None:
        """All outputs of a scene, on this worker; the segmenting has `ended`."""
        job, fresh = scene.job, self._records[str(scene.job.run)]
        records = [*job.records.values(), *fresh]
        effort = scene.effort if fresh else Effort(peak_bytes=resources.peak_memory())

        def publish(steps: Sequence[str]) -> None:
            for step in steps:
                outputs.make(step, job.plan, job.run)

        with self._told(job.request):
            prove(job.plan, records)
            job.complete(records, effort, publish, scene.seconds, ended)
            job.exchange()
            self.results.append(_result(job.request, job.plan, "done"))


def is_small(plan: Plan) -> bool:
    """Whether a scene is done with others in one task: few tiles, little time, and nothing to stage."""
    return plan.costs.tiles <= SMALL_TILES and plan.costs.seconds <= SMALL_SECONDS and not plan.stage


def _left(job: Job, fresh: Sequence[BlockRecord]) -> list[Window]:
    return job.plan.remaining([*job.records, *((record.row, record.col) for record in fresh)])


def _result(request: SegmentRequest, plan: Plan, status: Literal["done", "unchanged"]) -> SceneResult:
    return SceneResult(request.name, request.scene.path, status, megapixels=plan.grid.scene.pixels / 1e6)


def line(error: Exception) -> str:
    """What an exception says, on one line."""
    text = str(error) if isinstance(error, WidefieldError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
