"""What the pipeline leaves of the engine's speed: image.zarr to mask.zarr against the engine alone on its tiles."""

import tempfile
from pathlib import Path
from statistics import median

from tests.bench.common import BUILDINGS, measured, mosaic, record, spread, table, verdict

WINDOW = (0, 0, 4096, 4096)
ROUNDS = 3
WANTED = 0.95


def run(rounds=ROUNDS):
    """Markdown: seconds of both, in one process, in turn."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        job = {"job": "engine", "scene": str(mosaic(Path(scratch))), "window": WINDOW, "bundle": str(BUILDINGS)}
        job |= {"engine": "auto", "stage": True, "rounds": int(rounds)}
        facts = measured(job, scratch, "rounds", "tiles", "engine")
    rows = [_row(facts["rounds"], clock) for clock in ("wall", "cpu")]
    record(
        "engine",
        facts,
        [("image.zarr to mask.zarr, share of the engine's own speed", f"at least {WANTED}", rows[0][3])],
    )
    return table(["clock", "engine alone s", "image.zarr to mask.zarr s", "share", "wanted", "reached"], rows)


def _row(rounds, clock):
    alone, phase = ([one[part][clock] for one in rounds] for part in ("alone", "phase"))
    shares = [a / p for a, p in zip(alone, phase, strict=True)]
    reached = verdict(median(shares), WANTED, least=True)
    return [clock, spread(alone), spread(phase), spread(shares, 3), WANTED, reached]
