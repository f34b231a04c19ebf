"""Trainings by the command line, each into a folder of its own; what is there already is not trained again."""

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One training: `widefield train` with these arguments, into OUT/name."""

    name: str
    arguments: tuple[str, ...]


def train(runs: Iterable[Run], out: Path) -> None:
    """Train each run whose bundle is missing, one after the other; its log lies beside it."""
    for run in runs:
        folder = out / run.name
        if (folder / "bundle.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        command = [str(Path(sys.executable).with_name("widefield")), "train", "--out", str(folder), *run.arguments]
        print("$", *command, flush=True)  # noqa: T201 - progress
        with (folder / "log").open("a") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
