"""A whole archive, as often as you like: new and changed scenes only, and no scene's failure is another's.

A scene is done when its published `run.json` names its fingerprint and what was asked of it. That costs one listing of
the archive and one small file a scene: no pixel, no GDAL, no engine. Another bundle is for new scenes, unless a
backfill is asked for.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from models.bundle import open_bundle
from pipeline.archive import Entry, Trust, list_archive
from pipeline.errors import OutputError, UsageError, WidefieldError
from pipeline.executors import Executor
from pipeline.outputs import RUN
from pipeline.publish.files import write_text
from pipeline.report import asked
from pipeline.schedule import Progress
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.verify import verify

SCHEMA = 1
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
class SceneResult:
    """What became of one scene."""

    name: str
    path: str
    status: Literal["done", "unchanged", "failed"]
    error: str | None = None
    """One line, if it failed."""
    seconds: float = 0.0
    """Wall time from its plan to its published files."""
    megapixels: float = 0.0


@dataclass(frozen=True)
class ArchiveReport:
    """What became of an archive."""

    archive: str
    started: str
    """ISO 8601, as `finished`."""
    finished: str
    results: tuple[SceneResult, ...]
    """In the order of their names."""

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


ArchiveListener = Callable[[Progress | SceneResult], None]


def segment_archive(
    request: ArchiveRequest, executor: Executor, listen: ArchiveListener = lambda _: None
) -> ArchiveReport:
    """Segment the new and changed scenes of an archive; `listen` hears of each scene's progress and end,
    and after each end how many scenes of how many are settled (phase `archive`).

    A scene that fails is one line in the report, and the others go on.

    Raises:
        UsageError: the archive, the bundle or the folder of outputs is unusable: nothing was started.
    """
    started = _now()
    request = replace(request, pattern=replace(request.pattern, out=request.pattern.out.absolute()))
    waiting, settled = survey(request)
    tally = _Tally(listen, len(waiting) + len(settled))
    for result in settled:
        tally.add(result)
    for entry in waiting:
        tally.add(_segment(request.of(entry), executor, listen))
    return _report(request, started, tally.results)


@dataclass
class _Tally:
    """The results so far, told to the listener."""

    listen: ArchiveListener
    total: int
    results: list[SceneResult] = field(default_factory=list)

    def add(self, result: SceneResult) -> None:
        self.results.append(result)
        self.listen(result)
        self.listen(Progress("archive", len(self.results), self.total))


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
    return not (request.check and verify(folder).problems)


def _segment(request: SegmentRequest, executor: Executor, listen: ArchiveListener) -> SceneResult:
    start, path = time.perf_counter(), request.scene.path
    try:
        facts = segment_scene(request, executor, lambda event: listen(replace(event, scene=request.name)))
    except Exception as error:  # one bad scene never stops an archive, whatever it raises
        if isinstance(error, UsageError) and not isinstance(error, OutputError):
            raise
        return SceneResult(request.name, path, "failed", line(error), time.perf_counter() - start)
    pixels = facts["coverage"]["pixels"]
    status: Literal["done", "unchanged"] = "unchanged" if facts.get("unchanged") else "done"
    return SceneResult(request.name, path, status, None, time.perf_counter() - start, pixels / 1e6)


def line(error: Exception) -> str:
    """What an exception says, on one line."""
    text = str(error) if isinstance(error, WidefieldError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _report(request: ArchiveRequest, started: str, results: Sequence[SceneResult]) -> ArchiveReport:
    ordered = tuple(sorted(results, key=lambda result: result.name))
    report = ArchiveReport(request.archive, started, _now(), ordered)
    out: Path = request.pattern.out
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / REPORT, json.dumps(report.to_json(), indent=1) + "\n")
    return report


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
