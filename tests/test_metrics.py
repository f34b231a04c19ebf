import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.metrics import confusion, scores


def test_scores_of_a_drawn_case():
    labels = np.array([[0, 0, 0, 1], [1, 1, 255, 0]], np.uint8)
    predictions = np.array([[0, 0, 1, 1], [1, 0, 1, 255]], np.uint8)
    counts = confusion(labels, predictions, 2)
    assert counts.tolist() == [[2, 1], [1, 2]]
    assert scores(counts, ["a", "b"]) == {
        "iou": {"a": 0.5, "b": 0.5},
        "f1": {"a": 2 / 3, "b": 2 / 3},
        "precision": {"a": 2 / 3, "b": 2 / 3},
        "recall": {"a": 2 / 3, "b": 2 / 3},
        "mean_iou": 0.5,
        "mean_f1": 2 / 3,
        "accuracy": 2 / 3,
        "pixels": 6,
    }


@given(st.integers(0, 2**32 - 1), st.integers(1, 39))
def test_counts_of_parts_add_up_to_those_of_the_whole(seed, cut):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.choice(np.array([0, 1, 2, 255], np.uint8), (2, 40, 7))
    parts = confusion(labels[:cut], predictions[:cut], 3) + confusion(labels[cut:], predictions[cut:], 3)
    assert (parts == confusion(labels, predictions, 3)).all()


def test_a_class_that_is_neither_there_nor_predicted_has_no_score():
    result = scores(np.array([[5, 0], [0, 0]]), ["a", "b"])
    assert result["iou"] == {"a": 1.0, "b": None}
    assert result["mean_iou"] == 1.0
    assert scores(np.zeros((2, 2), np.int64), ["a", "b"])["mean_iou"] is None


def test_ids_beyond_the_classes_and_other_shapes_are_refused():
    zeros = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="there are 2 classes"):
        confusion(zeros + 2, zeros, 2)
    with pytest.raises(ValueError, match=r"labels are \(2, 2\) but predictions are \(1, 2\)"):
        confusion(zeros, zeros[:1], 2)
