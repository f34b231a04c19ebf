"""Many scenes over one executor: what overlaps, and what must not."""

import sys
import threading
import time
from dataclasses import dataclass

import pytest
from drawn_scenes import noise, write_tiff

from pipeline.disk import Disk
from pipeline.executors import DaskExecutor
from pipeline.gate import Gate
from pipeline.many import ManyScenes, Wanted
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.schedule import Progress
from pipeline.segment import SegmentRequest
from pipeline.together import SceneResult

TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}


def test_who_must_be_alone_waits_for_all_and_nobody_passes_him():
    gate = Gate()
    assert gate.enter(alone=False)
    assert gate.enter(alone=False)
    assert not gate.enter(alone=True)
    inside = []
    thread = threading.Thread(target=lambda: inside.append(gate.wait(alone=True, given_up=lambda: False)))
    thread.start()
    while gate._claims == 0:
        time.sleep(0.01)
    assert not gate.enter(alone=False)
    gate.leave()
    gate.leave()
    thread.join(5)
    assert inside == [True]
    assert not gate.enter(alone=False)
    gate.leave()
    assert gate.enter(alone=False)


def test_a_scene_waits_until_its_disk_is_free(tmp_path):
    disk, order = Disk(), []

    def second():
        with disk.share(1 << 62, tmp_path):
            order.append("second")

    with disk.share(1, tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


@dataclass(frozen=True)
class Timed:
    number: int
    alone: bool = False

    @property
    def name(self):
        return f"timed-{self.number}"


def spell(task):
    start = time.time()
    time.sleep(0.1)
    return start, time.time()


@pytest.fixture(scope="module")
def cluster():
    from distributed.protocol.pickle import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with DaskExecutor(workers=2) as executor:
        yield executor


@pytest.mark.xdist_group("dask")
def test_a_task_that_must_be_alone_is_alone_over_all_runs(cluster):
    outcomes = []

    def run(name, tasks):
        outcomes.extend(cluster.run(spell, iter(tasks), name))

    others = threading.Thread(target=run, args=("others", [Timed(n) for n in range(12)]))
    others.start()
    run("one", [Timed(99, alone=True)])
    others.join()
    alone = next(outcome.value for outcome in outcomes if outcome.task.alone)
    beside = [o for o in outcomes if not o.task.alone and o.value[0] < alone[1] and o.value[1] > alone[0]]
    assert (len(outcomes), beside) == (13, [])


@pytest.mark.xdist_group("dask")
def test_the_head_of_a_scene_overlaps_with_the_tail_of_another(cluster, bundle, tmp_path):
    events = []
    wanted = []
    for name in ("a", "b"):
        path = write_tiff(tmp_path / f"{name}.tif", noise(3, 500, 500), **TILED)
        options = PlanOptions(stage=True, block=64)
        request = SegmentRequest(SceneAddress(str(path)), bundle, tmp_path, name, options, "null", tile=128, threads=1)
        wanted.append(Wanted(request, None))
    ManyScenes(cluster, events.append, 2).work(wanted, tmp_path)
    ends = [n for n, event in enumerate(events) if isinstance(event, SceneResult)]
    heads = [n for n, event in enumerate(events) if isinstance(event, Progress) and event.phase == "segment"]
    assert {event.status for event in events if isinstance(event, SceneResult)} == {"done"}
    assert {events[n].scene for n in heads if n < ends[0]} == {"a", "b"}
