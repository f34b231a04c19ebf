"""`segment-scene`: the same job as `widefield segment`, under Prefect: parameters, phases, artifacts, state.

Prefect sees a scene and its phases. Tiles and blocks stay inside a phase: one task run costs tens of milliseconds.
"""

import base64
import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task
from pydantic import Field

from flows.progress import LoggedProgress
from pipeline.errors import IncompleteError, WidefieldError
from pipeline.executors import make_executor
from pipeline.grid import Window
from pipeline.housekeeping import make_folder
from pipeline.plan import Plan, PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, plan_request
from pipeline.segment import segment_scene as segment_one

PREVIEW_LIMIT = 200_000
"""Most bytes of a picture inside an artifact, as it is encoded there."""
PREVIEW_EDGE = 800
"""Its longer side, in pixels."""

Count = Annotated[int, Field(ge=1)]
"""A whole number from 1."""


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
def segment_blocks(request: SegmentRequest, workers: int, scheduler: str | None) -> dict[str, Any]:
    """Stage, segment, prove coverage, publish. A retry goes on from the ledger."""
    with make_executor(workers, scheduler, request.out) as executor:
        return segment_one(request, executor, LoggedProgress(get_run_logger()))


@flow(name="segment-scene", flow_run_name=lambda: f"segment {Path(flow_run.parameters['scene']).name}")
def segment_scene(
    scene: str,
    bundle: str,
    out: str,
    *,
    block: Count | None = None,
    tile: Count | None = None,
    workers: Count = 1,
    threads: Count | None = None,
    scheduler: str | None = None,
    engine: Literal["auto", "torch", "openvino", "null"] = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    stage: Literal["always", "auto", "never"] = "auto",
    bands: list[Count] | None = None,
    nodata: float | None = None,
    window: tuple[int, int, Count, Count] | None = None,
    any_resolution: bool = False,
    keep_staged: bool = False,
) -> dict[str, Any]:
    """Segment one scene into `out/<scene stem>/`; returns the facts of its `run.json`.

    Paths are those of the machine that runs the flow. The parameters are the options of `widefield segment`.
    """
    path, folder = Path(scene).absolute(), Path(out).absolute()
    make_folder(folder)
    part = Window(*window) if window else None
    request = SegmentRequest(
        scene=SceneAddress(str(path), tuple(bands) if bands else None, nodata, part),
        bundle=Path(bundle).absolute(),
        out=folder,
        name=path.stem,
        options=PlanOptions(
            block=block,
            stage={"always": True, "never": False}.get(stage),
            any_resolution=any_resolution,
            workers=workers,
        ),
        backend=engine,
        precision=precision,
        tile=tile,
        threads=threads,
        keep_staged=keep_staged,
    )
    plan_scene(request)
    facts = segment_blocks(request, workers, scheduler)
    create_markdown_artifact(key="segment-scene", markdown=page(facts, request.folder), description=path.name)
    return facts


def page(facts: dict[str, Any], folder: Path) -> str:
    """A result as Markdown: classes, coverage, speed, and the preview as a picture of at most `PREVIEW_LIMIT` bytes."""
    coverage, seconds = facts["coverage"], facts["speed"]["seconds"]
    phases = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
    engine = f"{facts['engine']['backend']} {facts['engine']['precision']}"
    lines = [
        f"# {Path(facts['scene']['path']).name}",
        "",
        "| class | share | area |",
        "|---|---|---|",
        *(f"| {entry['name']} | {entry['share']:.2%} | {_area(entry['area_m2'])} |" for entry in facts["classes"]),
        "",
        f"Valid pixels {coverage['valid']:,}, classified {coverage['classified']:,}. {phases}. Engine {engine}.",
        "",
        f"Files: `{folder}`",
        "",
        picture(folder / "preview.png"),
    ]
    return "\n".join(lines)


def _area(square_metres: float | None) -> str:
    return "" if square_metres is None else f"{square_metres:,.0f} m²"


def picture(path: Path) -> str:
    """The preview as Markdown with a data URI of at most `PREVIEW_LIMIT` bytes, as sharp as that allows."""
    with Image.open(path) as original:
        small = original.convert("RGB")
    edge, data = PREVIEW_EDGE, ""
    while not data or len(data) > PREVIEW_LIMIT:
        small.thumbnail((edge, edge))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
        data = f"![preview](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})"
        edge = edge * 3 // 4
    return data


def main() -> None:
    """Run the flow with the parameters that standard input holds as JSON; for a process of its own."""
    import sys

    json.dump(segment_scene(**json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
