"""Many scenes over one executor: small ones in groups, large ones a few at a time, so that the tail of one and the
head of the next overlap.

    groups  ──► a worker takes small scenes from plan to published files, in one task
    large   ──► a client thread each; an earlier scene's tasks go first

An executor that runs one thing at a time gets one thing at a time. The listener is called from the caller's thread.
"""

import hashlib
import queue
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline import resources, stop
from pipeline.disk import Disk
from pipeline.errors import OutputError, UsageError
from pipeline.executors import Executor, Outcome
from pipeline.report import Effort
from pipeline.schedule import Progress
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.together import GroupReport, GroupTask, SceneResult, line, perform_group
from pipeline.workshop import HIDDEN

LARGE_BYTES = 32 << 20
"""A scene whose file is larger is not even tried in a group."""
GROUP = 64
"""Most scenes of one group."""

ArchiveListener = Callable[[Progress | SceneResult], None]
_Event = Progress | SceneResult | SegmentRequest | Effort


@dataclass(frozen=True)
class Wanted:
    """A scene that is to be segmented."""

    request: SegmentRequest
    size: int | None
    """Bytes of its file, if they are known."""

    @property
    def may_be_small(self) -> bool:
        """Whether a worker should look if it fits into a group."""
        staged = self.request.options.stage or self.request.keep_staged
        return not staged and (self.size is None or self.size <= LARGE_BYTES)


class ManyScenes:
    """What becomes of many scenes, as it comes."""

    def __init__(self, executor: Executor, listen: ArchiveListener, total: int) -> None:
        self.executor, self.listen, self.total = executor, listen, total
        self.results: list[SceneResult] = []
        self.effort = Effort(together=0, places=executor.workers)
        """What the tasks took so far."""
        self._disk = Disk()
        self._jobs: deque[Callable[[], None]] = deque()
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        """What the jobs have to tell; a request is a scene that turned out to be large."""

    def settle(self, result: SceneResult) -> None:
        """Take in what became of a scene."""
        self.results.append(result)
        self.listen(result)
        self.listen(Progress("archive", len(self.results), self.total))

    def work(self, wanted: Sequence[Wanted], out: Path) -> None:
        """Segment all of them into `out`.

        Raises:
            UsageError: what all scenes need is unusable.
            Stopped: this process was asked to end; what is recorded stays.
        """
        small = [each.request for each in wanted if each.may_be_small]
        large = [each.request for each in wanted if not each.may_be_small]
        if small:
            self._jobs.append(lambda: self._run_groups(small, out))
        self._jobs.extend(self._scene(request, -number) for number, request in enumerate(large, start=1))
        if self.executor.runs == 1:
            while self._jobs and not stop.current().asked:
                self._jobs.popleft()()
        elif self._jobs:
            self._side_by_side()
        stop.current().check()

    def _side_by_side(self) -> None:
        """All jobs, `executor.runs` at a time; events are told from here."""
        with ThreadPoolExecutor(self.executor.runs, "scene") as pool:
            running: set[Future[None]] = set()
            while (self._jobs and not stop.current().asked) or running:
                while self._jobs and len(running) < self.executor.runs and not stop.current().asked:
                    running.add(pool.submit(self._jobs.popleft()))
                done, running = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
                self._pump()
                for future in done:
                    future.result()
        self._pump()

    def _tell(self, event: _Event) -> None:
        self._events.put(event)
        if self.executor.runs == 1:
            self._pump()

    def _pump(self) -> None:
        while not self._events.empty():
            match self._events.get():
                case SceneResult() as result:
                    self.settle(result)
                case Progress() as progress:
                    self.listen(progress)
                case Effort() as effort:
                    self.effort.join(effort)
                case SegmentRequest() as request:
                    self._jobs.append(self._scene(request, -self.total))

    def _run_groups(self, requests: Sequence[SegmentRequest], out: Path) -> None:
        name = f"groups-{hashlib.sha256(str(out).encode()).hexdigest()[:16]}"
        hidden = out / HIDDEN
        hidden.mkdir(parents=True, exist_ok=True)
        self.executor.settle(name)
        with tempfile.TemporaryDirectory(dir=hidden, prefix="groups-") as folder, stop.current().watch(Path(folder)):
            groups = _Groups(requests, self.executor, folder)
            with closing(self.executor.run(perform_group, groups, name)) as outcomes:
                for outcome in outcomes:
                    if outcome.error is None:
                        self._tell(outcome.value.effort)
                    for event in groups.finish(outcome):
                        self._tell(event)

    def _scene(self, request: SegmentRequest, priority: int) -> Callable[[], None]:
        return lambda: self._tell(self._segment(request, self.executor.at(priority)))

    def _segment(self, request: SegmentRequest, executor: Executor) -> SceneResult:
        start, path = time.perf_counter(), request.scene.path
        effort = Effort(places=executor.workers)

        def listen(event: Progress) -> None:
            self._tell(replace(event, scene=request.name))

        try:
            facts = segment_scene(request, executor, listen, self._disk, effort)
        except stop.Stopped:
            raise
        except Exception as error:  # one bad scene never stops an archive, whatever it raises
            if isinstance(error, UsageError) and not isinstance(error, OutputError):
                raise
            return SceneResult(request.name, path, "failed", line(error), time.perf_counter() - start)
        finally:
            self._tell(effort)
        status: Literal["done", "unchanged"] = "unchanged" if facts.get("unchanged") else "done"
        megapixels = facts["coverage"]["pixels"] / 1e6
        return SceneResult(request.name, path, status, None, time.perf_counter() - start, megapixels)


class _Groups(Iterator[GroupTask | None]):
    """Which group is next, and what a group's end means. A group that dies is done again scene by scene, each alone."""

    def __init__(self, requests: Sequence[SegmentRequest], executor: Executor, marker: str) -> None:
        workers = executor.workers
        memory = executor.memory or (resources.available_memory() + resources.held_memory()) // workers
        ready = (replace(each, options=replace(each.options, workers=workers, memory=memory)) for each in requests)
        self._asked = {request.name: request for request in requests}
        self._waiting = deque(ready)
        self._ready = {request.name: request for request in self._waiting}
        self._suspects: deque[SegmentRequest] = deque()
        self._marker = marker
        self._size = min(GROUP, -(-len(self._waiting) // (4 * workers)))

    def __next__(self) -> GroupTask | None:
        if self._waiting:
            count = min(self._size, len(self._waiting))
            return GroupTask(tuple(self._waiting.popleft() for _ in range(count)), self._marker)
        if self._suspects:
            return GroupTask((self._suspects.popleft(),), self._marker, alone=True)
        return None

    def finish(self, outcome: Outcome) -> list[SceneResult | SegmentRequest]:
        """What became of the scenes of a group; large ones as they were asked for.

        Raises:
            UsageError: what all scenes need is unusable.
        """
        task: GroupTask = outcome.task
        if outcome.error is None:
            report: GroupReport = outcome.value
            self._waiting.extend(self._ready[name] for name in report.left)
            return [*report.results, *(self._asked[name] for name in report.large)]
        if outcome.fatal:
            raise UsageError(outcome.error)
        if not task.alone:
            self._suspects.extend(task.requests)
            return []
        (request,) = task.requests
        return [SceneResult(request.name, request.scene.path, "failed", outcome.error)]
