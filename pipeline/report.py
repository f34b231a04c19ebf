"""`run.json`: what was made of what, by what, and how fast. Written once for each result, with a schema number."""

import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from models.engines.meter import Times
from pipeline.bottleneck import Spent
from pipeline.ledger import BlockRecord
from pipeline.plan import Plan
from pipeline.publish.classes import number
from pipeline.scene import SceneAddress
from pipeline.statistics import area_totals, class_totals, confidence_totals
from pipeline.worker import TaskReport

SCHEMA = 2
"""2: what held the run up, and the tiles that were empty."""


@dataclass
class Effort:
    """What the tasks of a run took together."""

    pixels: int = 0
    """Scene pixels that were segmented."""
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "wait", "write"), 0.0))
    """Wall seconds of blocks, by stage."""
    outside_seconds: float | None = 0.0
    """CPU seconds of segmenting tasks outside the engine; None where the system does not tell."""
    peak_bytes: int = 0
    """Largest resident set of a worker."""
    engine: Times = field(default_factory=Times)
    """What the engines did with their time."""
    start: float = 0.0
    """Seconds that loading engines took."""
    staging: dict[str, float] = field(default_factory=dict)
    """Seconds that copying the scene took, by the process that did it."""
    readers: int = 0
    """Most threads of a worker that read blocks."""
    writers: int = 0
    """Most threads of a worker that wrote blocks."""
    workers: set[str] = field(default_factory=set)
    """Names of the processes that segmented: each has an engine."""
    places: int = 1
    """Processes that the executor keeps alive at the same time."""

    @property
    def engines(self) -> int:
        """Engines that worked side by side: a worker that died and came back has a second name, but no second place."""
        return min(len(self.workers), self.places)

    def add(self, report: TaskReport) -> None:
        """Count one task in."""
        self.peak_bytes = max(self.peak_bytes, report.peak_bytes)
        self.engine += report.engine
        self.start += report.start
        self.readers, self.writers = max(self.readers, report.readers), max(self.writers, report.writers)
        if report.kind == "stage":
            self.staging[report.worker] = self.staging.get(report.worker, 0.0) + report.seconds
        if report.kind == "segment" and report.worker:
            self.workers.add(report.worker)
        for record in report.records:
            self.pixels += record.window.pixels
            for stage in self.stages:
                self.stages[stage] += record.seconds.get(stage, 0.0)
        if report.records:
            known = self.outside_seconds is not None and report.outside_seconds is not None
            self.outside_seconds = (self.outside_seconds or 0.0) + (report.outside_seconds or 0.0) if known else None


def facts(
    plan: Plan,
    records: Collection[BlockRecord],
    effort: Effort,
    seconds: Mapping[str, float],
    resumed: int,
    *,
    wanted: SceneAddress,
) -> dict[str, Any]:
    """Everything that a reader of the result may ask.

    `seconds` holds wall time by phase of this run; `resumed` counts the blocks that earlier runs had recorded; `wanted`
    is the scene as it was asked for, before the plan chose its bands.
    """
    return {
        "schema": SCHEMA,
        "key": plan.key,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "scene": {
            "path": plan.scene.path,
            "fingerprint": plan.fingerprint,
            "bands": list(plan.bands),
            "dtype": plan.dtype,
            "height": plan.grid.height,
            "width": plan.grid.width,
            "radiometry": {"scale": list(plan.radiometry.scale), "offset": list(plan.radiometry.offset)},
            "origin": plan.origin,
        },
        "asked": asked(wanted),
        "bundle": {
            "name": plan.spec.name,
            "digest": plan.engine.bundle,
            "licence": plan.spec.licence,
            "attribution": plan.spec.attribution,
        },
        "engine": json.loads(plan.engine.to_json()),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("widefield", "numpy", "zarr", "rasterio")},
        },
        "grid": {
            "tile": plan.grid.tile,
            "halo": plan.grid.halo,
            "core": plan.grid.core,
            "cell": plan.spec.cell,
            "block": plan.block,
            "tiles": plan.costs.tiles,
            "overhead": plan.costs.overhead,
        },
        "notes": list(plan.notes),
        "coverage": _coverage(plan, records),
        "classes": _classes(plan, records),
        "confidence_histogram": confidence_totals(records),
        "blocks": {"total": len(records), "resumed": resumed, "done": len(records) - resumed},
        "speed": _speed(plan, effort, seconds),
        "bottleneck": _bottleneck(plan, effort, seconds),
        "memory": {
            "planned_bytes": plan.costs.peak_bytes,
            "peak_bytes": effort.peak_bytes,
        },
    }


def asked(address: SceneAddress) -> dict[str, Any]:
    """What a request decides about a scene's content, as it is recorded: an archive compares it with what it asks."""
    facts: dict[str, Any] = json.loads(json.dumps(address.content()))
    return facts | {"trust": address.policy.trust}


def _coverage(plan: Plan, records: Collection[BlockRecord]) -> dict[str, int]:
    tiles = sum(record.tiles for record in records)
    return {
        "pixels": plan.grid.scene.pixels,
        "written": sum(record.window.pixels for record in records),
        "valid": sum(record.valid for record in records),
        "classified": sum(record.classified for record in records),
        "tiles": tiles,
        "empty_tiles": plan.costs.tiles - tiles,
    }


def _classes(plan: Plan, records: Collection[BlockRecord]) -> list[dict[str, Any]]:
    counts, areas = class_totals(records), area_totals(records)
    total = counts.total()
    return [
        {
            "id": entry.id,
            "value": number(entry),
            "name": entry.name,
            "pixels": counts[entry.id],
            "share": counts[entry.id] / total if total else 0.0,
            "area_m2": None if areas is None else areas.get(entry.id, 0.0),
        }
        for entry in plan.spec.classes
    ]


def _speed(plan: Plan, effort: Effort, seconds: Mapping[str, float]) -> dict[str, Any]:
    megapixels = effort.pixels / 1e6
    return {
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "megapixels_per_second": {
            phase: plan.grid.scene.pixels / 1e6 / value if phase == "publish" else megapixels / value
            for phase, value in seconds.items()
            if value > 0
        },
        "block_seconds": {stage: round(value, 3) for stage, value in effort.stages.items()},
        "outside_engine_core_ms_per_megapixel": (
            1e3 * effort.outside_seconds / megapixels if megapixels and effort.outside_seconds is not None else None
        ),
    }


def _bottleneck(plan: Plan, effort: Effort, seconds: Mapping[str, float]) -> dict[str, Any] | None:
    """What held the run up; None where nobody knows: the scene shared an engine with others, or nothing was left."""
    if not effort.engine.total:
        return None
    spent = Spent(
        segment=seconds["segment"],
        publish=seconds["publish"],
        workers=effort.engines,
        engine=effort.engine,
        start=effort.start,
        staging=sum(effort.staging.get(worker, 0.0) for worker in effort.workers),
        read=effort.stages["read"],
        write=effort.stages["write"],
        pixels=effort.pixels,
        readers=effort.readers,
        writers=effort.writers,
        staged=plan.stage,
    )
    return spent.to_json()
