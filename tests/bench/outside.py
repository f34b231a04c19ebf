"""Core time outside the engine, by how the scene is stored, with the `null` engine and with the shipped bundle's."""

import tempfile
from pathlib import Path
from statistics import median

import rasterio
import rasterio.shutil

from tests.bench.common import BUILDINGS, measured, mosaic, record, spread, table, verdict

ROUNDS = {"null": 3, "auto": 1}
MEGAPIXELS = 8192 * 4096 / 1e6
WANTED = {"staged, deflate COG": 20.0, "deflate COG": 35.0}
"""Core-milliseconds per megapixel."""


def run():
    """Markdown: core-milliseconds per megapixel."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        stored = sources(Path(scratch))
        cases = [(name, engine) for engine in ROUNDS for name in stored if engine == "null" or name in WANTED]
        facts = [_case(name, stored[name], engine, scratch) for name, engine in cases]
    rows = [_row(fact) for fact in facts]
    told = "core-milliseconds a megapixel outside the engine, RGB from "
    record("outside", facts, [(f"{told}{r[0]} ({r[1]} engine)", f"at most {r[4]:.0f}", r[3]) for r in rows if r[4]])
    head = ["source", "engine", "staging", "segmenting", "wanted", "reached", "publishing"]
    return table(head, rows)


def sources(folder):
    """One scene, stored in several ways."""
    flat, made = mosaic(folder), {}
    ways = {
        "deflate COG": ("COG", "deflate.tif", {"compress": "DEFLATE", "predictor": "YES"}),
        "JPEG COG": ("COG", "jpeg.tif", {"compress": "JPEG", "quality": 85}),
        "JPEG 2000": ("JP2OpenJPEG", "scene.jp2", {"quality": 25, "reversible": "NO"}),
    }
    for name, (driver, file, options) in ways.items():
        rasterio.shutil.copy(flat, folder / file, driver=driver, **options)
        made[name] = folder / file
    return {"staged, deflate COG": made["deflate COG"], **made}


def _case(name, source, engine, scratch):
    job = {"job": "segment", "scene": str(source), "bundle": str(BUILDINGS), "engine": engine, "executor": "serial"}
    job |= {"stage": name.startswith("staged")}
    measured(job | {"only_plan": True}, scratch)
    rounds = [measured(job, scratch, "outside")["outside"] for _ in range(ROUNDS[engine])]
    per_megapixel = [{kind: 1e3 * value / MEGAPIXELS for kind, value in one.items()} for one in rounds]
    return {"source": name, "engine": engine, "rounds": per_megapixel}


def _row(fact):
    rounds, wanted = fact["rounds"], WANTED.get(fact["source"])
    staging, segmenting, publishing = (
        spread(one[kind] for one in rounds) if kind in rounds[0] else ""
        for kind in ("StageTask", "Task", "PublishTask")
    )
    reached = verdict(median(one["Task"] for one in rounds), wanted, least=False) if wanted else ""
    return [fact["source"], fact["engine"], staging, segmenting, wanted or "", reached, publishing]
