"""`widefield engines`: what can run a network here and why the rest cannot, how true and how fast each one is."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from flows.options import AsJson, BundleDir, DeviceName, EngineName, PrecisionName, numbers, spelled_out
from flows.show import out, plain, say

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.engines.base import EngineRequest

engines = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="What can run a network here, how true it is, and how fast.",
    epilog="Examples: `widefield engines list` · `widefield engines check --bundle examples/bundles/buildings`",
)

Tile = Annotated[int | None, typer.Option(min=1, help="One of the bundle's, in pixels; the smallest if not given.")]
Device = Annotated[DeviceName, typer.Option(help="`auto`: a GPU where there is one.")]
Again = Annotated[bool, typer.Option("--again", help="Gate and measure anew what the cache knows, speeds included.")]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engines, and how they compute."""

    engine: Annotated[EngineName, typer.Option(help="One engine; `auto`: whatever this machine has.")] = "auto"
    precision: Annotated[PrecisionName, typer.Option(help="One precision; `auto`: all that an engine has.")] = "auto"
    device: Device = "auto"
    threads: Annotated[int | None, typer.Option(min=1, help="Engine threads; all cores, at most 8, if not given.")] = (
        None
    )
    streams: Annotated[int, typer.Option(min=0, help="Batches side by side; 0: as many as pay, measured once.")] = 0
    dtype: Annotated[str | None, typer.Option(help="Type of the pixels; the bundle's first if not given.")] = None

    def request(self, bundle: "Bundle", tile: int | None, batch: int) -> "EngineRequest":
        """What is asked of a bundle.

        Raises:
            EngineError: the bundle does not promise it, or no engine can do it.
        """
        from models.engines.base import EngineRequest
        from models.engines.prepare import check_request

        spec = bundle.spec
        dtype = self.dtype or spec.dtypes[0]
        asked = EngineRequest(self.engine, self.precision, tile or spec.tiles[0], dtype, batch=batch)
        asked = replace(asked, target=self.device, streams=self.streams)
        asked = asked if self.threads is None else replace(asked, threads=self.threads)
        check_request(bundle, asked)
        return asked


@engines.command("list", epilog="Example: `widefield engines list`")
def list_engines(*, device: Device = "auto", as_json: AsJson = False) -> None:
    """Tell which engines this machine has, and why it lacks the others."""
    from models.engines.backends import BACKENDS
    from models.engines.device import default_target
    from models.engines.prepare import run_child

    target = default_target() if device == "auto" else device
    found = run_child({"job": "list", "target": target})
    if as_json:
        print(json.dumps({"device": target, "engines": found}))
        return
    table = Table("engine", "precision", "here", "versions")
    for name, reasons in found.items():
        for precision, reason in reasons.items():
            table.add_row(name, precision, Text(plain(reason or "yes")), Text(BACKENDS[name].versions(target)))
    out.print(table)


@engines.command(epilog="Example: `widefield engines build --bundle examples/bundles/buildings --tile 1152`")
@spelled_out
def build(
    *,
    bundle: BundleDir,
    tile: Tile = None,
    batch: Annotated[int, typer.Option(min=1, help="Tiles that are computed at once.")] = 1,
    again: Again = False,
    as_json: AsJson = False,
    options: EngineOptions,
) -> None:
    """Compile, gate and measure the engine that a run with these options would take; it stays in the cache.

    TensorRT makes its plans without a GPU too, where the flavour that is installed can.
    """
    from models.engines.device import gpus
    from models.engines.prepare import candidates, prepare

    opened = _open(bundle)
    request = options.request(opened, tile, batch)
    if request.backend == "tensorrt" and not gpus():  # a plan at least, for another machine
        _show([_checked(opened, each) for each in candidates(request, opened)], as_json=as_json)
        return
    _show([{**asdict(prepare(opened.path, request, again=again)), "reason": None}], as_json=as_json)


@engines.command(
    epilog="Examples: `widefield engines check --bundle examples/bundles/buildings` · "
    "`widefield engines check --bundle B --engine inductor`"
)
@spelled_out
def check(
    *,
    bundle: BundleDir,
    tile: Tile = None,
    batch: Annotated[int, typer.Option(min=1, help="Tiles that are computed at once.")] = 1,
    again: Again = False,
    as_json: AsJson = False,
    options: EngineOptions,
) -> None:
    """Hold each engine of this machine to the network's own answers; exit 1 if one fails, or does not agree.

    Those that the cache knows are told as they were found then. What compiles for minutes must be asked for by name.
    """
    from models.engines.backends import backend_of

    def lazy(each: "EngineRequest") -> bool:
        return options.engine == "auto" and each.target_here == "cpu" and not backend_of(each.backend).raced

    opened = _open(bundle)
    request = options.request(opened, tile, batch)
    every = _every(replace(request, streams=request.streams or 1), opened)
    found = [_checked(opened, each, again=again, lazy=lazy(each)) for each in every]
    _show(found, as_json=as_json)
    if any(facts["reason"] and not facts["absent"] for facts in found):
        raise typer.Exit(1)


@engines.command(
    epilog="Example: `widefield engines bench --bundle examples/bundles/buildings --tiles 512,1152 --batches 1,4`"
)
@spelled_out
def bench(
    *,
    bundle: BundleDir,
    tiles: Annotated[str | None, typer.Option(help="Tiles in pixels, with commas between; all if not given.")] = None,
    batches: Annotated[str, typer.Option(help="Sizes of batches, with commas between.")] = "1",
    as_json: AsJson = False,
    options: EngineOptions,
) -> None:
    """Measure engines over tiles and batches, ungated: Mpx/s into the network and, without the halo, of a scene.

    Exit 1 if none could be measured.
    """
    from models.engines.prepare import candidates

    opened, measured = _open(bundle), 0
    for tile in numbers(tiles, "--tiles", least=1) or opened.spec.tiles:
        for batch in numbers(batches, "--batches", least=1) or (1,):
            request = options.request(opened, tile, batch)
            found = [_measured(opened, each) for each in candidates(request, opened)]
            _show(found, as_json=as_json)
            measured += sum(facts["reason"] is None for facts in found)
    if not measured:
        raise typer.Exit(1)


@engines.command(epilog="Examples: `widefield engines clean` · `widefield engines clean --older-than 30`")
def clean(
    *,
    older_than: Annotated[float, typer.Option(min=0, help="Only what has not been used for so many days.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Remove this user's compiled engines, with their measurements; what a run needs is made again."""
    from models.engines.cache import Cache

    freed = Cache().forget(older_than)
    if as_json:
        print(json.dumps({"freed_bytes": freed}))
    else:
        say(f"{freed / 1e6:.1f} MB freed")


def _open(bundle: Path) -> "Bundle":
    from models.bundle import open_bundle

    return open_bundle(bundle)


def _every(request: "EngineRequest", bundle: "Bundle") -> "Iterator[EngineRequest]":
    """All engines that a request may mean, those included that are run only where they are asked for."""
    from models.engines.backends import BACKENDS
    from models.engines.prepare import candidates

    for backend in BACKENDS.values():
        if request.backend in {"auto", backend.name} and backend.name != "null":
            yield from candidates(replace(request, backend=backend.name), bundle)


def _checked(bundle: "Bundle", request: "EngineRequest", *, again: bool = False, lazy: bool = False) -> dict[str, Any]:
    """Facts of an engine that passed its gate, or why there is none; `lazy`: nobody asked for it by name."""
    from models.engines.prepare import prepare
    from models.errors import EngineError, UnavailableError

    facts = asdict(request) | {"reason": None, "absent": False}
    if lazy:
        return facts | {"reason": f"left out: it compiles for minutes; --engine {request.backend}", "absent": True}
    try:
        return facts | asdict(prepare(bundle.path, request, again=again))
    except UnavailableError as error:
        made = f"; {_plan(bundle, request)}" if request.backend == "tensorrt" else ""
        return facts | {"reason": f"not here: {error}{made}", "absent": True}
    except EngineError as error:
        return facts | {"reason": str(error)}


def _plan(bundle: "Bundle", request: "EngineRequest") -> str:
    """What is said of the plan that TensorRT makes, though it cannot run here."""
    from models.engines.cache import Cache
    from models.engines.prepare import planned
    from models.errors import EngineError

    try:
        return planned(bundle, request, Cache())
    except EngineError as error:
        return str(error)


def _measured(bundle: "Bundle", request: "EngineRequest") -> dict[str, Any]:
    """Facts of an engine that was measured, whether or not it would pass."""
    from models.engines.cache import Cache
    from models.engines.speed import measure
    from models.errors import EngineError

    facts = asdict(request) | {"reason": None, "scene": (request.tile - 2 * bundle.spec.halo) ** 2 / request.tile**2}
    try:
        return facts | asdict(measure(bundle, request, Cache()))
    except EngineError as error:
        return facts | {"reason": str(error)}


def _show(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for facts in found:
            print(json.dumps(facts))
        return
    table = Table(
        "engine", "precision", "tile", "batch", "threads", "Mpx/s", "of a scene", "GB", "labels off", "verdict"
    )
    for facts in found:
        table.add_row(*_cells(facts))
    out.print(table)


def _cells(facts: dict[str, Any]) -> list[Text]:
    threads = f"{facts['threads']}" + (f" in {facts['streams']} streams" if facts["streams"] > 1 else "")
    cells = [facts["backend"], facts["precision"], facts["tile"], facts["batch"], threads]
    if facts["reason"]:
        return [Text(plain(cell)) for cell in (*cells, "", "", "", "", facts["reason"])]
    speed = facts["tile"] ** 2 / 1e6 / facts["seconds_per_tile"] if facts["seconds_per_tile"] else 0.0
    parity = facts.get("parity")
    off = f"{parity['figures']['real_labels']:.3%}" if parity else ""
    of_scene = f"{speed * facts['scene']:.2f}" if "scene" in facts else ""
    cells += [f"{speed:.2f}", of_scene, f"{facts['peak_bytes'] / 1e9:.2f}", off, "passed" if parity else ""]
    return [Text(plain(cell)) for cell in cells]
