"""Scenes that are in flight together share the free disk."""

import threading
import time

import pytest

from pipeline.disk import Disk
from pipeline.errors import SpaceError


def test_a_scene_that_does_not_fit_beside_others_is_planned_again_once_they_have_ended(tmp_path):
    disk, tries, end = Disk(), [], threading.Event()

    def other():
        with disk.share(1, tmp_path):
            end.wait()

    def make():
        tries.append(end.is_set())
        if not end.is_set():
            raise SpaceError("full")
        return "plan"

    thread = threading.Thread(target=other)
    thread.start()
    while not disk._promised:
        time.sleep(0.01)
    threading.Timer(0.2, end.set).start()
    assert disk.plan(make) == "plan"
    assert tries == [False, True]
    thread.join()


def test_a_scene_that_does_not_fit_by_itself_fails_at_once():
    def make():
        raise SpaceError("full")

    with pytest.raises(SpaceError, match="full"):
        Disk().plan(make)
