import numpy as np
import pytest
from scipy import ndimage

from models.boundaries import Agreement, contours, f1


def halves(edge, size=20):
    """Class 1 from column `edge` on."""
    labels = np.zeros((size, size), np.uint8)
    labels[:, edge:] = 1
    return labels


def test_contours_lie_on_both_sides_of_an_edge_and_not_at_the_unknown():
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 255], [0, 0, 255, 255]], np.uint8)
    assert contours(labels).tolist() == [[255, 0, 1, 255], [255, 0, 1, 255], [255, 255, 255, 255]]


@pytest.mark.parametrize(("off", "score"), [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_an_outline_that_is_two_pixels_off_still_agrees(off, score):
    counts = Agreement.of(halves(10), halves(10 + off)).counts(2)
    assert f1(counts).tolist() == [score, score]


def test_scores_of_a_drawn_case():
    predictions = halves(10)
    predictions[10:] = 0
    counts = Agreement.of(halves(10), predictions).counts(2)
    # Class 1: true are 20 pixels down column 10, found those within 2 of the predicted outline.
    assert counts.tolist() == [[20, 12, 20, 12], [20, 12, 19, 12]]
    assert f1(counts) == pytest.approx([0.6, 2 * (12 / 19) * 0.6 / (12 / 19 + 0.6)])


def test_counts_equal_exact_distances():
    rng = np.random.default_rng(0)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, 3, 90, 80)), (0, 0, 3, 3))
    labels, predictions = fields[0].argmax(0).astype(np.uint8), (fields[0] + 0.6 * fields[1]).argmax(0).astype(np.uint8)
    labels[30:40, 20:50] = 255
    for tolerance in (1, 2, 5):
        counts = Agreement.of(labels, predictions, tolerance).counts(3)
        known = np.where(labels == 255, np.uint8(255), predictions)
        for k, (_, found, _, right) in enumerate(counts):
            true, predicted = contours(labels) == k, contours(known) == k
            assert counts[k, 0] == true.sum()
            assert counts[k, 2] == predicted.sum()
            assert found == (ndimage.distance_transform_edt(~predicted)[true] <= tolerance).sum()
            assert right == (ndimage.distance_transform_edt(~true)[predicted] <= tolerance).sum()


def test_counts_of_parts_add_up_to_those_of_the_whole():
    rng = np.random.default_rng(1)
    labels, predictions = rng.choice(np.array([0, 1, 255], np.uint8), (2, 40, 30))
    agreement = Agreement.of(labels, predictions)
    parts = [(slice(0, 17), slice(None)), (slice(17, None), slice(0, 8)), (slice(17, None), slice(8, None))]
    assert (sum(agreement.counts(2, part) for part in parts) == agreement.counts(2)).all()


def test_without_a_contour_there_is_no_score_and_a_missed_one_is_zero():
    assert np.isnan(f1(Agreement.of(halves(0), halves(0)).counts(2))).all()
    assert f1(Agreement.of(halves(10), halves(0)).counts(2)).tolist() == [0.0, 0.0]
    assert f1(Agreement.of(halves(0), halves(10)).counts(2)).tolist() == [0.0, 0.0]
