"""The job behind `archive`: small scenes in a folder, all of them new, or all of them done."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from pipeline.archive import list_archive
from pipeline.executors import make_executor
from pipeline.nightly import ArchiveRequest, segment_archive
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest

EDGE = 256


def job(job):
    """Seconds for an archive of `scenes` small scenes, all of them new, or with `idle` none."""
    folder = Path(job["out"])
    archive, out = folder / "archive", folder / "masks"
    _draw(archive, 1 if job["idle"] else job["scenes"])
    _draw(folder / "warm", 2)
    pattern = SegmentRequest(
        SceneAddress("."), Path(job["bundle"]), out, "scene", PlanOptions(any_resolution=True), backend="null"
    )
    request = ArchiveRequest(str(archive), pattern)
    with make_executor(job.get("workers", 1), None, folder) as executor:
        segment_archive(ArchiveRequest(str(folder / "warm"), replace(pattern, out=folder / "warmed")), executor)
        if job["idle"]:
            segment_archive(request, executor)
            _multiply(request, job["scenes"])
        start, cpu = time.perf_counter(), time.process_time()
        report = segment_archive(request, executor)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    wanted = {"done": 0, "unchanged": 0, "failed": 0} | {"unchanged" if job["idle"] else "done": job["scenes"]}
    if report.counts != wanted:
        raise RuntimeError(f"{report.counts} instead of {wanted}: {report.failed[:3]}")
    return {"wall": wall, "cpu": cpu, "counts": report.counts}


def _draw(folder, count):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    profile = {"driver": "GTiff", "width": EDGE, "height": EDGE, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    for number in range(count):
        transform = from_origin(500_000 + number * EDGE, 5_000_000, 1, 1)
        with rasterio.open(folder / f"s{number:05}.tif", "w", transform=transform, **profile) as file:
            file.write(random.integers(0, 256, (1, EDGE, EDGE), np.uint8))


def _multiply(request, count):
    """More scenes by links to the first, each with a result as if it had been segmented."""
    archive, out = Path(request.archive), request.pattern.out
    first = archive / "s00000.tif"
    for number in range(1, count):
        (archive / f"s{number:05}.tif").hardlink_to(first)
    facts, item = (json.loads((out / "s00000" / name).read_text()) for name in ("run.json", "item.json"))
    for entry in list_archive(request.archive, out=out, pattern=request.pattern.scene).scenes:
        if entry.name == "s00000":
            continue
        place, scene = out / entry.name, {"path": entry.address.path, "fingerprint": entry.fingerprint}
        place.mkdir()
        (place / "run.json").write_text(json.dumps(facts | {"scene": facts["scene"] | scene}, indent=1))
        (place / "item.json").write_text(json.dumps(item | {"id": entry.name}, indent=1))
        (place / "mask.tif").hardlink_to(out / "s00000/mask.tif")
