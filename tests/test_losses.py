import pytest
import torch
from torch.nn import functional

from models.losses import focal, labelled_loss, one_hot


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 8, 9, generator=generator)
    labels = torch.randint(0, 3, (2, 8, 9), generator=generator).to(torch.uint8)
    labels[:, :2] = 255
    return logits, labels


def test_without_dice_it_is_torchs_cross_entropy_over_the_labelled_pixels():
    logits, labels = draw()
    expected = functional.cross_entropy(logits, labels.long(), ignore_index=255)
    torch.testing.assert_close(labelled_loss(logits, labels, ["ce"]), expected)


def test_the_dice_term_is_one_minus_the_mean_of_the_quotients():
    logits, labels = draw()
    p, known = logits.softmax(1).movedim(1, -1)[labels != 255], labels[labels != 255]
    quotients = [(2 * p[known == k, k].sum() + 1) / (p[:, k].sum() + (known == k).sum() + 1) for k in range(3)]
    torch.testing.assert_close(labelled_loss(logits, labels, ["dice"]), 1 - sum(quotients) / 3)


def test_the_focal_loss_counts_an_answer_the_less_the_surer_it_is():
    logits, labels = draw()
    known = labels != 255
    p = logits.softmax(1).movedim(1, -1)[known].gather(1, labels[known].long()[:, None])
    torch.testing.assert_close(labelled_loss(logits, labels, ["focal"]), (-((1 - p) ** 2) * p.log()).mean())


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_without_gamma_the_focal_loss_is_the_cross_entropy(weights):
    logits, labels = draw()
    ours = focal(logits.log_softmax(1), one_hot(labels, 3), weights, gamma=0)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels.long(), weights, ignore_index=255))


def test_a_loss_is_the_sum_of_its_terms():
    logits, labels = draw()
    parts = [labelled_loss(logits, labels, [term]) for term in ("ce", "dice", "focal")]
    torch.testing.assert_close(labelled_loss(logits, labels, ("ce", "dice", "focal")), sum(parts))


EVERY = [("ce",), ("dice",), ("focal",), ("ce", "dice", "focal")]


@pytest.mark.parametrize("terms", EVERY)
def test_a_sure_and_right_answer_costs_nothing(terms):
    _, labels = draw()
    logits = 100 * functional.one_hot(labels.clamp(max=2).long(), 3).movedim(-1, 1).float()
    assert labelled_loss(logits, labels, terms).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("terms", EVERY)
def test_ignored_pixels_get_no_gradient(terms):
    logits, labels = draw()
    logits.requires_grad_()
    labelled_loss(logits, labels, terms).backward()
    at = logits.grad.abs().amax(1)
    assert at[labels == 255].max() == 0
    assert at[labels != 255].min() > 0


@pytest.mark.parametrize("terms", EVERY)
def test_a_batch_without_labels_costs_nothing_and_stays_finite(terms):
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = labelled_loss(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8), terms)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_weights_and_smoothing_are_torchs_for_pixels_and_images(weights, smoothing):
    logits, labels = draw()
    keys = {"weight": weights, "label_smoothing": smoothing, "ignore_index": 255}
    ours = labelled_loss(logits, labels, ["ce"], weights=weights, smoothing=smoothing)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels.long(), **keys))
    flat, images = logits.movedim(1, -1).reshape(-1, 3), labels.reshape(-1)
    ours = labelled_loss(flat, images, ["ce"], weights=weights, smoothing=smoothing)
    torch.testing.assert_close(ours, functional.cross_entropy(flat, images.long(), **keys))
