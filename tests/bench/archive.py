"""An archive of small scenes: a night without news over ten thousand, and scenes a second."""

import tempfile
from pathlib import Path
from statistics import median

from tests.bench.common import grey_bundle, measured, record, spread, table, verdict

SCENES = 10_000
WANTED = 120.0
"""Seconds for a night without news."""
SMALL = 40
ROUNDS = 3


def run(scenes=SCENES):
    """Markdown: seconds, and scenes a second."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        job = {"job": "archive", "bundle": str(grey_bundle(Path(scratch)))}
        facts = {
            "night": [measured(job | {"scenes": int(scenes), "idle": True}, scratch, "wall", "cpu", "counts")],
            "serial": [_small(job, scratch, 1) for _ in range(ROUNDS)],
            "2 workers": [_small(job, scratch, 2) for _ in range(ROUNDS)],
        }
    rows = [_row(name, rounds, int(scenes)) for name, rounds in facts.items()]
    record(
        "archive", facts, [(f"a night without news over {scenes} scenes, seconds", f"at most {WANTED:.0f}", rows[0][1])]
    )
    head = ["what", "wall s", "CPU s of the client", "scenes/s", "wanted s", "reached"]
    return table(head, rows)


def _small(job, scratch, workers):
    return measured(job | {"scenes": SMALL, "idle": False, "workers": workers}, scratch, "wall", "cpu", "counts")


def _row(name, rounds, scenes):
    walls, cpu = ([one[clock] for one in rounds] for clock in ("wall", "cpu"))
    if name == "night":
        rate, reached = scenes / walls[0], verdict(walls[0], WANTED, least=False)
        return [f"nothing new in {scenes} scenes", spread(walls), spread(cpu), f"{rate:.0f}", f"{WANTED:.0f}", reached]
    rate = SMALL / median(walls)
    return [f"{SMALL} scenes of 256 x 256, {name}", spread(walls), spread(cpu), f"{rate:.2f}", "", ""]
