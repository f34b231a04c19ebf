"""What is told of an archive follows from plans of all of it, and from blocks of some of it."""

import json

import pytest
from drawn_scenes import noise, write_tiff

from pipeline import calibrate as under_test
from pipeline.calibrate import Forecast, Sample, Work, calibrate, chosen, duration, part_of, work_of
from pipeline.executors import SerialExecutor
from pipeline.grid import Window
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, plan_request

TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}


def asked(folder, bundle, name, *shape, tiled=True, stage=None, window=None):
    """A request and its plan: a scene of noise, blocks of 128 px, no network."""
    path = write_tiff(folder / f"{name}.tif", noise(3, *shape), **(TILED if tiled else {"blockysize": 16}))
    address = SceneAddress(str(path), window=window)
    options = PlanOptions(block=128, stage=stage)
    request = SegmentRequest(address, bundle, folder, name, options, backend="null", tile=128, threads=1)
    return request, plan_request(request)


def sample(work, *, segment=2.0, publish=1.0, cpu=4.0, staged=0, written=300):
    return Sample("drawn", work, segment, publish, cpu, staged, written)


def test_hours_follow_the_network_pixels_and_bytes_the_scenes():
    tried = Work(scenes=1, pixels=100, network_pixels=200, staged_pixels=100)
    whole = Work(scenes=9, pixels=1000, network_pixels=3000, staged_pixels=500)
    found = Forecast(whole, 2, 5.0, (sample(tried, staged=50),))
    assert found.seconds == 5 + 2 * 15 + 1 * 10
    assert found.core_seconds == 4 * 15
    assert (found.written_bytes, found.staged_bytes) == (3000, 250)


def test_scenes_that_were_tried_are_pooled_by_what_they_hold():
    small, large = Work(1, 100, 100, 0), Work(1, 900, 900, 0)
    found = Forecast(Work(2, 2000, 2000, 0), 1, 0.0, (sample(small, segment=10), sample(large, segment=10)))
    assert found.seconds == pytest.approx(2 * (20 + 2))
    assert found.staged_bytes == 0


def test_a_few_blocks_of_a_scene_are_segmented_and_thrown_away(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(under_test, "SECONDS", 0)
    request, plan = asked(tmp_path, bundle, "a", 900, 1000, stage=True)
    before = sorted(tmp_path.rglob("*"))
    found = calibrate([(request, plan)], SerialExecutor())
    assert sorted(tmp_path.rglob("*")) == before
    assert found.work == work_of(plan)
    (tried,) = found.samples
    assert tried.work.pixels == 256 * 256
    assert tried.work.staged_pixels == 256 * 256
    assert tried.staged_bytes > 2 * 256 * 256
    assert found.staged_bytes == pytest.approx(tried.staged_bytes * 900 * 1000 / 256**2, rel=1e-6)
    assert found.seconds > tried.segment_seconds + tried.publish_seconds
    facts = json.loads(json.dumps(found.to_json()))
    assert facts["hours"] == pytest.approx(found.seconds / 3600)
    assert ("in all", f"0.9 Mpx, {plan.costs.tiles * 128**2 / 900_000:.2f} network pixels each") in found.describe()


def test_a_part_has_the_blocks_that_are_wanted_and_full_rows_of_strips(tmp_path, bundle):
    _, plan = asked(tmp_path, bundle, "a", 900, 1000)
    assert part_of(plan, 3) == Window(256, 256, 256, 256)
    assert part_of(plan, 12) == Window(256, 128, 384, 512)
    assert part_of(plan, 100) == plan.grid.scene
    _, strips = asked(tmp_path, bundle, "b", 900, 1000, tiled=False)
    assert part_of(strips, 3) == Window(384, 0, 128, 1000)
    _, small = asked(tmp_path, bundle, "c", 100, 90)
    assert part_of(small, 24) == Window(0, 0, 100, 90)


def test_a_trial_that_says_little_is_done_on_more_blocks(tmp_path, bundle):
    told = []
    found = calibrate([asked(tmp_path, bundle, "a", 500, 500)], SerialExecutor(), told.append)
    assert [line.split(": ")[1][:9] for line in told] == ["256 x 256", "384 x 500", "500 x 500"]
    assert [sample.work.pixels for sample in found.samples] == [500 * 500]


def test_a_window_of_a_scene_is_tried_inside_of_it(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(under_test, "SECONDS", 0)
    pair = asked(tmp_path, bundle, "a", 900, 1000, window=Window(600, 700, 260, 280))
    assert calibrate([pair], SerialExecutor()).samples[0].work.pixels == 256 * 256


def test_of_an_archive_the_middles_of_its_shares_are_tried(tmp_path, bundle):
    pairs = [asked(tmp_path, bundle, f"s{i}", 64, 64) for i in range(5)]
    pairs += [asked(tmp_path, bundle, "large", 300, 300)]
    assert [request.name for request, _ in chosen(pairs)] == ["s4", "large"]
    assert [request.name for request, _ in chosen(pairs[:5])] == ["s0", "s2", "s4"]


@pytest.mark.parametrize(("seconds", "told"), [(4.2, "4 s"), (300, "5 min"), (9000, "2.5 h")])
def test_durations_have_a_unit_that_suits(seconds, told):
    assert duration(seconds) == told


def test_the_command_tells_hours_of_a_scene_and_of_an_archive(tmp_path, bundle, widefield):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write_tiff(tmp_path / "in" / f"{name}.tif", noise(3, 300, 280), **TILED)
    more = ["--bundle", bundle, "--engine", "null", "--block", 128, "--tile", 128, "--out", tmp_path, "--calibrate"]
    code, text, _ = widefield("plan", tmp_path / "in" / "a.tif", *more)
    assert code == 0
    assert "core-hours" in text
    code, text, _ = widefield("plan", tmp_path / "in", *more, "--json")
    *plans, told = map(json.loads, text.splitlines())
    assert (code, len(plans)) == (0, 2)
    assert told["calibration"]["work"]["pixels"] == 2 * 300 * 280
    assert told["calibration"]["hours"] > 0
