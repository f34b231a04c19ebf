"""The pipeline alone: the `null` engine on 648 megapixels, beside GDAL's own copy of the same file."""

import json
import tempfile
from pathlib import Path
from statistics import median

from tests.bench.common import grey_bundle, record, table, watch, world

REPEATS = 3
MEGAPIXELS = 648


def run(repeats=REPEATS):
    """Markdown: medians over interleaved repeats."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        bundle = grey_bundle(Path(scratch))
        rounds = [_round(bundle, Path(scratch)) for _ in range(int(repeats))]
    record("speed", rounds)
    rows = [_row(name, [one[name] for one in rounds], rounds) for name in rounds[0]]
    head = ["what", "wall s", "segment s", "publish s", "Mpx/s", "core-ms per Mpx outside the engine", "times GDAL"]
    return table(head, rows)


def _round(bundle, scratch):
    """One of each, in turn, so that a busy machine hits all alike."""
    scene = str(world())
    facts = {"GDAL: COG": _child({"job": "cog", "scene": scene}, scratch)}
    facts["GDAL: COG, overviews anew"] = _child({"job": "cog", "scene": scene, "anew": True}, scratch)
    for name, stage, executor, workers in (
        ("direct, serial", False, "serial", 1),
        ("staged, serial", True, "serial", 1),
        ("direct, 2 workers", False, "dask", 2),
    ):
        job = {"job": "segment", "scene": scene, "window": None, "bundle": str(bundle), "stage": stage}
        facts[name] = _child(job | {"executor": executor, "workers": workers}, scratch)
    return facts


def _child(job, scratch):
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        answer = watch(job | {"out": f"{out}/out"}).answer
    return json.loads(json.dumps({key: answer.get(key) for key in ("wall", "cpu", "speed")}))


def _row(name, facts, rounds):
    wall = median(fact["wall"] for fact in facts)
    times = median(fact["wall"] / one["GDAL: COG"]["wall"] for fact, one in zip(facts, rounds, strict=True))
    speed = [fact["speed"] for fact in facts if fact["speed"]]
    phases = [f"{median(s['seconds'][phase] for s in speed):.1f}" if speed else "" for phase in ("segment", "publish")]
    outside = f"{median(s['outside_engine_core_ms_per_megapixel'] for s in speed):.1f}" if speed else ""
    return [name, f"{wall:.1f}", *phases, f"{MEGAPIXELS / wall:.0f}", outside, f"{times:.2f}"]
