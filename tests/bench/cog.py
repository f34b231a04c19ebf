"""The pipeline alone: the `null` engine on 648 megapixels, beside GDAL's own copy of the same file."""

import tempfile
from pathlib import Path
from statistics import median

from tests.bench.common import grey_bundle, measured, record, spread, table, verdict, world

ROUNDS = 3
MEGAPIXELS = 648
WANTED = {"direct, serial": 3.0, "direct, 2 workers": 3.0}
"""Times GDAL's copy."""


def run(rounds=ROUNDS):
    """Markdown: medians over interleaved rounds."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        bundle = grey_bundle(Path(scratch))
        facts = [_round(bundle, scratch) for _ in range(int(rounds))]
    rows = [_row(name, facts) for name in facts[0]]
    told = "`null` engine, 648 Mpx to the last file, times GDAL's COG copy: "
    record("cog", facts, [(told + row[0], f"at most {row[7]:.0f}", row[6]) for row in rows if row[7]])
    head = ["what", "wall s", "segment s", "publish s", "Mpx/s", "core-ms per Mpx outside the engine", "times GDAL"]
    return table([*head, "wanted", "reached"], rows)


def _round(bundle, scratch):
    """One of each, in turn, so that a busy machine hits all alike."""
    scene = str(world())
    facts = {"GDAL: COG": measured({"job": "cog", "scene": scene}, scratch, "wall", "cpu")}
    facts["GDAL: COG, overviews anew"] = measured({"job": "cog", "scene": scene, "anew": True}, scratch, "wall", "cpu")
    for name, stage, executor, workers in (
        ("direct, serial", False, "serial", 1),
        ("direct, 2 workers", False, "dask", 2),
        ("staged, serial", True, "serial", 1),
    ):
        job = {"job": "segment", "scene": scene, "bundle": str(bundle), "stage": stage}
        job |= {"executor": executor, "workers": workers}
        facts[name] = measured(job, scratch, "wall", "cpu", "speed", "outside")
    return facts


def _row(name, facts):
    walls = [fact[name]["wall"] for fact in facts]
    times = [wall / fact["GDAL: COG"]["wall"] for wall, fact in zip(walls, facts, strict=True)]
    speed = [fact[name]["speed"] for fact in facts if fact[name].get("speed")]
    phases = [spread(s["seconds"][phase] for s in speed) if speed else "" for phase in ("segment", "publish")]
    outside = spread(s["outside_engine_core_ms_per_megapixel"] for s in speed) if speed else ""
    wanted = WANTED.get(name)
    reached = verdict(median(times), wanted, least=False) if wanted else ""
    speeds = f"{MEGAPIXELS / median(walls):.0f}"
    return [name, spread(walls), *phases, speeds, outside, spread(times, 2), wanted or "", reached]
