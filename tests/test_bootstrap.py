import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.bootstrap import class_iou, drawn, intervals, iou, mean_iou, paired


def matrices(blocks, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 50, (blocks, classes, classes)) + 60 * np.eye(classes, dtype=np.int64)


def mean_iou_of(matrix):
    """By its definition."""
    unions = [matrix[k].sum() + matrix[:, k].sum() - matrix[k, k] for k in range(len(matrix))]
    values = [matrix[k, k] / union for k, union in enumerate(unions) if union]
    return sum(values) / len(values)


def test_intervals_equal_a_loop_that_draws_the_same_blocks():
    counts, rng = matrices(20), np.random.default_rng(7)
    values = []
    for _ in range(200):
        total = np.zeros((3, 3))
        for block, times in enumerate(rng.multinomial(20, [1 / 20] * 20)):
            total += times * counts[block]
        values.append(mean_iou_of(total))
    expected = np.quantile(values, [0.05, 0.95])
    assert intervals(counts, mean_iou, draws=200, level=0.9, seed=7) == pytest.approx(expected)


def test_a_pair_is_drawn_together():
    one, other, rng = matrices(12, seed=1), matrices(12, seed=2), np.random.default_rng(3)
    values = []
    for _ in range(100):
        weights = rng.multinomial(12, [1 / 12] * 12)[:, None, None]
        values.append(mean_iou_of((weights * one).sum(0)) - mean_iou_of((weights * other).sum(0)))
    got = paired(one, other, mean_iou, draws=100, seed=3)
    assert got.value == pytest.approx(mean_iou_of(one.sum(0)) - mean_iou_of(other.sum(0)))
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


@given(st.integers(2, 30), st.integers(0, 2**31))
def test_a_model_does_not_differ_from_itself(blocks, seed):
    counts = matrices(blocks, seed=seed)
    assert paired(counts, counts.copy(), mean_iou, draws=50).facts() == {"value": 0, "low": 0, "high": 0}


def test_many_blocks_are_drawn_in_parts_with_the_same_result(monkeypatch):
    counts = matrices(50)
    whole = drawn(counts, 40, seed=5)
    monkeypatch.setattr("models.bootstrap._AT_ONCE", 350)
    assert (drawn(counts, 40, seed=5) == whole).all()


def test_a_95_percent_interval_holds_the_truth_about_95_times_of_100():
    """Blocks of very unequal accuracy; the truth is that of the ground that they are a sample of."""
    rng, held = np.random.default_rng(0), 0
    for run in range(300):
        accuracy, size = rng.beta(4, 1, 60), rng.integers(500, 1500, 60)
        hit = rng.binomial(size, accuracy)
        counts = np.zeros((60, 2, 2))
        counts[:, 1, 1], counts[:, 1, 0] = hit, size - hit
        low, high = intervals(counts, class_iou(1), draws=300, seed=run)
        held += low <= 0.8 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_a_class_without_pixels_has_no_iou_and_does_not_count():
    counts = np.zeros((4, 2, 2), np.int64)
    counts[:, 0, 0], counts[:, 0, 1] = 3, [1, 0, 0, 0]
    assert iou(counts[1]).tolist() == [1.0, pytest.approx(np.nan, nan_ok=True)]
    assert mean_iou(counts).tolist() == [pytest.approx(0.375), 1.0, 1.0, 1.0]
    assert np.isnan(intervals(counts[1:], class_iou(1))).all()


def test_one_block_says_nothing_about_others():
    assert np.isnan(intervals(matrices(1), mean_iou)).all()
    assert intervals(matrices(1), iou).shape == (2, 3)
    assert np.isnan(intervals(matrices(0), mean_iou)).all()
    difference = paired(matrices(1), matrices(1, seed=1), mean_iou)
    assert not difference.low > -1
    assert difference.facts() == {"value": difference.value, "low": None, "high": None}


def test_blocks_that_both_sides_leave_empty_are_not_drawn():
    one, other, none = matrices(6, seed=1), matrices(6, seed=2), np.zeros((4, 3, 3))
    bare = paired(one, other, mean_iou)
    assert paired(np.concatenate([one, none]), np.concatenate([other, none]), mean_iou) == bare
    alone = paired(np.concatenate([one[:1], none]), np.concatenate([other[:1], none]), mean_iou)
    assert (alone.low, alone.high) == (-np.inf, np.inf)


def test_the_difference_in_a_class_of_one_block_has_no_interval():
    one, other = matrices(5, seed=1), matrices(5, seed=2)
    for side in (one, other):
        side[1:, 2], side[1:, :, 2] = 0, 0
    assert paired(one, other, class_iou(2)).facts() | {"value": 0} == {"value": 0, "low": None, "high": None}
    assert paired(one, other, class_iou(1)).facts()["low"] is not None


def test_other_blocks_cannot_be_paired():
    with pytest.raises(ValueError, match="4 blocks of the challenger, 5 of the champion"):
        paired(matrices(4), matrices(5), mean_iou)
