import os
import time

from flows.watch import sift
from pipeline.archive import Entry
from pipeline.scene import SceneAddress


def entry(path, *others):
    files = tuple((f"b{index}", str(other)) for index, other in enumerate(others))
    return Entry("name", SceneAddress(str(path), files=files), "fingerprint")


def aged(path, seconds):
    path.touch()
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_a_file_that_was_just_written_is_left_for_the_next_look(tmp_path):
    old, new = entry(aged(tmp_path / "old.tif", 100)), entry(aged(tmp_path / "new.tif", 10))
    assert sift([old, new], settle=60) == ([old], 1)


def test_a_scene_is_as_young_as_its_youngest_file(tmp_path):
    both = entry(aged(tmp_path / "red.tif", 100), aged(tmp_path / "nir.tif", 10))
    assert sift([both], settle=60) == ([], 1)


def test_a_clock_that_is_ahead_hides_no_scene(tmp_path):
    assert sift([entry(aged(tmp_path / "a.tif", -1000))], settle=60)[1] == 0


def test_a_file_that_went_meanwhile_is_not_announced(tmp_path):
    assert sift([entry(tmp_path / "gone.tif")], settle=0.1) == ([], 1)


def test_objects_of_a_store_appear_whole():
    assert sift([entry("s3://bucket/a.tif")], settle=1e9)[1] == 0
