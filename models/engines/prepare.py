"""Choosing an engine and having it built, in a child process: the caller never loads torch.

What is built lies in the cache in four parts, so that a change redoes only what it touches:

    graph         the exported network: bundle, tile, batch, type
    reference     eager answers on the probes: bundle, tile, type
    calibration   how far eager itself strays at a lower precision
    engine        record of a graph on one processor, at one precision, with so many threads: gated and measured
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import models
from models.bundle import Bundle, open_bundle
from models.engines.base import ENGINE_FORMAT, Backend, EngineRecord, EngineRequest, Precision
from models.engines.cache import Cache, digest_of
from models.engines.device import device, versions
from models.errors import EngineError

PATIENT = ("OMP_WAIT_POLICY", "PASSIVE")
"""Set before torch loads: where workers share the cores, threads that spin while they wait cost a factor of six."""

log = logging.getLogger(__name__)


def prepare(bundle_path: Path | str, request: EngineRequest, cache: Path | None = None) -> EngineRecord:
    """The engine for `request`: from the cache, else built, gated and measured.

    `auto` takes the first that passes its gate: OpenVINO before torch, bf16 (where the processor has it) before fp32.

    Raises:
        EngineError: none can be built, or none agrees with eager PyTorch; the reasons.
    """
    bundle, store = open_bundle(Path(bundle_path).resolve()), Cache(cache)
    _check(bundle, request)
    reasons = []
    for candidate in candidates(request):
        try:
            return prepared(bundle, candidate, store)
        except EngineError as error:
            if candidate == request:
                raise
            reasons.append(f"{candidate.backend} {candidate.precision}: {error}")
            log.warning("engine refused, trying the next one: %s", reasons[-1])
    raise EngineError(f"no engine can be prepared: {'; '.join(reasons)}")


def candidates(request: EngineRequest) -> Iterator[EngineRequest]:
    """What `auto` stands for, best first."""
    backends = ("openvino", "torch") if request.backend == "auto" else (request.backend,)
    for backend in backends:
        wanted = ("bf16", "fp32") if request.precision == "auto" else (request.precision,)
        for precision in ("fp32",) if backend == "null" else wanted:
            yield replace(request, backend=cast("Backend", backend), precision=cast("Precision", precision))


def prepared(bundle: Bundle, request: EngineRequest, cache: Cache) -> EngineRecord:
    """One definite engine, built if the cache lacks it. A refusal by the gate is remembered as well."""
    entry = cache.make("engine", engine_fields(bundle, request), lambda folder: _build(bundle, request, cache, folder))
    if "refused.json" in entry.files:
        raise EngineError(json.loads((entry.path / "refused.json").read_text())["reason"])
    return EngineRecord.from_json((entry.path / "record.json").read_text())


def restored(bundle: Bundle, request: EngineRequest, cache: Cache) -> str:
    """Digest of the engine that lies in the cache now; what has been lost or changed there is built again."""
    parts = [cache.get(kind, fields) for kind, fields in _parts(bundle, request).items()]
    if None in parts:
        built = _child({"job": "build", "request": asdict(request), **_addresses(bundle, cache)})
        if "refused" in built:
            raise EngineError(built["refused"])
    return record_of(bundle, request, cache).digest


def _parts(bundle: Bundle, request: EngineRequest) -> dict[str, dict[str, object]]:
    """Fields of the entries that an engine needs when it is loaded, by kind."""
    parts = {
        "graph": graph_fields(bundle, request),
        "reference": reference_fields(bundle, request),
        "calibration": calibration_fields(bundle, request),
    }
    unused = {"null": set(parts), "torch": {"graph"}, "openvino": set[str]()}[request.backend]
    unused |= {"calibration"} if request.precision == "fp32" else set()
    return {kind: fields for kind, fields in parts.items() if kind not in unused}


def graph_fields(bundle: Bundle, request: EngineRequest) -> dict[str, object]:
    """What the exported network depends on."""
    return {
        "format": ENGINE_FORMAT,
        "versions": versions("openvino"),
        "bundle": bundle.digest,
        "tile": request.tile,
        "batch": request.batch,
        "dtype": request.dtype,
    }


def reference_fields(bundle: Bundle, request: EngineRequest) -> dict[str, object]:
    """What the eager answers on the probes depend on."""
    return {
        "format": ENGINE_FORMAT,
        "versions": versions("torch"),
        "bundle": bundle.digest,
        "tile": request.tile,
        "dtype": request.dtype,
    }


def calibration_fields(bundle: Bundle, request: EngineRequest) -> dict[str, object]:
    """What eager's own straying depends on."""
    return reference_fields(bundle, request) | {"precision": request.precision}


def engine_fields(bundle: Bundle, request: EngineRequest) -> dict[str, object]:
    """What an engine depends on: whatever can change a byte of its output."""
    return {
        "format": ENGINE_FORMAT,
        "versions": versions(request.backend),
        "device": device(),
        "bundle": bundle.digest,
        **asdict(request),
    }


def record_of(bundle: Bundle, request: EngineRequest, cache: Cache) -> EngineRecord:
    """The record before gate and measurement. Its digest covers the cached graph's bytes too."""
    graph = cache.get("graph", graph_fields(bundle, request)) if request.backend == "openvino" else None
    fields = engine_fields(bundle, request) | {"graph": graph.files if graph else None}
    return EngineRecord(
        digest=digest_of(fields),
        backend=cast("Backend", request.backend),
        version=versions(request.backend),
        precision=cast("Precision", request.precision),
        device=device(),
        tile=request.tile,
        batch=request.batch,
        dtype=request.dtype,
        threads=request.threads,
        bundle=bundle.digest,
        peak_bytes=0,
        seconds_per_tile=0.0,
        parity=None,
    )


def _check(bundle: Bundle, request: EngineRequest) -> None:
    spec = bundle.spec
    if request.tile not in spec.tiles:
        raise EngineError(f"tile {request.tile}: bundle {spec.name} has tiles {', '.join(map(str, spec.tiles))}")
    if request.dtype not in spec.dtypes:
        raise EngineError(f"{request.dtype} pixels: bundle {spec.name} takes {', '.join(spec.dtypes)}")


def _build(bundle: Bundle, request: EngineRequest, cache: Cache, folder: Path) -> None:
    """Fill `folder` with record.json, or with refused.json where the engine cannot serve here, whoever asks again."""
    addresses, parity = _addresses(bundle, cache), None
    if request.backend != "null":
        built = _child({"job": "build", "request": asdict(request), **addresses})
        if "refused" in built:
            (folder / "refused.json").write_text(json.dumps({"reason": built["refused"]}))
            return
        parity = built["parity"]
    record = record_of(bundle, request, cache)
    measured = _child({"job": "measure", "record": record.to_json(), **addresses})
    (folder / "record.json").write_text(replace(record, parity=parity, **measured).to_json())


def _addresses(bundle: Bundle, cache: Cache) -> dict[str, str]:
    return {"bundle": str(bundle.path), "cache": str(cache.root)}


def _child(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job of `models.engines.build`: the last line that it prints is its answer."""
    home = Path(next(iter(models.__path__))).parent  # so that the child imports the very code that runs here
    command = [sys.executable, "-m", "models.engines.build"]
    environment = {PATIENT[0]: PATIENT[1], **os.environ}
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, cwd=home, env=environment, check=False
    )
    if done.returncode == 0:
        return cast("dict[str, Any]", json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        raise EngineError(
            f"the process that should {job['job']} the engine was killed by signal {-done.returncode}; "
            "signal 9 mostly means that memory ran out: choose a smaller tile or batch"
        )
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise EngineError(f"the process that should {job['job']} the engine failed: {last}")
