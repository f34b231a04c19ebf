"""What a network is trained for: a class for each pixel, or one for each image."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from models.losses import classification_loss, segmentation_loss


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a batch, and what counts as its labels."""

    task: Literal["segment", "classify"]
    weights: Tensor | None = None
    """(K,): of the classes in the cross-entropy; all 1 if None."""
    smoothing: float = 0.0
    """Share of each label that is spread over all classes."""

    def loss(self, model: Any, x: Tensor, labels: Tensor) -> Tensor:
        """A scalar for images (N, C, H, W) and their labels (N, H, W); auxiliary heads count with their weight."""
        if self.task == "segment":
            return segmentation_loss(model(x), labels, weights=self.weights, smoothing=self.smoothing)
        logits, aux = model.with_aux(x)
        wanted = self.targets(labels)
        main, *others = (
            classification_loss(each, wanted, weights=self.weights, smoothing=self.smoothing) for each in (logits, *aux)
        )
        total: Tensor = main + model.aux_weight * sum(others)
        return total

    def targets(self, labels: Tensor) -> Tensor:
        """What predictions are compared with: labels (N, H, W) as they are, or (N,) of an image; 255 is unknown.

        All labelled pixels of an image have one class, and 255 is the largest label.
        """
        return labels if self.task == "segment" else labels.flatten(1).amin(1)
