"""The gate: an engine serves only if its planes agree with those of the network itself, in fp32.

The reference is stored with the engine, so no torch is needed here. What the network itself changes when it runs at the
engine's precision sets the scale: an engine may stray 1.5 times as far, and never beyond the caps of its precision,
however far the network itself does. On real crops no class, however rare, may lose more than a tenth of a point of IoU
where the network itself does not. And a tile's planes may not depend on its place in a batch, nor on what lies beside
it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, cycle, islice, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.engines.base import Batch, Engine
from models.probes import Probe

FACTOR = 1.5
"""How much farther than the network itself at the same precision an engine may stray."""


@dataclass(frozen=True)
class Limits:
    """What one precision may do. Shares are of pixels; margins are in thousandths of the logits' deviation."""

    tie: int
    """Margin up to which a changed label of an *artificial* probe, or of a square, is a tie."""
    grave: int
    """Margin above which a changed label cannot be rounding."""
    far: int
    """Confidence levels (of 254) that rounding explains."""
    caps: Mapping[str, float]
    """Shares that nothing excuses: of *real* probes (`real_labels`), and of all."""


LIMITS = {
    "fp32": Limits(tie=1, grave=1, far=1, caps={"real_labels": 1e-4, "labels": 1e-4, "grave": 1e-5}),
    "fp16": Limits(tie=5, grave=10, far=2, caps={"real_labels": 1e-3, "labels": 2e-3, "grave": 2e-4}),
    "bf16": Limits(tie=10, grave=50, far=6, caps={"real_labels": 1e-3, "labels": 1e-2, "grave": 1e-3}),
}
UNSEEN = "the bundle holds no real crops: what the engine does to real pixels, and to the IoU of classes, is not known"
SLACK = {"labels": 1e-4, "grave": 1e-5, "far": 1e-4, "shift": 0.05}
"""Added to `FACTOR` times what eager does; `shift` in confidence levels."""
LOSS = 1e-3
"""IoU that each class, and the mean of all, may lose on real probes: a tenth of a point."""
ENOUGH = 1000
"""Pixels of real probes that a class needs for its IoU to be judged."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What the network itself says of one probe in fp32, (T, T) each."""

    planes: Mapping[str, NDArray[np.uint8]]
    """By name: labels, confidence, and the probabilities that were asked for."""
    margin: NDArray[np.uint8]
    """Best logit minus the second, in thousandths of the logits' standard deviation; 255 is 255 or more."""

    @classmethod
    def from_array(cls, stored: NDArray[np.uint8], names: Sequence[str]) -> "Reference":
        """Of (1 + P, T, T): the margin, then the planes `names`."""
        return cls(dict(zip(names, stored[1:], strict=True)), stored[0])


@dataclass(frozen=True)
class Difference:
    """How planes differ from the reference; differences of several probes add up."""

    pixels: int = 0
    labels: int = 0
    """Changed labels (of artificial probes and of squares: without ties)."""
    grave: int = 0
    """Changed labels beyond the grave margin."""
    far: int = 0
    """Pixels whose confidence, or a probability, differs beyond the far limit."""
    shift: int = 0
    """Sum of absolute differences of confidence and probabilities, the largest at each pixel, in levels."""
    common: tuple[int, ...] = ()
    """Of each class, pixels to which both give its label."""
    either: tuple[int, ...] = ()
    """Of each class, pixels to which the reference or the planes give its label, or both."""

    def __post_init__(self) -> None:
        for name in ("common", "either"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON knows lists alone

    def __add__(self, other: "Difference") -> "Difference":
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Difference(*(_sum(mine, theirs) for mine, theirs in pairs))

    def share(self, name: str) -> float:
        """One of the counts, per pixel."""
        return float(getattr(self, name)) / max(self.pixels, 1)


def _sum(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, tuple):
        return tuple(one + other for one, other in zip_longest(mine, theirs, fillvalue=0))
    return mine + theirs


def difference(
    probe: Probe, reference: Reference, planes: Mapping[str, NDArray[np.uint8]], precision: str
) -> Difference:
    """Compare the planes (T, T) of one probe with its reference."""
    limits, known = LIMITS[precision], reference.planes
    labels = planes.get("labels", known["labels"])
    wrong = labels != known["labels"]
    counted = wrong if probe.real and not probe.squares else wrong & (reference.margin > limits.tie)
    shift = np.zeros(wrong.shape, np.int16)
    for name in planes.keys() - {"labels"}:  # the worst of all probabilities
        np.maximum(shift, np.abs(planes[name].astype(np.int16) - known[name]), out=shift)
    common, either = _overlaps(np.where(counted, labels, known["labels"]), known["labels"])
    return Difference(
        pixels=wrong.size,
        labels=int(np.count_nonzero(counted)),
        grave=int(np.count_nonzero(wrong & (reference.margin > limits.grave))),
        far=int(np.count_nonzero(shift > limits.far)),
        shift=int(shift.sum()),
        common=common,
        either=either,
    )


def _overlaps(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pixels of intersection and of union, class by class."""
    classes = int(max(ours.max(), theirs.max())) + 1
    parts = (ours, theirs, ours[ours == theirs])
    ours_count, theirs_count, common = (np.bincount(part.ravel(), minlength=classes) for part in parts)
    return tuple(common.tolist()), tuple((ours_count + theirs_count - common).tolist())


def differences(
    engine: Engine, probes: Iterable[Probe], reference: Callable[[str], Reference], planes: tuple[str, ...]
) -> dict[str, Difference]:
    """By probe, run in batches of the engine's own size."""
    known = {probe.name: probe for probe in probes}
    return {
        name: difference(known[name], reference(name), dict(zip(planes, answer, strict=True)), engine.record.precision)
        for name, answer in _answers(engine, list(known.values()))
    }


def moved(engine: Engine, probes: Sequence[Probe]) -> int:
    """Probes whose planes change by a byte when their place in the batch and their neighbours do; 0 for single tiles.

    The first is run again in a batch that is padded, the others in the reverse order, and then whatever has content
    until every slot of the batch has held some: at most two batches more than the probes fill.
    """
    size = engine.record.batch
    if size == 1:
        return 0
    answers = dict(_answers(engine, probes))
    again = [*_answers(engine, probes[:1]), *_answers(engine, list(_through_all_slots(probes[1:][::-1], size)))]
    return len({name for name, planes in again if not np.array_equal(answers[name], planes)})


def _through_all_slots(probes: Sequence[Probe], size: int) -> Iterator[Probe]:
    """All of them, and those with content in turn, until each of `size` slots has held content."""
    empty = set(range(size))
    varied = [probe for probe in probes if probe.varied]
    for place, probe in enumerate(chain(probes, cycle(varied))):
        if place >= len(probes) and not empty:
            return
        empty -= {place % size} if probe.varied else set()
        yield probe


def _answers(engine: Engine, probes: Sequence[Probe]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    flight: deque[list[Probe]] = deque()
    for planes in engine.map(_batches(probes, engine.record.batch, flight)):
        yield from zip([probe.name for probe in flight.popleft()], planes, strict=True)


def judge(
    found: Mapping[str, Difference], eager: Mapping[str, Difference], precision: str, *, moved: int = 0
) -> dict[str, Any]:
    """The report: figures, limits, and the reasons to refuse; an engine passes if there are none.

    `eager` holds what the network itself at the same precision does to the same probes; nothing at fp32. `moved` probes
    were not the same in another place of the batch.
    """
    theirs = {name: eager.get(name, Difference()) for name in found}
    ours_real, theirs_real = (_total(each, "real-") for each in (found, theirs))
    ours_all, theirs_all, caps = _total(found), _total(theirs), LIMITS[precision].caps
    figures, itself = ({name: each.share(name) for name in SLACK} for each in (ours_all, theirs_all))
    limits = {name: min(FACTOR * itself[name] + slack, caps.get(name, np.inf)) for name, slack in SLACK.items()}
    figures["real_labels"], limits["real_labels"] = ours_real.share("labels"), caps["real_labels"]
    losses, bounds = _losses(ours_real, theirs_real)
    figures, limits = figures | losses, limits | bounds
    reasons = [
        f"{name} {figures[name]:.2g} above {limits[name]:.2g}" for name in limits if figures[name] > limits[name]
    ]
    if moved:
        reasons.append(f"the planes of {moved} of {len(found)} tiles depend on their place in the batch")
    return {
        "precision": precision,
        "probes": len(found),
        "pixels": ours_all.pixels,
        "real_pixels": ours_real.pixels,
        "figures": figures,
        "eager": itself,
        "limits": limits,
        "reasons": reasons,
        "notes": [] if ours_real.pixels else [UNSEEN],
    }


def _total(each: Mapping[str, Difference], prefix: str = "") -> Difference:
    return sum((value for name, value in each.items() if name.startswith(prefix)), Difference())


def _losses(ours: Difference, theirs: Difference) -> tuple[dict[str, float], dict[str, float]]:
    """IoU that is lost in the mean and by each class with pixels enough, and what may be.

    That is `FACTOR` times what the network itself loses and two standard deviations of such a count of pixels, or
    `LOSS` where that is more.
    """
    rows = enumerate(zip_longest(ours.common, ours.either, theirs.common, theirs.either, fillvalue=0))
    judged = {label: row for label, row in rows if row[1] >= ENOUGH}
    if not judged:
        return {}, {}
    common, either, their_common, their_either = np.array(list(judged.values()), np.float64).T
    lost, usual = 1 - common / either, their_either - their_common
    chance = 2 * np.sqrt(np.maximum(usual, 1)) / either
    bounds = FACTOR * usual / either + chance
    names = ["lost_iou", *(f"lost_iou_of_{label}" for label in judged)]
    of_mean = (FACTOR * usual / either).mean() + np.linalg.norm(chance) / len(judged)
    limits = np.maximum(LOSS, [of_mean, *bounds]).tolist()
    return dict(zip(names, [float(lost.mean()), *lost.tolist()], strict=True)), dict(zip(names, limits, strict=True))


def _batches(probes: Iterable[Probe], size: int, flight: deque[list[Probe]]) -> Iterator[Batch]:
    """Probes share one radiometry, so neighbours make a batch; `flight` holds those that are on their way."""
    waiting = iter(probes)
    while group := list(islice(waiting, size)):
        flight.append(group)
        parts = [probe.batch for probe in group]
        pixels, valid = np.concatenate([part.pixels for part in parts]), np.concatenate([part.valid for part in parts])
        yield replace(parts[0], pixels=pixels, valid=valid)
