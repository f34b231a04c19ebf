import json

import numpy as np
import pytest
import rasterio
import zarr
from drawn_scenes import noise, write_tiff
from PIL import Image

from flows.training import undisturbed

SMALL = ("--width", "0.05", "--steps", "2", "--batch", "2", "--warmup", "1", "--chip", "32", "--threads", "1")


@pytest.fixture
def trays(tmp_path):
    """Photographs of two kinds and of odd sizes, one folder a kind, some put aside."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for level, name in enumerate(("empty", "whole")):
            folder = tmp_path / "trays" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(level * 120, level * 120 + 100, (40 + index, 57, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "trays"


def test_photographs_become_a_classifier_that_segments_a_scene_into_squares(widefield, trays, tmp_path):
    out = tmp_path / "model"
    code, said, err = widefield("train", "--task", "classify", "--images", trays, "--out", out, *SMALL)
    assert code == 0, err
    assert "8 to train on, 6 to validate" in said
    assert "accuracy" in said
    assert Image.open(out / "confusion.png").width > 200
    assert json.loads((out / "metrics.json").read_text())["val"]["pixels"] == 6

    scene = write_tiff(tmp_path / "scene.tif", noise(3, 150, 100))
    code, _, err = widefield("segment", scene, "--bundle", out, "--out", tmp_path / "o", "--engine", "torch")
    assert code == 0, err
    with rasterio.open(tmp_path / "o" / "scene" / "mask.tif") as mask, rasterio.open(scene) as pixels:
        assert mask.shape == (5, 4)
        assert mask.res == tuple(32 * size for size in pixels.res)
        assert set(np.unique(mask.read(1))) <= {0, 1}
    assert widefield("verify", tmp_path / "o")[0] == 0


def test_a_segmenter_starts_from_the_encoder_of_a_classifier(widefield, trays, tmp_path):
    model = tmp_path / "model"
    assert widefield("train", "--task", "classify", "--images", trays, "--out", model, *SMALL)[0] == 0
    pixels = noise(3, 128, 64)
    (tmp_path / "in").mkdir()
    write_tiff(tmp_path / "in" / "a-train.tif", pixels)
    write_tiff(tmp_path / "in" / "a-train-labels.tif", (pixels[:1] > 100).astype(np.uint8))
    arguments = ("--images", tmp_path / "in", "--labels", tmp_path / "in", "--class", "a", "--class", "b")
    start = ("--encoder-from", model, "--decoder", "fpn", "--output-stride", "4", "--crop", "32", "--freeze", "1")
    code, _, err = widefield("train", *arguments, *start, *SMALL, "--out", tmp_path / "s")
    assert code == 0, err
    architecture = json.loads((tmp_path / "s" / "spec.json").read_text())["architecture"]
    assert (architecture["decoder"], architecture["output_stride"]) == ("fpn", 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--labels is missing"),
        (("--labels", "."), "--class is missing"),
        (("--task", "classify", "--class", "empty", "--class", "full"), "class 'whole': known are empty, full"),
        (("--task", "classify", "--encoder", "inception_v9"), "no encoder is called 'inception_v9'"),
        (("--task", "classify", "--variant", "kernel5"), "give NAME=VALUE"),
        (("--task", "classify", "--variant", "kernel7=3"), "has no option 'kernel7': it has kernel5, bn"),
        (("--task", "classify", "--encoder", "inception_v4", "--aux"), "auxiliary heads are those of the classifiers"),
        (("--task", "classify", "--encoder-from", "/none"), "--encoder-from /none: no such file"),
        (("--aux", "--labels", ".", "--class", "a"), "auxiliary heads are those of the classifiers"),
        (("--task", "classify", "--split", "x.csv"), "--split is for scenes"),
        (("--task", "classify", "--decoder", "fpn"), "--decoder is for --task segment"),
        (("--task", "classify", "--freeze", "5"), "a frozen encoder needs a start"),
        (("--task", "classify", "--variant", "bn=no"), "bn is 'no': choose true or false"),
        (("--task", "classify", "--variant", "bands=4"), "has no option 'bands'"),
        (("--labels", ".", "--class", "a", "--output-stride", "3"), "output stride is 3: choose 1, 2 or 4"),
    ],
)
def test_what_does_not_go_together_is_one_line(widefield, trays, tmp_path, arguments, says):
    code, _, err = widefield("train", "--images", trays, "--out", tmp_path / "x", *arguments, *SMALL)
    assert code == (1 if "known are" in says else 2)
    assert says in err
    assert err.splitlines()[-1].startswith("widefield: ")
    assert "Traceback" not in err


def test_another_seed_moves_no_image_between_train_and_val(widefield, trays, tmp_path):
    (trays / "train").rename(tmp_path / "kinds")
    split = []
    for seed in ("0", "1"):
        arguments = ("--images", tmp_path / "kinds", "--out", tmp_path / seed, "--seed", seed)
        widefield("train", "--task", "classify", *arguments, *SMALL)
        chips = zarr.open_group(tmp_path / seed / "chips.zarr", mode="r").attrs
        split.append([(chip["scene"], chip["split"]) for chip in chips["chips"]])
        assert chips["ground"]["seed"] == 0
    assert split[0] == split[1]


def test_a_second_training_in_the_same_folder_is_refused_at_once(widefield, trays, tmp_path):
    arguments = ("train", "--task", "classify", "--images", trays, "--out", tmp_path / "model", *SMALL)
    with undisturbed(tmp_path / "model"):
        code, _, err = widefield(*arguments)
        assert (code, "another training holds" in err) == (2, True)
        assert not (tmp_path / "model" / "chips.zarr").exists()
    assert widefield(*arguments)[0] == 0
