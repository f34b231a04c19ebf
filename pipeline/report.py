"""`run.json`: what was made of what, by what, and how fast. Written once for each result, with a schema number."""

import json
import platform
from collections import defaultdict
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

SCHEMA = 3
"""2: what held the run up, and the tiles that were empty. 3: of scenes that went through an engine together, too."""


@dataclass
class Effort:
    """What the tasks of a run took together."""

    together: int = 1
    """Scenes whose tasks they are."""
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
    others: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of what else was done (see `TaskReport.kind`, and `prepare` for engines of small scenes), by what it was
    and the process that did it.
    """
    staged: bool = False
    """Whether blocks were read from image.zarr."""
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
        if report.kind != "segment":
            self.others[report.kind, report.worker] += report.seconds
        elif report.worker:
            self.workers.add(report.worker)
        for record in report.records:
            self.pixels += record.window.pixels
            for stage in self.stages:
                self.stages[stage] += record.seconds.get(stage, 0.0)
        if report.records:
            self.outside_seconds = _sum(self.outside_seconds, report.outside_seconds)

    def join(self, other: "Effort") -> None:
        """Count in what the tasks of other scenes took."""
        self.together += other.together if other.workers else 0
        self.pixels += other.pixels
        for stage in self.stages:
            self.stages[stage] += other.stages[stage]
        self.outside_seconds = _sum(self.outside_seconds, other.outside_seconds)
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        self.engine += other.engine
        self.start += other.start
        for key, seconds in other.others.items():
            self.others[key] += seconds
        self.staged |= other.staged
        self.readers, self.writers = max(self.readers, other.readers), max(self.writers, other.writers)
        self.workers |= other.workers

    def spent(self, segment: float, publish: float | None, places: int = 0) -> Spent | None:
        """Where `segment` seconds went, and then `publish` for the files; that is None where they were written
        meanwhile. None if no engine had anything to do.

        `places` for engines there were at least, maybe idle ones. What a process did that has never segmented is
        not counted.
        """
        if not self.engine.total:
            return None
        return Spent(
            segment=segment,
            publish=publish or 0.0,
            workers=max(self.engines, places),
            engine=self.engine,
            start=self.start + self._other("prepare"),
            staging=self._other("stage"),
            read=self.stages["read"],
            write=self.stages["write"],
            pixels=self.pixels,
            readers=self.readers,
            writers=self.writers,
            staged=self.staged,
            opening=self._other("open"),
            publishing=self._other("publish") if publish is None else 0.0,
            together=self.together,
        )

    def _other(self, kind: str) -> float:
        return sum(
            seconds for (what, worker), seconds in self.others.items() if what == kind and worker in self.workers
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


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
    is the scene as it was asked for, before the plan chose its bands. Of small scenes that went through an engine
    together, `effort` and `seconds` are those of all of them, and so is what is told of speed and the bottleneck.
    """
    spent = effort.spent(seconds["segment"], seconds["publish"])
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
        "bottleneck": spent.to_json() if spent else None,
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
