"""What a network is trained for: a class for each pixel, or one for each image."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from models.losses import labelled_loss


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a batch, and what counts as its labels."""

    task: Literal["segment", "classify"]
    terms: tuple[str, ...] = ("ce", "dice")
    """Of the loss: some of `models.losses.TERMS`."""
    weights: Tensor | None = None
    """(K,): of the classes; all 1 if None."""
    smoothing: float = 0.0
    """Share of each label that is spread over all classes."""

    def loss(self, model: Any, x: Tensor, labels: Tensor) -> Tensor:
        """A scalar for images (N, C, H, W) and their labels (N, H, W); auxiliary heads count with their weight."""
        if self.task == "segment":
            return self._of(model(x), labels)
        logits, aux = model.with_aux(x)
        wanted = self.targets(labels)
        main, *others = (self._of(each, wanted) for each in (logits, *aux))
        total: Tensor = main + model.aux_weight * sum(others)
        return total

    def _of(self, logits: Tensor, labels: Tensor) -> Tensor:
        return labelled_loss(logits, labels, self.terms, weights=self.weights, smoothing=self.smoothing)

    def targets(self, labels: Tensor) -> Tensor:
        """What predictions are compared with: labels (N, H, W) as they are, or (N,) of an image; 255 is unknown.

        All labelled pixels of an image have one class, and 255 is the largest label.
        """
        return labels if self.task == "segment" else labels.flatten(1).amin(1)
