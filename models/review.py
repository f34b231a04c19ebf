"""Which validation chips to look at, with what the stored network makes of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.bundle import Bundle, load_module
from models.calibration import Reliability
from models.dataset import Chips
from models.findings import Review, Reviewed, Split
from models.metrics import Counts, confusion
from models.sampling import normalised
from models.spec import NODATA

LEAST_LABELLED = 0.1
"""Share of a chip's pixels with a label, below which it is not ranked."""
LEAST_CLASS = 0.001
"""Share of the labelled pixels, below which a class does not count as occurring: a sliver at the chip's edge."""

Predict = Callable[[Tensor], Tensor]
"""Normalised (C, H, W) -> logits (K, H, W), float32 on the CPU."""


@dataclass(frozen=True)
class _Rank:
    """How one chip did."""

    index: int
    score: float
    loss: float
    classes: int
    """Classes that occur in its labels."""


def review(bundle: Bundle, chips: Chips, *, worst: int = 8, best: int = 4) -> Review:
    """Rank the validation chips by the mean IoU over the classes that occur in each; by their loss where that ties.

    Chips of one class alone are never among the best where others are, for they are no feat. Only the chosen chips
    are kept in memory.
    """
    predict, indices = stored_network(bundle), chips.indices("val")
    ranks, reliability = [], Reliability()
    for index in indices:
        x, _, labels = normalised(chips, index, bundle.spec.bands)
        logits = predict(x)
        reliability += _reliability(logits, labels)
        if float((labels != NODATA).float().mean()) >= LEAST_LABELLED:
            ranks.append(_rank(index, logits, labels))
    ranks.sort(key=lambda rank: (rank.score, -rank.loss))
    low, rest = ranks[:worst], ranks[worst:]
    high = sorted(rest, key=lambda rank: (rank.classes > 1, rank.score, -rank.loss), reverse=True)[:best]
    chosen_low, chosen_high = (tuple(_look(predict, bundle, chips, rank) for rank in part) for part in (low, high))
    return Review(chosen_low, chosen_high, len(ranks), len(indices) - len(ranks), reliability)


def census(chips: Chips) -> tuple[Split, ...]:
    """What each split holds. Labels of sealed chips are not read."""
    found = []
    for name in ("train", "val", "sealed"):
        indices = chips.indices(name)
        if indices:
            scenes = len({chips.header.chips[index].scene for index in indices})
            pixels = None if name == "sealed" else _class_pixels(chips, indices)
            found.append(Split(name, len(indices), scenes, pixels))
    return tuple(found)


def _class_pixels(chips: Chips, indices: list[int]) -> tuple[int, ...]:
    counts = np.zeros(256, np.int64)
    for index in indices:
        counts += np.bincount(np.asarray(chips.labels[index])[chips.known(index)], minlength=256)
    return tuple(counts[: len(chips.header.classes)].tolist())


def stored_network(bundle: Bundle) -> Predict:
    """The network with the stored weights, in float32, on a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = load_module(bundle).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs

    @torch.inference_mode()
    def predict(x: Tensor) -> Tensor:
        batch = x[None].to(device).contiguous(memory_format=torch.channels_last)
        logits: Tensor = module(batch)[0].float().cpu()
        # A classifier's answer holds all over the image.
        return logits if logits.ndim == 3 else logits[:, None, None].expand(-1, *x.shape[1:])

    return predict


def _rank(index: int, logits: Tensor, labels: Tensor) -> _Rank:
    wanted = labels.long().where(labels != NODATA, torch.tensor(-100))
    loss = float(functional.cross_entropy(logits[None], wanted[None]))
    ious = _ious(confusion(labels.numpy(), _classes(logits), len(logits)))
    return _Rank(index, float(ious.mean()), loss, len(ious))


def _reliability(logits: Tensor, labels: Tensor) -> Reliability:
    confidence, best = logits.softmax(0).max(0)
    known = labels != NODATA
    return Reliability.of(confidence[known].clamp(max=1).numpy(), (best == labels)[known].numpy())


def _ious(counts: Counts) -> NDArray[np.float64]:
    """IoU of the classes that occur in the labels."""
    true, hit = counts.sum(1), counts.diagonal()
    occurs = true >= LEAST_CLASS * true.sum()
    either = true + counts.sum(0) - hit
    return np.asarray(hit[occurs & (true > 0)] / either[occurs & (true > 0)])


def _classes(logits: Tensor) -> NDArray[np.uint8]:
    labels: NDArray[np.uint8] = logits.argmax(0).to(torch.uint8).numpy()
    return labels


def _look(predict: Predict, bundle: Bundle, chips: Chips, rank: _Rank) -> Reviewed:
    x, known, labels = normalised(chips, rank.index, bundle.spec.bands)
    place = chips.header.chips[rank.index]
    return Reviewed(
        scene=place.scene,
        row=place.row,
        col=place.col,
        pixels=np.asarray(chips.pixels[rank.index]),
        valid=known.numpy(),
        labels=labels.numpy(),
        prediction=_classes(predict(x)),
        score=rank.score,
        loss=rank.loss,
    )
