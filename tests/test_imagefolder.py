import numpy as np
import pytest
import zarr
from drawn_scenes import noise, write_tiff
from PIL import Image

from pipeline.errors import LabelError, SceneError
from pipeline.imagefolder import class_names, list_examples, squared, write_image_chips
from pipeline.split import Ground


def draw(folder, name, *, size=(40, 40), shade=100, mode="RGB"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], (shade,) * len(mode)).save(path)
    return path


def test_a_folder_of_one_folder_a_class_is_a_set(tmp_path):
    for name in ("whole/a.png", "cracked/b.jpg", "cracked/c.png"):
        draw(tmp_path, name)
    examples = list_examples(tmp_path)
    assert [(e.name, e.label) for e in examples] == [
        ("cracked/b.jpg", "cracked"),
        ("cracked/c.png", "cracked"),
        ("whole/a.png", "whole"),
    ]
    assert class_names(examples) == ("cracked", "whole")
    assert {e.split for e in examples} <= {"train", "val"}


def test_folders_train_and_val_and_tables_decide_the_split(tmp_path):
    for name in ("train/a/1.png", "val/b/2.png"):
        draw(tmp_path, name)
    assert [(e.label, e.split) for e in list_examples(tmp_path)] == [("a", "train"), ("b", "val")]
    table = tmp_path / "table.csv"
    table.write_text("path,class,split\ntrain/a/1.png,x,val\nval/b/2.png,y,train\n")
    assert [(e.label, e.split) for e in list_examples(tmp_path, table)] == [("x", "val"), ("y", "train")]


def test_the_hash_puts_about_a_fifth_aside_and_always_the_same_images(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("path,class\n" + "".join(f"{i}.png,a\n" for i in range(500)))
    splits = [e.split for e in list_examples(tmp_path, table)]
    assert 70 < splits.count("val") < 130
    assert splits == [Ground().split(f"{name}.png") for name in sorted(map(str, range(500)), key="{}.png".format)]


def test_a_chip_is_the_image_with_its_class_everywhere(tmp_path):
    draw(tmp_path, "train/a/1.png", shade=7)
    draw(tmp_path, "val/b/2.png", size=(80, 120), shade=9)
    summary = write_image_chips(list_examples(tmp_path), tmp_path / "c.zarr", classes=("a", "b"), size=40)
    group = zarr.open_group(tmp_path / "c.zarr", mode="r")
    assert (summary.train, summary.val, summary.shares) == (1, 1, {"a": 0.5, "b": 0.5})
    assert (group.attrs["schema"], group.attrs["task"], group.attrs["dtype"]) == (2, "classify", "uint8")
    assert [chip["slot"] for chip in group.attrs["chips"]] == [0, 1]
    assert not group["objects"][:].any()
    assert np.array_equal(group["pixels"][:], np.stack([np.full((3, 40, 40), 7), np.full((3, 40, 40), 9)]))
    assert [np.unique(labels).tolist() for labels in group["labels"][:]] == [[0], [1]]


def test_what_is_transparent_has_no_label(tmp_path):
    path = draw(tmp_path, "a/1.png", mode="RGBA", shade=200)
    picture = Image.open(path)
    picture.putalpha(Image.fromarray(np.repeat(np.uint8([0, 255]), 20)[None].repeat(40, 0)))
    picture.save(path)
    draw(tmp_path, "b/2.png", mode="RGBA")
    write_image_chips(list_examples(tmp_path), tmp_path / "c.zarr", classes=("a", "b"), size=40)
    labels = zarr.open_group(tmp_path / "c.zarr", mode="r")["labels"][0]
    assert (labels[:, :20] == 255).all()
    assert (labels[:, 20:] == 0).all()


def test_scaling_takes_the_middle_and_the_mean_of_what_a_pixel_covers():
    ramp = np.arange(64, dtype=np.uint8)[None, None].repeat(32, 1)
    pixels, valid = squared(ramp, np.ones((32, 64), bool), 16)
    assert (pixels.shape, valid.shape) == ((1, 16, 16), (16, 16))
    assert np.abs(pixels[0, 0].astype(int) - (np.arange(16) * 2 + 16)).max() <= 1
    same, _ = squared(ramp[..., :32], np.ones((32, 32), bool), 32)
    assert np.array_equal(same, ramp[..., :32])


def test_scaling_takes_nothing_from_invalid_pixels():
    pixels, valid = np.full((1, 64, 64), 10, np.int16), np.ones((64, 64), bool)
    pixels[:, :, :20], valid[:, :20] = -9999, False
    small, known = squared(pixels, valid, 32)
    assert known[:, 12:].all()
    assert not known[:, :10].any()
    assert (small[:, known] == 10).all()


def test_georeferenced_images_say_how_large_their_scaled_pixels_are(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tiff(tmp_path / name / "1.tif", noise(3, 80, 80))
    write_image_chips(list_examples(tmp_path), tmp_path / "c.zarr", classes=("a", "b"), size=40)
    resolution = zarr.open_group(tmp_path / "c.zarr", mode="r").attrs["resolution"]
    assert resolution == pytest.approx([1 / 1.5, 1.5], rel=1e-3)  # pixels of half a metre, halved


def test_an_image_without_a_valid_pixel_is_left_out(tmp_path):
    draw(tmp_path, "a/1.png", mode="RGBA", shade=0)
    draw(tmp_path, "b/2.png", mode="RGBA", shade=200)
    summary = write_image_chips(list_examples(tmp_path), tmp_path / "c.zarr", classes=("a", "b"), size=40)
    assert (summary.train + summary.val, summary.dropped) == (1, 1)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("a",), "1 classes"),
        (("a", "whole egg"), "'whole egg' is no name"),
        (tuple(map(str, range(256))), "256 classes"),
    ],
)
def test_classes_that_no_bundle_can_have_are_refused_before_an_image_is_read(tmp_path, classes, says):
    with pytest.raises(LabelError, match=says):
        write_image_chips([], tmp_path / "c.zarr", classes=classes)


def test_an_image_that_cannot_be_read_is_told_and_left_out(tmp_path, caplog):
    draw(tmp_path, "a/1.png")
    draw(tmp_path, "b/2.png")
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    summary = write_image_chips(list_examples(tmp_path), tmp_path / "c.zarr", classes=("a", "b"), size=40)
    assert (summary.train + summary.val, summary.dropped) == (2, 1)
    assert "broken.png" in caplog.text


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("name,kind\n1.png,a\n", "needs the columns path and class"),
        ("path,class,split\n1.png,a,test\n", "the split 'test'"),
        ("path,class\n1.png,c\n", "class 'c': known are a, b"),
        ("path,class\n1.png,a\n", "no image can be read"),
        ("path,class\n1.png,a\n2.png\n", "no class in line 3"),
    ],
)
def test_a_bad_table_is_refused_with_its_reason(tmp_path, table, says):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(LabelError, match=says):
        write_image_chips(list_examples(tmp_path, tmp_path / "t.csv"), tmp_path / "c.zarr", classes=("a", "b"))


def test_images_of_different_bands_or_without_a_class_are_refused(tmp_path):
    draw(tmp_path, "a/1.png")
    draw(tmp_path, "b/2.png", mode="L")
    with pytest.raises(SceneError, match="choose bands, or convert"):
        write_image_chips(list_examples(tmp_path), tmp_path / "c.zarr", classes=("a", "b"), size=40)
    draw(tmp_path, "3.png")
    with pytest.raises(LabelError, match="lies in no class folder"):
        list_examples(tmp_path)
    assert not (tmp_path / "c.zarr").exists()
