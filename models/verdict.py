"""What the gate asks for, and what it found: values, as the registry keeps them and as people read them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from models.bootstrap import Difference

SCHEMA = 1


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
            lines.append(f"IoU of {name}: {number(told['challenger'])} against {number(told['champion'])}")
        for side, scores in (self.scores or {}).items():
            lines.append(f"calibration error of the {side}: {number(scores.get('ece'))}")
        lines += [f"{scene['scene']}: {scene['changed']:.2%} of the pixels would change" for scene in self.shadow]
        return lines


def number(value: float | None) -> str:
    """For people; a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"
