"""The gate: a challenger becomes champion only if it is better on ground that neither has learnt from.

Both predict the same sealed chips in eager fp32. Pixels are counted by cells of 512 x 512 pixels of ground, and cells
are drawn again and again (`models.bootstrap`), so that a difference comes with an interval. Classes are matched by
name: where the challenger has one more, the champion simply never predicts it. The mean IoU is that over the classes
that people have labelled on the ground compared, the same ones for both sides in every draw: a class that only one
side predicts there decides by the pixels that it takes from others, never by being one class more in the mean.

Promoted only if
1. on old and new ground together, the lower end of the interval of the difference in mean IoU is above the margin;
2. on the old ground alone, with the labels that the champion was accepted on and over the champion's classes, it is
   above minus the tolerance: labels that were shifted shift the new ground too, and a challenger that learnt them would
   win there;
3. no class of the champion's falls by more than a bound; of a class without a sealed pixel the gate says that nothing
   can be shown.

How sure that is: few cells drawn again and again are far too alike, so an interval is never narrower than Student's,
of as many cells. Where two models are equally good and neither errs in rare cells alone, a challenger then passes the
first rule in 3 to 6 of 100 comparisons, whatever the number of cells; without, four cells let 10 to 16 pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from models.bootstrap import Difference, Floats, Statistic, drawn, iou, paired
from models.bundle import Bundle, load_module
from models.dataset import Chips
from models.errors import TrainingError
from models.metrics import Counts
from models.sampling import normalised
from models.scoring import Scorer
from models.sealed import class_table, counted, unseen
from models.spec import NODATA

SCHEMA = 1

Labels = NDArray[np.uint8]
Predict = Callable[[Chips, int], tuple[Labels, NDArray[np.float32]]]
"""Class ids (S, S) of one chip, as the bundle numbers them, and the probability of each."""
Predictor = Callable[[Bundle], Predict]


@dataclass(frozen=True)
class Rules:
    """What the gate asks for."""

    margin: float = 0.0
    """Mean IoU by which the challenger must surely be better on old and new ground together."""
    old_tolerance: float = 0.01
    """Mean IoU that it may lose on the old ground."""
    class_bound: float = 0.02
    """IoU that any class of the champion's may lose."""
    level: float = 0.95
    """Of the intervals."""
    draws: int = 2000
    """Of cells."""
    seed: int = 0
    least_cells: int = 4
    """With fewer sealed cells, nothing can be shown."""


@dataclass(frozen=True)
class Gate:
    """What the gate found, whichever way it went."""

    accepted: bool
    reasons: tuple[str, ...]
    """Each rule with its numbers, passed or not."""
    rules: Rules
    challenger: str
    """Digest."""
    champion: str | None
    """Digest; None: there was none, and the challenger is measured against the commonest class."""
    cells: dict[str, int]
    """Sealed cells of `old` and `new` ground and of both `together`, where a cell of both counts once."""
    together: Difference | None = None
    """In mean IoU, on old and new ground."""
    old: Difference | None = None
    """Likewise, on the old ground alone."""
    classes: dict[str, dict[str, Any]] | None = None
    """By name: IoU of `challenger` and `champion`, and `difference`, on old and new ground; None where it has none."""
    scores: dict[str, Any] | None = None
    """All scores (`models.scoring`) of `challenger` and `champion`, with `ece`, on old and new ground."""
    stranger: bool = False
    """Whether the champion was trained elsewhere, so that it may have learnt from sealed ground."""
    shadow: tuple[dict[str, Any], ...] = ()
    """What would change on scenes without labels: told by the caller."""

    def with_shadow(self, scenes: Sequence[Any]) -> "Gate":
        """The same, with what would change on each scene: dictionaries, or values with `to_json`."""
        told = tuple(dict(scene.to_json() if hasattr(scene, "to_json") else scene) for scene in scenes)
        return replace(self, shadow=told)

    def to_json(self) -> dict[str, Any]:
        """As the registry keeps it."""
        found = {"together": self.together, "old": self.old}
        return {
            "schema": SCHEMA,
            "accepted": self.accepted,
            "reasons": list(self.reasons),
            "rules": asdict(self.rules),
            "challenger": self.challenger,
            "champion": self.champion,
            "cells": self.cells,
            "differences": {name: value.facts() if value else None for name, value in found.items()},
            "classes": self.classes,
            "scores": self.scores,
            "stranger": self.stranger,
            "shadow": list(self.shadow),
        }

    def lines(self) -> list[str]:
        """The same for people: the verdict, the reasons, IoU by class, calibration, changes."""
        rival = f"champion {self.champion[:12]}" if self.champion else "the commonest class everywhere"
        lines = [f"{'accepted' if self.accepted else 'refused'}: {self.challenger[:12]} against {rival}", *self.reasons]
        if self.stranger:
            lines.append("the champion was not trained by this loop: it may have learnt from sealed ground")
        for name, told in (self.classes or {}).items():
            lines.append(f"IoU of {name}: {_number(told['challenger'])} against {_number(told['champion'])}")
        for side, scores in (self.scores or {}).items():
            lines.append(f"calibration error of the {side}: {_number(scores.get('ece'))}")
        lines += [f"{scene['scene']}: {scene['changed']:.2%} of the pixels would change" for scene in self.shadow]
        return lines


def compare(
    challenger: Bundle,
    champion: Bundle | None,
    old: Chips | None,
    new: Chips | None,
    rules: Rules = Rules(),
    *,
    predictor: Predictor | None = None,
    stranger: bool = False,
) -> Gate:
    """Whether the challenger may become champion.

    Only sealed chips with labels that people made are read. Of `new`, those that `old` holds too are left out.

    Args:
        challenger: the new bundle.
        champion: the one to beat, or None.
        old: the sealed chips that the champion was accepted on.
        new: all chips of today.
        rules: what is asked for.
        predictor: makes a bundle predict; in eager fp32 if None.
        stranger: whether the champion was trained elsewhere, on ground that nobody here knows; it is told, no more.

    Raises:
        TrainingError: a bundle does not take the bands of the chips.
    """
    ground = _Ground.of(challenger, champion, old, new)
    make = predictor or eager
    mine = _Side.measure(make(challenger), challenger, ground)
    if champion is not None:
        theirs = _Side.measure(make(champion), champion, ground)
        return replace(_against(theirs, mine, challenger, champion, rules), stranger=stranger)
    return _first(mine, challenger, rules)


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
class _Ground:
    """The chips to compare on, under one table of classes."""

    names: tuple[str, ...]
    """Classes: the challenger's, the champion's that it lacks, and those that only labels have."""
    objects: tuple[int, ...]
    boundary: int | None
    old: list[tuple[Chips, int]]
    new: list[tuple[Chips, int]]

    @classmethod
    def of(cls, challenger: Bundle, champion: Bundle | None, old: Chips | None, new: Chips | None) -> "_Ground":
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
        return Scorer(self.names, self.objects, self.boundary)


@dataclass(frozen=True)
class _Side:
    """What one bundle predicts on the old and the new ground."""

    old: Scorer
    new: Scorer
    together: Scorer

    @classmethod
    def measure(cls, predict: Predict, bundle: Bundle, ground: _Ground) -> "_Side":
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
        sides = {"old": self.old, "new": self.new, "together": self.together}
        return {name: len(_stack(scorer)) for name, scorer in sides.items()}


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


def _stack(scorer: Scorer) -> Counts:
    """(B, K, K) of the cells with a labelled pixel, in an order that follows from their names alone."""
    size = len(scorer.names)
    blocks = [scorer.blocks[name] for name in sorted(scorer.blocks) if scorer.blocks[name].any()]
    return np.array(blocks, np.int64).reshape(-1, size, size)


def _against(theirs: _Side, mine: _Side, challenger: Bundle, champion: Bundle, rules: Rules) -> Gate:
    gate = Gate(False, (), rules, challenger.digest, champion.digest, mine.cells)
    if (reason := _too_little(mine, rules)) is not None:
        return replace(gate, reasons=(reason,))
    ours, others = _stack(mine.together), _stack(theirs.together)
    own = [entry.name for entry in champion.spec.classes]
    places = [mine.together.names.index(name) for name in own]
    both = difference(ours, others, labelled_iou, rules)
    old = difference(_stack(mine.old), _stack(theirs.old), partial(labelled_iou, of=places), rules)
    classes = _classes(mine, ours, others, rules)
    checks = [
        _better(both, ours, others, rules),
        _not_worse(old, mine.cells["old"], rules),
        _no_fall(classes, own, rules),
    ]
    told = [f"{'passed' if passed else 'failed'}: {text}" for passed, text in checks]
    return replace(
        gate,
        accepted=all(passed for passed, _ in checks),
        reasons=(*told, *_not_shown(classes, own)),
        together=both,
        old=old if mine.cells["old"] else None,
        classes=classes,
        scores={"challenger": mine.together.result(), "champion": theirs.together.result()},
    )


def _first(mine: _Side, challenger: Bundle, rules: Rules) -> Gate:
    """Nobody is champion yet: the challenger has to be better than a model that has learnt nothing."""
    gate = Gate(False, (), rules, challenger.digest, None, mine.cells)
    if (reason := _too_little(mine, replace(rules, least_cells=1))) is not None:
        return replace(gate, reasons=(reason,))
    ours = _stack(mine.together)
    commonest = int(ours.sum((0, 2)).argmax())
    blind = np.zeros_like(ours)
    blind[:, :, commonest] = ours.sum(2)
    both = difference(ours, blind, labelled_iou, rules)
    (end, what), name = _end(both, len(ours), rules), mine.together.names[commonest]
    accepted = end > 0
    text = (
        f"the first: there is no champion. {_against_text(both, ours, blind, rules)} for {name} everywhere; needed: "
        f"{what} above 0"
    )
    return replace(
        gate,
        accepted=accepted,
        reasons=(f"{'passed' if accepted else 'failed'}: {text}",),
        together=both,
        classes=_classes(mine, ours, blind, rules),
        scores={"challenger": mine.together.result()},
    )


def _too_little(mine: _Side, rules: Rules) -> str | None:
    """Why nothing can be shown on this ground, if so."""
    if (found := mine.cells["together"]) < rules.least_cells:
        what = f"{found} cells of sealed ground with labels that people made, at least {rules.least_cells} are needed"
        return f"failed: {what}: it cannot be shown that the challenger is better"
    there = np.flatnonzero(_stack(mine.together).sum((0, 2)))
    if len(there) < 2:
        what = f"the only class on sealed ground is {mine.together.names[there[0]]}"
        return f"failed: {what}: it cannot be shown that the challenger tells it from others"
    return None


def labelled_iou(counts: NDArray[np.number], of: Sequence[int] | None = None) -> Floats:
    """(...) of (..., K, K): mean IoU over the classes that people have labelled there, or over those of them in `of`.

    Which these are follows from the labels alone, so that it is the same for both sides of a comparison; NaN without
    any.
    """
    values = np.where(np.asarray(counts).sum(-1) > 0, iou(counts), np.nan)
    values = values if of is None else values[..., list(of)]
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(-1) / known.sum(-1))


def difference(ours: Counts, others: Counts, statistic: Statistic, rules: Rules) -> Difference:
    """The difference between two sides, with an interval that is never narrower than Student's of as many cells.

    Args:
        ours: (B, K, K) of the challenger's cells.
        others: of the champion's, the same cells.
        statistic: of counts (D, K, K), with one value a draw.
        rules: how often is drawn.
    """
    found = paired(ours, others, statistic, rules.draws, rules.level, rules.seed)
    if not np.isfinite(found.low):
        return found
    alone = [statistic(side.astype(np.float64)) for side in (ours, others)]
    draws = [statistic(drawn(side, rules.draws, rules.seed)) for side in (ours, others)]
    cells = int(np.sum(~np.isnan(alone[0] - alone[1])))
    spread = float(np.nanstd(draws[0] - draws[1])) * (cells / (cells - 1)) ** 0.5
    half = spread * float(student.ppf((1 + rules.level) / 2, cells - 1))
    return Difference(found.value, min(found.low, found.value - half), max(found.high, found.value + half))


def _classes(mine: _Side, ours: Counts, others: Counts, rules: Rules) -> dict[str, dict[str, Any]]:
    sides = [counts.sum(0) for counts in (ours, others)]
    return {
        name: {
            "challenger": _known(float(labelled_iou(sides[0], [index]))),
            "champion": _known(float(labelled_iou(sides[1], [index]))),
            "difference": difference(ours, others, partial(labelled_iou, of=[index]), rules).facts(),
        }
        for index, name in enumerate(mine.together.names)
    }


def _better(both: Difference, ours: Counts, others: Counts, rules: Rules) -> tuple[bool, str]:
    text = _against_text(both, ours, others, rules)
    needed = f"needed: lower end above {rules.margin:g}"
    return both.low > rules.margin, f"{text} on old and new ground; {needed}"


def _against_text(both: Difference, ours: Counts, others: Counts, rules: Rules) -> str:
    means = [float(labelled_iou(counts.sum(0))) for counts in (ours, others)]
    return f"mean IoU {means[0]:.4f} against {means[1]:.4f} ({_interval(both, rules)}, {len(ours)} cells)"


def _not_worse(old: Difference, cells: int, rules: Rules) -> tuple[bool, str]:
    if np.isnan(old.value):
        return True, "there is no old ground of the champion's classes"
    end, what = _end(old, cells, rules)
    text = f"mean IoU {_interval(old, rules)} on the {cells} cells of the old ground alone"
    return end > -rules.old_tolerance, f"{text}; needed: {what} above {-rules.old_tolerance:g}"


def _end(found: Difference, cells: int, rules: Rules) -> tuple[float, str]:
    """What decides: the lower end, or where there are too few cells for one, the difference itself."""
    if cells < rules.least_cells:
        return found.value, f"difference (with fewer than {rules.least_cells} cells the interval tells nothing)"
    return found.low, "lower end"


def _no_fall(classes: dict[str, dict[str, Any]], names: Sequence[str], rules: Rules) -> tuple[bool, str]:
    falls = {name: _fall(classes[name]) for name in names}
    worst = max(falls, key=lambda name: falls[name])
    found = f"{worst} loses most: {_number(classes[worst]['champion'])} to {_number(classes[worst]['challenger'])}"
    ends = classes[worst]["difference"]
    if ends["low"] is not None:
        found += f", {rules.level:.0%} interval of the difference [{ends['low']:+.4f}, {ends['high']:+.4f}]"
    if falls[worst] <= 0:
        found = "no class of the champion's loses"
    return falls[worst] <= rules.class_bound, f"{found}; allowed: {rules.class_bound:g} of IoU in any class"


def _not_shown(classes: dict[str, dict[str, Any]], names: Sequence[str]) -> list[str]:
    missing = [name for name in names if classes[name]["champion"] is None]
    return [f"unknown: no sealed pixel is of {name}: that it does not fall cannot be shown" for name in missing]


def _fall(told: dict[str, Any]) -> float:
    """IoU that a class loses; a class that is nowhere, neither there nor predicted, loses nothing."""
    if told["champion"] is None:
        return 0.0
    return float(told["champion"]) - float(told["challenger"] or 0.0)


def _interval(difference: Difference, rules: Rules) -> str:
    if not np.isfinite(difference.low):
        return f"{difference.value:+.4f}, too few cells for an interval"
    return f"{difference.value:+.4f}, {rules.level:.0%} interval [{difference.low:+.4f}, {difference.high:+.4f}]"


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
