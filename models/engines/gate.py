"""The gate as it is run on this machine: stored reference answers against an engine."""

import json
from itertools import islice
from typing import Any

import numpy as np

from models import parity
from models.bundle import Bundle
from models.engines.base import Engine, EngineRecord
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
            f"the eager answers for engine {record.digest[:12]} are gone from {cache.root}: prepare it again"
        )
    eager = _calibration(bundle, record, cache) if record.precision != "fp32" else {}
    chosen = islice(probes(bundle, record.tile, record.dtype), limit)
    with np.load(stored.path / REFERENCE, allow_pickle=False) as arrays:
        found = parity.differences(engine, chosen, lambda name: Reference(*arrays[name]), bundle.spec.planes)
    return parity.judge(found, eager, record.precision)


def _calibration(bundle: Bundle, record: EngineRecord, cache: Cache) -> dict[str, Difference]:
    stored = cache.get("calibration", calibration_fields(bundle, record.request))
    if stored is None:
        raise EngineError(f"eager {record.precision} answers are gone from {cache.root}: prepare the engine again")
    return {name: Difference(**value) for name, value in json.loads((stored.path / CALIBRATION).read_text()).items()}
