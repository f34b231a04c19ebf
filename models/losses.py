"""Cross-entropy and Dice over the pixels that have a label."""

import torch
from torch import Tensor
from torch.nn import functional

from models.spec import NODATA

SMOOTH = 1.0
"""Pixels added to both sides of the Dice quotient, so that a class that is absent, and not predicted, costs nothing."""


def segmentation_loss(logits: Tensor, labels: Tensor, *, dice: float = 1.0) -> Tensor:
    """Mean cross-entropy + `dice` x (1 - mean Dice over the classes), a scalar.

    Dice is taken over the softmax, for each class over all labelled pixels of the batch. Pixels labelled 255
    count in neither, and get no gradient; a batch without labelled pixels costs 0.

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W), class ids or 255.
        dice: weight of the Dice term.
    """
    logits = logits.float()
    known = labels != NODATA
    # Sums over a one-hot map: unlike nll_loss and gather, deterministic on every device.
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    target = (labels[:, None] == classes).to(logits.dtype)
    log_p = functional.log_softmax(logits, 1)
    cross_entropy = -(target * log_p).sum() / known.sum().clamp(min=1)
    p = log_p.exp() * known[:, None]
    both = (p * target).sum((0, 2, 3))
    total = (p + target).sum((0, 2, 3))
    return cross_entropy + dice * (1 - ((2 * both + SMOOTH) / (total + SMOOTH)).mean())
