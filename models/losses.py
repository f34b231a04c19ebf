"""Cross-entropy, Dice and focal loss over what has a label: pixels, or images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

SMOOTH = 1.0
"""Pixels added to both sides of the Dice quotient, so that a class that is absent, and not predicted, costs nothing."""
GAMMA = 2.0
"""Exponent of the focal loss, as Lin et al. 2017 chose it."""

TERMS = ("ce", "dice", "focal")


def labelled_loss(
    logits: Tensor,
    labels: Tensor,
    terms: Sequence[str] = ("ce", "dice"),
    *,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Sum of the `terms`, a scalar: each is a mean over what is labelled, and 0 where nothing is.

    What is labelled 255 counts in no term, and gets no gradient.

    Args:
        logits: (N, K, H, W) of pixels, or (N, K) of images.
        labels: (N, H, W) or (N,), class ids or 255.
        terms: some of `TERMS`.
        weights: (K,), of the classes in the cross-entropy and the focal loss; Dice weighs all classes alike anyway.
        smoothing: share of each label that the cross-entropy spreads evenly over all classes (Szegedy et al. 2015,
            section 7). It keeps answers from being too sure, as the focal loss does in its own way.
    """
    log_p, target = functional.log_softmax(logits.float(), 1), one_hot(labels, logits.shape[1])
    make: dict[str, Callable[[], Tensor]] = {
        "ce": lambda: _cross_entropy(log_p, target, weights, smoothing),
        "dice": lambda: _dice(log_p, target),
        "focal": lambda: focal(log_p, target, weights),
    }
    return torch.stack([make[term]() for term in terms]).sum()


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (N, ...) -> (N, K, ...) of 0 and 1; all 0 where the label is 255."""
    ids = torch.arange(classes, device=labels.device).reshape(-1, *[1] * (labels.ndim - 1))
    return (labels.unsqueeze(1) == ids).float()


def focal(log_p: Tensor, target: Tensor, weights: Tensor | None = None, gamma: float = GAMMA) -> Tensor:
    """Mean of -w (1 - p)^gamma log p, p being the probability of the true class and w its weight (Lin et al. 2017).

    With a `gamma` of 0 it is the cross-entropy.

    Args:
        log_p: (N, K, ...), normalised over K.
        target: (N, K, ...), as `one_hot` has it.
        weights: (K,).
        gamma: how much less an answer counts that is nearly right.
    """
    ours = (target * log_p).sum(1)
    doubt = (-torch.expm1(ours)) ** gamma
    each = target.sum(1) if weights is None else (target * _of_classes(weights, target)).sum(1)
    return -(each * doubt * ours).sum() / each.sum().clamp(min=1e-6)


def _dice(log_p: Tensor, target: Tensor) -> Tensor:
    """1 - mean Dice over the classes, over the softmax, for each class over all that is labelled in the batch."""
    everything = (0, *range(2, target.ndim))
    p = log_p.exp() * target.sum(1, keepdim=True)
    both, total = (p * target).sum(everything), (p + target).sum(everything)
    return 1 - ((2 * both + SMOOTH) / (total + SMOOTH)).mean()


def _cross_entropy(log_p: Tensor, target: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Over (N, K, ...), as torch defines it; sums over a one-hot map are deterministic on every device."""
    known, total = target.sum(1), target.sum()
    if weights is not None:
        each = _of_classes(weights, target)
        log_p, total = log_p * each, (target * each).sum()
    hit, spread = (target * log_p).sum(), (known * log_p.mean(1)).sum()
    return -((1 - smoothing) * hit + smoothing * spread) / total.clamp(min=1e-6)


def _of_classes(weights: Tensor, target: Tensor) -> Tensor:
    """(K,) -> (K, 1, ...), to multiply (N, K, ...)."""
    return weights.reshape(-1, *[1] * (target.ndim - 2))
