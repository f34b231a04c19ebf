import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle
from drawn_chips import draw_chips
from drawn_classifier import draw_classifier
from torch.nn import functional

from models.bundle import load_module
from models.dataset import open_chips
from models.metrics import confusion, scores
from models.review import census, review
from models.sampling import normalised
from models.spec import Band, Class

BANDS = tuple(Band(name=f"b{i}", low=0, high=255, mean=60, std=30) for i in range(3))
CLASSES = (Class(id=0, name="ground", color="#3B4252"), Class(id=1, name="square", color="#E4572E"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return draw_bundle(tmp_path_factory.mktemp("review") / "bundle", seed=5, bands=BANDS, classes=CLASSES)


@pytest.fixture
def chips(tmp_path):
    return open_chips(draw_chips(tmp_path / "chips.zarr", count=18))


def expected(bundle, chips, index):
    """Mean IoU, loss and labels by PyTorch and `models.metrics` alone."""
    x, _, labels = normalised(chips, index, bundle.spec.bands)
    with torch.inference_mode():
        logits = load_module(bundle)(x[None])
    predicted = logits.argmax(1)[0].numpy().astype(np.uint8)
    loss = functional.cross_entropy(logits, labels[None].long())
    return scores(confusion(labels.numpy(), predicted, 2), "ab")["mean_iou"], float(loss), predicted


def test_the_worst_chips_come_first_and_are_what_the_network_says(bundle, chips):
    found = review(bundle, chips, worst=3, best=2)
    known = {chips.header.chips[i].col: expected(bundle, chips, i) for i in chips.indices("val")}
    order = sorted(known, key=lambda col: known[col][0])
    assert [chip.col for chip in found.worst] == order[:3]
    assert [chip.col for chip in found.best] == order[:-3:-1]
    for chip in (*found.worst, *found.best):
        score, loss, predicted = known[chip.col]
        assert (chip.score, chip.loss) == pytest.approx((score, loss), rel=1e-4)
        assert np.array_equal(chip.prediction, predicted)
    assert (found.ranked, found.unlabelled) == (6, 0)


def test_pixels_come_as_they_are_stored(bundle, chips):
    chip = review(bundle, chips).worst[0]
    index = chip.col // 64
    assert chip.pixels.dtype == np.uint8
    assert np.array_equal(chip.pixels, chips.pixels[index])
    assert np.array_equal(chip.labels, chips.labels[index])


def test_no_chip_is_both_worst_and_best(bundle, chips):
    found = review(bundle, chips, worst=4, best=4)
    assert len(found.worst) == 4
    assert len(found.best) == 2
    assert not {chip.col for chip in found.worst} & {chip.col for chip in found.best}


def test_chips_with_hardly_a_label_are_not_ranked(bundle, chips):
    chips.labels[0] = 255
    chips.labels[0, 0, :40] = 1  # 40 of 4096 pixels
    found = review(bundle, chips)
    assert (found.ranked, found.unlabelled) == (5, 1)
    assert found.reliability.pixels.sum() == 5 * 64 * 64 + 40


def test_a_chip_of_one_class_is_no_feat(bundle, chips):
    chips.labels[6] = 0
    found = review(bundle, chips, worst=0, best=6)
    assert found.best[-1].col == 6 * 64


def test_a_sliver_of_a_class_does_not_count_as_occurring(bundle, chips):
    chips.labels[6] = 0
    chips.labels[6, 0, :4] = 1  # 4 of 4096 pixels: less than one in a thousand
    chip = next(chip for chip in review(bundle, chips).worst if chip.col == 6 * 64)
    predicted = chip.prediction == 0
    assert chip.score == pytest.approx((predicted & (chip.labels == 0)).sum() / (predicted | (chip.labels == 0)).sum())


def test_invalid_pixels_are_neither_judged_nor_read(bundle, tmp_path):
    chips = open_chips(draw_chips(tmp_path / "chips.zarr", dtype="float32", invalid_value=float("nan")))
    found = review(bundle, chips)
    assert (found.worst[0].labels[:, :16] == 255).all()
    assert not found.worst[0].valid[:, :16].any()
    assert found.reliability.pixels.sum() == 2 * 64 * 48


def test_a_classifier_answers_for_the_whole_image(tmp_path):
    bundle = draw_classifier(tmp_path / "bundle", seed=5, bands=BANDS, classes=CLASSES)
    chips = open_chips(draw_chips(tmp_path / "chips.zarr", count=12, edge=32, task="classify"))
    found = review(bundle, chips)
    assert {len(np.unique(chip.prediction)) for chip in found.worst} == {1}
    assert {chip.score for chip in found.worst} <= {0.0, 1.0}
    losses = [chip.loss for chip in found.worst if chip.score == 0]
    assert losses == sorted(losses, reverse=True)


def test_the_census_counts_labels_but_not_those_of_sealed_chips(tmp_path):
    chips = open_chips(draw_chips(tmp_path / "chips.zarr", count=6, sealed=2))
    train, val, sealed = census(chips)
    square = 21 * 21
    assert (train.name, train.chips, train.scenes, train.pixels) == ("train", 2, 1, (2 * (4096 - square), 2 * square))
    assert (val.name, val.chips, val.pixels) == ("val", 2, (2 * (4096 - square), 2 * square))
    assert (sealed.name, sealed.chips, sealed.pixels) == ("sealed", 2, None)
