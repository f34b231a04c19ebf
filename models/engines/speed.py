"""How fast engines are: one alone, or several beside each other."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

from models.bundle import Bundle
from models.engines.base import Batch, Engine, EngineRequest
from models.engines.cache import Cache
from models.engines.prepare import named, record_of, run_child
from models.errors import EngineError, UnavailableError
from models.probes import probes

WARM_UP, RUNS = 1, 7
SECONDS = 3.0
"""Measuring stops at `RUNS` batches, or after this long."""
TURNS = 4
"""Rounds of each runner in a race, after the first two."""
HOPELESS = 1.5
"""A runner whose best round takes so many times the leader's drops out of the race."""
CLEARLY = 1.05
"""How many times as fast as the first of the candidates another one must be to go before it: noise decides nothing."""


@dataclass(frozen=True)
class Speed:
    """What an engine takes, whether or not it passes its gate."""

    seconds_per_tile: float
    """Median, after warming up."""
    peak_bytes: int
    """Largest resident set of a process that loaded it and ran it."""


def measure(bundle: Bundle, request: EngineRequest, cache: Cache) -> Speed:
    """Compile one definite engine and measure it in a process of its own. It is not gated.

    Raises:
        EngineError: it is not available here, or fails.
    """
    addresses = {"bundle": str(bundle.path), "cache": str(cache.root)}
    compiled = run_child({"job": "compile", "request": asdict(request), **addresses})
    if "unavailable" in compiled:
        raise UnavailableError(f"{named(request)}: {compiled['unavailable']}")
    record = record_of(bundle, request, cache).to_json()
    return Speed(**run_child({"job": "measure", "record": record, "checked": False, **addresses}))


def seconds_per_tile(bundle: Bundle, engine: Engine) -> float:
    """Median seconds a tile in a steady stream of full batches, with as many in flight as it has streams."""
    return median(list(_rounds(engine, full_batch(bundle, engine)))[WARM_UP:])


def full_batch(bundle: Bundle, engine: Engine) -> Batch:
    """The first probe in every slot of the engine's batch."""
    record = engine.record
    probe = next(probes(bundle, record.tile, record.dtype)).batch
    pixels, valid = probe.pixels.repeat(record.batch, 0), probe.valid.repeat(record.batch, 0)
    return Batch(pixels, valid, probe.scale, probe.offset)


def race(bundle: Bundle, requests: Sequence[EngineRequest], start: Callable[[EngineRequest], Engine]) -> dict[str, Any]:
    """{"order": labels, the fastest first; "seconds": of a tile, by label; "out": reasons, by label}.

    `start` opens an engine, or raises EngineError. The runners take turns, so that other work on the machine slows all
    alike, and each counts by its best round. What is hopeless drops out early.
    """
    best: dict[str, float] = {}
    out: dict[str, str] = {}
    runners: dict[str, tuple[Engine, Batch]] = {}
    for request in requests:
        label = f"{request.backend} {request.precision} {request.streams}"
        try:
            engine = start(request)
            batch = full_batch(bundle, engine)
            _round(engine, batch)
            best[label] = _round(engine, batch)
            runners[label] = engine, batch
        except EngineError as error:
            out[label] = str(error)
    for _ in range(TURNS):
        leader = min(best.values(), default=0.0)
        runners = {label: runner for label, runner in runners.items() if best[label] <= HOPELESS * leader}
        for label, runner in runners.items():
            best[label] = min(best[label], _round(*runner))
    first = next(iter(best), "")
    order = sorted(best, key=lambda label: best[label] / (CLEARLY if label == first else 1))
    return {"order": order, "seconds": best, "out": out}


def _round(engine: Engine, batch: Batch) -> float:
    """Seconds a tile of as many batches as the engine has streams."""
    streams, start = engine.record.streams, time.perf_counter()
    deque(engine.map(repeat(batch, streams)), maxlen=0)
    return (time.perf_counter() - start) / (streams * engine.record.batch)


def _rounds(engine: Engine, batch: Batch) -> Iterator[float]:
    """Seconds a tile in a steady stream of batches, by rounds of as many batches as the engine has streams."""
    streams, tiles = engine.record.streams, engine.record.batch
    start = last = time.perf_counter()
    for done, _ in enumerate(engine.map(repeat(batch, (WARM_UP + RUNS) * streams)), 1):
        if done % streams:
            continue
        now = time.perf_counter()
        yield (now - last) / (streams * tiles)
        last = now
        if now - start > SECONDS and done > WARM_UP * streams:  # a large network's first batch may take longer
            break


def peak_bytes() -> int:
    """Largest resident set of this program; `ru_maxrss` would count the parent's, which survives exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
