import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from models.calibration import Reliability


def test_the_error_equals_that_of_torchmetrics():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.6, 0.4, 0.3], 5000)
    labels = rng.integers(0, 3, 5000)
    got = Reliability.of(probabilities.max(1), probabilities.argmax(1) == labels)
    tensors = torch.from_numpy(probabilities), torch.from_numpy(labels)
    assert got.ece == pytest.approx(float(multiclass_calibration_error(*tensors, num_classes=3, n_bins=15)), abs=1e-6)
    two = probabilities[:, :2].max(1)
    hits = rng.random(5000) < two
    expected = binary_calibration_error(torch.from_numpy(two), torch.from_numpy(hits.astype(np.int64)), n_bins=15)
    assert Reliability.of(two, hits).ece == pytest.approx(float(expected), abs=1e-6)


def test_parts_add_up_to_the_whole():
    rng = np.random.default_rng(1)
    confidence, hits = rng.random((30, 20)), rng.random((30, 20)) < 0.5
    both = Reliability.of(confidence[:11], hits[:11]) + Reliability.of(confidence[11:], hits[11:])
    assert both.ece == pytest.approx(Reliability.of(confidence, hits).ece)
    assert both.pixels.sum() == 600


def test_confidence_that_means_what_it_says_has_no_error():
    confidence = np.repeat([0.75, 1.0], 4)
    hits = np.array([1, 1, 1, 0, 1, 1, 1, 1], np.bool_)
    assert Reliability.of(confidence, hits).ece == 0
    assert Reliability.of(confidence, ~hits).ece == pytest.approx((0.5 + 1) / 2)


def test_nan_is_no_confidence_and_nothing_has_no_error():
    assert Reliability().ece is None
    one = Reliability.of(np.array([np.nan, 0.5]), np.array([True, True]))
    assert (one.pixels.sum(), one.ece) == (1, 0.5)


def test_confidence_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"confidences from 0\.5 to 254: allowed are 0 to 1"):
        Reliability.of(np.array([0.5, 254.0]), np.array([True, True]))
