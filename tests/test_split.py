import numpy as np
import pyproj
import pytest
from affine import Affine
from drawn_scenes import noise, write_tiff
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.training import TrainOptions, make_chips
from pipeline.errors import LabelError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.split import Ground, Splitter, check_scenes, fixed_split, read_split

NOWHERE = Georef(None, None)


def around(lon, lat, epsg, *, pixel=0.5, edge=64):
    """A scene of `edge` pixels in `epsg`, whose middle is at a longitude and latitude."""
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", f"EPSG:{epsg}", always_xy=True).transform(lon, lat)
    transform = Affine(pixel, 0, x - pixel * edge / 2, 0, -pixel, y + pixel * edge / 2)
    return Georef(pyproj.CRS.from_epsg(epsg).to_wkt(), transform[:6])


@given(
    lon=st.floats(-179, 179), lat=st.floats(-75, 75), seed=st.integers(0, 9), pixels=st.tuples(*[st.floats(0.1, 9)] * 2)
)
@settings(max_examples=60, deadline=None)
def test_scenes_over_the_same_ground_agree_whatever_their_crs_and_resolution(lon, lat, seed, pixels):
    ground = Ground(edge=1024.0, seed=seed, val=0.4, sealed=0.3)
    zone = 32601 + int((lon + 180) // 6) if lat >= 0 else 32701 + int((lon + 180) // 6)
    one, two = (
        Splitter(ground, name, around(lon, lat, epsg, pixel=pixel))
        for name, epsg, pixel in zip("ab", (zone, 3857), pixels, strict=True)
    )
    whole = Window(0, 0, 64, 64)
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:6933", always_xy=True).transform(lon, lat)
    if min(x % 1024, -x % 1024, y % 1024, -y % 1024) > 0.01:
        assert one.cell(whole) == two.cell(whole) == f"{y // 1024:.0f}/{x // 1024:.0f}"
        assert one.split(whole) == two.split(whole)


@given(st.lists(st.one_of(st.none(), st.floats(0.05, 60)), max_size=6), st.randoms())
@settings(deadline=None)
def test_ground_never_moves_when_scenes_are_added_in_any_order(sizes, random):
    """What the first scenes decided stays, and ground without a place on the Earth hears nothing of others."""
    first = Ground(seed=3).on_earth([0.5])
    later = first
    random.shuffle(sizes)
    for size in sizes:
        later = later.on_earth([size])
    assert later == first == Ground(edge=1024.0, seed=3)
    window = Window(100, 200, 64, 64)
    assert Splitter(later, "a", NOWHERE).split(window) == Splitter(Ground(seed=3), "a", NOWHERE).split(window)


@given(st.text(max_size=20), st.integers(0, 99), st.floats(0, 0.4), st.floats(0, 0.5))
def test_sealing_ground_never_moves_what_validates(cell, seed, val, sealed):
    before, after = (Ground(seed=seed, val=val, sealed=share).split(cell) for share in (0.0, sealed))
    assert (before == "val") == (after == "val")
    assert after in {before, "sealed"}


def test_the_shares_are_those_asked_for():
    splits = [Ground(val=0.2, sealed=0.1).split(f"{i}/7") for i in range(4000)]
    assert splits.count("val") == pytest.approx(800, abs=100)
    assert splits.count("sealed") == pytest.approx(400, abs=80)


def test_cells_are_the_power_of_two_nearest_to_2048_pixels_of_the_middle_scene():
    assert Ground().on_earth([0.0746, None, 10, 0.0746]).edge == 128
    assert Ground().on_earth([10.0]).edge == 16384
    assert Ground().on_earth([None]).edge is None


def test_images_without_a_place_are_cut_into_cells_of_their_own():
    splitter = Splitter(Ground(edge=512.0), "slide", NOWHERE)
    assert [splitter.cell(Window(row, 0, 512, 512)) for row in (0, 1536, 2048)] == [
        "slide/0/0",
        "slide/0/0",
        "slide/1/0",
    ]
    assert splitter.kept(Window(1536, 0, 512, 512)) is None


def test_a_window_keeps_the_pixels_whose_ground_has_the_split_of_its_middle():
    """Against each pixel's own place on the Earth; cells of 8 m are 16 pixels."""
    georef = around(15.3, 47.9, 32633, edge=100)
    splitter, window = Splitter(Ground(edge=8.0, val=0.5), "a", georef), Window(10, 5, 70, 90)
    rows, cols = np.meshgrid(np.arange(10, 80) + 0.5, np.arange(5, 95) + 0.5, indexing="ij")
    x, y = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:6933", always_xy=True).transform(
        *georef.coordinates(rows, cols)
    )
    names = np.char.add(np.char.add((y // 8).astype(int).astype(str), "/"), (x // 8).astype(int).astype(str))
    wanted = np.vectorize(splitter.ground.split)(names) == splitter.split(window)
    kept = splitter.kept(window)
    assert 0.2 < wanted.mean() < 0.8
    assert np.mean(kept != wanted) < 1e-3  # a pixel's middle on the very edge of a cell


def test_what_is_given_rules_then_the_name_then_the_ground(tmp_path):
    assert fixed_split("a-val") == "val"
    assert fixed_split("a-sealed", {"a-sealed": "train"}) == "train"
    assert fixed_split("a-sealed", {"b": "train"}) == "sealed"
    assert fixed_split("a") is None
    with pytest.raises(LabelError, match="'test' for the scene a: allowed are train, val, sealed"):
        fixed_split("a", {"a": "test"})
    (tmp_path / "split.csv").write_text("scene,split\na,train\nb,sealed\n")
    assert read_split(tmp_path / "split.csv") == {"a": "train", "b": "sealed"}
    for rows, says in (("a,test", "'test' for the scene a"), ("a,val\na,train", "has the scene a twice")):
        (tmp_path / "bad.csv").write_text(f"scene,split\n{rows}\n")
        with pytest.raises(LabelError, match=says):
            read_split(tmp_path / "bad.csv")
    splitter = Splitter(Ground(edge=1.0), "a", around(15, 48, 32633), "sealed")
    assert (splitter.split(Window(0, 0, 64, 64)), splitter.kept(Window(0, 0, 64, 64))) == ("sealed", None)


def test_a_row_that_names_no_scene_is_an_error():
    check_scenes({"a": "sealed"}, ["a", "b"])
    with pytest.raises(LabelError, match="the split names c, d, e and 1 more, which no image is called"):
        check_scenes(dict.fromkeys("fecda", "sealed"), ["a", "b"])


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(LabelError, match="leave none to train"):
        Ground(val=0.5, sealed=0.5)


def test_a_training_refuses_a_table_with_a_name_that_no_image_has(tmp_path):
    write_tiff(tmp_path / "a.tif", noise(1, 64, 64))
    write_tiff(tmp_path / "a-labels.tif", np.eye(64, dtype=np.uint8)[None])
    (tmp_path / "split.csv").write_text("scene,split\na,train\nA,sealed\n")
    options = TrainOptions(classes=["x", "y"], split=tmp_path / "split.csv")
    with pytest.raises(LabelError, match="the split names A, which no image is called"):
        make_chips(tmp_path, tmp_path, tmp_path / "out", options)
