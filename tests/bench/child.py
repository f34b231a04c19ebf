"""One run in a process of its own: `python -m tests.bench.child JOB`, the answer as the last line of stdout."""

import json
import shutil
import sys
import time
from collections import defaultdict, deque
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil

from pipeline import resources, worker, workshop
from pipeline.executors import DaskExecutor, SerialExecutor
from pipeline.grid import Window
from pipeline.outputs import LEDGER, MASK
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.schedule import Schedule
from pipeline.segment import SegmentRequest, plan_request, segment_scene

ENGINE = ("tile", "batch", "precision", "target", "streams")
"""What a job may say of the engine beside its backend, as `SegmentRequest` names it."""


class Counting:
    """An executor that adds up the CPU time outside the engine by kind of task."""

    def __init__(self, executor):
        self.executor, self.seconds = executor, defaultdict(float)

    def __getattr__(self, name):
        return getattr(self.executor, name)

    def run(self, function, tasks, run):
        for outcome in self.executor.run(function, tasks, run):
            if outcome.error is None:
                self.seconds[type(outcome.task).__name__] += outcome.value.outside_seconds or 0.0
            yield outcome


def _request(job):
    window = Window(*job["window"]) if job.get("window") else None
    return SegmentRequest(
        SceneAddress(job["scene"], window=window),
        Path(job["bundle"]),
        Path(job["out"]),
        "scene",
        PlanOptions(stage=job["stage"], block=job.get("block"), any_resolution=True),
        backend=job.get("engine", "null"),
        **{name: job[name] for name in ENGINE if name in job},
    )


def segment(job):
    """Facts of `run.json`, and what the plan said."""
    request = _request(job)
    if job.get("only_plan"):
        plan = plan_request(request)
        return {"planned": plan.costs.peak_bytes, "engine": plan.engine.to_json()}
    executor = nullcontext(SerialExecutor()) if job["executor"] == "serial" else DaskExecutor(job["workers"])
    with executor as opened:
        counting = Counting(opened)
        start, cpu = time.perf_counter(), time.process_time()
        facts = segment_scene(request, counting)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    if "keep" in job:
        shutil.copy(request.folder / "mask.tif", job["keep"])
    return facts | {"wall": wall, "cpu": cpu, "outside": dict(counting.seconds)}


def cog(job):
    """GDAL's own COG of the scene; its overviews copied, or made anew as those of a mask are."""
    options = {"overviews": "IGNORE_EXISTING", "overview_resampling": "MODE"} if job.get("anew") else {}
    start, cpu = time.perf_counter(), time.process_time()
    with rasterio.Env(GDAL_CACHEMAX=64 << 20):
        rasterio.shutil.copy(job["scene"], job["out"], driver="COG", **options)
    return {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def engine(job):
    """Seconds of the engine over tiles held in memory, and of the phase from image.zarr to mask.zarr, in turn."""
    request = _request(job)
    plan, run = plan_request(request), Path(job["out"]) / "run"
    workshop.open_run(plan, run)
    resources.limit_caches(worker.GDAL_CACHE)
    with workshop.staged(plan, run, Path(job["out"]) / "staged", keep=True):
        _phase(plan, run)  # stages, and loads the engine
        batches = list(_batches(plan, run))
        loaded, _ = worker._engine(str(run))
        rounds = []
        for _ in range(job["rounds"]):
            alone = _timed(lambda: deque(loaded.map(batches), maxlen=0))
            shutil.rmtree(run / MASK)
            shutil.rmtree(run / LEDGER)
            workshop.open_run(plan, run)
            rounds.append({"alone": alone, "phase": _timed(lambda: _phase(plan, run))})
    return {"rounds": rounds, "tiles": sum(len(batch.pixels) for batch in batches), "engine": plan.engine.version}


def _timed(work):
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def _phase(plan, run):
    schedule = Schedule(plan, run, {}, lambda _: None)
    schedule.start()
    for outcome in SerialExecutor().run(worker.perform, schedule, "bench"):
        schedule.finish(outcome)
    schedule.check()


def _batches(plan, run):
    """What the phase hands to the engine, each array in one piece."""
    opened = worker._Opened(plan, run, len(plan.blocks))
    blocks = (worker._Reading(opened, window).read() for window in plan.blocks)
    for batch in worker._batches(blocks, deque(maxlen=0), lambda _: None):
        yield replace(batch, pixels=np.array(batch.pixels, order="C"), valid=np.array(batch.valid, order="C"))


def main():
    """Do the job in the first argument; what only one job needs is imported for it alone."""
    job = json.loads(sys.argv[1])
    match job["job"]:
        case "archive":
            from tests.bench.nightly import job as work
        case name if "." in name:  # a function of another module of this folder
            module, function = name.split(".")
            work = getattr(import_module(f"tests.bench.{module}"), function)
        case name:
            work = {"segment": segment, "cog": cog, "engine": engine}[name]
    sys.stdout.write(json.dumps(work(job)) + "\n")


if __name__ == "__main__":
    main()
