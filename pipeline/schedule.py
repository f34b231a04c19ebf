"""Which task is next, and what a task's failure means: the state of one run while it runs."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.engines.meter import Times
from pipeline.errors import IncompleteError
from pipeline.executors import Outcome
from pipeline.grid import Window
from pipeline.ledger import BlockRecord, Ledger, Packed, Tail
from pipeline.outputs import LEDGER, STAGED
from pipeline.plan import Plan, runs
from pipeline.report import Effort
from pipeline.scene import open_scene
from pipeline.staging import stage_windows, staged_windows
from pipeline.worker import StageTask, Task
from pipeline.workshop import is_intact


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    phase: str
    """`stage`, `segment` or `publish`; `archive` for all its scenes together."""
    done: int
    """Pixels of finished blocks (files, when publishing; scenes, of an archive), those of earlier runs included."""
    total: int
    resumed: int = 0
    """Of these, done before this run started."""
    scene: str = ""
    """Its name in the archive, where there is one."""
    engine: Times = field(default_factory=Times)
    """What the engines did with their time in this run so far."""


Listener = Callable[[Progress], None]


class Schedule(Iterator[Task | StageTask | None]):
    """Which task is next: a run of blocks whose source is at hand, else a window to be staged, else none for now.

    A failed task is cut into single blocks, and each is tried once more with nothing else in flight; a block that
    fails again is set aside, and the others go on.
    """

    def __init__(
        self,
        plan: Plan,
        run: Path,
        records: Mapping[tuple[int, int], BlockRecord],
        listen: Listener,
        effort: Effort | None = None,
    ) -> None:
        """What the tasks take is counted into `effort`."""
        self.plan, self.run, self.records, self.listen = plan, run, Packed(records), listen
        self.effort = effort or Effort()
        self.effort.staged = plan.stage
        self._tail = Tail(Ledger(run / LEDGER))
        self.failed: dict[Window, str] = {}
        self.resumed = sum(record.window.pixels for record in records.values())
        self._done = self.resumed
        remaining = plan.remaining(records)
        self._tasks = deque(Task(str(run), windows) for windows in runs(remaining, plan.task_blocks))
        self._suspects: deque[Task] = deque()
        self._staging: deque[StageTask] = deque()
        self._unit = (1, 1)
        """Rows and columns of a window of staging: they lie on a lattice."""
        self._missing: set[tuple[int, int]] = set()
        """First (row, col) of the windows that are not staged yet."""

    def start(self) -> None:
        """Find out what must be staged; the staged store is in place by now."""
        self._plan_staging()
        self.listen(Progress("segment", self.resumed, self.plan.grid.scene.pixels, self.resumed))

    def _plan_staging(self) -> None:
        if not self.plan.stage or not self._tasks:
            return
        with open_scene(self.plan.scene) as scene:
            windows = stage_windows(scene)
        here = staged_windows((self.run / STAGED).resolve())
        self._unit = (windows[0].height, windows[0].width)
        wanted = {place for task in self._tasks for place in self._places(task)}
        waiting = [window for window in windows if window not in here and (window.row, window.col) in wanted]
        self._missing = {(window.row, window.col) for window in waiting}
        self._staging = deque(StageTask(str(self.run), window) for window in waiting)

    def _places(self, task: Task) -> Iterator[tuple[int, int]]:
        """First (row, col) of the windows of staging that the task's blocks read."""
        rows, cols = self._unit
        for source in map(self.plan.grid.source, task.windows):
            for row in range(source.row // rows * rows, source.stop_row, rows):
                for col in range(source.col // cols * cols, source.stop_col, cols):
                    yield row, col

    def __next__(self) -> Task | StageTask | None:
        if self._tasks and self._ready(self._tasks[0]):
            return self._tasks.popleft()
        if self._staging:
            return self._staging.popleft()
        if self._tasks:
            return None  # its source is in flight
        if self._suspects:
            return self._suspects.popleft()
        return None

    def _ready(self, task: Task) -> bool:
        return not self._missing or self._missing.isdisjoint(self._places(task))

    def finish(self, outcome: Outcome) -> None:
        """Take in what became of a task.

        Raises:
            WidefieldError: the environment is at fault, so that going on helps nobody.
        """
        task = outcome.task
        if outcome.error is not None:
            self._fail(task, outcome)
            return
        self.effort.add(outcome.value)
        if isinstance(task, StageTask):
            self._missing.discard((task.window.row, task.window.col))
            return
        for record in outcome.value.records:
            self.records[record.row, record.col] = record
            self._done += record.window.pixels
        total, spent = self.plan.grid.scene.pixels, self.effort.engine
        self.listen(Progress("segment", self._done, total, self.resumed, engine=spent))

    def _fail(self, task: Task | StageTask, outcome: Outcome) -> None:
        assert outcome.error is not None  # noqa: S101 - the caller looked
        if outcome.fatal:
            raise IncompleteError(f"{outcome.error} (what is recorded stays; a rerun goes on from there)")
        if isinstance(task, StageTask):
            self._fail_staging(task, outcome.error)
        elif task.alone:
            self.failed[task.windows[0]] = outcome.error
        else:
            recorded = self._tail.records()
            for window in task.windows:
                record = recorded.get((window.row, window.col))
                if record and is_intact(self.plan, self.run, record):  # the ledger may speak of a damaged shard
                    self.records[window.row, window.col] = record
                    self._done += window.pixels
                else:
                    self._suspects.append(Task(task.run, (window,), alone=True))

    def _fail_staging(self, task: StageTask, error: str) -> None:
        if not task.alone:
            self._staging.append(replace(task, alone=True))
            return
        waiting = [window for pending in self._tasks for window in pending.windows]
        lost = [window for window in waiting if task.window.intersect(self.plan.grid.source(window))]
        self.failed.update(dict.fromkeys(lost, error))
        self._missing.discard((task.window.row, task.window.col))
        gone = set(lost)
        left = [window for window in waiting if window not in gone]
        self._tasks = deque(Task(task.run, windows) for windows in runs(left, self.plan.task_blocks))

    def check(self) -> None:
        """Prove coverage: every block recorded, every pixel once, valid in = classified out.

        Raises:
            IncompleteError: it is not so.
        """
        if self.failed:
            window, error = next(iter(self.failed.items()))
            raise IncompleteError(
                f"{self.plan.scene.path}: {len(self.failed)} of {self.plan.costs.blocks} blocks failed, nothing was "
                f"published; block at row {window.row}, column {window.col}: {error}; a rerun tries only these"
            )
        prove(self.plan, self.records.values())


def prove(plan: Plan, records: Collection[BlockRecord]) -> None:
    """Prove coverage: every block recorded, every pixel once, valid in = classified out.

    Raises:
        IncompleteError: it is not so.
    """
    path = plan.scene.path
    if left := plan.remaining((record.row, record.col) for record in records):
        raise IncompleteError(f"{path}: {len(left)} blocks were not done: run the same command again")
    for record in records:
        if record.valid != record.classified:
            raise IncompleteError(
                f"{path}: block at row {record.row}, column {record.col} has {record.valid} valid pixels but "
                f"{record.classified} classified ones: this is a fault of the program, please report it"
            )
