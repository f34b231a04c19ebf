import os
import signal
import sys

import pytest
from drawn_scenes import noise, write_tiff

from pipeline import workshop
from pipeline.errors import IncompleteError
from pipeline.executors import DaskExecutor, Outcome, SerialExecutor
from pipeline.ledger import Ledger
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.schedule import Progress, Schedule
from pipeline.segment import SegmentRequest, plan_request
from pipeline.worker import StageTask, Task, perform


@pytest.fixture
def run(bundle, tmp_path):
    """A plan of 12 blocks over a striped scene, staged, with its open run: (plan, folder of the run)."""
    path = write_tiff(tmp_path / "scene.tif", noise(3, 180, 230), tiled=False)
    options = PlanOptions(block=64, stage=True)
    request = SegmentRequest(SceneAddress(str(path)), bundle, tmp_path, "scene", options, "null", tile=128, threads=1)
    plan = plan_request(request)
    folder = request.workshop / plan.key[:16]
    workshop.open_run(plan, folder)
    with workshop.staged(plan, folder, request.staged, keep=False):
        yield plan, folder


def schedule_of(run, listen=lambda _: None):
    plan, folder = run
    schedule = Schedule(plan, folder, workshop.trusted_records(plan, folder), listen)
    schedule.start()
    return schedule


def test_blocks_wait_until_their_source_is_staged(run):
    schedule = schedule_of(run)
    first = next(schedule)
    assert isinstance(first, StageTask)
    assert next(schedule) is None
    schedule.finish(Outcome(first, perform(first)))
    assert isinstance(next(schedule), Task)


def test_progress_counts_pixels_up_to_all(run):
    events = []
    schedule = schedule_of(run, events.append)
    for outcome in SerialExecutor().run(perform, schedule, "test"):
        schedule.finish(outcome)
    schedule.check()
    assert events[-1] == Progress("segment", 180 * 230, 180 * 230, engine=schedule.effort.engine)
    assert events[0] == Progress("segment", 0, 180 * 230)
    assert [event.done for event in events] == sorted({event.done for event in events})


def test_effort_adds_up_what_tasks_report(run):
    schedule, outcomes = schedule_of(run), []
    for outcome in SerialExecutor().run(perform, schedule, "test"):
        schedule.finish(outcome)
        outcomes.append(outcome)
    effort = schedule.effort
    segmenting = [outcome.value for outcome in outcomes if isinstance(outcome.task, Task)]
    staging = [outcome.value for outcome in outcomes if isinstance(outcome.task, StageTask)]
    assert effort.engine.total == pytest.approx(sum(report.engine.total for report in segmenting))
    assert list(effort.others.values()) == [pytest.approx(sum(report.seconds for report in staging))]
    assert effort.workers == {report.worker for report in segmenting}
    assert min(effort.readers, effort.writers) >= 1


def test_a_failed_task_is_tried_again_block_by_block_and_alone(run):
    schedule = schedule_of(run)
    schedule._missing.clear()
    schedule._staging.clear()
    task = next(schedule)
    schedule.finish(Outcome(task, error="the disk has gone mad"))
    while schedule._tasks:
        next(schedule)
    again = next(schedule)
    assert again == Task(task.run, task.windows[:1], alone=True)
    schedule.finish(Outcome(again, error="the disk has gone mad"))
    with pytest.raises(IncompleteError, match=r"1 of 12 blocks failed, nothing was published; .*the disk has gone mad"):
        schedule.check()


def test_a_record_of_a_damaged_block_does_not_excuse_its_failure(run):
    plan, folder = run
    schedule = schedule_of(run)
    for outcome in SerialExecutor().run(perform, schedule, "test"):
        schedule.finish(outcome)
    next(path for path in (folder / "mask.zarr/labels/c").rglob("*") if path.is_file()).unlink()
    rerun = schedule_of(run)
    task = next(rerun)
    rerun.finish(Outcome(task, error="out of memory"))
    assert next(rerun) == Task(task.run, task.windows, alone=True)
    assert len(plan.remaining(rerun.records)) == 1


def test_an_error_that_trying_again_cannot_help_stops_the_run(run):
    schedule = schedule_of(run)
    with pytest.raises(IncompleteError, match="another engine"):
        schedule.finish(Outcome(next(schedule), error="another engine", fatal=True))


def test_blocks_whose_source_cannot_be_staged_fail_together(run):
    schedule = schedule_of(run)
    first = next(schedule)
    schedule.finish(Outcome(first, error="torn"))
    again = next(schedule)
    assert again.alone
    schedule.finish(Outcome(again, error="torn"))
    assert len(schedule.failed) == 12
    assert next(schedule) is None


def deadly(task):
    if isinstance(task, Task) and any((window.row, window.col) == (64, 128) for window in task.windows):
        os.kill(os.getpid(), signal.SIGKILL)
    return perform(task)


@pytest.mark.xdist_group("dask")
def test_a_block_that_keeps_killing_its_worker_is_set_aside_and_the_others_finish(run):
    from distributed.protocol.pickle import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    schedule = schedule_of(run)
    with DaskExecutor(workers=2) as executor:
        for outcome in executor.run(deadly, schedule, "test"):
            schedule.finish(outcome)
    with pytest.raises(IncompleteError, match=r"1 of 12 .* row 64, column 128: it killed the worker"):
        schedule.check()
    plan, folder = run
    assert len(plan.remaining(Ledger(folder / "ledger").records())) == 1
    rerun = schedule_of(run)
    assert [(window.row, window.col) for window in next(rerun).windows] == [(64, 128)]
    assert next(rerun) is None
