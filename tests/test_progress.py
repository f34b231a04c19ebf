import logging

from flows.progress import LoggedProgress, Pace, clock, waiting
from models.engines.meter import Times
from pipeline.schedule import Progress


def test_pace_counts_this_runs_own_pixels():
    pace = Pace(start=100.0)
    assert pace(Progress("segment", 300, 900, resumed=100), now=110.0) == (20.0, 30.0)


def test_pace_starts_anew_where_the_work_starts():
    pace = Pace(start=0.0)
    assert pace(Progress("segment", 100, 900, resumed=100), now=50.0) == (0.0, None)
    assert pace(Progress("segment", 500, 900, resumed=100), now=60.0) == (40.0, 10.0)


def test_time_is_told_as_people_do():
    assert [clock(seconds) for seconds in (None, 5, 75.4, 3605)] == ["-:--", "0:05", "1:15", "1:00:05"]


def test_the_log_holds_the_last_event_and_few_others(caplog):
    caplog.set_level(logging.INFO)
    listen = LoggedProgress(logging.getLogger("test"))
    for done in range(0, 101, 10):
        listen(Progress("segment", done * 10**6, 100 * 10**6))
    listen(Progress("publish", 4, 4))
    assert [record.message.split(" Mpx,")[0] for record in caplog.records] == ["100.0 of 100.0"]


def test_what_engines_wait_for_is_told_where_it_is_worth_a_word():
    assert waiting(Times()) == ""
    assert waiting(Times(busy=99.0, input=1.0)) == ""
    assert waiting(Times(busy=88.0, input=12.0)) == ", engine waits for input 12 %"
    assert waiting(Times(busy=50.0, input=30.0, output=20.0)) == ", engine waits for input 30 %, for output 20 %"


def test_the_log_tells_what_engines_wait_for(caplog):
    caplog.set_level(logging.INFO)
    LoggedProgress(logging.getLogger("test"))(Progress("segment", 10**6, 10**6, engine=Times(busy=3.0, input=1.0)))
    assert caplog.messages[0].endswith(" left, engine waits for input 25 %")
