"""Loading a pinned engine into a worker. Imports torch only for engines that are PyTorch's or run on a GPU."""

import os
from dataclasses import fields
from pathlib import Path

from models.bundle import Bundle, open_bundle
from models.engines.backends import backend_of
from models.engines.base import Engine, EngineRecord
from models.engines.cache import Cache
from models.engines.gate import gate
from models.engines.null import NullEngine
from models.engines.prepare import SETTINGS, graph_fields, prepared
from models.errors import EngineError

LOAD_PIXELS = 1 << 20
"""Pixels of the probes, one at least, that each worker repeats of those that the engine passed when it was prepared, at
most `LOAD_PROBES`. They show that what was loaded is that engine; more would cost seconds in every run."""
LOAD_PROBES = 2


def load_engine(bundle_path: Path | str, record: EngineRecord, cache: Path | None = None) -> Engine:
    """The engine that `record` pins, built first if this machine's cache lacks it, and checked on a few probes.

    Raises:
        EngineError: this machine would make another engine, or the engine does not agree with the bundle's network.
    """
    bundle, store = open_bundle(Path(bundle_path).resolve()), Cache(cache)
    if bundle.digest != record.bundle:
        raise EngineError(
            f"engine {record.digest[:12]} was made of bundle {record.bundle[:12]}, not {bundle.digest[:12]}"
        )
    here = prepared(bundle, record.request, store)
    if record.digest != here.digest:
        raise EngineError(_other(record, here))
    return open_checked(bundle, record, store)


def open_checked(bundle: Bundle, record: EngineRecord, cache: Cache) -> Engine:
    """The engine from its cached artefacts, after a probe or two."""
    engine = open_engine(bundle, record, cache)
    if record.backend == "null":
        return engine
    report = gate(bundle, engine, cache, limit=max(1, min(LOAD_PROBES, LOAD_PIXELS // record.tile**2)))
    if report["reasons"]:
        raise EngineError(f"engine {record.digest[:12]} does not agree with the network: {report['reasons']}")
    return engine


def open_engine(bundle: Bundle, record: EngineRecord, cache: Cache) -> Engine:
    """The engine from its cached artefacts, unchecked."""
    if record.backend == "null":
        return NullEngine(record, len(record.planes or bundle.spec.planes))
    for setting in SETTINGS.items():
        os.environ.setdefault(*setting)
    backend = backend_of(record.backend)
    if backend.artefact is None:
        return backend.module.load(record, bundle, None)
    graph = cache.get("graph", graph_fields(bundle, record.request))
    if graph is None:
        raise EngineError(f"the graph of engine {record.digest[:12]} is gone from {cache.root}: prepare it again")
    return backend.module.load(record, bundle, graph.path)


def _other(record: EngineRecord, here: EngineRecord) -> str:
    measured = {"digest", "peak_bytes", "seconds_per_tile", "parity", "device_bytes"}
    names = [field.name for field in fields(record) if field.name not in measured]
    pairs = ((name, getattr(record, name), getattr(here, name)) for name in names)
    differences = [f"{name} {pinned!r}, here {ours!r}" for name, pinned, ours in pairs if pinned != ours]
    way_out = "run it on machines that are alike"
    if not differences and backend_of(record.backend).artefact == "compiled":
        way_out = f"share WIDEFIELD_CACHE between workers, since {record.backend} compiles to other bytes each time"
    return (
        f"this machine would make another engine than {record.digest[:12]} "
        f"({'; '.join(differences) or 'the graph differs, or the code that makes it'}): one output is made by one "
        f"engine, so {way_out}, or start a new output"
    )
