"""Two lattices over one scene agree everywhere if the halo suffices, and near borders not at all if it does not."""

import json

import numpy as np
import pytest
from drawn_scenes import noise, write_tiff
from test_worker import run

from pipeline import seams as under_test
from pipeline.errors import PlanError, SceneError, SpaceError, UsageError
from pipeline.executors import SerialExecutor
from pipeline.grid import TileGrid, Window
from pipeline.seams import PROMISE, Counted, Seams, seams, shifted

GRID = TileGrid(1000, 700, tile=256, halo=32, stride=32)


def segmented(folder, monkeypatch, *, halo, shape=(200, 240), **wanted):
    """A result of the exact network of `test_worker`, which sees 15 px, with tiles of 128 px, all in one block."""
    monkeypatch.setattr("test_worker.HALO", halo)
    monkeypatch.setattr("test_worker.TILE", 128)
    path = write_tiff(folder / "scene.tif", noise(3, *shape, seed=5))
    run(path, folder, monkeypatch, block=1024, **wanted)
    return folder


def test_with_a_halo_as_large_as_the_reach_no_label_differs_and_it_passes(tmp_path, monkeypatch):
    found = seams(segmented(tmp_path, monkeypatch, halo=16), SerialExecutor())
    assert (found.near.differ, found.interior.differ) == (0, 0)
    assert (found.ratio, found.passed, found.shift) == (None, True, (48, 48))
    assert found.near.pixels > 0 < found.interior.pixels


@pytest.mark.parametrize("halo", [0, 4])
def test_with_a_smaller_halo_labels_near_borders_differ_and_it_fails(tmp_path, monkeypatch, halo):
    found = seams(segmented(tmp_path, monkeypatch, halo=halo, shape=(300, 410)), SerialExecutor())
    assert found.near.share > 4 * PROMISE
    assert found.interior.differ == 0
    assert not found.passed


def test_a_part_of_a_scene_is_enough_and_its_new_edges_do_not_count(tmp_path, monkeypatch):
    folder = segmented(tmp_path, monkeypatch, halo=16, shape=(310, 320))
    found = seams(folder, SerialExecutor(), part=Window(100, 100, 200, 200))
    assert found.compared == Window(160, 160, 124, 124)
    assert (found.near.differ, found.interior.differ, found.passed) == (0, 0, True)


def test_a_result_of_a_part_of_a_scene_is_compared_at_its_own_place(tmp_path, monkeypatch):
    folder = segmented(tmp_path, monkeypatch, halo=16, shape=(230, 300), window=Window(13, 57, 201, 199))
    found = seams(folder, SerialExecutor())
    assert (found.near.differ, found.interior.differ) == (0, 0)


def test_invalid_pixels_do_not_count(tmp_path, monkeypatch):
    pixels = noise(3, 200, 240)
    pixels[:, 70:150, 50:160] = 0
    monkeypatch.setattr("test_worker.TILE", 128)
    run(write_tiff(tmp_path / "scene.tif", pixels), tmp_path, monkeypatch, block=1024, nodata=0)
    found = seams(tmp_path, SerialExecutor())
    inside = np.s_[found.compared.row : found.compared.stop_row, found.compared.col : found.compared.stop_col]
    assert found.near.pixels + found.interior.pixels == (pixels.max(0) > 0)[inside].sum()


def test_windows_of_any_size_count_the_same(tmp_path, monkeypatch):
    folder = segmented(tmp_path, monkeypatch, halo=4)
    at_once = seams(folder, SerialExecutor())
    monkeypatch.setattr(under_test, "WINDOW", 70)
    assert seams(folder, SerialExecutor()) == at_once


def test_a_single_core_has_no_seams(tmp_path, monkeypatch):
    assert seams(segmented(tmp_path, monkeypatch, halo=16, shape=(90, 80)), SerialExecutor()) is None


def test_a_scene_that_has_changed_is_refused(tmp_path, monkeypatch):
    folder = segmented(tmp_path, monkeypatch, halo=16)
    write_tiff(folder / "scene.tif", noise(3, 300, 411))
    with pytest.raises(SceneError, match="has changed since it was segmented"):
        seams(folder, SerialExecutor())


def test_the_second_result_lies_beside_the_first_and_is_gone_afterwards(tmp_path, monkeypatch):
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / ".widefield").mkdir()
    folder, places = segmented(tmp_path / "out" / "a", monkeypatch, halo=16), []
    compare = under_test._compare
    monkeypatch.setattr(under_test, "_compare", lambda *args: (places.append(args[2].parent), compare(*args))[1])
    seams(folder, SerialExecutor())
    assert places[0].parent == tmp_path / "out" / ".widefield" / "runs" / "a"
    assert not places[0].exists()


def test_what_this_machine_cannot_do_is_told_with_options_of_this_command(tmp_path, monkeypatch):
    folder = segmented(tmp_path, monkeypatch, halo=16)
    with pytest.raises(PlanError, match=r"it can have 10\.0 MB: compare where it was segmented"):
        seams(folder, SerialExecutor(memory=10**7))
    space = SpaceError("s.tif may need 9 GB of disk, 1 GB are free: free some, choose another --out")
    monkeypatch.setattr(under_test, "make_plan", lambda *_, **__: (_ for _ in ()).throw(space))
    with pytest.raises(SpaceError, match="1 GB are free: free some, or compare a part of the scene alone with --part"):
        seams(folder, SerialExecutor())


def test_a_scene_without_a_valid_pixel_passes_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("test_worker.TILE", 128)
    path = write_tiff(tmp_path / "scene.tif", np.zeros((3, 200, 240), np.uint8))
    run(path, tmp_path, monkeypatch, block=1024, nodata=0)
    found = seams(tmp_path, SerialExecutor())
    assert not found.passed
    assert "nothing was compared" in found.problem


def test_the_other_lattice_is_half_a_core_away_in_whole_strides():
    assert shifted(GRID) == Window(96, 96, 904, 604)
    assert shifted(TileGrid(1000, 150, 256, 32, 32)) == Window(96, 0, 904, 150)
    assert shifted(TileGrid(1000, 700, 288, 32, 32)) == Window(96, 96, 904, 604)


def test_a_part_begins_in_the_middle_of_a_core_and_ends_on_a_stride():
    assert shifted(GRID, Window(400, 200, 400, 400)) == Window(480, 288, 320, 320)


@pytest.mark.parametrize(
    ("part", "message"),
    [(Window(2000, 0, 10, 10), "lies outside the scene"), (Window(400, 200, 100, 400), "px long along one axis")],
)
def test_a_part_that_shows_nothing_is_refused(part, message):
    with pytest.raises(UsageError, match=message):
        shifted(GRID, part)


def test_a_core_of_one_stride_cannot_be_shifted():
    with pytest.raises(UsageError, match="cannot be shifted"):
        shifted(TileGrid(100, 100, 32, 0, 32))


@pytest.mark.parametrize(
    ("near", "interior", "passed"),
    [
        ((10_000, 0), (10_000, 0), True),
        ((10_000, 1), (10_000, 0), True),  # 0.01 %
        ((10_000, 2), (10_000, 0), False),
        ((10_000, 12), (10_000, 10), True),
        ((10_000, 13), (10_000, 10), False),
        ((10_000, 101), (10_000, 101), False),  # more than 1 % deep inside
        ((0, 0), (10_000, 0), False),
    ],
)
def test_it_passes_by_the_ratio_or_by_what_a_halo_may_cost(near, interior, passed):
    found = Seams((96, 96), Window(0, 0, 1, 1), Counted(*near), Counted(*interior))
    assert found.passed is passed
    assert json.loads(json.dumps(found.to_json()))["passed"] is passed
    assert f"of {near[0]:,} pixels within 16 px of borders" in found.line()


def test_the_command_tells_what_was_found_and_fails_where_borders_show(tmp_path, bundle, widefield, monkeypatch):
    scene = write_tiff(tmp_path / "s.tif", noise(3, 200, 210))
    more = ["--bundle", bundle, "--engine", "null", "--tile", 128, "--block", 64]
    assert widefield("segment", scene, *more, "--out", tmp_path / "o")[0] == 0
    code, text, _ = widefield("verify", tmp_path / "o", "--seams", "--json")
    facts = json.loads(text)["seams"]
    assert (code, facts["passed"], facts["shift"]) == (0, True, [32, 32])
    code, text, _ = widefield("verify", tmp_path / "o", "--seams", "--part", "0,0,200,200")
    assert code == 0
    assert "no seams: two lattices, 32 x 32 px apart: labels differ on 0.0000 %" in text
    bad = Seams((32, 32), Window(0, 0, 1, 1), Counted(1000, 30), Counted(1000, 10))
    monkeypatch.setattr(under_test, "seams", lambda *_, **__: bad)
    code, text, _ = widefield("verify", tmp_path / "o", "--seams")
    assert code == 1
    assert "seams: two lattices" in text
    assert "ratio 3.00" in text


def test_of_many_results_one_whose_scene_has_gone_is_told_and_the_others_are_compared(tmp_path, bundle, widefield):
    for name in ("a", "b"):
        scene = write_tiff(tmp_path / f"{name}.tif", noise(3, 140, 150))
        more = ["--bundle", bundle, "--engine", "null", "--tile", 128]
        assert widefield("segment", scene, *more, "--out", tmp_path / "o")[0] == 0
    (tmp_path / "a.tif").unlink()
    code, text, _ = widefield("verify", tmp_path / "o", "--seams", "--json")
    first, second = (json.loads(line) for line in text.splitlines())
    assert code == 1
    assert "a.tif" in first["seams"]["error"]
    assert second["seams"]["passed"]


@pytest.mark.parametrize("part", ["1,2,3", "0,0,0,9", "a,b,c,d"])
def test_a_part_that_is_no_window_is_a_usage_error(tmp_path, bundle, widefield, part):
    scene = write_tiff(tmp_path / "s.tif", noise(3, 100, 110))
    widefield("segment", scene, "--bundle", bundle, "--engine", "null", "--out", tmp_path / "o")
    code, _, error = widefield("verify", tmp_path / "o", "--seams", "--part", part)
    assert code == 2
    assert f"--part {part}" in error
