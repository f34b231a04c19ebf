"""The data path alone: image to mask with the `null` engine, by threads that read and write, beside the fastest engine.

All tiles pass one thread, which hands them to the engine and puts its answers into their blocks: what that thread takes
bounds the speed, however many others read.
"""

import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from pipeline import resources, worker, workshop
from pipeline.outputs import LEDGER, MASK
from pipeline.pace import Pace
from tests.bench import child, plots
from tests.bench.common import BUILDINGS, ROOT, measured, record, spread, table, verdict
from tests.bench.outside import sources

READERS, ROUNDS = (1, 2, 4), 3
MEGAPIXELS = 8192 * 4096 / 1e6
WANTED = 2.0
"""Times the fastest engine here."""
GPU = 500
"""Megapixels a second of an engine on a GPU."""
SOURCES = ("staged, deflate COG", "deflate COG", "JPEG COG")
IMAGE = ROOT / "docs" / "scaling.png"


def run(rounds=ROUNDS):
    """Markdown: megapixels a second by readers, and cores that a GPU would need; draws docs/scaling.png."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        stored = sources(Path(scratch))
        facts = [_case(name, stored[name], int(rounds), scratch) for name in SOURCES]
        engine = _engine(stored["deflate COG"], scratch)
    reached = {fact["source"]: max(median(speeds) for speeds in fact["speeds"].values()) for fact in facts}
    slowest = min(reached.values()) / engine["speed"]
    record(
        "datapath",
        {"cases": facts, "engine": engine},
        [
            ("the data path alone, times the fastest engine here", f"at least {WANTED:.0f}", f"{slowest:.0f}"),
        ],
    )
    lines = {fact["source"]: {n: median(speeds) for n, speeds in fact["speeds"].items()} for fact in facts}
    plots.scaling({"sources": lines, "engine": engine["speed"], "engine_name": engine["name"]}, IMAGE)
    head = ["source", *(f"{n} readers, Mpx/s" for n in READERS), "core-ms/Mpx", "of these in one thread",
            f"cores for {WANTED:.0f} x {GPU} Mpx/s", "times the engine", "wanted", "reached"]  # fmt: skip
    rows = [_row(fact, reached[fact["source"]] / engine["speed"]) for fact in facts]
    return f"{table(head, rows)}\nThe fastest engine here: {engine['name']}, {engine['speed']:.1f} Mpx/s.\n"


def _case(name, source, rounds, scratch):
    job = {"job": "datapath.job", "scene": str(source), "bundle": str(BUILDINGS), "engine": "null", "rounds": rounds}
    job |= {"stage": name.startswith("staged"), "readers": READERS}
    return {"source": name, **measured(job, scratch, "speeds", "cores", "alone")}


def _engine(source, scratch):
    """The engine that `auto` takes for the shipped bundle, as a plan knows it."""
    job = {"job": "datapath.fastest", "scene": str(source), "bundle": str(BUILDINGS), "engine": "auto", "stage": False}
    return measured(job, scratch, "speed", "name")


def fastest(job):
    """Megapixels of cores a second of the planned engine."""
    plan = child.plan_request(child._request(job))
    speed = plan.grid.core**2 / 1e6 / plan.engine.seconds_per_tile
    return {"speed": speed, "name": f"{plan.spec.name}, {plan.engine.backend} {plan.engine.precision}"}


def job(job):
    """Speeds of the phase from the source to mask.zarr by readers, and its core-milliseconds a megapixel."""
    plan, run = child.plan_request(child._request(job)), Path(job["out"]) / "run"
    workshop.open_run(plan, run)
    resources.limit_caches(worker.GDAL_CACHE)
    speeds, cores, alone = {n: [] for n in job["readers"]}, [], []
    with workshop.staged(plan, run, Path(job["out"]) / "staged", keep=True):
        child._phase(plan, run)  # stages, and loads the engine
        for readers in job["readers"] * job["rounds"]:
            worker._paces = lambda _, n=readers: (Pace("input", n, n), Pace("output", n, n))
            shutil.rmtree(run / MASK)
            shutil.rmtree(run / LEDGER)
            workshop.open_run(plan, run)
            start, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
            child._phase(plan, run)
            speeds[readers].append(MEGAPIXELS / (time.perf_counter() - start))
            cores.append(1e3 * (time.process_time() - cpu) / MEGAPIXELS)
            alone.append(1e3 * (time.thread_time() - own) / MEGAPIXELS)
    return {"speeds": speeds, "cores": cores, "alone": alone}


def _row(fact, times):
    needed = WANTED * GPU * median(fact["cores"]) / 1e3
    speeds = [spread(fact["speeds"][str(n)], 0) for n in READERS]
    return [fact["source"], *speeds, spread(fact["cores"]), f"{median(fact['alone']):.1f}", f"{needed:.0f}",
            f"{times:.0f}", f"{WANTED:.0f}", verdict(times, WANTED, least=True)]  # fmt: skip
