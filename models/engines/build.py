"""The child process that builds and measures engines: one job as JSON on stdin, its answer as the last line of stdout.

python -m models.engines.build
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.bundle import Bundle, open_bundle
from models.engines.backends import BACKENDS, backend_of
from models.engines.base import EngineRecord, EngineRequest
from models.engines.cache import Cache
from models.engines.gate import gate
from models.engines.load import open_checked, open_engine
from models.engines.prepare import graph_fields, record_of
from models.engines.speed import peak_bytes, race, seconds_per_tile
from models.errors import UnavailableError

Job = Mapping[str, Any]
Answer = dict[str, Any]


def main() -> None:
    """Do the job on stdin: {"answer": ..., "warnings": [[logger, message], ...]}.

    What libraries print goes to standard error: the answer stands alone.
    """
    job, warnings = json.load(sys.stdin), Warnings()
    logging.getLogger("models").addHandler(warnings)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = JOBS[job["job"]](job)
    answers.write(json.dumps({"answer": answer, "warnings": warnings.kept}) + "\n")
    answers.flush()


class Warnings(logging.Handler):
    """Keeps what this project warns of, for the process that waits for the answer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the logger's name and the message."""
        self.kept.append((record.name, record.getMessage()))


def _list(job: Job) -> Answer:
    """Why each engine cannot serve on this machine, by backend and precision; None where it can."""
    target = job["target"]
    return {
        backend.name: {precision: _unavailable(backend.name, target, precision) for precision in backend.precisions}
        for backend in BACKENDS.values()
    }


def _build(job: Job) -> Answer:
    """Graph, reference answers, gate: {"parity": report}, {"refused": reason} or {"unavailable": reason}."""
    bundle, cache, request = _bundle(job), Cache(job["cache"]), EngineRequest(**job["request"])
    if reason := _unavailable(request.backend, request.target_here, request.precision):
        return {"unavailable": reason}
    from models.engines import reference

    compile_graph(bundle, request, cache)
    reference.ensure(bundle, request, cache)
    engine = open_engine(bundle, record_of(bundle, request, cache), cache)
    report = gate(bundle, engine, cache)
    reasons = report["reasons"]
    return {"refused": f"it does not agree with the network: {'; '.join(reasons)}"} if reasons else {"parity": report}


def _compile(job: Job) -> Answer:
    """The graph alone, ungated: {} or {"unavailable": reason}."""
    request = EngineRequest(**job["request"])
    if reason := _unavailable(request.backend, request.target_here, request.precision):
        return {"unavailable": reason}
    compile_graph(_bundle(job), request, Cache(job["cache"]))
    return {}


def _plan(job: Job) -> Answer:
    """A TensorRT plan, also for another machine: {"files": {name: sha256}, "bytes": n}, or {"unavailable": reason}."""
    from models.engines.tensorrt import unbuildable

    bundle, cache, request = _bundle(job), Cache(job["cache"]), EngineRequest(**job["request"])
    if reason := unbuildable():
        return {"unavailable": reason}
    compile_graph(bundle, request, cache)
    entry = cache.get("graph", graph_fields(bundle, request))
    assert entry is not None  # noqa: S101 - made by the line above
    return {"files": entry.files, "bytes": sum((entry.path / name).stat().st_size for name in entry.files)}


def _measure(job: Job) -> Answer:
    """What a worker will pay: this process has loaded the engine as workers do, and nothing else."""
    bundle, record, cache = _bundle(job), EngineRecord.from_json(job["record"]), Cache(job["cache"])
    load = open_checked if job.get("checked", True) else open_engine
    engine = load(bundle, record, cache)
    seconds = seconds_per_tile(bundle, engine)
    return {"seconds_per_tile": seconds, "peak_bytes": peak_bytes(), "device_bytes": engine.device_bytes}


def _race(job: Job) -> Answer:
    """Requests in the order of their speed, and why the others are not among them: see `models.engines.speed.race`."""
    bundle, cache = _bundle(job), Cache(job["cache"])

    def start(request: EngineRequest) -> Any:
        if reason := _unavailable(request.backend, request.target_here, request.precision):
            raise UnavailableError(reason)
        compile_graph(bundle, request, cache)
        return open_engine(bundle, record_of(bundle, request, cache), cache)

    return race(bundle, [EngineRequest(**request) for request in job["requests"]], start)


JOBS: Mapping[str, Callable[[Job], Answer]] = {
    "list": _list,
    "build": _build,
    "compile": _compile,
    "plan": _plan,
    "measure": _measure,
    "race": _race,
}


def compile_graph(bundle: Bundle, request: EngineRequest, cache: Cache) -> None:
    """Have what the backend compiles in the cache, where it compiles anything."""
    backend = backend_of(request.backend)
    if backend.artefact is None:
        return

    def fill(folder: Path) -> None:
        backend.module.compile_graph(bundle, request, folder)

    cache.make("graph", graph_fields(bundle, request), fill)


def _unavailable(name: str, target: Any, precision: Any) -> str | None:
    backend = backend_of(name)
    if name == "null":
        return None
    try:
        return backend.missing() or backend.module.unavailable(target, precision)
    except (ImportError, OSError) as error:  # installed, and not whole
        return f"its library cannot be loaded ({error}): install it anew"


def _bundle(job: Job) -> Bundle:
    return open_bundle(job["bundle"])


if __name__ == "__main__":
    main()
