"""Peak memory against the plan, and for a scene twenty times as large."""

import tempfile
from pathlib import Path

from tests.bench.common import MIB, grey_bundle, record, table, watch, world

SCENES = {"33 Mpx": (2048, 16384, 4096, 8192), "648 Mpx": None}
EXECUTORS = ("serial", "dask")


def run():
    """Markdown: the worst process of each run."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        bundle = grey_bundle(Path(scratch))
        cases = [(executor, stage) for executor in EXECUTORS for stage in (True, False)]
        facts = [_case(bundle, Path(scratch), executor, stage=stage) for executor, stage in cases]
    record("memory", facts)
    head = ["executor", "staged", "planned MiB", *(f"{name}: peak MiB" for name in SCENES), "peaks' ratio", "worst"]
    return table(head, map(_row, facts))


def _case(bundle, scratch, executor, *, stage):
    facts = {"executor": executor, "stage": stage, "planned": {}, "peak": {}, "peaks": {}, "seconds": {}}
    for name, window in SCENES.items():
        job = {"job": "segment", "scene": str(world()), "window": window, "bundle": str(bundle), "executor": executor}
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            # Compiled and measured beforehand, so that no builder's memory counts.
            watch(job | {"stage": stage, "out": out, "only_plan": True})
            watched = watch(job | {"stage": stage, "out": out, "workers": 1})
        facts["planned"][name] = watched.answer["memory"]["planned_bytes"]
        facts["peaks"][name] = watched.peaks
        facts["peak"][name] = max(watched.peaks.values())
        facts["seconds"][name] = watched.seconds
    small, large = (facts["peak"][name] for name in SCENES)
    return facts | {"ratio": large / small}


def _row(facts):
    planned = max(facts["planned"].values())
    peaks = facts["peaks"]["648 Mpx"]
    return [
        facts["executor"],
        "yes" if facts["stage"] else "no",
        f"{planned / MIB:.0f}",
        *(f"{facts['peak'][name] / MIB:.0f}" for name in SCENES),
        f"{facts['ratio']:.3f}",
        max(peaks, key=peaks.get),
    ]
