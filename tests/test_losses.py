import pytest
import torch
from torch.nn import functional

from models.losses import segmentation_loss


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 8, 9, generator=generator)
    labels = torch.randint(0, 3, (2, 8, 9), generator=generator).to(torch.uint8)
    labels[:, :2] = 255
    return logits, labels


def test_without_dice_it_is_torchs_cross_entropy_over_the_labelled_pixels():
    logits, labels = draw()
    expected = functional.cross_entropy(logits, labels.long(), ignore_index=255)
    torch.testing.assert_close(segmentation_loss(logits, labels, dice=0), expected)


def test_the_dice_term_is_one_minus_the_mean_of_the_quotients():
    logits, labels = draw()
    p, known = logits.softmax(1).movedim(1, -1)[labels != 255], labels[labels != 255]
    quotients = [(2 * p[known == k, k].sum() + 1) / (p[:, k].sum() + (known == k).sum() + 1) for k in range(3)]
    dice = segmentation_loss(logits, labels) - segmentation_loss(logits, labels, dice=0)
    torch.testing.assert_close(dice, 1 - sum(quotients) / 3)


def test_a_sure_and_right_answer_costs_nothing():
    _, labels = draw()
    logits = 100 * functional.one_hot(labels.clamp(max=2).long(), 3).movedim(-1, 1).float()
    assert segmentation_loss(logits, labels).item() == pytest.approx(0, abs=1e-5)


def test_ignored_pixels_get_no_gradient():
    logits, labels = draw()
    logits.requires_grad_()
    segmentation_loss(logits, labels).backward()
    at = logits.grad.abs().amax(1)
    assert at[labels == 255].max() == 0
    assert at[labels != 255].min() > 0


def test_a_batch_without_labels_costs_nothing_and_stays_finite():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0
