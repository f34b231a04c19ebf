"""Asked to end, a real process ends in order and in time, and a rerun does only the rest."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from drawn_scenes import noise, write_tiff

from pipeline.ledger import Ledger
from pipeline.stop import MARKER, Stopped, current, draining, stopping

COMMAND = [sys.executable, "-c", "from flows.cli import main; main()", "segment"]


def test_a_signal_asks_and_marks_what_is_watched(tmp_path):
    with draining() as stop, stop.watch(tmp_path):
        assert not stopping(tmp_path)
        signal.raise_signal(signal.SIGTERM)
        assert (stop.asked, stop.overdue, stopping(tmp_path)) == (True, False, True)
        with pytest.raises(Stopped) as stopped:
            current().check()
    assert stopped.value.exit_code == 143
    assert not (tmp_path / MARKER).exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def long():
    with draining(grace=0.1):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(30)


def test_after_the_grace_the_main_thread_is_interrupted_wherever_it_is():
    start = time.monotonic()
    with pytest.raises(Stopped):
        long()
    assert time.monotonic() - start < 5


def test_the_handler_that_was_there_is_called_once_all_is_in_order():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda number, _: calls.append(number))
    try:
        with draining():
            signal.raise_signal(signal.SIGTERM)
            assert calls == []
        assert calls == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_changes():
    asked = []

    def work():
        with draining() as stop:
            asked.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


@pytest.fixture
def large(tmp_path):
    (tmp_path / "in").mkdir()
    return write_tiff(tmp_path / "in" / "large.tif", noise(3, 700, 900), tiled=True, blockxsize=256, blockysize=256)


def start(scene, bundle, out, workers):
    arguments = ["--bundle", bundle, "--out", out, "--engine", "torch", "--precision", "fp32", "--tile", "128"]
    more = ["--threads", "1", "--block", "64", "--workers", str(workers), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([*COMMAND, scene, *arguments, *more], **pipes)


def wait_for_records(out, count, process):
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        for folder in (out / ".widefield/runs").rglob("ledger"):
            if len(Ledger(folder).records()) >= count:
                return Ledger(folder)
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=10)[1])


@pytest.mark.xdist_group("dask")
@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_run_that_is_asked_to_end_is_in_order_and_the_rerun_does_the_rest(large, bundle, tmp_path, workers, number):
    out = tmp_path / "out"
    process = start(large.parent, bundle, out, workers)
    ledger = wait_for_records(out, 10, process)
    asked = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert time.monotonic() - asked < 10
    assert errors == "widefield: interrupted: what is recorded stays; the same command goes on from there\n"
    recorded = len(ledger.records())
    again = start(large.parent, bundle, out, workers)
    output, errors = again.communicate(timeout=100)
    assert again.returncode == 0, errors
    blocks = json.loads(output)["blocks"]
    assert blocks["resumed"] == recorded >= 10
    assert blocks["done"] == blocks["total"] - recorded > 0
