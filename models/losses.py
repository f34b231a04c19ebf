"""Cross-entropy and Dice over what has a label: pixels, or images."""

import torch
from torch import Tensor
from torch.nn import functional

SMOOTH = 1.0
"""Pixels added to both sides of the Dice quotient, so that a class that is absent, and not predicted, costs nothing."""


def segmentation_loss(
    logits: Tensor, labels: Tensor, *, dice: float = 1.0, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy + `dice` x (1 - mean Dice over the classes), a scalar.

    Dice is taken over the softmax, for each class over all labelled pixels of the batch. Pixels labelled 255
    count in neither, and get no gradient; a batch without labelled pixels costs 0.

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W), class ids or 255.
        dice: weight of the Dice term.
        weights: (K,), of the classes in the cross-entropy.
        smoothing: share of each label that the cross-entropy spreads over all classes.
    """
    log_p, target = functional.log_softmax(logits.float(), 1), one_hot(labels, logits.shape[1])
    p = log_p.exp() * target.sum(1, keepdim=True)
    both = (p * target).sum((0, 2, 3))
    total = (p + target).sum((0, 2, 3))
    overlap = ((2 * both + SMOOTH) / (total + SMOOTH)).mean()
    return _cross_entropy(log_p, target, weights, smoothing) + dice * (1 - overlap)


def classification_loss(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy over the images that have a label, a scalar: 0 where none has.

    Args:
        logits: (N, K).
        labels: (N,), class ids or 255.
        weights: (K,), of the classes.
        smoothing: share of each label that is spread evenly over all classes (Szegedy et al. 2015, section 7).
    """
    return _cross_entropy(
        functional.log_softmax(logits.float(), 1), one_hot(labels, logits.shape[1]), weights, smoothing
    )


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (N, ...) -> (N, K, ...) of 0 and 1; all 0 where the label is 255."""
    ids = torch.arange(classes, device=labels.device).reshape(-1, *[1] * (labels.ndim - 1))
    return (labels.unsqueeze(1) == ids).float()


def _cross_entropy(log_p: Tensor, target: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Over (N, K, ...), as torch defines it; sums over a one-hot map are deterministic on every device."""
    known, total = target.sum(1), target.sum()
    if weights is not None:
        each = weights.reshape(-1, *[1] * (target.ndim - 2))
        log_p, total = log_p * each, (target * each).sum()
    hit, spread = (target * log_p).sum(), (known * log_p.mean(1)).sum()
    return -((1 - smoothing) * hit + smoothing * spread) / total.clamp(min=1e-6)
