"""`segment-scene`: the same job as `widefield segment`, under Prefect: parameters, phases, artifacts, state.

Prefect sees a scene and its phases. Tiles and blocks stay inside a phase: one task run costs tens of milliseconds.
"""

import json
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.tasks import Task

from flows.artifacts import escape, picture, plain, table
from flows.options import named
from flows.parameters import Options
from flows.progress import LoggedProgress
from flows.show import area, bottleneck
from pipeline.archive import scene_name
from pipeline.errors import IncompleteError, WidefieldError
from pipeline.executors import make_executor
from pipeline.housekeeping import make_folder
from pipeline.plan import Plan
from pipeline.segment import SegmentRequest, plan_request
from pipeline.segment import segment_scene as segment_one
from pipeline.stop import Stopped, draining

GRACE = 3.0
"""Seconds that running blocks get to be finished and recorded; Prefect looks every three whether a run has ended."""
STOPPED = "stopped by a signal: what is recorded stays; the next run goes on from there"


def _may_pass(_task: "Task[..., Any]", _run: TaskRun, state: "State[Any]") -> bool:
    """Whether a second try can help: failed blocks can, and so can what no rule of ours foresaw; a bad scene cannot."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, IncompleteError) or not isinstance(error, WidefieldError)


@task(name="plan")
def plan_scene(request: SegmentRequest) -> Plan:
    """Freeze the plan, or fail with the reason before anything is computed."""
    logger, plan = get_run_logger(), plan_request(request)
    for label, value in plan.describe():
        logger.info("%s: %s", label, value)
    return plan


@task(name="segment", retries=1, retry_delay_seconds=5, retry_condition_fn=_may_pass)
def segment_blocks(request: SegmentRequest, options: Options) -> dict[str, Any]:
    """Stage, segment, prove coverage, publish. A retry goes on from the ledger.

    Ends as Cancelled after SIGTERM, with every finished block on record.
    """
    try:
        workers = make_executor(options.workers, options.scheduler, request.out, target=request.target)
        with workers as executor, draining(GRACE):
            return segment_one(request, executor, LoggedProgress(get_run_logger()))
    except (Stopped, TerminationSignal):  # Prefect's own comes after ours
        return Cancelled(message=STOPPED)  # type: ignore[return-value]  # becomes the state of the task run


@flow(name="segment-scene", flow_run_name=lambda: f"segment {plain(Path(flow_run.parameters['scene']).name)}")
def segment_scene(
    scene: str,
    bundle: str,
    out: str,
    options: Options = Options(),  # noqa: B008 - frozen
) -> Any:
    """Segment one scene into `out/<scene stem>/`; returns the facts of its `run.json`.

    Paths are those of the machine that runs the flow.

    Args:
        scene: File of the scene, or its address.
        bundle: Folder of the trained model; or a registry, which stands for its champion.
        out: Folder of results; the scene gets a folder of its name.
        options: How the scene is read, cut and computed.
    """
    request = options.request(named(scene), scene_name(scene), bundle, out)
    make_folder(request.out)
    plan_scene(request)
    state = segment_blocks(request, options, return_state=True)
    if state.is_cancelled():
        return Cancelled(message=state.message)
    facts = state.result()
    create_markdown_artifact(
        key="segment-scene", markdown=page(facts, request.folder), description=plain(Path(scene).name)
    )
    return facts


def page(facts: dict[str, Any], folder: Path) -> str:
    """A result as Markdown: classes, coverage, speed, what held the run up, and the preview."""
    coverage, seconds = facts["coverage"], facts["speed"]["seconds"]
    phases = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
    engine = f"{facts['engine']['backend']} {facts['engine']['precision']}"
    classes = [(entry["name"], f"{entry['share']:.2%}", area(entry["area_m2"])) for entry in facts["classes"]]
    lines = [
        f"# {escape(Path(facts['scene']['path']).name)}",
        "",
        *table(("class", "share", "area"), classes),
        "",
        f"Valid pixels {coverage['valid']:,}, classified {coverage['classified']:,}. {phases}. Engine {engine}.",
        "",
        *(f"- **{escape(label)}**: {escape(value)}" for label, value in bottleneck(facts.get("bottleneck"))),
        "",
        f"Files: {escape(folder)}",
        "",
        picture(folder / "preview.png"),
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the flow with the parameters that standard input holds as JSON; for a process of its own."""
    import sys

    json.dump(segment_scene(**json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
