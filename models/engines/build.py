"""The child process that builds and measures engines: one job as JSON on stdin, its answer as the last line of stdout.

python -m models.engines.build
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

from models.bundle import Bundle, open_bundle
from models.engines.base import Batch, Engine, EngineRecord, EngineRequest
from models.engines.cache import Cache
from models.engines.gate import gate
from models.engines.load import open_checked, open_engine
from models.engines.prepare import graph_fields, record_of
from models.probes import probes

WARM_UP, RUNS = 1, 7
SECONDS = 3.0
"""Measuring stops at `RUNS` batches, or after this long."""


def main() -> None:
    """Do the job on stdin."""
    job = json.load(sys.stdin)
    bundle, cache = open_bundle(job["bundle"]), Cache(job["cache"])
    if job["job"] == "measure":
        answer = _measure(bundle, EngineRecord.from_json(job["record"]), cache)
    else:
        answer = _build(bundle, EngineRequest(**job["request"]), cache)
    print(json.dumps(answer))  # noqa: T201 - the answer to the parent


def _build(bundle: Bundle, request: EngineRequest, cache: Cache) -> dict[str, Any]:
    """Graph, reference answers, gate: {"parity": report} or {"refused": reason}."""
    if request.precision == "bf16" and not _has_bf16(request.backend):
        return {"refused": f"this processor has no bf16 that {request.backend} could use"}
    import torch

    from models.engines import reference

    torch.set_num_threads(request.threads)
    if request.backend == "openvino":
        _graph(bundle, request, cache)
    reference.ensure(bundle, request, cache)
    engine = open_engine(bundle, record_of(bundle, request, cache), cache)
    report = gate(bundle, engine, cache)
    reasons = report["reasons"]
    return {"refused": f"it does not agree with eager PyTorch: {'; '.join(reasons)}"} if reasons else {"parity": report}


def _graph(bundle: Bundle, request: EngineRequest, cache: Cache) -> None:
    from models.engines.openvino import convert
    from models.export import export_onnx
    from models.serve import served

    def export(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            onnx = Path(scratch) / "model.onnx"
            export_onnx(served(bundle), onnx, tile=request.tile, dtype=request.dtype, batch=request.batch)
            convert(onnx, folder)

    cache.make("graph", graph_fields(bundle, request), export)


def _has_bf16(backend: str) -> bool:
    if backend == "openvino":
        from models.engines.openvino import has_bf16
    else:
        from models.engines.torch import has_bf16
    return has_bf16()


def _measure(bundle: Bundle, record: EngineRecord, cache: Cache) -> dict[str, Any]:
    """What a worker will pay: this process has loaded the engine as workers do, and nothing else."""
    engine = open_checked(bundle, record, cache)
    probe = next(probes(bundle, record.tile, record.dtype)).batch
    pixels, valid = probe.pixels.repeat(record.batch, 0), probe.valid.repeat(record.batch, 0)
    seconds = list(_timed(engine, Batch(pixels, valid, probe.scale, probe.offset)))
    return {"peak_bytes": _peak_bytes(), "seconds_per_tile": median(seconds[WARM_UP:]) / record.batch}


def _timed(engine: Engine, batch: Batch) -> Iterator[float]:
    """Seconds between answers, in a steady stream of batches."""
    start = last = time.perf_counter()
    for done, _ in enumerate(engine.map(repeat(batch, WARM_UP + RUNS)), 1):
        now = time.perf_counter()
        yield now - last
        last = now
        if now - start > SECONDS and done > WARM_UP:  # a large network's first batch may take longer
            break


def _peak_bytes() -> int:
    """Largest resident set of this program; `ru_maxrss` would count the parent's, which survives exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
