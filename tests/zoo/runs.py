"""Trainings by the command line, each into a folder of its own; what is there already is not trained again."""

import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.resources import cores


@dataclass(frozen=True)
class Run:
    """One training: `widefield train` with these arguments, into OUT/name."""

    name: str
    arguments: tuple[str, ...]


def train(runs: Iterable[Run], out: Path) -> None:
    """Train each run whose bundle is missing, one thread each and as many at once as there are cores."""
    with ThreadPoolExecutor(cores()) as pool:
        deque(pool.map(lambda run: _train(run, out / run.name), list(runs)), maxlen=0)


def _train(run: Run, folder: Path) -> None:
    """The log lies beside the bundle."""
    if (folder / "bundle.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    widefield = str(Path(sys.executable).with_name("widefield"))
    command = [widefield, "train", "--out", str(folder), *run.arguments, "--threads", "1"]
    print("$", *command, flush=True)  # noqa: T201 - progress
    with (folder / "log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
