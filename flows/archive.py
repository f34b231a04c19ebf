"""`segment-archive`: what is new or changed in an archive, under Prefect: each night, on an event, or by hand.

Prefect sees one run and its phases, never a scene's tiles, and no task run for each scene either: a night without news
over 10^4 scenes costs Prefect what a night over three costs. Scenes are rows of a table.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.artifacts import ProgressBar, escape, picture, plain, slug
from flows.parameters import Options, address
from flows.progress import LoggedProgress
from flows.segment import GRACE, STOPPED
from flows.show import bottleneck
from pipeline.archive import Trust
from pipeline.executors import make_executor
from pipeline.housekeeping import make_folder
from pipeline.nightly import REPORT, ArchiveRequest, SceneResult
from pipeline.nightly import segment_archive as segment_all
from pipeline.schedule import Progress
from pipeline.stop import Stopped, draining
from pipeline.workshop import alone

ROWS = 300
"""Most scenes in the table; the counts above it are of all."""
PICTURES = 6
"""Most previews on the page."""
SMALL_EDGE = 480
"""Longer side of one of them, in pixels."""
REASONS = 3
"""Most reasons in the message of a failed run."""
ORDER = {"failed": 0, "done": 1, "unchanged": 2}


class Watcher:
    """What Prefect hears while an archive is segmented: log lines, and one progress artifact."""

    def __init__(self, key: str, archive: str) -> None:
        self.logger, self.bar = get_run_logger(), ProgressBar(f"{key}-progress", plain(archive))
        self.results: list[SceneResult] = []
        self._lines: dict[str, LoggedProgress] = {}
        self._shares: dict[str, float] = {}
        self._total = 0

    def __call__(self, event: Progress | SceneResult) -> None:
        """Take in the end of a scene, or how far one of them is."""
        if isinstance(event, SceneResult):
            self._end(event)
        elif event.phase == "archive":
            self._total = event.total
        elif event.phase == "segment":
            self._lines.setdefault(event.scene, LoggedProgress(self.logger, f"{plain(event.scene)}: "))(event)
            self._shares[event.scene] = event.done / event.total if event.total else 0.0
        if self._total:
            self.bar((len(self.results) + sum(self._shares.values())) / self._total)

    def _end(self, result: SceneResult) -> None:
        self.results.append(result)
        self._lines.pop(result.name, None)
        self._shares.pop(result.name, None)
        if result.status == "failed":
            self.logger.warning("%s failed: %s", plain(result.name), plain(result.error))
        elif result.status == "done":
            self.logger.info("%s done in %.1f s", plain(result.name), result.seconds)


@task(name="segment")
def segment_scenes(request: ArchiveRequest, options: Options, key: str) -> list[SceneResult]:
    """List the archive, segment what is new, changed or failed before; whatever comes, show what became of the scenes.

    Ends as Cancelled after SIGTERM, with every finished block on record.
    """
    watcher, out = Watcher(key, request.archive), request.pattern.out
    found: dict[str, Any] | None = None

    def waiting() -> None:
        watcher.logger.info("waiting for another run that writes into %s", out)

    try:
        target = request.pattern.target
        workers = make_executor(options.workers, options.scheduler, out, isolated=True, target=target)
        with alone(out, waiting), workers as executor, draining(GRACE):
            found = segment_all(request, executor, watcher).bottleneck
        watcher.bar(1.0, last=True)
    except (Stopped, TerminationSignal):  # Prefect's own comes after ours, or while we wait
        return Cancelled(message=STOPPED)  # type: ignore[return-value]  # becomes the state of the task run
    finally:
        show(key, request, watcher.results, found)
    return watcher.results


@flow(name="segment-archive", flow_run_name=lambda: f"segment {plain(flow_run.parameters['archive'])}")
def segment_archive(
    archive: str,
    bundle: str,
    out: str,
    *,
    match: str | None = None,
    trust: Trust = "archive",
    backfill: bool = False,
    check: bool = False,
    options: Options = Options(),  # noqa: B008 - frozen
) -> Any:
    """Segment the new and changed scenes of an archive, and those that failed before. One bad scene stops no other.

    The run ends as Failed if any scene failed, and its message says how many and why; the others are done. A scheduled
    run that comes late, after another one has already seen all that it could find, ends as Skipped. Paths are those of
    the machine that runs the flow.

    Args:
        archive: A folder, an address such as s3://bucket/scenes, or a STAC catalogue.
        bundle: Folder of the trained model; or a registry, which stands for its champion.
        out: Folder of results; each scene gets a folder of its name.
        match: Only paths below the archive that fit this glob, as in north/*.tif.
        trust: `archive` trusts files below the archive; `untrusted` trusts none of them.
        backfill: Redo the results of another bundle too.
        check: Verify finished results too, and mend what is damaged.
        options: How scenes are read, cut and computed.
    """
    request = ArchiveRequest(
        archive=address(archive),
        pattern=options.request("", "", bundle, out),
        match=match,
        trust=trust,
        backfill=backfill,
        check=check,
    )
    make_folder(request.pattern.out)
    if reason := overtaken(request, _tick()):
        return Completed(name="Skipped", message=reason)
    state = segment_scenes(request, options, slug(request.archive), return_state=True)
    return Cancelled(message=state.message) if state.is_cancelled() else verdict(state.result())


def _tick() -> datetime | None:
    """The time for which a schedule had planned this run; None for a run that somebody or something asked for."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run.expected_start_time if run and run.auto_scheduled else None


def overtaken(request: ArchiveRequest, tick: datetime | None) -> str | None:
    """Why a run planned for `tick` has nothing to find: one that began later, and looked at all that it would look at,
    has finished. None if it may have.

    A backfill or a check may ask for more than that one did: it is never overtaken.
    """
    if tick is None or request.backfill or request.check:
        return None
    try:
        report = json.loads((request.pattern.out / REPORT).read_bytes())
        same = report["archive"] == request.archive and report.get("match") in {None, request.match}
        began = datetime.fromisoformat(report["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not same or began <= tick:
        return None
    return f"planned for {tick:%Y-%m-%d %H:%M:%S}, and a run that began at {began:%Y-%m-%d %H:%M:%S} has finished since"


def verdict(results: Sequence[SceneResult]) -> "State[Any]":
    """The final state: Failed if any scene failed, with the first reasons."""
    failed = [result for result in results if result.status == "failed"]
    if not failed:
        return Completed(message=counts(results))
    reasons = "; ".join(f"{plain(result.name)}: {plain(reason(result))}" for result in failed[:REASONS])
    more = f"; and {len(failed) - REASONS} more" if len(failed) > REASONS else ""
    return Failed(message=f"{len(failed)} of {len(results)} scenes failed: {reasons}{more}")


def reason(result: SceneResult) -> str:
    """Why a scene failed, without the path that its name says already."""
    return (result.error or "").removeprefix(result.path).lstrip(": ")


def counts(results: Sequence[SceneResult]) -> str:
    """How many scenes there are, by what became of them."""
    each = ", ".join(f"{sum(result.status == status for result in results)} {status}" for status in ORDER)
    return f"{len(results)} scenes: {each}"


def show(
    key: str, request: ArchiveRequest, results: Sequence[SceneResult], found: dict[str, Any] | None = None
) -> None:
    """The table of scenes, and the page with the counts, the bottleneck, the failures and some previews."""
    title = f"{plain(request.archive)}: {counts(results)}"
    create_table_artifact(key=f"{key}-scenes", table=rows(results), description=title)
    create_markdown_artifact(key=key, markdown=page(request, results, found), description=title)


def rows(results: Sequence[SceneResult]) -> list[dict[str, Any]]:
    """The table: failed scenes first, then done ones, then unchanged ones; at most `ROWS` of them."""
    first = sorted(results, key=lambda result: (ORDER[result.status], result.name))[:ROWS]
    return [
        {
            "scene": escape(result.name),
            "result": result.status,
            "seconds": round(result.seconds, 1),
            "Mpx": round(result.megapixels, 2),
            "reason": escape(reason(result)),  # last, because the page cuts what is wide
        }
        for result in first
    ]


def page(request: ArchiveRequest, results: Sequence[SceneResult], found: dict[str, Any] | None = None) -> str:
    """The summary of a run as Markdown; `found` is what held it up."""
    failed = [result for result in results if result.status == "failed"]
    done = [result for result in results if result.status == "done"]
    pixels, seconds = sum(result.megapixels for result in done), sum(result.seconds for result in done)
    lines = [f"# {escape(request.archive)}", "", f"**{counts(results)}**", ""]
    if done:
        lines += [f"{pixels:,.1f} Mpx in {seconds:,.1f} s of work on scenes.", ""]
    lines += [f"- **{escape(label)}**: {escape(value)}" for label, value in bottleneck(found)]
    lines += ["", f"Results: {escape(request.pattern.out)}", ""]
    if failed:
        lines += ["## Failed", ""]  # no table: its cells do not wrap
        lines += [f"- **{escape(result.name)}**: {escape(reason(result))}" for result in failed[:ROWS]]
        lines += [""]
    pictures = [(result.name, request.pattern.out / result.name / "preview.png") for result in done]
    for name, path in [(name, path) for name, path in pictures if path.is_file()][:PICTURES]:
        lines += [f"### {escape(name)}", "", picture(path, SMALL_EDGE), ""]
    return "\n".join(lines)
