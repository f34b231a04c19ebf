"""The gate as it is run on this machine: stored reference answers against an engine."""

import json
from itertools import islice
from typing import Any

import numpy as np

from models import parity
from models.bundle import Bundle
from models.engines.base import Engine, EngineRecord, EngineRequest
from models.engines.cache import Cache
from models.engines.prepare import calibration_fields, reference_fields
from models.errors import EngineError
from models.parity import Difference, Reference
from models.probes import probes

REFERENCE = "reference.npz"
CALIBRATION = "calibration.json"


def gate(bundle: Bundle, engine: Engine, cache: Cache, *, limit: int | None = None) -> dict[str, Any]:
    """The report of `parity.judge` over the first `limit` probes, or all of them.

    Raises:
        EngineError: the reference answers are not in the cache.
    """
    record = engine.record
    stored = cache.get("reference", reference_fields(bundle, record.request))
    if stored is None:
        raise EngineError(
            f"the network's own answers for engine {record.digest[:12]} are gone from {cache.root}: prepare it again"
        )
    eager = _calibration(bundle, record, cache) if record.precision != "fp32" else {}
    chosen = list(islice(probes(bundle, record.tile, record.dtype), limit))
    names = reference_planes(bundle, record.request)
    with np.load(stored.path / REFERENCE, allow_pickle=False) as arrays:

        def reference(name: str) -> Reference:
            return Reference.from_array(arrays[name], names)

        found = parity.differences(engine, chosen, reference, record.planes or bundle.spec.planes)
    moved = parity.moved(engine, chosen) if limit is None else 0
    return parity.judge(found, eager, record.precision, moved=moved)


def reference_planes(bundle: Bundle, request: EngineRequest) -> tuple[str, ...]:
    """Planes that the reference knows: what the engine returns, labels and confidence in any case."""
    return tuple(dict.fromkeys(("labels", "confidence", *(request.planes or bundle.spec.planes))))


def _calibration(bundle: Bundle, record: EngineRecord, cache: Cache) -> dict[str, Difference]:
    stored = cache.get("calibration", calibration_fields(bundle, record.request))
    if stored is None:
        raise EngineError(
            f"the network's own {record.precision} answers are gone from {cache.root}: prepare the engine again"
        )
    return {name: Difference(**value) for name, value in json.loads((stored.path / CALIBRATION).read_text()).items()}
