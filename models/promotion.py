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

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from models.bootstrap import Difference, Floats, Statistic, drawn, iou, paired
from models.bundle import Bundle
from models.contest import Ground, Predictor, Side, eager, stack
from models.dataset import Chips
from models.metrics import Counts
from models.verdict import Gate, Rules, number


def compare(
    challenger: Bundle,
    champion: Bundle | None,
    old: Chips | None,
    new: Chips | None,
    rules: Rules = Rules(),  # noqa: B008 - frozen
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
    ground = Ground.of(challenger, champion, old, new)
    make = predictor or eager
    mine = Side.measure(make(challenger), challenger, ground)
    if champion is not None:
        theirs = Side.measure(make(champion), champion, ground)
        return replace(_against(theirs, mine, challenger, champion, rules), stranger=stranger)
    return _first(mine, challenger, rules)


def _against(theirs: Side, mine: Side, challenger: Bundle, champion: Bundle, rules: Rules) -> Gate:
    gate = Gate(False, (), rules, challenger.digest, champion.digest, mine.cells)
    if (reason := _too_little(mine, rules)) is not None:
        return replace(gate, reasons=(reason,))
    ours, others = stack(mine.together), stack(theirs.together)
    own = [entry.name for entry in champion.spec.classes]
    places = [mine.together.names.index(name) for name in own]
    both = difference(ours, others, labelled_iou, rules)
    old = difference(stack(mine.old), stack(theirs.old), partial(labelled_iou, of=places), rules)
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


def _first(mine: Side, challenger: Bundle, rules: Rules) -> Gate:
    """Nobody is champion yet: the challenger has to be better than a model that has learnt nothing."""
    gate = Gate(False, (), rules, challenger.digest, None, mine.cells)
    if (reason := _too_little(mine, replace(rules, least_cells=1))) is not None:
        return replace(gate, reasons=(reason,))
    ours = stack(mine.together)
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


def _too_little(mine: Side, rules: Rules) -> str | None:
    """Why nothing can be shown on this ground, if so."""
    if (found := mine.cells["together"]) < rules.least_cells:
        what = f"{found} cells of sealed ground with labels that people made, at least {rules.least_cells} are needed"
        return f"failed: {what}: it cannot be shown that the challenger is better"
    there = np.flatnonzero(stack(mine.together).sum((0, 2)))
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


def _classes(mine: Side, ours: Counts, others: Counts, rules: Rules) -> dict[str, dict[str, Any]]:
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
    found = f"{worst} loses most: {number(classes[worst]['champion'])} to {number(classes[worst]['challenger'])}"
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
