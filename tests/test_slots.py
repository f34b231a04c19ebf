import threading
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from models.engines.base import Batch, EngineRecord
from models.engines.meter import Meter, Times
from models.engines.slots import overlapped, padded
from models.errors import EngineError

MEASURED = {"digest": "", "version": "", "device": "", "bundle": "", "peak_bytes": 0, "seconds_per_tile": 0.0}
RECORD = EngineRecord(
    **MEASURED, backend="null", precision="fp32", tile=64, batch=2, dtype="uint8", threads=1, parity=None
)


def tiles(number, dtype=np.uint8):
    pixels, valid = np.ones((number, 3, 64, 64), dtype), np.ones((number, 64, 64), bool)
    return Batch(pixels, valid, np.ones(3, np.float32), np.zeros(3, np.float32))


def test_a_short_batch_is_filled_up_with_invalid_tiles():
    full = padded(tiles(1), RECORD)
    assert full.pixels.shape == (2, 3, 64, 64)
    assert full.valid[0].all()
    assert not full.valid[1].any()


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(EngineError, match="takes 1 to 2 tiles"):
        padded(tiles(3), RECORD)
    with pytest.raises(EngineError, match="uint16"):
        padded(tiles(1, np.uint16), RECORD)
    with pytest.raises(EngineError, match=r"uint8 \[3, 64, 64\], bands first: .* of uint8 \[4, 64, 64\]"):
        padded(tiles(1), RECORD, bands=4)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("valid", np.ones((1, 64, 64), bool), r"valid of shape \(1, 64, 64\): pixels of .* go with \(2, 64, 64\)"),
        ("scale", np.ones(4, np.float32), r"scale of shape \(4,\): .* go with \(3,\)"),
        ("offset", np.float32(0), r"offset of shape \(\): .* go with \(3,\)"),
    ],
)
def test_what_does_not_go_with_the_pixels_is_refused(name, values, said):
    with pytest.raises(EngineError, match=said):
        padded(replace(tiles(2), **{name: values}), RECORD)


def test_the_next_batch_is_pulled_while_one_is_computed():
    events = []

    def batches():
        for i in range(4):
            events.append(f"pull {i}")
            yield i

    def start(i):
        return lambda: events.append(f"wait {i}") or i

    assert list(overlapped(batches(), start)) == [0, 1, 2, 3]
    assert events[:4] == ["pull 0", "pull 1", "wait 0", "pull 2"]


def test_as_many_batches_are_in_flight_as_there_are_slots():
    flying, most = set(), []

    def start(i):
        flying.add(i)
        most.append(len(flying))
        return lambda: flying.discard(i) or i

    assert list(overlapped(range(9), start, slots=4)) == list(range(9))
    assert max(most) == 4


def test_what_was_started_is_waited_for_when_the_consumer_stops():
    waited = []
    planes = overlapped(range(5), lambda i: lambda: waited.append(i) or i)
    assert next(planes) == 0
    planes.close()
    assert waited == [0, 1]


@pytest.mark.parametrize("stop", [lambda planes: planes.close(), list])
def test_all_that_was_started_is_waited_for_although_some_of_it_fails_and_the_first_failure_is_told(stop):
    waited = []

    def start(i):
        def wait():
            waited.append(i)
            if i:
                raise EngineError(f"batch {i} failed")
            return i

        return wait

    planes = overlapped(range(9), start, slots=4)
    assert next(planes) == 0
    with pytest.raises(EngineError, match="batch 1 failed"):
        stop(planes)
    assert waited[:4] == [0, 1, 2, 3]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def test_busy_is_the_union_of_the_batches_in_flight():
    clock = Clock()
    meter = Meter(clock)
    clock.pass_by(100)  # before any map: counts for nothing
    first = meter.begin()
    clock.pass_by(2)
    second = meter.begin()
    clock.pass_by(3)
    first()
    first()
    clock.pass_by(4)
    second()
    clock.pass_by(5)
    assert meter.times() == Times(busy=9.0)


def test_an_idle_engine_waits_for_what_its_map_does_meanwhile():
    """Each second inside `map` is counted once: to the engine if it computes, else to input, output or handling."""
    clock = Clock()
    meter = Meter(clock)

    def batches():
        for i in range(3):
            clock.pass_by(1)
            yield i

    def start(i):
        clock.pass_by(10)
        end = meter.begin()

        def wait():
            clock.pass_by(100)
            end()
            return i

        return wait

    for _ in overlapped(batches(), start, slots=1, meter=meter):
        clock.pass_by(1000)
    assert meter.times() == Times(busy=300.0, input=3.0, output=3000.0, handling=30.0)
    assert meter.times().total == clock.now


def test_pulling_and_holding_beside_a_running_batch_is_no_waiting():
    clock = Clock()
    meter = Meter(clock)

    def batches():
        for i in range(3):
            clock.pass_by(1)
            yield i

    def start(i):
        end = meter.begin()
        return lambda: end() or i

    for _ in overlapped(batches(), start, meter=meter):
        clock.pass_by(10)
    assert meter.times() == Times(busy=22.0, input=1.0, output=10.0)


def test_what_a_consumer_does_inside_a_pull_counts_as_it_says():
    clock = Clock()
    meter = Meter(clock)

    def batches():
        with meter.doing("output"):
            clock.pass_by(7)
        clock.pass_by(1)
        yield 0

    list(overlapped(batches(), lambda i: lambda: i, meter=meter))
    assert meter.times() == Times(input=1.0, output=7.0)


def test_times_are_differences_of_snapshots():
    assert Times(5, 4, 3, 2) - Times(1, 1, 1, 1) + Times(1) == Times(5, 3, 2, 1)


def test_threads_may_call_a_meter_together():
    ticks = count()
    meter = Meter(lambda: float(next(ticks)))

    def work():
        for _ in range(500):
            with meter.running():
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = meter.times()
    assert meter.times().busy == before.busy  # nothing is in flight any more
