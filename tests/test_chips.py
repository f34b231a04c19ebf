import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import zarr
from affine import Affine
from drawn_scenes import UTM, noise, write_tiff
from PIL import Image

from pipeline.chips import recorded_ground, write_chips
from pipeline.chipstore import SlotWriter
from pipeline.errors import LabelError, SceneError
from pipeline.split import Ground

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
    assert (attributes["schema"], attributes["bands"], attributes["dtype"]) == (2, ["b", "r"], "uint8")
    assert attributes["classes"] == [{"id": 0, "name": "ground"}, {"id": 1, "name": "roof"}]
    place = "dc3b29ba79ac/-9200000/1000064"
    assert attributes["chips"][1] == {"scene": "a-val", "row": 0, "col": 64, "split": "val", "slot": 1, "place": place}
    assert attributes["ground"] == {"edge": 1024, "pixels": 2048, "seed": 0, "val": 0.2, "sealed": 0}
    assert (attributes["objects"], attributes["boundary"], attributes["seed"]) == ([], None, 4)
    assert list(attributes["scenes"]["a-val"]) == ["fingerprint", "labels", "origin"]
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


def stored(out):
    return {str(f.relative_to(out)): (f.read_bytes(), f.stat().st_mtime_ns) for f in out.rglob("*") if f.is_file()}


def content(out):
    """Everything that training can see of chips, without their slots."""
    group = zarr.open_group(out, mode="r")
    attributes = dict(group.attrs)
    slots = [chip.pop("slot") for chip in attributes["chips"]]
    assert len(set(slots)) == len(slots)
    arrays = ("pixels", "valid", "labels", "objects", "scale", "offset")
    return attributes, {name: group[name].oindex[np.array(slots)].tolist() for name in arrays}


def test_writing_twice_touches_nothing_and_a_fresh_start_gives_the_same_bytes(tmp_path):
    image, _ = draw(tmp_path / "in", "a")
    for out in (tmp_path / "chips.zarr", tmp_path / "others.zarr"):
        write_chips([image], tmp_path / "in", out, classes=CLASSES, size=32)
    before = stored(tmp_path / "chips.zarr")
    assert {k: v[0] for k, v in before.items()} == {k: v[0] for k, v in stored(tmp_path / "others.zarr").items()}
    summary = write_chips([image], tmp_path / "in", tmp_path / "chips.zarr", classes=CLASSES, size=32)
    assert (summary.train + summary.val, summary.kept) == (20, 20)
    assert stored(tmp_path / "chips.zarr") == before
    assert not list(tmp_path.glob("*.partial"))


def test_only_what_changed_is_rewritten_and_the_result_is_that_of_a_fresh_start(tmp_path):
    images = [draw(tmp_path / "in", name, seed=i)[0] for i, name in enumerate(("a-train", "b-train", "c-val"))]
    out = tmp_path / "chips.zarr"
    write_chips(images, tmp_path / "in", out, classes=CLASSES, size=64)
    before = {k: v for k, v in stored(out).items() if "/c/" in k}
    images[1], _ = draw(tmp_path / "in", "b-train", seed=9)
    images.append(draw(tmp_path / "in", "d-val", seed=4)[0])
    summary = write_chips(images[1:], tmp_path / "in", out, classes=CLASSES, size=64)
    assert (summary.train, summary.val, summary.kept) == (6, 12, 6)
    kept = {chip["slot"] for chip in zarr.open_group(out, mode="r").attrs["chips"] if chip["scene"] == "c-val"}
    after = stored(out)
    assert all(after[name] == facts for name, facts in before.items() if int(name.split("/")[2]) in kept)
    write_chips(images[1:], tmp_path / "in", tmp_path / "fresh.zarr", classes=CLASSES, size=64)
    assert content(out) == content(tmp_path / "fresh.zarr")


@pytest.mark.parametrize("more", [{"classes": ("ground", "house")}, {"size": 32}, {"bands": (1,)}])
def test_another_recipe_makes_all_chips_anew(tmp_path, more):
    image, _ = draw(tmp_path / "in", "a-train")
    recipe = {"classes": CLASSES, "size": 64}
    write_chips([image], tmp_path / "in", tmp_path / "chips.zarr", **recipe)
    assert write_chips([image], tmp_path / "in", tmp_path / "chips.zarr", **(recipe | more)).kept == 0
    write_chips([image], tmp_path / "in", tmp_path / "fresh.zarr", **(recipe | more))
    assert content(tmp_path / "chips.zarr") == content(tmp_path / "fresh.zarr")


def test_a_killed_rewrite_leaves_the_chips_that_were_there(tmp_path, monkeypatch):
    image, _ = draw(tmp_path / "in", "a-train")
    out = tmp_path / "chips.zarr"
    write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64)
    before = content(out)
    draw(tmp_path / "in", "a-train", seed=3)
    put, calls = SlotWriter.put, []

    def killed(writer, chip):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(put(writer, chip))

    monkeypatch.setattr(SlotWriter, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64)
    assert content(out) == before
    monkeypatch.undo()
    write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64)
    write_chips([image], tmp_path / "in", tmp_path / "fresh.zarr", classes=CLASSES, size=64)
    assert content(out) == content(tmp_path / "fresh.zarr")


def test_arrays_that_a_killed_writer_left_unequal_are_made_equal(tmp_path):
    image, _ = draw(tmp_path / "in", "a-train")
    out = tmp_path / "chips.zarr"
    write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64)
    pixels = zarr.open_group(out)["pixels"]
    pixels.resize((64, *pixels.shape[1:]))
    draw(tmp_path / "in", "a-train", seed=3)
    write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64)
    write_chips([image], tmp_path / "in", tmp_path / "fresh.zarr", classes=CLASSES, size=64)
    assert content(out) == content(tmp_path / "fresh.zarr")
    assert len({array.shape[0] for _, array in zarr.open_group(out).arrays()}) == 1


def test_another_origin_is_told_without_rewriting_a_chip(tmp_path):
    image, _ = draw(tmp_path / "in", "a-train")
    out = tmp_path / "chips.zarr"
    write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64)
    assert zarr.open_group(out, mode="r").attrs["scenes"]["a-train"]["origin"] == "drawn"
    (tmp_path / "in/origins.csv").write_text("scene,origin\na-train,model\n")
    assert write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64).kept == 6
    assert zarr.open_group(out, mode="r").attrs["scenes"]["a-train"]["origin"] == "model"


def places(out):
    return {(chip["scene"], chip["row"], chip["col"]) for chip in zarr.open_group(out, mode="r").attrs["chips"]}


def test_at_most_so_many_chips_are_drawn_and_a_draw_outlives_other_scenes_and_numbers(tmp_path):
    images = [draw(tmp_path / "in", name, seed=i)[0] for i, name in enumerate(("a-train", "b-train", "c-val"))]
    out, recipe = tmp_path / "chips.zarr", {"classes": CLASSES, "size": 32}
    summary = write_chips(images, tmp_path / "in", out, most=7, **recipe)
    assert (summary.train, summary.val, summary.left, summary.dropped) == (7, 7, 46, 0)
    seven = places(out)
    assert write_chips(images, tmp_path / "in", out, most=12, **recipe).kept == 14
    assert places(out) > seven
    write_chips(images, tmp_path / "in", tmp_path / "fresh.zarr", most=12, **recipe)
    assert content(out) == content(tmp_path / "fresh.zarr")
    write_chips(images[1:], tmp_path / "in", out, most=7, **recipe)
    assert {place for place in seven if place[0] != "a-train"} <= places(out)
    write_chips(images, tmp_path / "in", out, **recipe)
    assert len(places(out)) == 60


def test_objects_are_numbered_within_a_chip_and_the_boundary_keeps_them_apart(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    image = write_tiff(folder / "a-train.tif", noise(1, 64, 128), crs=None, transform=Affine.identity())
    (folder / "a-train-objects").mkdir()
    for name, columns in (("1", slice(10, 20)), ("2", slice(20, 30)), ("3", slice(100, 110))):
        mask = np.zeros((64, 128), np.uint8)
        mask[5:15, columns] = 255
        Image.fromarray(mask).save(folder / f"a-train-objects/{name}.png")
    write_chips([image], folder, tmp_path / "chips.zarr", classes=("ground", "cell", "rim"), size=64, boundary="rim")
    group = zarr.open_group(tmp_path / "chips.zarr", mode="r")
    assert (group.attrs["objects"], group.attrs["boundary"]) == ([1], 2)
    assert np.unique(group["objects"][0]).tolist() == [0, 1, 2]
    assert np.unique(group["objects"][1]).tolist() == [0, 1]
    assert np.array_equal(group["objects"][0] > 0, group["labels"][0] > 0)
    assert np.flatnonzero(group["labels"][0][10] == 2).tolist() == [18, 19, 20, 21]


def test_wrong_classes_of_objects_and_boundaries_are_named(tmp_path):
    image, _ = draw(tmp_path / "in", "a-train")
    for more, says in (
        ({"boundary": "rim"}, "'rim' is no class of objects or of their boundary: known are roof"),
        ({"objects": ("ground",)}, "'ground' is no class"),
        ({"boundary": "roof", "objects": ("roof",)}, "roof cannot be a class of objects and part them"),
        ({"boundary": "roof"}, "roof parts the objects of one class, here are none: name one with --object"),
        ({"classes": ("a", "b", "c", "rim"), "boundary": "rim"}, "one class, here are b, c: name one with --object"),
        ({"classes": ("a", "b", "c", "rim"), "boundary": "rim", "objects": ("b", "c")}, "here are b, c: name one"),
        ({"classes": ("a", "land cover")}, "'land cover' is no name of a class: use letters"),
        ({"classes": ("a", "b", "b")}, "two classes have one name, b"),
    ):
        with pytest.raises(LabelError, match=says):
            write_chips([image], tmp_path / "in", tmp_path / "chips.zarr", **{"classes": CLASSES, **more})


def test_another_class_of_objects_is_another_recipe_where_a_boundary_parts_them(tmp_path):
    image, _ = draw(tmp_path / "in", "a-train")
    recipe = {"classes": ("a", "b", "c", "rim"), "size": 64}
    kept = []
    for more in ({"objects": "b"}, {"objects": "c"}, {"objects": "b", "boundary": "rim"}, {"boundary": "rim"}):
        named = {"objects": ("c",), **more}
        kept.append(write_chips([image], tmp_path / "in", tmp_path / "chips.zarr", **recipe, **named).kept)
    attributes = zarr.open_group(tmp_path / "chips.zarr", mode="r").attrs
    assert (kept, attributes["objects"], attributes["boundary"]) == ([0, 6, 0, 0], [2], 3)


def test_what_was_sealed_stays_sealed(tmp_path):
    image, _ = draw(tmp_path / "in", "a")
    out = tmp_path / "chips.zarr"
    write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64, sealed=0.3)
    write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64)
    assert recorded_ground(out) == Ground(edge=1024, sealed=0.3)
    for sealed in (0.1, 0.4):
        with pytest.raises(LabelError, match=rf"ground with sealed 0\.3, now {sealed} is asked for: .*another folder"):
            write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64, sealed=sealed)


def test_ground_that_is_split_is_not_split_anew(tmp_path):
    image, _ = draw(tmp_path / "in", "a")
    out, ground = tmp_path / "chips.zarr", Ground(edge=16.0, val=0.5, seed=3)
    write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64, ground=ground)
    for same in (ground, replace(ground, edge=None), None):
        write_chips([image], tmp_path / "in", out, classes=CLASSES, size=64, ground=same)
        assert recorded_ground(out) == ground
    for moved in ({"edge": 32.0}, {"val": 0.2}, {"seed": 0}, {"pixels": 512}):
        (name,) = moved
        with pytest.raises(LabelError, match=f"split the ground with {name} "):
            write_chips([image], tmp_path / "in", out, classes=CLASSES, ground=replace(ground, **moved))


def test_labels_never_lie_on_both_sides_of_a_split(tmp_path):
    """Chips of 64 pixels on cells of 16 m, 32 pixels: nearly every chip lies on several cells."""
    image, _ = draw(tmp_path / "in", "a", height=200, width=300)
    ground = Ground(edge=16.0, val=0.5)
    write_chips([image], tmp_path / "in", tmp_path / "chips.zarr", classes=CLASSES, size=64, ground=ground)
    group = zarr.open_group(tmp_path / "chips.zarr", mode="r")
    to_earth = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:6933", always_xy=True)
    seen = {}
    for chip in group.attrs["chips"]:
        rows, cols = np.nonzero(group["labels"][chip["slot"]] != 255)
        x, y = to_earth.transform(*(UTM @ (cols + chip["col"] + 0.5, rows + chip["row"] + 0.5)))
        for cell in {(int(i), int(j)) for i, j in zip(y // 16, x // 16, strict=True)}:
            seen.setdefault(cell, set()).add(chip["split"])
    assert all(len(splits) == 1 for splits in seen.values())
    assert {"train", "val"} == set.union(*seen.values())


def test_scenes_must_agree_and_have_names_of_their_own(tmp_path):
    one, _ = draw(tmp_path / "in", "a")
    two = write_tiff(tmp_path / "in/b.tif", noise(2, 100, 130))
    other, _ = draw(tmp_path / "other", "a")
    with pytest.raises(SceneError, match="choose bands"):
        write_chips([one, two], tmp_path / "in/a-labels.tif", tmp_path / "chips.zarr", classes=CLASSES)
    with pytest.raises(SceneError, match="two images have one name, a"):
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


def test_chips_of_the_same_ground_say_so(tmp_path):
    for name in ("one", "two"):
        write_tiff(tmp_path / f"{name}.tif", noise(3, 64, 64))
        write_tiff(tmp_path / f"{name}-labels.tif", np.zeros((1, 64, 64), np.uint8))
    images = [tmp_path / "one.tif", tmp_path / "two.tif"]
    write_chips(images, tmp_path, tmp_path / "chips.zarr", classes=("a", "b"), size=32)
    chips = zarr.open_group(tmp_path / "chips.zarr").attrs["chips"]
    places = [{chip["place"] for chip in chips if chip["scene"] == name} for name in ("one", "two")]
    assert places[0] == places[1]
    assert len(places[0]) == 4
