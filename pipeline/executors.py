"""Where tasks run: in this process, or on Dask workers. One method; bounded in flight; a death is a fact, not an end.

`tasks` is pulled only when there is room, and may answer None: nothing is ready now, ask again after the next
outcome. So the caller decides what is ready, and nothing here grows with the scene.
"""

import logging
import queue
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from models.engines.base import Target
from models.engines.device import gpus
from pipeline import resources, stop
from pipeline.errors import OutputError, SceneError, UsageError, WidefieldError
from pipeline.gate import Gate

log = logging.getLogger(__name__)

GPU = "GPU"
"""The resource of workers that have a GPU: one, which one task takes."""
PATIENCE = 10
"""Seconds within which a scheduler must answer."""


class Named(Protocol):
    """A task as an executor sees it."""

    @property
    def name(self) -> str:
        """Unique within one run."""

    @property
    def alone(self) -> bool:
        """Whether nothing else may be in flight meanwhile."""

    @property
    def gpu(self) -> bool:
        """Whether it waits for a worker that has a GPU, where some have one."""


@dataclass(frozen=True)
class Outcome:
    """A task and what became of it."""

    task: Any
    value: Any = None
    """What the function returned."""
    error: str | None = None
    """Why there is no value."""
    fatal: bool = False
    """Whether trying again can help nobody: the environment, not the task, is at fault."""


Results = Generator[Outcome, None, None]
"""Outcomes; close it where not all are taken, so that what is in flight is cancelled."""


class Executor(Protocol):
    """Runs a function over tasks."""

    workers: int
    """Processes that work at the same time."""
    memory: int | None
    """Bytes that one of them may take; None: they share this machine's."""
    runs: int
    """How many calls of `run` may be under way at the same time, each in a thread of its own."""

    @property
    def engines(self) -> int:
        """Workers that have an engine once there is enough to do: those with a GPU, where some have one."""

    def run(self, function: Callable[[Any], Any], tasks: Iterator[Any | None], run: str) -> Results:
        """Outcomes as tasks complete, in any order; `run` names the output that the tasks belong to.

        Once this process has been asked to end, no task is pulled any more.

        Raises:
            Stopped: the time that running tasks had is over; they are cancelled.
        """

    def at(self, priority: int) -> Self:
        """The same executor, whose tasks go before those of a lower priority."""

    def settle(self, run: str) -> None:
        """End what an earlier client left running for this output, so that a block has one writer."""


@dataclass
class SerialExecutor:
    """One task after the other, here."""

    workers: int = 1
    memory: int | None = None
    runs: int = 1
    engines: int = 1

    def at(self, priority: int) -> Self:
        """There is no order to change."""
        del priority
        return self

    def settle(self, run: str) -> None:
        """There can be nothing."""

    def run(self, function: Callable[[Any], Any], tasks: Iterator[Any | None], run: str) -> Results:
        """See `Executor.run`. An exception is the outcome of its task alone."""
        del run
        while not stop.current().asked and (task := next(tasks, None)) is not None:
            try:
                outcome = Outcome(task, function(task))
            except stop.Stopped:
                raise
            except Exception as error:  # noqa: BLE001 - as on Dask: what one block raises is that block's outcome
                outcome = _failure(task, error)
            yield outcome


def _failure(task: Any, error: BaseException) -> Outcome:
    known = isinstance(error, WidefieldError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return Outcome(task, error=text, fatal=known and not isinstance(error, SceneError))


@dataclass
class DaskExecutor:
    """Dask workers: a cluster of our own on this machine's loopback, or any scheduler that is named.

    A worker that dies is replaced and its task runs again; a task that kills a worker twice is an outcome with an
    error. Use as a context manager.
    """

    workers: int = 1
    """Worker processes of an own cluster; ignored with `scheduler`."""
    scheduler: str | None = None
    """Address such as `tcp://127.0.0.1:8786`; None starts a cluster that ends with this object."""
    shared: Path | None = None
    """Folder that the workers of a foreign scheduler must see too."""
    gpus: tuple[str, ...] = ()
    """GPUs for an own cluster, as `CUDA_VISIBLE_DEVICES` names them: each of the first workers sees one, the others
    see none; these stage and publish meanwhile."""
    memory: int | None = None
    """The smallest limit of a foreign scheduler's workers, in bytes; found on entering."""
    priority: int = 0
    runs: int = 3
    _stack: list[Any] = field(default_factory=list)
    _gate: Gate = field(default_factory=Gate)
    _with_gpu: int = 0
    """Workers that offer the resource `GPU`; without one, all tasks go anywhere."""

    @property
    def engines(self) -> int:
        """See `Executor.engines`."""
        return self._with_gpu or self.workers

    def at(self, priority: int) -> Self:
        """The same cluster, with this priority for what is submitted."""
        return replace(self, priority=priority)

    def settle(self, run: str) -> None:
        """See `Executor.settle`. A cluster of our own ended with its client."""
        if self.scheduler:
            _cancel_predecessors(self._stack[-1], run)

    def __enter__(self) -> Self:
        from distributed import Client

        if self.scheduler:
            _check_address(self.scheduler)
        target = self.scheduler or self._cluster()
        try:
            client = Client(target, timeout=PATIENCE, set_as_default=False)
        except (OSError, TimeoutError) as error:
            self._close()
            raise OutputError(
                f"no Dask scheduler answers at {self.scheduler}: {error}; start one, or leave out --scheduler"
            ) from error
        self._stack.append(client)
        if self.scheduler:
            try:
                self._join_foreign_cluster(client)
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        while self._stack:
            self._stack.pop().close()

    def _cluster(self) -> Any:
        import dask
        from distributed import LocalCluster

        self.workers = max(self.workers, len(self.gpus))
        self._with_gpu = len(self.gpus)
        memory = resources.total_memory() // self.workers
        # One retry for a task whose worker died; comfortable for the innocent, quick for the guilty.
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": 1,
                # A worker that is just being replaced 15 s after a death would be given up: with none left, all waits.
                "distributed.deploy.lost-worker-timeout": "3650 days",
                "distributed.worker.memory.spill": False,
                "distributed.worker.memory.target": False,
                "distributed.worker.memory.pause": False,
                # With Dask's own 64 KiB every array would be made of fresh pages, at twice the core time.
                "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 32 << 20,
                "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 4 << 20,
            }
        )
        cluster = LocalCluster(
            n_workers=self.workers,
            threads_per_worker=1,
            processes=True,
            worker_class=partial(_nanny, gpus=self.gpus),
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=memory,
            silence_logs=logging.CRITICAL,  # what becomes of workers is told by outcomes
        )
        self._stack.append(cluster)
        return cluster

    def _join_foreign_cluster(self, client: Any) -> None:
        """Count the workers, and make sure that they see the output folder.

        Raises:
            OutputError: there are none, or some do not share the folder.
        """
        addresses = client.scheduler_info(n_workers=-1)["workers"]
        if not addresses:
            raise OutputError(f"the scheduler at {self.scheduler} has no workers: start some with `dask worker`")
        self.workers = len(addresses)
        self.memory = min((worker["memory_limit"] for worker in addresses.values()), default=0) or None
        self._with_gpu = sum(bool(worker["resources"].get(GPU)) for worker in addresses.values())
        if self.shared is None:
            return
        token, path = uuid.uuid4().hex, self.shared / f".token-{uuid.uuid4().hex}"
        path.write_text(token, encoding="ascii")
        try:
            seen = client.run(_read_token, str(path.absolute()), on_error="return")
        finally:
            path.unlink()
        lacking = sorted(address for address, answer in seen.items() if "ModuleNotFoundError" in repr(answer))
        if lacking:
            raise OutputError(
                f"{len(lacking)} of {len(seen)} workers lack widefield ({lacking[0]}): install the same version there"
            )
        blind = sorted(address for address, answer in seen.items() if answer != token)
        if blind:
            raise OutputError(
                f"{len(blind)} of {len(seen)} workers do not see {self.shared} ({blind[0]}): "
                "put --out on storage that all of them share"
            )

    def run(self, function: Callable[[Any], Any], tasks: Iterator[Any | None], run: str) -> Results:
        """See `Executor.run`. At most two tasks a worker are in flight.

        What there is room for is submitted at once, and what has finished is fetched at once: a task by itself takes
        the client and the scheduler half as long again.
        """
        client, finished = self._stack[-1], queue.Queue[Any]()
        flight: dict[Any, Any] = {}
        room = _Room(tasks, self._gate, 2 * self.workers)
        try:
            while True:
                while entered := room.fill(len(flight)):
                    flight |= (submitted := self._submit(client, function, entered, run))
                    for future in submitted:
                        future.add_done_callback(finished.put)
                if not flight:
                    return
                for future, outcome in _outcomes(client, flight, self._wait(client, finished)):
                    del flight[future]
                    self._gate.leave()
                    yield outcome
                    future.release()
        finally:
            for _ in flight:
                self._gate.leave()
            if flight:
                client.cancel(list(flight), force=True)

    def _submit(self, client: Any, function: Callable[[Any], Any], tasks: list[Any], run: str) -> dict[Any, Any]:
        """Tasks by the futures of their results; those that need a GPU go to the workers that have one."""
        submitted: dict[Any, Any] = {}
        for needs_gpu, alike in _by_need(tasks) if self._with_gpu else ((False, tasks),):
            keys = [f"widefield-{run}-{task.name}-{uuid.uuid4().hex[:8]}" for task in alike]
            wanted = {GPU: 1} if needs_gpu else None
            futures = client.map(function, alike, key=keys, pure=False, priority=self.priority, resources=wanted)
            submitted |= zip(futures, alike, strict=True)
        return submitted

    def _wait(self, client: Any, finished: "queue.Queue[Any]") -> list[Any]:
        """The futures that are done: at least one.

        Raises:
            WidefieldError: the scheduler is gone, and every task in flight with it.
            Stopped: the time that running tasks had is over.
        """
        while True:
            try:
                done = [finished.get(timeout=0.2)]
            except queue.Empty:
                done = []
                if stop.current().overdue:
                    stop.current().check()
            if client.status != "running":
                raise WidefieldError(
                    "the Dask scheduler is gone: what is recorded stays; run the same command again to go on"
                )
            if done:
                return done + [finished.get() for _ in range(finished.qsize())]


class _Room:
    """The next task of one run, as soon as there is room for it and the gate lets it in."""

    def __init__(self, tasks: Iterator[Any | None], gate: Gate, limit: int) -> None:
        self.tasks, self.gate, self.limit = tasks, gate, limit
        self._held: Any | None = None
        """A task that was pulled and could not enter yet."""

    def fill(self, flying: int) -> list[Any]:
        """The tasks that have entered, as many as there is room for with `flying` tasks of this run in flight."""
        entered: list[Any] = []
        while (task := self._next(flying + len(entered))) is not None:
            entered.append(task)
        return entered

    def _next(self, flying: int) -> Any | None:
        """A task that has entered; None for now, with `flying` tasks of this run in flight."""
        if flying >= self.limit or stop.current().asked:
            return None
        task = self._held if self._held is not None else next(self.tasks, None)
        self._held = task
        if task is None:
            return None
        entered = (
            self.gate.enter(alone=task.alone)
            if flying
            else self.gate.wait(alone=task.alone, given_up=lambda: stop.current().asked)
        )
        if not entered:
            return None
        self._held = None
        return task


def _by_need(tasks: list[Any]) -> Iterator[tuple[bool, list[Any]]]:
    """The tasks that need a GPU, and the others, each in their order."""
    for needs_gpu in (True, False):
        if alike := [task for task in tasks if task.gpu is needs_gpu]:
            yield needs_gpu, alike


def _nanny(scheduler: str, *, name: int, gpus: tuple[str, ...], **options: Any) -> Any:
    """What keeps worker number `name` of an own cluster alive; where there are `gpus`, it sees its own one or none."""
    from distributed import Nanny

    if gpus:
        own = gpus[name : name + 1]
        options |= {"env": {"CUDA_VISIBLE_DEVICES": "".join(own)}, "resources": {GPU: len(own)}}
    return Nanny(scheduler, name=name, **options)


def _check_address(scheduler: str) -> None:
    """Refuse what cannot be a scheduler before a client with its threads is made for it.

    Raises:
        UsageError: it is no address, or of a scheme that Dask does not know.
    """
    from distributed.comm.addressing import parse_address
    from distributed.comm.registry import get_backend

    try:
        get_backend(parse_address(scheduler, strict=True)[0])
    except ValueError as error:
        raise UsageError(f"--scheduler {scheduler}: {error}; give one like tcp://127.0.0.1:8786") from error


def _outcomes(client: Any, flight: Mapping[Any, Any], done: list[Any]) -> Iterator[tuple[Any, Outcome]]:
    """Of the futures that are done; the values of those that finished are fetched together."""
    whole = [future for future in done if future.status == "finished"]
    try:
        values = dict(zip(whole, client.gather(whole), strict=True))
    except Exception:  # noqa: BLE001 - one was lost meanwhile and failed when it ran anew: found one by one
        values = {}
    for future in done:
        task = flight[future]
        yield future, Outcome(task, values[future]) if future in values else _outcome(task, future)


def _outcome(task: Any, future: Any) -> Outcome:
    from distributed.scheduler import KilledWorker

    try:
        return Outcome(task, future.result())  # runs anew if the worker that held it died meanwhile
    except KilledWorker:
        return Outcome(task, error="it killed the worker that ran it, again and again")
    except CancelledError:
        return Outcome(task, error="its worker was lost and the task with it")
    except Exception as error:  # noqa: BLE001 - whatever the task raised is its outcome
        return _failure(task, error)


def _read_token(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return None


def _running_keys(prefix: str, dask_scheduler: Any = None) -> list[str]:
    return [str(key) for key in dask_scheduler.tasks if str(key).startswith(prefix)]


def _cancel_predecessors(client: Any, run: str, patience: float = 120.0) -> None:
    """End what an earlier client left on the scheduler for this output, so that a block has one writer.

    A running task cannot be interrupted; its worker is restarted if it does not end by itself in `patience` seconds.
    """
    from distributed import Future

    prefix = f"widefield-{run}-"
    keys = client.run_on_scheduler(_running_keys, prefix)
    if keys:
        log.warning("cancelling %d tasks of an earlier client", len(keys))
        client.cancel([Future(key, client) for key in keys], force=True)
    deadline = time.monotonic() + patience
    while busy := [
        address
        for address, running in client.processing().items()
        if any(str(key).startswith(prefix) for key in running)
    ]:
        if time.monotonic() > deadline:
            client.restart_workers(busy)
            return
        time.sleep(0.2)


def make_executor(
    workers: int,
    scheduler: str | None,
    shared: Path,
    *,
    isolated: bool = False,
    target: Literal["auto"] | Target = "auto",
) -> AbstractContextManager[Executor]:
    """Serial for one worker without a scheduler, else Dask: on this machine, at least one worker for each GPU, unless
    the engine's `target` is the processor.

    `isolated`: tasks never run in this process, so that one that kills its process does not end the run.
    """
    found = tuple(gpu.uuid for gpu in gpus()) if scheduler is None and target != "cpu" else ()
    if scheduler is None and max(workers, len(found)) == 1 and not isolated:
        return nullcontext(SerialExecutor())
    return DaskExecutor(workers, scheduler, shared, found)
