"""A whole archive, as often as you like: new and changed scenes only, and no scene's failure is another's.

A scene is done when its published `run.json` names its fingerprint and what was asked of it, and its mask and item are
there. That costs one listing of the archive and one small file a scene: no pixel, no GDAL, no engine. Another bundle is
for new scenes, unless a backfill is asked for.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.bundle import open_bundle
from pipeline.archive import Entry, Trust, list_archive
from pipeline.bottleneck import Spent
from pipeline.executors import Executor
from pipeline.many import ArchiveListener, ManyScenes, Wanted
from pipeline.outputs import ITEM, RUN
from pipeline.publish.collection import collect
from pipeline.publish.files import write_text
from pipeline.report import asked
from pipeline.schedule import Progress
from pipeline.segment import SegmentRequest
from pipeline.together import SceneResult
from pipeline.verify import MASK_TIF, verify

__all__ = ["ArchiveReport", "ArchiveRequest", "SceneResult", "pending", "segment_archive", "survey"]

SCHEMA = 2
"""2: what held the run up."""
REPORT = "archive.json"
"""Name of the report, in the folder of outputs."""


@dataclass(frozen=True)
class ArchiveRequest:
    """What a user asks for: an archive, and how each of its scenes is segmented."""

    archive: str
    """A folder, an fsspec address, or a STAC catalogue (see `list_archive`)."""
    pattern: SegmentRequest
    """The request for each scene, but for its path and its name."""
    match: str | None = None
    """Glob on the path below the archive; None: all scenes."""
    trust: Trust = "archive"
    backfill: bool = False
    """Whether results of another bundle are made anew."""
    check: bool = False
    """Whether the stored bytes of finished results are verified too; what is damaged is mended."""

    def of(self, entry: Entry) -> SegmentRequest:
        """The request for one scene."""
        return replace(self.pattern, scene=entry.address, name=entry.name)


@dataclass(frozen=True)
class ArchiveReport:
    """What became of an archive."""

    archive: str
    started: str
    """ISO 8601, as `finished`."""
    finished: str
    results: tuple[SceneResult, ...]
    """In the order of their names."""
    match: str | None = None
    """Glob of the scenes that were looked at; None: all of the archive."""
    bottleneck: dict[str, Any] | None = None
    """What held this run up, over all its scenes (see `pipeline.bottleneck`); None if nothing was segmented."""

    @property
    def failed(self) -> tuple[SceneResult, ...]:
        """The scenes that failed, those included that could not even be listed."""
        return tuple(result for result in self.results if result.status == "failed")

    @property
    def counts(self) -> dict[str, int]:
        """Scenes by what became of them: done, unchanged, failed."""
        seen = Counter(result.status for result in self.results)
        return {"done": seen["done"], "unchanged": seen["unchanged"], "failed": seen["failed"]}

    def to_json(self) -> dict[str, Any]:
        """What is written to `OUT/archive.json`."""
        return {"schema": SCHEMA, **asdict(self), "counts": self.counts}


def segment_archive(
    request: ArchiveRequest, executor: Executor, listen: ArchiveListener = lambda _: None
) -> ArchiveReport:
    """Segment the new and changed scenes of an archive; `listen` hears of each scene's progress and end,
    and at the start and after each end how many scenes of how many are settled (phase `archive`).

    A scene that fails is one line in the report, and the others go on. Hold `workshop.alone` meanwhile: of two such
    runs at once, each would find scenes that the other one holds.

    Raises:
        UsageError: the archive, the bundle or the folder of outputs is unusable: nothing was started.
    """
    started, began = _now(), time.perf_counter()
    pattern = request.pattern  # workers of a foreign cluster have working folders of their own
    pattern = replace(pattern, out=pattern.out.absolute(), bundle=pattern.bundle.absolute())
    request = replace(request, pattern=pattern)
    waiting, settled = survey(request)
    scenes = ManyScenes(executor, listen, len(waiting) + len(settled))
    listen(Progress("archive", 0, scenes.total))
    for result in settled:
        scenes.settle(result)
    scenes.work([Wanted(request.of(entry), entry.size) for entry in waiting], request.pattern.out)
    spent = scenes.effort.spent(time.perf_counter() - began, None, places=executor.engines)
    return _report(request, started, scenes.results, spent)


def pending(request: ArchiveRequest) -> list[Entry]:
    """The scenes that `segment_archive` would segment: new, changed, or with `backfill` of another bundle.

    Raises:
        UsageError: the archive or the bundle is unusable.
    """
    return survey(request)[0]


def survey(request: ArchiveRequest) -> tuple[list[Entry], list[SceneResult]]:
    """The scenes that wait, and the results of those that do not: unchanged ones, and what cannot be a scene.

    Raises:
        UsageError: the archive or the bundle is unusable.
    """
    bundle, pattern = open_bundle(request.pattern.bundle).digest, request.pattern
    listing = list_archive(
        request.archive, trust=request.trust, match=request.match, out=pattern.out, pattern=pattern.scene
    )
    settled = [SceneResult(name, name, "failed", message) for name, message in listing.problems]
    waiting: list[Entry] = []
    for entry in listing.scenes:
        if _is_done(request, entry, bundle):
            settled.append(SceneResult(entry.name, entry.address.path, "unchanged"))
        else:
            waiting.append(entry)
    return waiting, settled


def _is_done(request: ArchiveRequest, entry: Entry, bundle: str) -> bool:
    folder = request.of(entry).folder
    try:
        facts = json.loads((folder / RUN).read_bytes())
        same = facts["scene"]["fingerprint"] == entry.fingerprint and facts["asked"] == asked(entry.address)
        if not same or (request.backfill and facts["bundle"]["digest"] != bundle):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not all((folder / name).is_file() for name in (MASK_TIF, ITEM)):  # somebody has removed them
        return False
    return not (request.check and verify(folder).problems)


def _report(
    request: ArchiveRequest, started: str, results: Sequence[SceneResult], spent: Spent | None
) -> ArchiveReport:
    ordered = tuple(sorted(results, key=lambda result: result.name))
    found = spent.to_json() if spent else None
    report = ArchiveReport(request.archive, started, _now(), ordered, request.match, found)
    out: Path = request.pattern.out
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / REPORT, json.dumps(report.to_json(), indent=1) + "\n")
    collect(out, request.archive, (result.name for result in ordered), complete=request.match is None)
    return report


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
