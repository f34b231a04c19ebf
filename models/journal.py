"""What a training in flight leaves in its folder: a log for people, and a checkpoint to go on from."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from models.errors import TrainingError

Report = Callable[[dict[str, Any]], None]


class Log:
    """Appends JSON lines to a file and reports them; does neither where there is no file."""

    def __init__(self, path: Path | None, report: Report = lambda _: None) -> None:
        self.path, self.report = path, report
        self.losses: list[float] = []
        self.started = time.monotonic()

    def restart(self) -> None:
        """Forget the lines of another training."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def add(self, loss: float) -> None:
        """Note the loss of one step."""
        self.losses.append(loss)

    def mean(self) -> float:
        """Of the losses since the last call."""
        losses, self.losses = self.losses, []
        return sum(losses) / len(losses)

    def write(self, **facts: Any) -> None:
        """One line."""
        if self.path is None:
            return
        facts["seconds"] = round(time.monotonic() - self.started, 2)
        with self.path.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        self.report(facts)


@dataclass(frozen=True)
class Checkpoint:
    """All that the next step needs, in one file that is replaced atomically."""

    fabric: Fabric
    path: Path
    key: str
    """What decides the weights: a checkpoint of another key is refused."""

    def save(self, step: int, **parts: Any) -> None:
        """Replace the checkpoint by one after `step` steps."""
        partial = self.path.with_suffix(".partial")
        self.fabric.save(partial, {**parts, "step": step, "key": self.key})
        if self.fabric.is_global_zero:
            partial.replace(self.path)

    def resume(self, **parts: Any) -> int:
        """Restore `parts` in place where there is a checkpoint; the number of steps that are done."""
        if not self.path.exists():
            return 0
        if self.fabric.load(self.path, weights_only=True)["key"] != self.key:
            raise TrainingError(f"{self.path} belongs to other settings or chips: delete it, or choose another folder")
        rest = self.fabric.load(self.path, parts, weights_only=True)
        return int(rest["step"])
