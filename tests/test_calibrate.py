"""What is told of an archive follows from plans of all of it, and from blocks of some of it."""

import json
from dataclasses import replace

import pytest
from drawn_scenes import noise, write_tiff

from pipeline import calibrate as under_test
from pipeline.calibrate import Asked, Forecast, Look, Sample, Work, calibrate, chosen, duration, part_of, work_of
from pipeline.errors import SceneError
from pipeline.executors import SerialExecutor
from pipeline.grid import Window
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, plan_request

TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}


def asked(folder, bundle, name, *shape, tiled=True, stage=None, window=None, empty=(0, 0)):
    """A scene of noise that is asked for, and its plan: blocks of 128 px, no network. Black is nodata if `empty` rows
    and columns are black.
    """
    pixels = noise(3, *shape)
    pixels[:, : empty[0], : empty[1]] = 0
    path = write_tiff(folder / f"{name}.tif", pixels, **(TILED if tiled else {"blockysize": 16}))
    address = SceneAddress(str(path), window=window, nodata=0 if any(empty) else None)
    options = PlanOptions(block=128, stage=stage)
    request = SegmentRequest(address, bundle, folder / "out", name, options, backend="null", tile=128, threads=1)
    plan = plan_request(request)
    return Asked(request, work_of(plan)), plan


def sample(work, *, segment=2.0, publish=1.0, cpu=4.0, staged=0, written=300):
    return Sample("drawn", work, 9, Look(1, 1, (0, 0)), segment, publish, cpu, staged, written)


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
    request, plan = asked(tmp_path, bundle, "a", 450, 500, stage=True)
    before = sorted(tmp_path.rglob("*"))
    found = calibrate([request], SerialExecutor())
    assert sorted(tmp_path.rglob("*")) == before
    assert found.work == work_of(plan)
    (tried,) = found.samples
    assert tried.work.pixels == 256 * 256
    assert tried.work.staged_pixels == 256 * 256
    assert tried.staged_bytes > 2 * 256 * 256
    assert found.staged_bytes == pytest.approx(tried.staged_bytes * 450 * 500 / 256**2, rel=1e-6)
    assert found.seconds > tried.segment_seconds + tried.publish_seconds
    facts = json.loads(json.dumps(found.to_json()))
    assert facts["hours"] == pytest.approx(found.seconds / 3600)
    assert ("in all", f"0.2 Mpx, {plan.costs.tiles * 128**2 / 225_000:.2f} network pixels each") in found.describe()


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
    found = calibrate([asked(tmp_path, bundle, "a", 300, 300)[0]], SerialExecutor(), told.append)
    assert [line.split(": ")[1][:9] for line in told] == ["256 x 256", "300 x 300"]
    assert [sample.work.pixels for sample in found.samples] == [300 * 300]


def test_empty_tiles_take_no_time_and_trials_are_made_where_there_is_something(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(under_test, "SECONDS", 0)
    one, plan = asked(tmp_path, bundle, "a", 512, 256, empty=(384, 256))
    look = under_test.look_at(plan)
    assert (look.looked, look.valid, look.place[0] > 384) == (24, 8, True)  # of 8 x 4 cores 6 x 4
    found = calibrate([one], SerialExecutor())
    assert found.filled == pytest.approx(1 / 3)
    assert found.work.network_pixels == round(plan.costs.tiles * 128**2 / 3)
    (tried,) = found.samples
    assert 0 < tried.work.network_pixels < 24 * 128**2
    assert "67 % of the tiles are empty" in dict(found.describe())["in all"]


def test_a_trial_has_the_engine_of_the_plan_whatever_its_size(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(under_test, "SECONDS", 0)
    one, _ = asked(tmp_path, bundle, "a", 300, 300)
    wide = replace(one, request=replace(one.request, tile=256))
    tiles, carry_out = set(), under_test.carry_out
    monkeypatch.setattr(under_test, "carry_out", lambda *args: (tiles.add(args[1].engine.tile), carry_out(*args))[1])
    expected = plan_request(wide.request).engine.tile
    calibrate([wide], SerialExecutor())
    assert tiles == {expected}


def test_a_scene_that_cannot_be_read_is_replaced_by_its_neighbour(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(under_test, "SECONDS", 0)
    all_asked = [asked(tmp_path, bundle, name, 100, 100)[0] for name in "abcd"]
    for name in "bcd":
        (tmp_path / f"{name}.tif").write_bytes(b"nothing")
    told = []
    found = calibrate(all_asked, SerialExecutor(), told.append)
    assert [sample.scene for sample in found.samples] == ["a"]
    assert sum("is not an image" in line or "cannot be" in line for line in told) == 2
    assert found.work.scenes == 4
    with pytest.raises(SceneError):
        calibrate(all_asked[1:], SerialExecutor())


def test_a_window_of_a_scene_is_tried_inside_of_it(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(under_test, "SECONDS", 0)
    one, _ = asked(tmp_path, bundle, "a", 400, 400, window=Window(100, 90, 260, 280))
    assert calibrate([one], SerialExecutor()).samples[0].work.pixels == 256 * 256


def test_of_an_archive_the_middles_of_its_shares_are_tried(tmp_path, bundle):
    scenes = [Asked(SegmentRequest(SceneAddress("s"), bundle, tmp_path, f"s{i}"), Work(1, 64**2)) for i in range(5)]
    large = Asked(SegmentRequest(SceneAddress("s"), bundle, tmp_path, "large"), Work(1, 300**2))

    def names(some):
        return [[each.request.name for each in group] for group in chosen(some)]

    assert names([*scenes, large]) == [["s4", "s3", "s2", "s1", "s0"], ["large"]]
    assert names(scenes) == [["s0", "s1"], ["s2", "s3"], ["s4"]]


@pytest.mark.parametrize(("seconds", "told"), [(4.2, "4 s"), (300, "5 min"), (9000, "2.5 h")])
def test_durations_have_a_unit_that_suits(seconds, told):
    assert duration(seconds) == told


def test_the_command_tells_hours_of_a_scene_and_of_an_archive(tmp_path, bundle, widefield):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write_tiff(tmp_path / "in" / f"{name}.tif", noise(3, 150, 140), **TILED)
    more = ["--bundle", bundle, "--engine", "null", "--block", 128, "--tile", 128, "--out", tmp_path, "--calibrate"]
    code, text, _ = widefield("plan", tmp_path / "in" / "a.tif", *more)
    assert code == 0
    assert "core-hours" in text
    (tmp_path / "in" / "c.tif").write_bytes(b"nothing")  # which does not keep the others from being told
    code, text, _ = widefield("plan", tmp_path / "in", *more, "--json")
    *plans, told = map(json.loads, text.splitlines())
    assert (code, len(plans)) == (1, 3)
    assert told["calibration"]["work"]["pixels"] == 2 * 150 * 140
    assert told["calibration"]["hours"] > 0
