"""What two bundles predict on the same sealed chips, under one table of classes, counted by cells of ground."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, load_module
from models.dataset import Chips
from models.errors import TrainingError
from models.metrics import Counts
from models.sampling import normalised
from models.scoring import Scorer
from models.sealed import class_table, counted, unseen
from models.spec import NODATA

Labels = NDArray[np.uint8]
Predict = Callable[[Chips, int], tuple[Labels, NDArray[np.float32]]]
"""Class ids (S, S) of one chip, as the bundle numbers them, and the probability of each."""
Predictor = Callable[[Bundle], Predict]


def eager(bundle: Bundle) -> Predict:
    """Whole chips through the network as PyTorch runs it, in fp32."""
    import torch

    module, spec = load_module(bundle), bundle.spec
    wanted = tuple(band.name for band in spec.bands)

    @torch.inference_mode()
    def predict(chips: Chips, index: int) -> tuple[Labels, NDArray[np.float32]]:
        if chips.header.bands != wanted:
            got = ", ".join(chips.header.bands)
            raise TrainingError(f"{bundle.path} takes the bands {', '.join(wanted)}, but chips have {got}")
        x, _, _ = normalised(chips, index, spec.bands)
        best = module(x[None]).float().softmax(1)[0].max(0)
        labels, confidence = best.indices.to(torch.uint8).numpy(), best.values.numpy()
        if labels.ndim == 0:  # a classifier says one thing about the whole chip
            return np.full(x.shape[1:], labels), np.full(x.shape[1:], confidence)
        return labels, confidence

    return predict


@dataclass(frozen=True)
class Ground:
    """The chips to compare on, under one table of classes."""

    names: tuple[str, ...]
    """Classes: the challenger's, the champion's that it lacks, and those that only labels have."""
    objects: tuple[int, ...]
    boundary: int | None
    old: list[tuple[Chips, int]]
    new: list[tuple[Chips, int]]

    @classmethod
    def of(cls, challenger: Bundle, champion: Bundle | None, old: Chips | None, new: Chips | None) -> "Ground":
        """Sealed chips with labels that people made; of `new`, those that `old` lacks."""
        known = [entry.name for bundle in (challenger, champion) if bundle for entry in bundle.spec.classes]
        drawn = [entry.name for chips in (old, new) if chips for entry in chips.header.classes]
        names = tuple(dict.fromkeys((*known, *drawn)))
        return cls(
            names,
            challenger.spec.objects,
            challenger.spec.boundary,
            [(old, index) for index in counted(old)] if old else [],
            [(new, index) for index in unseen(new, old)] if new else [],
        )

    def scorer(self) -> Scorer:
        """One that has counted nothing yet."""
        return Scorer(self.names, self.objects, self.boundary)


@dataclass(frozen=True)
class Side:
    """What one bundle predicts on the old and the new ground."""

    old: Scorer
    new: Scorer
    together: Scorer

    @classmethod
    def measure(cls, predict: Predict, bundle: Bundle, ground: Ground) -> "Side":
        """Have a bundle predict the whole ground, its classes matched by name."""
        own = np.full(256, NODATA, np.uint8)
        for entry in bundle.spec.classes:
            own[entry.id] = ground.names.index(entry.name)
        old, new, together = (ground.scorer() for _ in range(3))
        for scorer, sources in ((old, ground.old), (new, ground.new)):
            for chips, index in sources:
                _count(scorer, predict, own, chips, index, class_table(chips, ground.names))
            together.include(scorer)
        return cls(old, new, together)

    @property
    def cells(self) -> dict[str, int]:
        """How many have a labelled pixel, by ground."""
        sides = {"old": self.old, "new": self.new, "together": self.together}
        return {name: len(stack(scorer)) for name, scorer in sides.items()}


def _count(scorer: Scorer, predict: Predict, own: Labels, chips: Chips, index: int, table: Labels) -> None:  # noqa: PLR0917 - one caller
    labels = np.where(chips.known(index), table[np.asarray(chips.labels[index])], np.uint8(NODATA))
    predicted, confidence = predict(chips, index)
    objects = None if chips.objects is None else np.asarray(chips.objects[index])
    scorer.add(
        labels,
        own[predicted],
        block=chips.cells(index),
        objects=objects if objects is not None and objects.any() else None,
        confidence=confidence,
    )


def stack(scorer: Scorer) -> Counts:
    """(B, K, K) of the cells with a labelled pixel, in an order that follows from their names alone."""
    size = len(scorer.names)
    blocks = [scorer.blocks[name] for name in sorted(scorer.blocks) if scorer.blocks[name].any()]
    return np.array(blocks, np.int64).reshape(-1, size, size)
