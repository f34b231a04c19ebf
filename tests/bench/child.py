"""One run in a process of its own: `python -m tests.bench.child JOB`, the answer as the last line of stdout."""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import rasterio
import rasterio.shutil

from pipeline.executors import DaskExecutor, SerialExecutor
from pipeline.grid import Window
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, plan_request, segment_scene


def segment(job):
    """Facts of `run.json`, and what the plan said."""
    window = Window(*job["window"]) if job["window"] else None
    request = SegmentRequest(
        SceneAddress(job["scene"], window=window),
        Path(job["bundle"]),
        Path(job["out"]),
        "scene",
        PlanOptions(stage=job["stage"], block=job.get("block"), any_resolution=True),
        backend=job.get("engine", "null"),
    )
    if job.get("only_plan"):
        return {"planned": plan_request(request).costs.peak_bytes}
    executor = nullcontext(SerialExecutor()) if job["executor"] == "serial" else DaskExecutor(job["workers"])
    with executor as opened:
        start = time.perf_counter()
        facts = segment_scene(request, opened)
        return facts | {"wall": time.perf_counter() - start}


def cog(job):
    """GDAL's own COG of the scene; its overviews copied, or made anew as those of a mask are."""
    options = {"overviews": "IGNORE_EXISTING", "overview_resampling": "MODE"} if job.get("anew") else {}
    start, cpu = time.perf_counter(), time.process_time()
    with rasterio.Env(GDAL_CACHEMAX=64 << 20):
        rasterio.shutil.copy(job["scene"], job["out"], driver="COG", **options)
    return {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def main():
    """Do the job in the first argument."""
    job = json.loads(sys.argv[1])
    answer = {"segment": segment, "cog": cog}[job["job"]](job)
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
