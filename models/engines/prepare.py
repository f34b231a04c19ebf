"""Choosing an engine and having it built, in a child process: the caller never loads torch.

What is built lies in the cache in five parts, so that a change redoes only what it touches:

    choice        engines in the order of their measured speed: kind of network, target, threads, versions of all
    graph         what is compiled: bundle, backend, tile, batch, type, and what else it depends on
    reference     answers of the network itself in fp32 on the probes: bundle, tile, type
    calibration   how far the network itself strays at a lower precision
    engine        record of a graph on one device, at one precision, with so many threads: gated and measured
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
from models.engines.backends import BACKENDS, GATE, NETWORK, Backend, backend_of, digest_of_sources
from models.engines.base import BackendName, EngineRecord, EngineRequest, Precision, Target
from models.engines.cache import Cache, Entry, digest_of
from models.engines.device import default_target, device, gpus
from models.errors import EngineError, UnavailableError
from models.spec import ModelSpec, check_planes

SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",  # where workers share the cores, threads that spin as they wait cost a factor of six
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # GPUs counted as the driver counts them
}
"""Of the environment, where it does not say otherwise; before torch loads."""
REFUSED, RECORD, CHOICE = "refused.json", "record.json", "choice.json"
RACE_TILE = 512
"""Engines are compared on the bundle's tile nearest to this: on larger ones the order is the same, and takes longer."""

log = logging.getLogger(__name__)


def prepare(
    bundle_path: Path | str, request: EngineRequest, cache: Path | None = None, *, again: bool = False
) -> EngineRecord:
    """The engine for `request`: from the cache, else built, gated and measured.

    `auto` takes the fastest that passes its gate; speeds are measured once for each kind of network and machine. A GPU
    that no engine can use is left alone where the target is `auto`. `again`: measurements and verdicts are made anew.

    Raises:
        EngineError: none can be built, or none agrees with the bundle's network; the reasons.
    """
    bundle, store, target = open_bundle(Path(bundle_path).resolve()), Cache(cache), request.target_here
    check_request(bundle, request)
    device(target)  # raises where there is none
    try:
        return _first_that_passes(bundle, replace(request, target=target), store, again=again)
    except UnavailableError as error:
        if request.target == "cuda" and request.backend == "auto":
            raise UnavailableError(f"{error}: pip install 'widefield[gpu]', or choose --device cpu") from error
        if request.target != "auto" or target == "cpu":
            raise
        log.warning("no engine can use the GPU, so the processor computes: %s", error)
    return _first_that_passes(bundle, replace(request, target="cpu"), store, again=again)


def _first_that_passes(bundle: Bundle, request: EngineRequest, cache: Cache, *, again: bool) -> EngineRecord:
    chosen = list(candidates(request, bundle))
    if len(chosen) == 1:
        return prepared(bundle, chosen[0], cache, again=again)
    reasons: list[tuple[str, EngineError]] = []
    for candidate in _in_order(bundle, request, chosen, cache, again=again):
        try:
            return prepared(bundle, candidate, cache, again=again)
        except EngineError as error:
            reasons.append((named(candidate), error))
            log.warning("engine refused, trying the next one: %s: %s", *reasons[-1])
    raise _none(reasons)


def _in_order(
    bundle: Bundle, request: EngineRequest, chosen: list[EngineRequest], cache: Cache, *, again: bool
) -> list[EngineRequest]:
    """The fastest first; where they cannot be compared, as they come."""
    try:
        return ranked(bundle, request, cache, again=again) if chosen else []
    except UnavailableError:
        raise
    except EngineError as error:
        log.warning("engines could not be compared, so the likeliest is tried first: %s", error)
        return chosen


def _none(reasons: list[tuple[str, EngineError]]) -> EngineError:
    """The error that tells why there is no engine: one of what is missing, if nothing else is the matter."""
    kind = UnavailableError if all(isinstance(error, UnavailableError) for _, error in reasons) else EngineError
    told = "; ".join(f"{name}: {error}" for name, error in reasons)
    return kind(f"no engine can be prepared: {told or 'none is installed that could'}")


def named(request: EngineRequest | EngineRecord) -> str:
    """`openvino bf16`, with its streams if there are several."""
    return f"{request.backend} {request.precision}" + (f", {request.streams} streams" if request.streams > 1 else "")


def candidates(request: EngineRequest, bundle: Bundle) -> Iterator[EngineRequest]:
    """What a request may mean here, the likeliest to be fast first; itself, where it leaves nothing open."""
    target = default_target() if request.target == "auto" else request.target
    for backend in _backends(request, target, bundle):
        precisions = _precisions(backend, target) if request.precision == "auto" else (request.precision,)
        for precision in precisions:
            settled = replace(request, backend=backend.name, precision=precision, target=target)
            yield from (replace(settled, streams=streams) for streams in _streams(settled))


def _backends(request: EngineRequest, target: Target, bundle: Bundle) -> Iterator[Backend]:
    if request.backend != "auto":
        yield backend_of(request.backend)
        return
    for backend in BACKENDS.values():
        tried = backend.name != "null" and (backend.raced or target == "cuda") and backend.missing() is None
        computes = target in backend.targets and request.precision in {"auto", *backend.precisions}
        if tried and computes and (backend.runs_graphs or not bundle.spec.imported):
            yield backend


def _precisions(backend: Backend, target: Target) -> tuple[Precision, ...]:
    """All of a backend's; processors compute in fp16 slowly, where they do at all, so there it must be asked for."""
    slow = {"fp16"} if target == "cpu" and "cpu" in backend.targets else set()
    return tuple(precision for precision in backend.precisions if precision not in slow)


def _streams(request: EngineRequest) -> tuple[int, ...]:
    """Numbers of streams to be compared: those that share the threads evenly; one where the backend knows no others."""
    if request.target == "cuda":
        return (1,)
    if request.streams:
        return (request.streams,)
    if request.backend != "openvino":
        return (1,)
    return tuple(streams for streams in (1, 2, 4, 8, 16) if request.threads % streams == 0)


def ranked(bundle: Bundle, request: EngineRequest, cache: Cache, *, again: bool = False) -> list[EngineRequest]:
    """The candidates that are available here, the fastest first, as measured once on this machine.

    A comparison in which one failed counts this time, and is made anew the next time.

    Raises:
        UnavailableError: none is available.
        EngineError: those that are have failed.
    """
    chosen = {label(candidate): candidate for candidate in candidates(request, bundle)}
    fields = choice_fields(bundle, request, list(chosen.values()))

    def race(folder: Path) -> None:
        (folder / CHOICE).write_text(json.dumps(_race(bundle, list(chosen.values()), cache)))

    def read(entry: Entry) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads((entry.path / CHOICE).read_text()))

    entry = cache.make("choice", fields, race, lambda entry: not again and not read(entry)["failed"])
    return [chosen[name] for name in read(entry)["order"]]


def label(request: EngineRequest | EngineRecord) -> str:
    """`openvino bf16 1`: what tells the runners of a race apart."""
    return f"{request.backend} {request.precision} {request.streams}"


def _race_tile(spec: ModelSpec) -> int:
    return min(spec.tiles, key=lambda edge: (abs(edge - RACE_TILE), edge))


def _race(bundle: Bundle, chosen: list[EngineRequest], cache: Cache) -> dict[str, Any]:
    """The answer of `models.engines.speed.race`."""
    runners = [asdict(replace(candidate, tile=_race_tile(bundle.spec))) for candidate in chosen]
    answer = run_child({"job": "race", "requests": runners, **addresses(bundle, cache)})
    for name, reason in answer["out"].items():
        log.info("not compared: %s: %s", name, reason)
    for name, reason in answer["failed"].items():
        log.warning("%s failed as engines were compared, and is left out: %s", name, reason)
    if not answer["order"]:
        missing = [(name, UnavailableError(reason)) for name, reason in answer["out"].items()]
        raise _none(missing + [(name, EngineError(reason)) for name, reason in answer["failed"].items()])
    return answer


def prepared(bundle: Bundle, request: EngineRequest, cache: Cache, *, again: bool = False) -> EngineRecord:
    """One definite engine, built if the cache lacks it. A refusal by the gate is remembered as well.

    What it is loaded from is there afterwards: lost or damaged parts are made again, and where the graph comes out in
    other bytes, it is gated and measured as the other engine that it is.
    """

    def stands(entry: Entry) -> bool:
        if again:
            return False
        return REFUSED in entry.files or _record(entry).digest == _restored(bundle, request, cache)

    fields = gated_fields(bundle, request)
    entry = cache.make("engine", fields, lambda folder: _build(bundle, request, cache, folder), stands)
    if REFUSED in entry.files:
        raise EngineError(json.loads((entry.path / REFUSED).read_text())["reason"])
    return _record(entry)


def _record(entry: Entry) -> EngineRecord:
    return EngineRecord.from_json((entry.path / RECORD).read_text())


def _restored(bundle: Bundle, request: EngineRequest, cache: Cache) -> str:
    """Digest of the engine that lies in the cache now; what has been lost or changed there is built again."""
    parts = [cache.get(kind, fields) for kind, fields in _parts(bundle, request).items()]
    if None in parts:
        _raise_refusal(run_child({"job": "build", "request": asdict(request), **addresses(bundle, cache)}))
    return record_of(bundle, request, cache).digest


def _parts(bundle: Bundle, request: EngineRequest) -> dict[str, dict[str, object]]:
    """Fields of the entries that an engine needs when it is loaded, by kind."""
    parts: dict[str, dict[str, object]] = {}
    if request.backend == "null":
        return parts
    if backend_of(request.backend).artefact is not None:
        parts["graph"] = graph_fields(bundle, request)
    parts["reference"] = reference_fields(bundle, request)
    if request.precision != "fp32":
        parts["calibration"] = calibration_fields(bundle, request)
    return parts


def choice_fields(bundle: Bundle, request: EngineRequest, chosen: list[EngineRequest]) -> dict[str, object]:
    """What the order of engines by speed depends on; not the tile, the pixels' type, nor what a network has learnt."""
    backends = [backend_of(name) for name in sorted({candidate.backend for candidate in chosen})]
    target = chosen[0].target_here
    return {
        "sources": {backend.name: backend.sources() for backend in backends},
        "versions": {backend.name: backend.versions(target) for backend in backends},
        "device": device(target),
        "network": _shape(bundle),
        "candidates": [label(candidate) for candidate in chosen],
        "threads": request.threads,
        "batch": request.batch,
        "tta": request.tta,
    }


def _shape(bundle: Bundle) -> dict[str, object]:
    """What a network computes, whatever its weights; of an imported one the bundle alone tells."""
    spec = bundle.spec
    if spec.imported:
        return {"bundle": bundle.digest}
    tiles = {"bands": len(spec.bands), "classes": len(spec.classes), "cell": spec.cell, "tile": _race_tile(spec)}
    return {**spec.trained.model_dump(mode="json"), **tiles}


def graph_fields(bundle: Bundle, request: EngineRequest) -> dict[str, object]:
    """What the compiled graph depends on."""
    backend, target = backend_of(request.backend), request.target_here
    fields: dict[str, object] = {
        "sources": backend.sources(),
        "backend": backend.name,
        "versions": backend.versions(target),
        "bundle": bundle.digest,
        "tile": request.tile,
        "batch": request.batch,
        "dtype": request.dtype,
        "planes": request.planes,
        "tta": request.tta,
    }
    if backend.artefact == "compiled":
        made_elsewhere = target == "cuda" and not gpus()  # TensorRT can do that
        fields |= {"precision": request.precision, "target": target, "threads": request.threads}
        fields |= {"device": None if made_elsewhere else device(target)}
    return fields


def reference_fields(bundle: Bundle, request: EngineRequest) -> dict[str, object]:
    """What the network's own answers on the probes depend on."""
    return {
        "sources": digest_of_sources(*NETWORK, *GATE),
        "versions": backend_of("onnxruntime" if bundle.spec.imported else "torch").versions(),
        "bundle": bundle.digest,
        "tile": request.tile,
        "dtype": request.dtype,
        "planes": request.planes,
        "tta": request.tta,
    }


def calibration_fields(bundle: Bundle, request: EngineRequest) -> dict[str, object]:
    """What the network's own straying depends on."""
    return reference_fields(bundle, request) | {"precision": request.precision}


def engine_fields(bundle: Bundle, request: EngineRequest) -> dict[str, object]:
    """What an engine depends on: whatever can change a byte of its output."""
    backend, target = backend_of(request.backend), request.target_here
    return {
        "sources": backend.sources(),
        "versions": backend.versions(target),
        "device": device(target),
        "bundle": bundle.digest,
        **asdict(replace(request, target=target)),
    }


def gated_fields(bundle: Bundle, request: EngineRequest) -> dict[str, object]:
    """What the gate's verdict depends on as well: another gate is asked anew, and its engine is the same."""
    return engine_fields(bundle, request) | {"gate": digest_of_sources(*GATE)}


def record_of(bundle: Bundle, request: EngineRequest, cache: Cache) -> EngineRecord:
    """The record before gate and measurement. Its digest covers the cached graph's bytes too."""
    portable = backend_of(request.backend).artefact is not None
    graph = cache.get("graph", graph_fields(bundle, request)) if portable else None
    fields = engine_fields(bundle, request) | {"graph": graph.files if graph else None}
    target = request.target_here
    return EngineRecord(
        digest=digest_of(fields),
        backend=cast("BackendName", request.backend),
        version=backend_of(request.backend).versions(target),
        precision=cast("Precision", request.precision),
        device=device(target),
        tile=request.tile,
        batch=request.batch,
        dtype=request.dtype,
        threads=request.threads,
        bundle=bundle.digest,
        peak_bytes=0,
        seconds_per_tile=0.0,
        parity=None,
        streams=request.streams,
        target=target,
        tta=request.tta,
        planes=request.planes,
    )


def check_request(bundle: Bundle, request: EngineRequest) -> None:
    """Refuse what the bundle does not promise, or no engine can do.

    Raises:
        EngineError: its tile, type, planes or backend; what is allowed.
    """
    spec = bundle.spec
    if request.tile not in spec.tiles:
        raise EngineError(f"tile {request.tile}: bundle {spec.name} has tiles {', '.join(map(str, spec.tiles))}")
    if request.dtype not in spec.dtypes:
        raise EngineError(f"{request.dtype} pixels: bundle {spec.name} takes {', '.join(spec.dtypes)}")
    try:
        check_planes(request.planes or spec.planes, spec.classes)
    except ValueError as error:
        raise EngineError(str(error)) from error
    if request.backend != "auto":
        _check_backend(backend_of(request.backend), request, bundle)


def _check_backend(backend: Backend, request: EngineRequest, bundle: Bundle) -> None:
    if bundle.spec.imported and not backend.runs_graphs:
        raise UnavailableError(
            f"engine {backend.name}: bundle {bundle.spec.name} holds an ONNX graph, which PyTorch does not run: choose "
            "openvino, onnxruntime or tensorrt"
        )
    if request.precision not in {"auto", *backend.precisions}:
        raise EngineError(
            f"engine {backend.name} has no {request.precision}: it computes in {', '.join(backend.precisions)}"
        )


def _build(bundle: Bundle, request: EngineRequest, cache: Cache, folder: Path) -> None:
    """Fill `folder` with record.json, or with refused.json where the gate says no, whoever asks again."""
    where, parity = addresses(bundle, cache), None
    if request.backend != "null":
        built = run_child({"job": "build", "request": asdict(request), **where})
        if "refused" in built:
            (folder / REFUSED).write_text(json.dumps({"reason": built["refused"]}))
            return
        _raise_refusal(built)
        parity = built["parity"]
    record = record_of(bundle, request, cache)
    measured = run_child({"job": "measure", "record": record.to_json(), **where})
    (folder / RECORD).write_text(replace(record, parity=parity, **measured).to_json())


def _raise_refusal(built: dict[str, Any]) -> None:
    """What is not available today may be tomorrow: it is said, and not remembered."""
    if reason := built.get("unavailable"):
        raise UnavailableError(reason)
    if reason := built.get("refused"):
        raise EngineError(reason)


def addresses(bundle: Bundle, cache: Cache) -> dict[str, str]:
    """Where a child, which runs in another folder, finds them."""
    return {"bundle": str(bundle.path.resolve()), "cache": str(cache.root)}


def planned(bundle: Bundle, request: EngineRequest, cache: Cache) -> str:
    """A TensorRT plan for a machine that may not be able to run it; says what was made.

    Raises:
        UnavailableError: not even a plan can be made here.
    """
    asked = replace(request, backend="tensorrt", target="cuda")
    made = run_child({"job": "plan", "request": asdict(asked), **addresses(bundle, cache)})
    _raise_refusal(made)
    digests = ", ".join(f"{name} {digest[:12]}" for name, digest in made["files"].items())
    return f"a plan of {made['bytes'] / 1e6:.1f} MB was made ({digests})"


def run_child(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job of `models.engines.build`: its answer, after its warnings have been told as if they were our own.

    Raises:
        EngineError: the child failed, with its last line, or was killed.
    """
    home = Path(next(iter(models.__path__))).parent  # so that the child imports the very code that runs here
    command = [sys.executable, "-m", "models.engines.build"]
    done = subprocess.run(
        command,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=home,
        env={**SETTINGS, **os.environ},
        check=False,
    )
    if done.returncode == 0:
        told = json.loads(done.stdout.splitlines()[-1])
        for name, warning in told["warnings"]:
            logging.getLogger(name).warning("%s", warning)
        return cast("dict[str, Any]", told["answer"])
    if done.returncode < 0:
        raise EngineError(
            f"the process that should {job['job']} the engine was killed by signal {-done.returncode}; "
            "signal 9 mostly means that memory ran out: choose a smaller tile or batch"
        )
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise EngineError(f"the process that should {job['job']} the engine failed: {last}")
