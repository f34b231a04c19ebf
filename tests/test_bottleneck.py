from dataclasses import replace

import pytest

from models.engines.meter import Times
from pipeline.bottleneck import Spent
from pipeline.report import Effort
from pipeline.worker import TaskReport

BUSY = Spent(
    segment=100.0,
    publish=2.0,
    workers=2,
    engine=Times(busy=190.0, input=4.0, output=2.0, handling=1.0),
    start=2.0,
    staging=0.0,
    read=50.0,
    write=20.0,
    pixels=10**9,
    readers=2,
    writers=1,
    staged=False,
)
ARCHIVE = replace(BUSY, publish=0.0, engine=Times(busy=150.0, input=4.0), opening=6.0, publishing=30.0, together=40)


def test_every_second_of_the_workers_is_somewhere():
    assert BUSY.idle == 1.0
    assert sum(BUSY.losses.values()) + BUSY.engine_share * 100 / 102 == pytest.approx(1.0)
    assert ARCHIVE.idle == 8.0
    assert sum(ARCHIVE.losses.values()) + ARCHIVE.engine_share == pytest.approx(1.0)


def test_an_archive_publishes_beside_the_segmenting():
    assert ARCHIVE.losses == pytest.approx({"input": 0.05, "output": 0.0, "start": 0.05, "publish": 0.15})
    facts = ARCHIVE.to_json()
    assert (facts["together"], facts["wall"], facts["limit"]) == (40, 100.0, "publish")
    assert (facts["seconds"]["open"], facts["seconds"]["publish"], facts["megapixels_per_second"]) == (6.0, 30.0, 10.0)


def test_where_little_is_lost_the_engine_is_the_limit():
    assert BUSY.limit == "engine"
    assert BUSY.advice == "the engine was busy 95 % of the time: only a faster engine or more workers help"


@pytest.mark.parametrize(
    ("changes", "limit", "advice"),
    [
        (
            {"engine": Times(busy=110.0, input=80.0, output=4.0)},
            "input",
            (
                "the engine waited 39 % of the time for input, with up to 2 threads reading: stage the scene "
                "(--stage always), or put it on a faster disk"
            ),
        ),
        (
            {"engine": Times(busy=110.0, input=80.0), "staged": True, "readers": 1},
            "input",
            (
                "the engine waited 39 % of the time for input, with one thread reading: put --out on a faster disk, or "
                "use fewer workers"
            ),
        ),
        (
            {"engine": Times(busy=110.0), "staging": 80.0, "staged": True},
            "input",
            (
                "the engine waited 39 % of the time for input, most of it to be copied into image.zarr: a tiled source "
                "(a COG) is read where it lies"
            ),
        ),
        (
            {"engine": Times(busy=110.0, output=80.0, handling=4.0)},
            "output",
            "the engine waited 41 % of the time for its output to be written by one thread: put --out on a faster disk",
        ),
        (
            {"engine": Times(busy=110.0), "start": 30.0},
            "start",
            (
                "loading the engine and waiting for work took 44 % of the time: larger scenes, many scenes in one run, "
                "or fewer workers make it count less"
            ),
        ),
        (
            {"publish": 100.0},
            "publish",
            "publishing took 50 % of the time: more workers write more files at once",
        ),
    ],
)
def test_the_largest_loss_is_the_limit_and_comes_with_a_way_out(changes, limit, advice):
    spent = replace(BUSY, **changes)
    assert (spent.limit, spent.advice) == (limit, advice)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {"opening": 60.0, "publishing": 0.0, "engine": Times(busy=100.0, input=4.0)},
            (
                "the engine waited 32 % of the time for input, most of it for small scenes to be opened: "
                "more workers open more at once"
            ),
        ),
        (
            {"engine": Times(busy=100.0, input=60.0), "staged": True},
            (
                "the engine waited 33 % of the time for input, with up to 2 threads reading: "
                "put the scenes and --out on a faster disk, or use fewer workers"
            ),
        ),
        (
            {"publishing": 0.0, "workers": 3},
            (
                "loading the engine and waiting for work took 47 % of the time: "
                "more scenes in one run or fewer workers make it count less"
            ),
        ),
        (
            {"publishing": 0.0, "workers": 1, "segment": 200.0},
            (
                "loading the engine and waiting for work took 20 % of the time: "
                "more scenes in one run make it count less"
            ),
        ),
    ],
)
def test_what_helps_one_scene_is_not_what_helps_an_archive(changes, advice):
    assert replace(ARCHIVE, **changes).advice == advice


def test_facts_hold_seconds_by_stage_and_speed():
    facts = BUSY.to_json()
    assert facts["limit"] == "engine"
    assert (facts["engine_share"], facts["together"], facts["wall"]) == (0.95, 1, 102.0)
    assert facts["megapixels_per_second"] == 10.0
    assert facts["seconds"] == {
        "start": 2.0, "open": 0.0, "stage": 0.0, "read": 50.0, "engine": 190.0, "waiting_for_input": 4.0,
        "waiting_for_output": 2.0, "handling": 1.0, "write": 20.0, "idle": 1.0, "publish": 2.0,
    }  # fmt: skip


def test_a_worker_that_was_restarted_has_one_engine_under_two_names():
    effort = Effort(places=2)
    for name in ("a-1", "b-1", "b-2"):
        effort.add(TaskReport(1.0, 0.0, 0, worker=name))
    assert (len(effort.workers), effort.engines) == (3, 2)
    assert Effort(places=4, workers={"a-1"}).engines == 1  # the others had nothing to segment


def test_an_archive_is_the_sum_of_its_scenes_over_all_places_for_engines():
    total = Effort(together=0, places=4)
    for worker, together in (("a-1", 16), ("b-1", 1)):
        effort = Effort(together=together)
        effort.add(TaskReport(5.0, 1.0, 0, worker=worker, start=1.0, engine=Times(busy=4.0), readers=2))
        effort.add(TaskReport(2.0, None, 0, worker=worker, kind="publish"))
        total.join(effort)
    idle = Effort()
    idle.add(TaskReport(3.0, None, 0, worker="c-1", kind="publish"))
    total.join(idle)  # by a process that has never segmented: it has no engine
    assert Effort().spent(10.0, None, places=4) is None
    spent = total.spent(10.0, None, places=4)
    assert (spent.together, spent.workers, spent.publishing, spent.start, spent.idle) == (17, 4, 4.0, 2.0, 26.0)
    assert (spent.engine, spent.readers, total.spent(10.0, 1.0).publishing) == (Times(busy=8.0), 2, 0.0)


def test_clocks_that_overlap_the_edges_of_the_wall_time_give_no_share_above_one():
    spent = replace(BUSY, engine=Times(busy=201.0), start=0.0)
    assert spent.idle == 0
    assert spent.engine_share == 1
