import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from affine import Affine
from drawn_scenes import UTM, noise, write_tiff

from pipeline.chips import read_split, split_of, write_chips
from pipeline.errors import LabelError, SceneError

CLASSES = ("ground", "roof")


def draw(folder, stem, height=100, width=130, seed=0, **profile):
    """A scene and its labels: roof wherever the first band is above 100."""
    folder.mkdir(exist_ok=True)
    pixels = noise(3, height, width, seed=seed)
    image = write_tiff(folder / f"{stem}.tif", pixels, **profile)
    write_tiff(folder / f"{stem}-labels.tif", (pixels[:1] > 100).astype(np.uint8))
    return image, pixels


def test_the_chips_of_a_scene_put_together_are_the_scene(tmp_path):
    image, pixels = draw(tmp_path / "in", "a-train")
    summary = write_chips([image], tmp_path / "in", tmp_path / "chips.zarr", classes=CLASSES, size=64)
    group = zarr.open_group(tmp_path / "chips.zarr", mode="r")
    assert (summary.train, summary.val, summary.dropped) == (6, 0, 0)
    whole, labels = np.zeros((3, 128, 192), np.uint8), np.full((128, 192), 255, np.uint8)
    for index, chip in enumerate(group.attrs["chips"]):
        place = np.s_[chip["row"] : chip["row"] + 64, chip["col"] : chip["col"] + 64]
        whole[:, *place], labels[place] = group["pixels"][index], group["labels"][index]
    assert np.array_equal(whole[:, :100, :130], pixels)
    assert np.array_equal(labels[:100, :130], pixels[0] > 100)
    assert (labels[100:] == 255).all()
    assert (labels[:, 130:] == 255).all()


def test_attributes_tell_what_training_needs(tmp_path):
    image, pixels = draw(tmp_path / "in", "a-val", descriptions=("r", "g", "b"))
    summary = write_chips(
        [image], tmp_path / "in", tmp_path / "chips.zarr", classes=CLASSES, size=64, bands=(3, 1), seed=4
    )
    group = zarr.open_group(tmp_path / "chips.zarr", mode="r")
    attributes = dict(group.attrs)
    assert (attributes["schema"], attributes["bands"], attributes["dtype"]) == (1, ["b", "r"], "uint8")
    assert attributes["classes"] == [{"id": 0, "name": "ground"}, {"id": 1, "name": "roof"}]
    assert attributes["chips"][1] == {"scene": "a-val", "row": 0, "col": 64, "split": "val"}
    assert attributes["resolution"] == pytest.approx([0.5 / 1.5, 0.5 * 1.5], rel=1e-3)
    assert group["scale"][:].tolist() == [[1, 1]] * 6
    assert summary.shares["roof"] == pytest.approx((pixels[0] > 100).mean())


def test_invalid_pixels_have_no_label_and_chips_of_them_are_dropped(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    mask = np.zeros((64, 192), bool)
    mask[:, :70] = True
    image = write_tiff(folder / "a-train.tif", noise(1, 64, 192), mask=mask)
    write_tiff(folder / "a-train-labels.tif", np.zeros((1, 64, 192), np.uint8))
    summary = write_chips([image], folder, tmp_path / "chips.zarr", classes=CLASSES, size=64)
    group = zarr.open_group(tmp_path / "chips.zarr", mode="r")
    assert (summary.train, summary.dropped) == (2, 1)
    assert np.array_equal(group["valid"][1] == 1, mask[:, 64:128])
    assert np.array_equal(group["labels"][1] == 255, ~mask[:, 64:128])


def test_writing_twice_gives_the_same_bytes_and_replaces(tmp_path):
    image, _ = draw(tmp_path / "in", "a")
    out = tmp_path / "chips.zarr"
    stored = []
    for _ in range(2):
        write_chips([image], tmp_path / "in", out, classes=CLASSES, size=32)
        stored.append({str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()})
    assert stored[0] == stored[1]
    assert not list(tmp_path.glob("*.partial"))


def test_a_ground_cell_is_never_split():
    splits = {
        (row // 2048, col // 2048): {
            split_of("a", r, c, size=512, seed=0, split=None)
            for r in range(row, row + 2048, 512)
            for c in range(col, col + 2048, 512)
        }
        for row in range(0, 40960, 2048)
        for col in range(0, 40960, 2048)
    }
    assert all(len(split) == 1 for split in splits.values())
    val = sum(split == {"val"} for split in splits.values()) / len(splits)
    assert 0.12 < val < 0.28


def test_a_given_split_rules_and_then_the_name(tmp_path):
    assert split_of("a-val", 0, 0, size=64, seed=0, split=None) == "val"
    assert split_of("a-val", 0, 0, size=64, seed=0, split={"a-val": "train"}) == "train"
    with pytest.raises(LabelError, match="'test' for the scene a"):
        split_of("a", 0, 0, size=64, seed=0, split={"a": "test"})
    (tmp_path / "split.csv").write_text("scene,split\na,train\nb,val\n")
    assert read_split(tmp_path / "split.csv") == {"a": "train", "b": "val"}


def test_scenes_must_agree_and_have_names_of_their_own(tmp_path):
    one, _ = draw(tmp_path / "in", "a")
    two = write_tiff(tmp_path / "in/b.tif", noise(2, 100, 130))
    other, _ = draw(tmp_path / "other", "a")
    with pytest.raises(SceneError, match="choose bands"):
        write_chips([one, two], tmp_path / "in/a-labels.tif", tmp_path / "chips.zarr", classes=CLASSES)
    with pytest.raises(SceneError, match="two images have one name"):
        write_chips([one, other], tmp_path / "in", tmp_path / "chips.zarr", classes=CLASSES)


def test_a_failure_leaves_the_chips_that_were_there(tmp_path):
    image, _ = draw(tmp_path / "in", "a")
    out = tmp_path / "chips.zarr"
    write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64)
    write_tiff(tmp_path / "in/a-labels.tif", np.full((1, 100, 130), 9, np.uint8), transform=UTM)
    with pytest.raises(LabelError, match="class 9"):
        write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64)
    assert len(zarr.open_group(out, mode="r").attrs["chips"]) == 6


def test_the_drone_tiles_become_scenes_and_chips(data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    build = __import__("drone_scenes").build
    sys.modules.pop("drone_scenes")
    assert list(build(data / "satellite", tmp_path, {"2-B"})) == ["2-B-val: 1024 x 1024 pixels, 16 tiles, 99.3% valid"]
    with rasterio.open(tmp_path / "2-B-val.tif") as file:
        assert file.crs.to_epsg() == 3857
        assert file.transform.almost_equals(
            Affine(0.0746455, 0, file.bounds.left, 0, -0.0746455, file.bounds.top), 1e-6
        )
    image = tmp_path / "2-B-val.tif"
    summary = write_chips([image], tmp_path, tmp_path / "chips.zarr", classes=("background", "building"))
    assert summary.val == 4
    with (data / "satellite/oam_buildings_z21_split.csv").open() as table:
        shares = [float(r["building_frac"]) for r in csv.DictReader(table) if (r["area"], r["block"]) == ("2", "B")]
    assert summary.shares["building"] == pytest.approx(np.mean(shares), abs=0.01)
