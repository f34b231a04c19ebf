"""What a run leaves behind: the names in its folder, and one function for each published file.

Each step reads the complete store and writes one file, on a worker, with memory that does not grow with the scene.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipeline import store
from pipeline.errors import UnreadableError
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.publish.cog import write_cog
from pipeline.publish.files import SIDECAR
from pipeline.publish.preview import write_preview
from pipeline.publish.stac import write_item
from pipeline.publish.style import write_qml
from pipeline.scene import Source, open_scene
from pipeline.staging import stage_windows, staged_windows
from pipeline.statistics import class_totals, mean_confidence

PLAN, MASK, LEDGER, STAGED, RUN = "plan.json", "mask.zarr", "ledger", "image.zarr", "run.json"
"""Names inside a run's folder; `STAGED` is a link into the cache of staged scenes, gone once the run is published."""
ITEM = "item.json"

ASSETS = ("mask.tif", "mask.tif" + SIDECAR, "confidence.tif", "preview.png", "mask.qml", RUN)
"""Published files that the STAC item lists, where they exist."""


def sidecars(plan: Plan) -> Iterator[str]:
    """Files that are listed too if they are written, for a CRS that GeoTIFF cannot hold; later a GIS may put some there
    for its own ends.
    """
    return (raster_of(plane) + SIDECAR for plane in plan.spec.planes if plane != "labels")


def open_source(plan: Plan, run: Path) -> Source:
    """The staged store if the run has one, else the scene where it lies.

    Raises:
        UnreadableError: it is not the content that was planned.
    """
    return _planned(plan, store.open_image(run.joinpath(STAGED).resolve()) if plan.stage else open_scene(plan.scene))


def _planned(plan: Plan, source: Source) -> Source:
    if source.fingerprint != plan.fingerprint:
        source.close()
        raise UnreadableError(f"{plan.scene.path} has changed since this run was planned: run it again")
    return source


def _write_plane(plane: str, plan: Plan, run: Path) -> None:
    write_cog(
        run / MASK,
        plane,
        run / raster_of(plane),
        georef=plan.georef,
        classes=plan.spec.classes,
        attribution=plan.spec.attribution,
        cell=plan.spec.cell,
    )


def _preview(plan: Plan, run: Path) -> None:
    records = list(Ledger(run / LEDGER).records().values())
    counts = class_totals(records)
    with _complete_source(plan, run) as source:
        write_preview(
            source,
            run / MASK,
            run / "preview.png",
            classes=plan.spec.classes,
            georef=plan.georef,
            title=f"{Path(plan.scene.path).name}  ·  {plan.spec.name}",
            counts=[counts[entry.id] for entry in plan.spec.classes],
            confidence=mean_confidence(records),
            attribution=plan.spec.attribution,
        )


def _complete_source(plan: Plan, run: Path) -> Source:
    """The staged store where all of it is staged; a run that was resumed may have staged only what it needed."""
    if plan.stage:
        with open_scene(plan.scene) as scene:
            wanted = set(stage_windows(scene))
        if wanted <= staged_windows(run.joinpath(STAGED).resolve()):
            return open_source(plan, run)
    return _planned(plan, open_scene(plan.scene))


def _style(plan: Plan, run: Path) -> None:
    write_qml(run / "mask.qml", plan.spec.classes)


def _item(plan: Plan, run: Path) -> None:
    facts = json.loads((run / RUN).read_text(encoding="utf-8"))
    write_item(
        run,
        id=Path(plan.scene.path).stem,
        georef=plan.georef,
        height=plan.grid.height,
        width=plan.grid.width,
        classes=plan.spec.classes,
        cell=plan.spec.cell,
        facts=facts,
        assets=[name for name in (*published(plan), *sidecars(plan)) if (run / name).exists()],
    )


_STEPS: Mapping[str, Callable[[Plan, Path], None]] = {"preview": _preview, "style": _style, "item": _item}


def steps_of(plan: Plan) -> list[str]:
    """Names of what is to be made: a raster of each plane, and the rest; `item` last, with the checksums of all."""
    return [*plan.spec.planes, *_STEPS]


def make(step: str, plan: Plan, run: Path) -> None:
    """Make one output of a complete store."""
    if step in _STEPS:
        _STEPS[step](plan, run)
    else:
        _write_plane(step, plan, run)


def raster_of(plane: str) -> str:
    """Name of a plane's published raster."""
    return "mask.tif" if plane == "labels" else f"{plane}.tif"


def published(plan: Plan) -> tuple[str, ...]:
    """Names of the files that a plan's item lists, where they exist."""
    return tuple(dict.fromkeys((*ASSETS, *map(raster_of, plan.spec.planes))))
