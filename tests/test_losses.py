import pytest
import torch
from torch.nn import functional

from models.losses import classification_loss, segmentation_loss


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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_weights_and_smoothing_are_torchs_for_pixels_and_images(weights, smoothing):
    logits, labels = draw()
    keys = {"weight": weights, "label_smoothing": smoothing, "ignore_index": 255}
    ours = segmentation_loss(logits, labels, dice=0, weights=weights, smoothing=smoothing)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels.long(), **keys))
    flat, images = logits.movedim(1, -1).reshape(-1, 3), labels.reshape(-1)
    ours = classification_loss(flat, images, weights=weights, smoothing=smoothing)
    torch.testing.assert_close(ours, functional.cross_entropy(flat, images.long(), **keys))
