import pytest

from models.engines.meter import Times
from pipeline.pace import Pace


def paced(pace, blocks, seconds, busy, waiting):
    """The threads after each of `blocks` blocks that keep one thread `seconds`, and the engine `busy` and `waiting`."""
    times, threads = Times(busy=100.0, input=50.0, output=50.0), []
    pace.begin()
    pace.block(seconds, times)
    for _ in range(blocks):
        times += Times(busy=busy, **{pace.kind: waiting})
        pace.block(seconds, times)
        threads.append(pace.threads)
    return threads


@pytest.mark.parametrize("kind", ["input", "output"])
def test_one_thread_is_enough_for_an_engine_that_does_not_wait(kind):
    assert paced(Pace(kind, 8), 3, seconds=0.9, busy=1.0, waiting=0.01) == [1, 1, 1]


@pytest.mark.parametrize("kind", ["input", "output"])
def test_the_speeds_tell_how_many_threads_an_engine_needs(kind):
    assert paced(Pace(kind, 8), 1, seconds=3.5, busy=1.0, waiting=2.5) == [4]


def test_one_more_comes_where_the_speeds_should_do_and_the_engine_waits_all_the_same():
    assert paced(Pace("input", 8), 6, seconds=0.5, busy=1.0, waiting=0.5) == [2, 2, 3, 3, 3, 4]


def test_no_more_come_than_the_memory_pays_for():
    assert paced(Pace("input", 3), 4, seconds=9.0, busy=0.0, waiting=9.0) == [3, 3, 3, 3]


def test_the_wait_for_the_first_block_of_a_task_says_nothing():
    pace = Pace("input", 8)
    for task in range(3):
        pace.begin()
        pace.block(1.0, Times(input=10.0 * task))
    assert pace.threads == 1


def test_waiting_for_the_other_side_adds_nothing():
    pace = Pace("input", 8)
    pace.block(1.0, Times())
    pace.block(1.0, Times(busy=1.0, output=9.0))
    assert pace.threads == 1


def test_a_moment_decides_nothing():
    assert paced(Pace("input", 8), 4, seconds=0.5, busy=0.01, waiting=0.01) == [1, 1, 1, 1]
    assert paced(Pace("input", 8), 5, seconds=0.5, busy=0.01, waiting=0.01) == [1, 1, 1, 1, 8]
