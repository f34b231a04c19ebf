"""How fast engines are: one alone, or several beside each other."""

import gc
import math
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
from models.engines.prepare import addresses, label, named, record_of, run_child
from models.errors import EngineError, UnavailableError
from models.probes import probes

WARM_UP, RUNS = 1, 7
SECONDS = 3.0
"""Measuring stops at `RUNS` batches, or after this long."""
TURNS = 5
"""Rounds of each of two runners that are compared, at most."""
DUEL = 10.0
"""Seconds after which they are compared by the rounds that they have had."""
HOPELESS = 1.5
"""Where one's best round takes so many times the other's, more rounds would not change the verdict."""
CLEARLY = 1.05
"""How many times as fast as the first of the candidates another one must be to go before it: noise decides nothing."""


@dataclass(frozen=True)
class Speed:
    """What an engine takes, whether or not it passes its gate."""

    seconds_per_tile: float
    """Median, after warming up."""
    peak_bytes: int
    """Largest resident set of a process that loaded it and ran it."""
    device_bytes: int = 0
    """Memory of its GPU that is taken while it is loaded; 0 on a CPU."""


def measure(bundle: Bundle, request: EngineRequest, cache: Cache) -> Speed:
    """Compile one definite engine and measure it in a process of its own. It is not gated.

    Raises:
        EngineError: it is not available here, or fails.
    """
    where = addresses(bundle, cache)
    compiled = run_child({"job": "compile", "request": asdict(request), **where})
    if "unavailable" in compiled:
        raise UnavailableError(f"{named(request)}: {compiled['unavailable']}")
    record = record_of(bundle, request, cache).to_json()
    return Speed(**run_child({"job": "measure", "record": record, "checked": False, **where}))


def seconds_per_tile(bundle: Bundle, engine: Engine) -> float:
    """Median seconds a tile in a steady stream of full batches, with as many in flight as it has streams."""
    return _steady(engine, full_batch(bundle, engine))


def full_batch(bundle: Bundle, engine: Engine) -> Batch:
    """The first probe in every slot of the engine's batch."""
    record = engine.record
    probe = next(probes(bundle, record.tile, record.dtype)).batch
    pixels, valid = probe.pixels.repeat(record.batch, 0), probe.valid.repeat(record.batch, 0)
    return Batch(pixels, valid, probe.scale, probe.offset)


@dataclass(frozen=True, eq=False)
class Runner:
    """An engine in a race."""

    label: str
    engine: Engine
    batch: Batch

    def round(self) -> float:
        """Seconds a tile: on a processor of as many batches as there are streams, on a GPU with its slots full."""
        if self.engine.record.target == "cuda":
            return _steady(self.engine, self.batch)
        record, start = self.engine.record, time.perf_counter()
        deque(self.engine.map(repeat(self.batch, record.streams)), maxlen=0)
        return (time.perf_counter() - start) / (record.streams * record.batch)


def race(bundle: Bundle, requests: Sequence[EngineRequest], start: Callable[[EngineRequest], Engine]) -> dict[str, Any]:
    """{"order": labels, the fastest first; "seconds": of a tile, by label; "out", "failed": reasons, by label}.

    `start` opens an engine, or raises UnavailableError: it is out. Whatever else happens to one, it has failed. Each
    challenges the fastest of those before it, and only these two are open.
    """
    seconds: dict[str, float] = {}
    out: dict[str, str] = {}
    failed: dict[str, str] = {}
    leader: Runner | None = None
    for request in requests:
        name = label(request)
        try:
            leader = _winner(leader, _runner(bundle, start(request)), seconds)
        except UnavailableError as error:
            out[name] = str(error)
        except Exception as error:  # noqa: BLE001 - a library may raise anything, and the next one may be sound
            failed[name] = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        gc.collect()  # threads and callbacks of the one that lost point back at it
    first = next(iter(seconds), "")
    order = sorted(seconds, key=lambda name: seconds[name] / (CLEARLY if name == first else 1))
    return {"order": order, "seconds": seconds, "out": out, "failed": failed}


def _runner(bundle: Bundle, engine: Engine) -> Runner:
    return Runner(label(engine.record), engine, full_batch(bundle, engine))


def _winner(leader: Runner | None, challenger: Runner, seconds: dict[str, float]) -> Runner:
    """The faster of two; adds the challenger to `seconds`.

    They take turns, so that other work on the machine slows both alike, and each counts by its best round. Where the
    leader's seconds were measured at another time, the challenger's are told in proportion to them.
    """
    challenger.round()  # warms up
    if leader is None:
        seconds[challenger.label] = challenger.round()
        return challenger
    theirs = ours = math.inf
    begun = time.perf_counter()
    for _ in range(TURNS):
        theirs, ours = min(theirs, leader.round()), min(ours, challenger.round())
        if max(theirs, ours) > HOPELESS * min(theirs, ours) or time.perf_counter() - begun > DUEL:
            break
    seconds[challenger.label] = seconds[leader.label] * ours / theirs
    return challenger if ours < theirs else leader


def _steady(engine: Engine, batch: Batch) -> float:
    """Median seconds a tile in a stream of batches, after warming up."""
    return median(list(_rounds(engine, batch))[WARM_UP:])


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
