"""How fast engines are: one alone, or several beside each other."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
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
HOPELESS = 1.5
"""A runner that takes so many times the leader's seconds for a tile is not measured any further."""
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

    `start` opens an engine, or raises EngineError. What is hopeless after one batch is placed by that one.
    """
    seconds: dict[str, float] = {}
    out: dict[str, str] = {}
    for request in requests:
        label = f"{request.backend} {request.precision} {request.streams}"
        try:
            engine = start(request)
            leader = min(seconds.values(), default=float("inf"))
            seconds[label] = _against(leader, engine, full_batch(bundle, engine))
        except EngineError as error:
            out[label] = str(error)
        else:
            del engine  # before the next one takes its memory
    first = next(iter(seconds), "")
    order = sorted(seconds, key=lambda label: seconds[label] / (CLEARLY if label == first else 1))
    return {"order": order, "seconds": seconds, "out": out}


def _against(leader: float, engine: Engine, batch: Batch) -> float:
    """Median seconds a tile; those of a single round where the leader is out of reach."""
    found: list[float] = []
    with closing(_rounds(engine, batch)) as rounds:
        for count, seconds in enumerate(rounds):
            if count >= WARM_UP:
                found.append(seconds)
                if found[0] > HOPELESS * leader:
                    break
    return median(found)


def _rounds(engine: Engine, batch: Batch) -> Generator[float, None, None]:
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
