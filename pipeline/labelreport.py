"""What a look at labels found: totals of classes, and problems to solve or to know of."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.errors import LabelError

Level = Literal["error", "warning"]
EVERYWHERE = ""
"""The place of a problem of the whole set."""


@dataclass(frozen=True)
class Problem:
    """One thing to look at."""

    level: Level
    """Training refuses errors."""
    scene: str
    """`EVERYWHERE` for the whole set."""
    what: str

    def line(self) -> str:
        """For people."""
        return f"{self.level}: {self.scene}: {self.what}" if self.scene else f"{self.level}: {self.what}"


@dataclass(frozen=True)
class ClassTotal:
    """What there is of one class."""

    id: int
    name: str
    pixels: int
    area_m2: float | None
    """Over the scenes whose pixels have a known size; None: there is no such scene."""
    objects: int | None
    """None where labels know no objects."""
    scenes: tuple[str, ...]
    """Those in which it occurs, by name."""


@dataclass(frozen=True)
class SceneLabels:
    """What there is of one scene."""

    name: str
    labels: str
    origin: str
    pixels: dict[str, int]
    """By class; classes that do not occur are left out."""


@dataclass(frozen=True)
class LabelReport:
    """All scenes, all classes, all problems."""

    classes: tuple[ClassTotal, ...]
    scenes: tuple[SceneLabels, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> list[Problem]:
        """What training would refuse."""
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """What training would not."""
        return [problem for problem in self.problems if problem.level == "warning"]

    def raise_errors(self) -> None:
        """Nothing, where there are no errors.

        Raises:
            LabelError: the first of them, and how many more there are.
        """
        if self.errors:
            first, *others = self.errors
            rest = f" (and {len(others)} more: see `widefield labels check`)" if others else ""
            raise LabelError(f"{first.what}{rest}")

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self) | {"ok": not self.errors}

    def lines(self) -> list[str]:
        """The problems, for people: one line each, errors first."""
        return [problem.line() for problem in (*self.errors, *self.warnings)]
