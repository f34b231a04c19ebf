"""The gate: an engine serves only if its planes agree with those of the network itself, in fp32.

The reference is stored with the engine, so no torch is needed here. What the network itself changes when it runs at the
engine's precision sets the scale: an engine may stray 1.5 times as far, and on real crops never beyond a cap. And a
tile's planes may not depend on its place in a batch, nor on what lies beside it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
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
    labels: float
    """Cap on the share of changed labels of *real* probes."""


LIMITS = {
    "fp32": Limits(tie=1, grave=1, far=1, labels=1e-4),
    "fp16": Limits(tie=5, grave=10, far=2, labels=1e-3),
    "bf16": Limits(tie=10, grave=50, far=6, labels=1e-3),
}
SLACK = {"labels": 1e-4, "grave": 1e-5, "far": 1e-4, "shift": 0.05}
"""Added to `FACTOR` times what eager does; `shift` in confidence levels."""


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

    def __add__(self, other: "Difference") -> "Difference":
        sums = (mine + theirs for mine, theirs in zip(asdict(self).values(), asdict(other).values(), strict=True))
        return Difference(*sums)

    def share(self, name: str) -> float:
        """One of the counts, per pixel."""
        return float(getattr(self, name)) / max(self.pixels, 1)


def difference(
    probe: Probe, reference: Reference, planes: Mapping[str, NDArray[np.uint8]], precision: str
) -> Difference:
    """Compare the planes (T, T) of one probe with its reference."""
    limits, known = LIMITS[precision], reference.planes
    wrong = planes["labels"] != known["labels"] if "labels" in planes else np.zeros_like(known["labels"], bool)
    counted = wrong if probe.real and not probe.squares else wrong & (reference.margin > limits.tie)
    shift = np.zeros(wrong.shape, np.int16)
    for name in planes.keys() - {"labels"}:  # the worst of all probabilities
        np.maximum(shift, np.abs(planes[name].astype(np.int16) - known[name]), out=shift)
    return Difference(
        pixels=wrong.size,
        labels=int(np.count_nonzero(counted)),
        grave=int(np.count_nonzero(wrong & (reference.margin > limits.grave))),
        far=int(np.count_nonzero(shift > limits.far)),
        shift=int(shift.sum()),
    )


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

    Every probe is run again in the reverse order, one slot further: the first in a batch that is padded.
    """
    if engine.record.batch == 1:
        return 0
    answers = dict(_answers(engine, probes))
    again = [*_answers(engine, probes[:1]), *_answers(engine, probes[1:][::-1])]
    return sum(not np.array_equal(answers[name], planes) for name, planes in again)


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
    ours = sum(found.values(), Difference())
    theirs = sum((eager.get(name, Difference()) for name in found), Difference())
    real = sum((value for name, value in found.items() if name.startswith("real-")), Difference())
    figures = {name: ours.share(name) for name in SLACK} | {"real_labels": real.share("labels")}
    limits = {name: FACTOR * theirs.share(name) + slack for name, slack in SLACK.items()}
    limits["real_labels"] = LIMITS[precision].labels
    reasons = [
        f"{name} {figures[name]:.2g} above {limits[name]:.2g}" for name in limits if figures[name] > limits[name]
    ]
    if moved:
        reasons.append(f"the planes of {moved} of {len(found)} tiles depend on their place in the batch")
    return {
        "precision": precision,
        "probes": len(found),
        "pixels": ours.pixels,
        "real_pixels": real.pixels,
        "figures": figures,
        "eager": {name: theirs.share(name) for name in SLACK},
        "limits": limits,
        "reasons": reasons,
    }


def _batches(probes: Iterable[Probe], size: int, flight: deque[list[Probe]]) -> Iterator[Batch]:
    """Probes share one radiometry, so neighbours make a batch; `flight` holds those that are on their way."""
    waiting = iter(probes)
    while group := list(islice(waiting, size)):
        flight.append(group)
        parts = [probe.batch for probe in group]
        pixels, valid = np.concatenate([part.pixels for part in parts]), np.concatenate([part.valid for part in parts])
        yield replace(parts[0], pixels=pixels, valid=valid)
