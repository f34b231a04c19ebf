"""The gate: an engine serves only if its planes agree with those of eager fp32 PyTorch.

The reference is stored with the engine, so no torch is needed here. What eager PyTorch itself changes when it runs at
the engine's precision sets the scale: an engine may stray 1.5 times as far, and on real crops never beyond a cap.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.engines.base import Batch, Engine
from models.probes import Probe

FACTOR = 1.5
"""How much farther than eager at the same precision an engine may stray."""


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


LIMITS = {"fp32": Limits(tie=1, grave=1, far=1, labels=1e-4), "bf16": Limits(tie=10, grave=50, far=6, labels=1e-3)}
SLACK = {"labels": 1e-4, "grave": 1e-5, "far": 1e-4, "shift": 0.05}
"""Added to `FACTOR` times what eager does; `shift` in confidence levels."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Eager fp32 answers for one probe, (T, T) each."""

    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    margin: NDArray[np.uint8]
    """Best logit minus the second, in thousandths of the logits' standard deviation; 255 is 255 or more."""


@dataclass(frozen=True)
class Difference:
    """How planes differ from the reference; differences of several probes add up."""

    pixels: int = 0
    labels: int = 0
    """Changed labels (of artificial probes and of squares: without ties)."""
    grave: int = 0
    """Changed labels beyond the grave margin."""
    far: int = 0
    """Pixels whose confidence differs beyond the far limit."""
    shift: int = 0
    """Sum of absolute differences of confidence, in levels."""

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
    limits = LIMITS[precision]
    wrong = planes["labels"] != reference.labels if "labels" in planes else np.zeros_like(reference.labels, bool)
    counted = wrong if probe.real and not probe.squares else wrong & (reference.margin > limits.tie)
    confidence = planes.get("confidence", reference.confidence)
    shift = np.abs(confidence.astype(np.int16) - reference.confidence)
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
    found: dict[str, Difference] = {}
    flight: deque[list[Probe]] = deque()
    for answers in engine.map(_batches(probes, engine.record.batch, flight)):
        for probe, answer in zip(flight.popleft(), answers, strict=True):
            named = dict(zip(planes, answer, strict=True))
            found[probe.name] = difference(probe, reference(probe.name), named, engine.record.precision)
    return found


def judge(found: Mapping[str, Difference], eager: Mapping[str, Difference], precision: str) -> dict[str, Any]:
    """The report: figures, limits, and the reasons to refuse; an engine passes if there are none.

    `eager` holds what eager PyTorch at the same precision does to the same probes; nothing at fp32.
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
