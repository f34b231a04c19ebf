import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.functional import classification as oracle

from models.bootstrap import intervals, mean_iou
from models.metrics import confusion
from models.scoring import Scorer


def blobs(seed, classes=3, size=64):
    """Labels and predictions that mostly agree."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, classes, size, size)), (0, 0, 3, 3))
    return fields[0].argmax(0).astype(np.uint8), (fields[0] + 0.5 * fields[1]).argmax(0).astype(np.uint8)


def test_scores_equal_those_of_torchmetrics():
    scorer, pairs = Scorer("abc"), [blobs(seed) for seed in range(4)]
    for index, (labels, predictions) in enumerate(pairs):
        labels[: 5 * index] = 255
        scorer.add(labels, predictions, block=str(index))
    truth, guess = (torch.from_numpy(np.stack(side).astype(np.int64)) for side in zip(*pairs, strict=True))
    settings = {"num_classes": 3, "ignore_index": 255}
    result = scorer.result()
    for key, function in (
        ("iou", oracle.multiclass_jaccard_index),
        ("f1", oracle.multiclass_f1_score),
        ("precision", oracle.multiclass_precision),
        ("recall", oracle.multiclass_recall),
    ):
        expected = function(guess, truth, average="none", **settings).tolist()
        assert list(result[key].values()) == pytest.approx(expected)
    assert result["confusion"] == oracle.multiclass_confusion_matrix(guess, truth, **settings).tolist()
    assert result["accuracy"] == pytest.approx(
        float(oracle.multiclass_accuracy(guess, truth, average="micro", **settings))
    )


def test_intervals_come_from_the_blocks_in_whatever_parts_they_were_added():
    whole, split = Scorer("abc"), Scorer("abc")
    for seed in range(5):
        labels, predictions = blobs(seed)
        whole.add(labels, predictions, block=f"b{seed}")
        for part in (slice(0, 20), slice(20, None)):
            split.add(labels[part], predictions[part], block=f"b{seed}")
    counts = np.array([confusion(*blobs(seed), 3) for seed in range(5)])
    expected = intervals(counts, mean_iou)
    assert whole.result()["intervals"]["mean_iou"] == pytest.approx(expected.tolist())
    assert split.result()["intervals"]["iou"] == whole.result()["intervals"]["iou"]
    assert whole.result()["blocks"] == 5


def test_ground_without_labels_is_no_witness():
    """One labelled block and nine without a label: certain of nothing, instead of an interval without width."""
    alone, among = Scorer("abc", (1,)), Scorer("abc", (1,))
    labels, predictions = blobs(0)
    for scorer in (alone, among):
        scorer.add(labels, predictions, block="labelled")
    for other in range(9):
        among.add(np.full_like(labels, 255), predictions, block=str(other))
    assert among.result() == alone.result()
    assert among.result()["blocks"] == 1
    assert among.result()["intervals"]["mean_iou"] is None
    assert set(among.result()["intervals"]["boundary_f1"].values()) == {None}


def test_two_labelled_blocks_have_the_same_interval_whatever_unlabelled_ones_lie_around():
    bare, among = Scorer("abc", (1,)), Scorer("abc", (1,))
    for seed in range(6):
        labels, predictions = blobs(seed // 2)
        for scorer in (bare, among):
            if seed % 2 == 0:
                scorer.add(labels, predictions, block=str(seed))
        among.add(np.full_like(labels, 255), predictions, block=f"unlabelled {seed}")
    assert among.result() == bare.result()
    assert bare.result()["intervals"]["mean_iou"] is not None


def test_a_class_of_one_block_alone_has_no_interval_others_have():
    """The third class is in one block, there and predicted; every draw without that block knows nothing of it."""
    scorer = Scorer(("ground", "house", "pool"))
    scorer.add(draw("0011 0111 0022"), draw("0011 0011 0012"), block="a")
    scorer.add(draw("0011 0011 0000"), draw("0011 0001 0000"), block="b")
    ends = scorer.result()["intervals"]
    for score in ("iou", "boundary_f1"):
        assert ends[score]["pool"] is None
        assert ends[score]["house"] is not None
    scorer.add(draw("0000"), draw("0002"), block="c")
    assert scorer.result()["intervals"]["iou"]["pool"] == [0, 0.5]


def test_one_image_may_hold_several_blocks():
    labels, predictions = blobs(0)
    halves = [("left", (slice(None), slice(0, 30))), ("right", (slice(None), slice(30, None)))]
    together, apart = Scorer("abc", (1,)), Scorer("abc", (1,))
    together.add(labels, predictions, block="all")
    apart.add(labels, predictions, block=halves)
    assert sorted(apart.blocks) == ["left", "right"]
    assert (apart.blocks["left"] == confusion(labels[:, :30], predictions[:, :30], 3)).all()
    one, other = together.result(), apart.result()
    assert one["intervals"]["mean_iou"] is None
    assert other["intervals"]["mean_iou"] is not None
    for key in ("iou", "boundary_f1", "objects", "confusion"):
        assert one[key] == other[key]


def draw(text):
    return np.array([[int(c) for c in row.replace(".", "0")] for row in text.split()], np.uint8)


def test_objects_of_a_drawn_case():
    """Two nuclei that touch, and the boundary between them; the second is predicted too small, a third invented."""
    labels = draw("11121111 11121111 ........")
    predictions = draw("11121... 1112.... .......1")
    scorer = Scorer(("ground", "nucleus", "edge"), objects=(1,), boundary=2)
    scorer.add(labels, predictions, block="a")
    found = scorer.result()["objects"]["nucleus"]
    assert found == {
        "iou": 9 / 17,
        "f1": 18 / 26,
        "ap50": 1 / 4,
        "ap50_pooled": 1 / 4,
        "tp": 1,
        "fp": 2,
        "fn": 1,
    }


def test_given_objects_count_instead_of_components():
    """Without a boundary class two touching objects are one component; the truth may still know them apart."""
    labels, ids = draw("111111 111111"), np.array([[1, 1, 1, 7, 7, 7]] * 2)
    scorer = Scorer(("ground", "nucleus"), objects=(1,))
    scorer.add(labels, labels, block="a", objects=ids)
    assert scorer.result()["objects"]["nucleus"]["fn"] == 2
    scorer = Scorer(("ground", "nucleus"), objects=(1,))
    scorer.add(labels, labels, block="a")
    assert scorer.result()["objects"]["nucleus"]["ap50"] == 1


def test_an_object_is_of_the_class_of_most_of_its_pixels():
    labels, ids = draw("1112.222 1112.222"), draw("1111.222 1111.222")
    scorer = Scorer(("ground", "car", "house"), objects=(1, 2))
    scorer.add(labels, draw("1111.222 1111.222"), block="a", objects=ids)
    objects = scorer.result()["objects"]
    assert (objects["car"]["tp"], objects["car"]["fn"], objects["car"]["fp"]) == (1, 0, 0)
    assert (objects["house"]["tp"], objects["house"]["fn"], objects["house"]["fp"]) == (1, 0, 0)


def test_an_object_that_is_all_boundary_is_of_the_class_that_it_parts():
    labels, ids = draw("1113.111 1113.111 ........ 33......"), draw("1111.222 1111.222 ........ 33......")
    scorer = Scorer(("ground", "house", "car", "edge"), objects=(1,), boundary=3)
    scorer.add(labels, labels, block="a", objects=ids)
    house = scorer.result()["objects"]["house"]
    assert (house["tp"], house["fn"]) == (2, 1)


def test_one_boundary_cannot_part_the_objects_of_two_classes():
    """Whose rim is it? A class that is predicted perfectly would lose by what the other one's rim lacks."""
    with pytest.raises(ValueError, match=r"objects \(1, 2\), boundary 3: a boundary parts the objects of one class"):
        Scorer(("ground", "car", "house", "edge"), objects=(1, 2), boundary=3)


def test_objects_of_a_class_that_is_not_counted_are_left_out():
    labels, ids = draw("111.222"), draw("555.666")
    scorer = Scorer(("ground", "car", "road"), objects=(1,))
    scorer.add(labels, labels, block="a", objects=ids)
    assert scorer.result()["objects"] == {"car": scorer.result()["objects"]["car"]}
    assert scorer.result()["objects"]["car"]["ap50"] == 1


def test_unknown_pixels_count_nowhere():
    labels, predictions = blobs(3)
    labels[:, 40:] = 255
    confidence = np.full(labels.shape, 0.5)
    cut, whole = Scorer("abc", (2,)), Scorer("abc", (2,))
    cut.add(labels[:, :40], predictions[:, :40], block="a", confidence=confidence[:, :40])
    whole.add(labels, predictions, block="a", confidence=confidence)
    assert whole.result() == cut.result()


def test_scorers_of_disjoint_ground_can_be_put_together():
    parts, whole = [Scorer("abc", (1,)), Scorer("abc", (1,))], Scorer("abc", (1,))
    for seed in range(6):
        labels, predictions = blobs(seed)
        confidence = np.full(labels.shape, 0.1 * seed)
        for scorer in (parts[seed // 3], whole):
            scorer.add(labels, predictions, block=str(seed % 4), confidence=confidence)
    parts[0].include(parts[1])
    assert json.dumps(parts[0].result()) == json.dumps(whole.result())


def test_confidence_gives_the_calibration_error_and_nan_is_none():
    scorer = Scorer("ab")
    labels = np.array([[0, 1, 1, 255]], np.uint8)
    scorer.add(labels, np.array([[0, 1, 0, 0]], np.uint8), block="a", confidence=np.array([[0.9, np.nan, 0.6, 0.2]]))
    assert scorer.result()["ece"] == pytest.approx((0.1 + 0.6) / 2)
    assert "ece" not in Scorer("ab").result()


def test_images_with_one_label_each_have_scores_but_no_outlines():
    scorer = Scorer("ab", (1,))
    scorer.add(np.array([0, 1, 1], np.uint8), np.array([0, 1, 0], np.uint8), block="a")
    result = scorer.result()
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["boundary_f1"] == {"a": None, "b": None}
    assert result["objects"]["b"]["ap50"] is None


def test_nothing_counted_has_no_scores():
    result = Scorer("ab", (1,)).result()
    assert result["mean_iou"] is None
    assert result["intervals"] == {
        "mean_iou": None,
        "iou": {"a": None, "b": None},
        "boundary_f1": {"a": None, "b": None},
        "ap50": {"b": None},
    }
    assert json.loads(json.dumps(result)) == result


def test_scoring_loads_no_torch():
    code = "import sys, models.scoring; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
