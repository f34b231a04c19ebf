"""What is measured on a user's own scenes: halo and tile of a bundle, seams of a result, the time of an archive."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import BundleDir, DeviceName, EngineName, PrecisionName, named, numbers
from flows.progress import bar
from flows.show import complain, err, out, plain, rows, say
from pipeline.errors import OutputError, UsageError, WidefieldError
from pipeline.grid import Window

if TYPE_CHECKING:
    from pipeline.calibrate import Asked, Forecast
    from pipeline.probe import Probed
    from pipeline.seams import Seams
    from pipeline.segment import Engines


def probe(
    *,
    scenes: Annotated[list[str], typer.Argument(metavar="SCENE...", help="Rasters that the bundle is for.")],
    bundle: BundleDir,
    folder: Annotated[Path, typer.Option("--out", help="New folder for the bundle with the measured halo and tiles.")],
    within: Annotated[
        float, typer.Option(min=0, max=1, help="Share of pixels near borders whose label a halo may change.")
    ] = 1e-4,
    memory: Annotated[
        float | None,
        typer.Option(help="GB that a worker's engine, and the prediction of a crop, may take; what is free."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes to be timed, as in 1,2,4.")] = "1",
    engine: Annotated[EngineName, typer.Option(help="What is timed.")] = "auto",
    precision: Annotated[PrecisionName, typer.Option(help="Of what is timed.")] = "auto",
    device: Annotated[DeviceName, typer.Option(help="What it runs on.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Its threads; all cores, at most 8, if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Measure a bundle's halo and tile on SCENE..., and write a bundle that has them.

    The halo: tiles against the whole crop at once, in fp32; the smallest one that changes hardly any label within 16 px
    of borders between cores, as `verify --seams` asks. The tile: the cheapest scene pixel that fits into memory. A
    network whose halo does not converge is refused.
    """
    from models.bundle import open_bundle
    from models.engines.base import EngineRequest
    from pipeline.probe import probe as measure
    from pipeline.scene import SceneAddress

    opened = open_bundle(bundle)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already, and bundles never change: give a new folder")
    asked = EngineRequest(engine, precision, opened.spec.tiles[0], opened.spec.dtypes[0], target=device, streams=0)
    probed = measure(
        opened,
        [SceneAddress(named(scene)) for scene in scenes],
        request=asked if threads is None else replace(asked, threads=threads),
        within=within,
        memory=None if memory is None else int(memory * 1e9),
        batches=numbers(batch, "--batch", least=1) or (1,),
        tell=_tell,
    )
    if not as_json:
        _show(probed)
    probed.halos.chosen()  # refused by this, where it cannot be tiled
    made = probed.write(opened, folder)
    if as_json:
        print(json.dumps({"bundle": made.digest, "path": str(made.path), **probed.to_json()}))
    else:
        tiles = ", ".join(map(str, made.spec.tiles))
        say(f"bundle {made.digest[:12]} in {made.path}: halo {made.spec.halo}, tiles {tiles}")


def _tell(line: str) -> None:
    err.print(plain(line), markup=False, highlight=False)


def _show(probed: "Probed") -> None:
    from rich.table import Table

    shares = ("labels that differ near borders", "of all", "confidence off by 0.05")
    halos = Table("tile", "halo", *shares, "network pixels a pixel")
    for row in probed.halos.rows:
        halos.add_row(*row.cells)
    if probed.halos.rows:
        out.print(halos)
    if not probed.speeds:
        return
    speeds = Table("tile", "batch", "seconds a tile", "memory", "engine seconds a megapixel", title=probed.engine)
    for each in probed.speeds:
        speeds.add_row(*each.cells(probed.halos.chosen()))
    out.print(speeds)


def check_seams(folder: Path, part: Window | None, *, as_json: bool) -> "tuple[bool, dict[str, Any] | None]":
    """Whether a result shows no seams, and what was measured, or what went wrong; None where it is a single core."""
    from pipeline.executors import SerialExecutor
    from pipeline.seams import seams
    from pipeline.stop import Stopped

    try:
        with bar(f"{folder.name} again", err, quiet=as_json) as listen:
            found = seams(folder, SerialExecutor(), part=part, listen=listen)
    except Stopped:
        raise
    except WidefieldError as error:  # the other results are looked at all the same
        if not as_json:
            say(f"  seams: {error}")
        return False, {"passed": False, "error": str(error)}
    if not as_json:
        _say_seams(folder, found)
    return found is None or found.passed, None if found is None else found.to_json()


def _say_seams(folder: Path, found: "Seams | None") -> None:
    if found is None:
        say(f"  no seams in {folder}: it is a single core")
    else:
        say(f"  {found.problem or 'no seams'}: {found.line()}")


def window_of(text: str | None, option: str) -> Window | None:
    """`ROW,COL,HEIGHT,WIDTH` as a window.

    Raises:
        UsageError: it is something else.
    """
    part = numbers(text, option, count=4)
    try:
        return Window(*part) if part else None
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from None


def forecast(asked: "Sequence[Asked]", workers: int, engines: "Engines") -> "Forecast | None":
    """What all of it will take, tried on a few blocks; None where there is nothing to do."""
    from pipeline.calibrate import calibrate
    from pipeline.executors import make_executor

    if not asked:
        complain("nothing to calibrate: no scene waits")
        return None
    first = asked[0].request
    with make_executor(workers, None, first.out, target=first.target) as executor:
        return calibrate(asked, executor, _tell, engines)


def show_forecast(found: "Forecast") -> None:
    """For people."""
    out.print(rows(found.describe()))
