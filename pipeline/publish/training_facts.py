"""What a training's report tells, before it is shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.bundle import Bundle
from models.findings import Review, Split, Stitching
from pipeline.publish.classes import label

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportFacts:
    """All that the report tells."""

    bundle: Bundle
    metrics: Json
    """`metrics.json` of the bundle; keys that an older one lacks are left out of the report."""
    log: Sequence[Json]
    """Lines of the training's log, oldest first (`read_log`)."""
    splits: Sequence[Split]
    review: Review
    stitching: Stitching | str
    """What cutting into tiles costs, or why that is not known."""

    @property
    def val(self) -> Json:
        """Scores on the validation chips."""
        found: Json = self.metrics["val"]
        return found

    @property
    def names(self) -> dict[str, str]:
        """What people read of each class, by the name that scores have for it."""
        return {entry.name: label(entry) for entry in self.bundle.spec.classes}

    @property
    def counted(self) -> str:
        """What the scores count."""
        return "labelled pixels" if self.bundle.spec.cell == 1 else "images"


def read_log(path: Path) -> list[Json]:
    """The lines of a training's log; none where there is no file.

    A training that was killed goes on from its checkpoint, and does some steps again: a line takes the place of all
    lines that tell of its step or of later ones; at one step, `val` is told after the loss. A line that tells of a
    start takes the place of another such line alone. What was not written to its end is left out.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    start: list[Json] = []
    lines: list[Json] = []
    for line in filter(None, map(_parsed, text.splitlines())):
        if "start" in line:
            start = [line]
            continue
        while lines and _order(lines[-1]) >= _order(line):
            lines.pop()
        lines.append(line)
    return start + lines


def _order(line: Json) -> tuple[int, bool]:
    return line["step"], "val" in line


def _parsed(text: str) -> Json | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "step" in line else None
