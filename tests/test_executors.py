import os
import signal
from dataclasses import dataclass

import pytest

from pipeline.errors import OutputError, SceneError, UsageError
from pipeline.executors import DaskExecutor, SerialExecutor


@dataclass(frozen=True)
class Number:
    value: int
    alone: bool = False

    @property
    def name(self):
        return f"number-{self.value}"


def by_value(function):
    """Send the function's code, not its module's name: workers do not have the tests on their path."""
    import sys

    from distributed.protocol.pickle import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return function


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


def test_a_scheduler_that_does_not_answer_is_one_line():
    with pytest.raises(OutputError, match="no Dask scheduler answers at tcp"):
        DaskExecutor(scheduler="tcp://127.0.0.1:1").__enter__()
