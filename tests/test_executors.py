import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client

from flows.server import free_port
from models.engines.device import Gpu
from pipeline import executors
from pipeline.errors import OutputError, SceneError, UsageError, WidefieldError
from pipeline.executors import DaskExecutor, SerialExecutor, _running_keys


@dataclass(frozen=True)
class Number:
    value: int
    alone: bool = False
    gpu: bool = False

    @property
    def name(self):
        return f"number-{self.value}"


def by_value(function):
    """Send the function's code, not its module's name: workers do not have the tests on their path."""
    from distributed.protocol.pickle import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return function


@pytest.mark.parametrize("address", ["localhost", "bad://127.0.0.1:8786"])
def test_a_scheduler_address_that_is_none_is_a_usage_error(address):
    with pytest.raises(UsageError, match=r"--scheduler .*give one like tcp://"), DaskExecutor(1, address):
        pass


def square(task):
    if task.value == 3:
        raise SceneError("three cannot be read")
    return task.value**2


def squares(executor):
    outcomes = executor.run(by_value(square), iter([Number(n) for n in range(6)]), "test")
    return {o.task.value: (o.value, o.error) for o in outcomes}


EXPECTED = {n: (n * n, None) for n in (0, 1, 2, 4, 5)} | {3: (None, "three cannot be read")}


def test_serial_runs_every_task_and_a_failed_one_is_an_outcome():
    assert squares(SerialExecutor()) == EXPECTED


@pytest.fixture(scope="module")
def cluster():
    with DaskExecutor(workers=2) as executor:
        yield executor


@pytest.mark.xdist_group("dask")
def test_a_worker_that_is_slow_to_come_back_is_not_given_up(cluster):
    import dask
    from dask.utils import parse_timedelta

    assert cluster.workers == 2
    assert parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout")) > 1e8


@pytest.mark.xdist_group("dask")
def test_dask_runs_every_task_and_a_failed_one_is_an_outcome(cluster):
    assert squares(cluster) == EXPECTED


def kill_or_square(task):
    if task.value == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task.value**2


@pytest.mark.xdist_group("dask")
def test_a_task_that_kills_its_worker_is_an_outcome_and_the_others_finish(cluster):
    tasks = [Number(2, alone=True), *(Number(n) for n in (4, 5, 6))]
    outcomes = {o.task.value: o for o in cluster.run(by_value(kill_or_square), iter(tasks), "test")}
    assert outcomes[2].error == "it killed the worker that ran it, again and again"
    assert not outcomes[2].fatal
    assert [outcomes[n].value for n in (4, 5, 6)] == [16, 25, 36]


def refuse(task):
    raise UsageError("the environment is at fault")


@pytest.mark.parametrize("executor", [SerialExecutor()])
def test_an_error_of_the_environment_is_fatal(executor):
    (outcome,) = executor.run(refuse, iter([Number(0)]), "test")
    assert outcome.fatal


@pytest.mark.xdist_group("dask")
def test_at_most_two_tasks_a_worker_are_in_flight(cluster):
    pulled, finished = 0, 0

    def tasks():
        nonlocal pulled
        for n in range(4, 24):
            pulled += 1
            assert pulled - finished <= 4
            yield Number(n)

    for _ in cluster.run(by_value(square), tasks(), "test"):
        finished += 1
    assert finished == 20


def seen_gpus(task):
    time.sleep(0.1)  # both workers get some
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.xdist_group("dask")
def test_a_worker_sees_one_gpu_or_none_and_what_needs_one_waits_for_it():
    tasks = [Number(n, gpu=n % 2 == 0) for n in range(16)]
    with DaskExecutor(workers=2, gpus=("7",)) as executor:
        seen = {o.task: o.value for o in executor.run(by_value(seen_gpus), iter(tasks), "test")}
    assert len(seen) == 16
    assert {value for task, value in seen.items() if task.gpu} == {"7"}
    assert set(seen.values()) == {"7", ""}


def test_there_is_a_worker_for_each_gpu_and_one_alone_needs_no_cluster(tmp_path, monkeypatch):
    two = tuple(Gpu(str(n), f"GPU-{n}", "drawn", "9.0", "580") for n in range(2))
    for found, expected in ((two, ("GPU-0", "GPU-1")), (two[:1], None), ((), None)):
        monkeypatch.setattr(executors, "gpus", lambda found=found: found)
        executor = executors.make_executor(1, None, tmp_path)
        assert getattr(executor, "gpus", None) == expected
        assert isinstance(executors.make_executor(1, None, tmp_path, target="cpu").enter_result, SerialExecutor)


@pytest.mark.xdist_group("dask")
def test_results_that_are_there_together_are_fetched_by_one_call(cluster, monkeypatch):
    fetched = []
    gather = Client.gather
    monkeypatch.setattr(Client, "gather", lambda self, futures: fetched.append(len(futures)) or gather(self, futures))
    outcomes = cluster.run(by_value(square), (Number(n) for n in range(4, 24)), "test")
    first = next(outcomes)
    time.sleep(1)  # what is in flight finishes meanwhile
    assert sorted(o.value for o in (first, *outcomes)) == [n * n for n in range(4, 24)]
    assert max(fetched) > 1
    assert sum(fetched) == 20


def test_a_scheduler_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setattr("pipeline.executors.PATIENCE", 1)
    with pytest.raises(OutputError, match="no Dask scheduler answers at tcp"):
        DaskExecutor(scheduler="tcp://127.0.0.1:1").__enter__()


@pytest.fixture
def foreign():
    """A scheduler and a worker that were not started by us: (address, scheduler process)."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    common = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", str(port), *common], **quiet
    )
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", *common], **quiet
    )
    with Client(address, timeout="30s", set_as_default=False) as client:
        client.wait_for_workers(1, timeout=30)
    yield address, scheduler
    for process in (worker, scheduler):
        process.terminate()
        process.wait(20)


@pytest.mark.xdist_group("dask")
def test_workers_of_a_foreign_scheduler_are_used_once_they_see_the_output(foreign, tmp_path):
    with DaskExecutor(scheduler=foreign[0], shared=tmp_path) as executor:
        assert executor.workers == 1
        assert squares(executor) == EXPECTED
    assert list(tmp_path.iterdir()) == []


def sleep(task):
    time.sleep(task.value)
    return task.value


@pytest.mark.xdist_group("dask")
def test_what_an_earlier_client_left_for_this_output_is_cancelled_first(foreign):
    by_value(sleep)
    with Client(foreign[0], set_as_default=False) as earlier:
        left = [earlier.submit(sleep, Number(2), key=f"widefield-test-{n}", pure=False) for n in range(20)]
        other = earlier.submit(sleep, Number(0), key="widefield-other-0", pure=False)
        while len(earlier.run_on_scheduler(_running_keys, "widefield-test-")) < len(left):
            time.sleep(0.05)
        with DaskExecutor(scheduler=foreign[0]) as executor:
            executor.settle("test")
            (outcome,) = executor.run(sleep, iter([Number(0)]), "test")
        assert outcome.value == 0
        assert {future.status for future in left} <= {"cancelled", "finished"}
        assert sum(future.status == "finished" for future in left) < 10
        assert other.result(timeout=10) == 0


@pytest.mark.xdist_group("dask")
def test_a_scheduler_that_dies_ends_the_run_with_a_word(foreign):
    by_value(sleep)
    address, scheduler = foreign
    with DaskExecutor(scheduler=address) as executor:
        outcomes = executor.run(sleep, (Number(n) for n in (0, 60, 60, 60)), "test")
        assert next(outcomes).value == 0
        scheduler.kill()
        with pytest.raises(WidefieldError, match="scheduler is gone: what is recorded stays"):
            next(outcomes)
