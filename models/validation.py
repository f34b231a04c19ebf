"""Scores of a network on chips: the one way from logits to `models.scoring`."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from models.dataset import Chips
from models.objective import Objective
from models.readahead import ReadAhead
from models.sampling import normalised
from models.scoring import Scorer
from models.spec import Band

BATCH_PIXELS = 1 << 22
"""Of one prediction on a GPU; a processor is as fast with one chip at a time, and needs less memory."""


def validate(
    model: nn.Module, chips: Chips, bands: tuple[Band, ...], fabric: Fabric | None = None, *, split: str = "val"
) -> dict[str, Any]:
    """Scores over the whole chips of `split`, in eval mode, as `models.scoring.Scorer` gives them."""
    return score(model, chips, bands, chips.indices(split), fabric).result()


def score(
    model: nn.Module, chips: Chips, bands: tuple[Band, ...], indices: Sequence[int], fabric: Fabric | None = None
) -> Scorer:
    """Counts over the whole chips `indices`: of pixels by cells of ground, or of images by the cells they begin on."""
    header, objective = chips.header, Objective(chips.header.task)
    scorer = Scorer([c.name for c in header.classes], header.objects, header.boundary)
    batch = max(BATCH_PIXELS // chips.edge**2, 1) if fabric and fabric.device.type == "cuda" else 1
    parts = [indices[first : first + batch] for first in range(0, len(indices), batch)]
    model.eval()
    with closing(ReadAhead(lambda part: _stacked(chips, parts[part], bands), range(len(parts)), depth=1)) as batches:
        for part, (x, labels) in zip(parts, batches, strict=True):
            predictions, confidence = _predict(model, x, fabric)
            for i, wanted in enumerate(objective.targets(labels).numpy()):
                cells = chips.cells(part[i])
                scorer.add(
                    np.atleast_1d(wanted),
                    np.atleast_1d(predictions[i]),
                    block=cells if wanted.ndim == 2 else cells[0][0],
                    objects=_objects(chips, part[i]),
                    confidence=np.atleast_1d(confidence[i]),
                )
    return scorer


def _objects(chips: Chips, index: int) -> NDArray[np.uint16] | None:
    """(H, W) of one chip; None where its labels tell no objects apart."""
    ids = None if chips.objects is None else np.asarray(chips.objects[index])
    return ids if ids is not None and ids.any() else None


def _stacked(chips: Chips, indices: Sequence[int], bands: tuple[Band, ...]) -> tuple[Tensor, Tensor]:
    """(N, C, S, S) float32 and labels (N, S, S)."""
    images, _, labels = zip(*(normalised(chips, index, bands) for index in indices), strict=True)
    return torch.stack(images).contiguous(memory_format=torch.channels_last), torch.stack(labels)


@torch.inference_mode()
def _predict(model: nn.Module, x: Tensor, fabric: Fabric | None) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels, and the largest probability: (N, H, W) of pixels, (N,) of images."""
    logits = model(x if fabric is None else fabric.to_device(x)).float()
    confidence = logits.softmax(1).amax(1)
    return logits.argmax(1).to(torch.uint8).cpu().numpy(), confidence.cpu().numpy()
