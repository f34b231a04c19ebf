"""The `widefield` command. No Prefect server is needed here, and Prefect is not imported.

Exit status: 0 all is well; 1 some scene failed or a result is damaged; 2 nothing was started: an argument, the bundle
or the output folder; 130 interrupted.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.options import (
    AsJson,
    Attribute,
    BundleDir,
    Images,
    KeepStaged,
    Labels,
    OutDir,
    ResultDir,
    RunOptions,
    ScenePath,
    Scheduler,
    TrainOptions,
    existing,
    numbers,
    readable,
    spelled_out,
)
from flows.progress import bar
from flows.show import complain, err, out, rows, say, score_table, summary
from pipeline.errors import OutputError, UsageError, WidefieldError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pipeline.schedule import Listener
    from pipeline.segment import SegmentRequest

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells expect it."""
DEBUG = "WIDEFIELD_DEBUG"
"""Environment variable: if set, an unexpected error shows its traceback."""
OUR_PACKAGES = {"flows", "pipeline", "models"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Segment archives of huge images: exact, resumable, georeferenced.",
)


@app.command(epilog="Example: `widefield plan scene.tif --bundle examples/bundles/buildings --block 2048`")
@spelled_out
def plan(
    *, scene: ScenePath, bundle: BundleDir, folder: OutDir = Path(), as_json: AsJson = False, options: RunOptions
) -> None:
    """Tell what segmenting SCENE would take, without doing it: tiles, blocks, bytes, memory."""
    from pipeline.archive import list_scenes
    from pipeline.segment import plan_request

    def show(request: "SegmentRequest") -> None:
        frozen = plan_request(request)
        if as_json:
            print(json.dumps(frozen.to_json()))
        else:
            out.print(rows(frozen.describe()))

    scenes = list_scenes(scene)
    _each([options.request(path, name, bundle, folder) for path, name in scenes], show, as_json=as_json)


@app.command(
    epilog="Examples: `widefield segment scene.tif --bundle examples/bundles/buildings --out masks` · "
    "`widefield segment archive/ --bundle B --out masks --workers 4` · "
    "`widefield segment scene.tif --bundle B --out masks --scheduler tcp://127.0.0.1:8786`"
)
@spelled_out
def segment(
    *,
    scene: ScenePath,
    bundle: BundleDir,
    folder: OutDir,
    scheduler: Scheduler = None,
    keep_staged: KeepStaged = False,
    as_json: AsJson = False,
    options: RunOptions,
) -> None:
    """Segment SCENE into OUT: mask.tif, confidence.tif, a STAC item, a preview, run.json.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    from models.bundle import open_bundle
    from pipeline.archive import list_scenes
    from pipeline.executors import make_executor
    from pipeline.housekeeping import make_folder
    from pipeline.segment import segment_scene

    scenes = list_scenes(scene)
    requests = [options.request(path, name, bundle, folder, keep_staged=keep_staged) for path, name in scenes]
    open_bundle(bundle)
    make_folder(folder)
    with make_executor(options.workers, scheduler, folder) as executor:

        def run(request: "SegmentRequest") -> None:
            with bar(request.name, err, quiet=as_json) as listen:
                facts = segment_scene(request, executor, listen)
            if as_json:
                print(json.dumps(facts))
            else:
                out.print(summary(facts, request.folder))

        _each(requests, run, as_json=as_json)


def _each(requests: "list[SegmentRequest]", action: "Callable[[SegmentRequest], None]", *, as_json: bool) -> None:
    """One bad scene never stops the others; the exit status tells that there was one."""
    many, failures = len(requests) > 1, 0
    for request in requests:
        try:
            action(request)
        except Exception as error:  # the program's own faults too must not stop an archive
            if isinstance(error, UsageError) and not (many and isinstance(error, OutputError)):
                raise
            failures += 1
            message = _line(error)
            complain(f"{request.name}: {message}" if many else message)
            if as_json:
                print(json.dumps({"scene": {"path": request.scene.path}, "error": message}))
    if many:
        err.print(f"{len(requests) - failures} of {len(requests)} scenes done, {failures} failed", highlight=False)
    if failures:
        raise typer.Exit(1)


@app.command(
    epilog="Example: `widefield train --images scenes --labels scenes --out buildings --class background=#3B4252 "
    "--class building=#E4572E --steps 2400 --precision bf16-mixed`"
)
@spelled_out
def train(
    *,
    images: Images,
    labels: Labels,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the bundle, the chips, the log and the checkpoint.")],
    options: TrainOptions,
) -> None:
    """Train a segmenter from labelled scenes; the same seed gives the same weights.

    A training that was killed goes on from its checkpoint when the same command is given again.
    """
    from pipeline.chips import read_split, write_chips
    from pipeline.housekeeping import make_folder
    from pipeline.labels import list_images

    bands, decoder = numbers(options.bands, "--bands", least=1), numbers(options.decoder, "--decoder", count=5, least=1)
    with readable(options.split, "--split"):
        split = read_split(options.split) if options.split else None
    with readable(options.card, "--card"):
        card = options.card.read_text(encoding="utf-8") if options.card else ""
    scenes = list_images(existing(images, "--images"))
    make_folder(folder)
    names, colors = options.palette()
    chips = write_chips(
        scenes,
        existing(labels, "--labels"),
        folder / "chips.zarr",
        classes=names,
        size=options.chip,
        seed=options.seed,
        attribute=options.attribute,
        split=split,
        bands=bands,
    )
    shares = ", ".join(f"{name} {share:.1%}" for name, share in chips.shares.items())
    say(f"chips: {chips.train} to train on, {chips.val} to validate, {chips.dropped} without a label; {shares}")
    _fit(folder, options, colors=colors, decoder=decoder or (), card=card)


def _fit(folder: Path, options: TrainOptions, *, colors: tuple[str, ...], decoder: tuple[int, ...], card: str) -> None:
    from models.train import TrainConfig
    from models.train import train as fit

    config = TrainConfig(
        chips=folder / "chips.zarr",
        out=folder,
        name=options.name,
        licence=options.licence,
        attribution=options.attribution,
        card=card,
        colors=colors,
        width=options.width,
        decoder_channels=decoder,
        steps=options.steps,
        batch=options.batch,
        crop=options.crop,
        lr=options.rate,
        warmup=options.warmup,
        foreground=options.foreground,
        seed=options.seed,
        precision=options.precision,
        threads=options.threads,
    )
    bundle = fit(config, lambda line: say(json.dumps(line)))
    say(f"bundle {bundle.digest[:12]} in {bundle.path}")


@app.command(epilog="Example: `widefield evaluate --bundle B --images examples/scenes --labels examples/labels --json`")
@spelled_out
def evaluate(
    *,
    bundle: BundleDir,
    images: Images,
    labels: Labels,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where the masks go; a temporary folder if not given.")
    ] = None,
    attribute: Attribute = None,
    as_json: AsJson = False,
    options: RunOptions,
) -> None:
    """Score a bundle on whole labelled scenes, by the production path; IoU from pooled pixels."""
    from pipeline.evaluate import evaluate as score
    from pipeline.executors import make_executor
    from pipeline.housekeeping import make_folder

    existing(images, "--images"), existing(labels, "--labels")
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="widefield-")))
        make_folder(place)
        pattern = options.request("", "", bundle, place)
        executor = stack.enter_context(make_executor(options.workers, None, place))

        def watch(name: str) -> "AbstractContextManager[Listener]":
            return bar(name, err, quiet=as_json)

        result = score(pattern, images, labels, executor, attribute=attribute, watch=watch)
    if as_json:
        print(json.dumps(result))
    else:
        out.print(score_table(result))


@app.command(epilog="Example: `widefield verify masks/`")
def verify(folder: ResultDir, *, as_json: AsJson = False) -> None:
    """Check coverage, every shard's bytes, checksums and georeference of results; exit 1 if anything is wrong."""
    from pipeline.verify import results
    from pipeline.verify import verify as check

    damaged = False
    for result in results(folder):
        verdict = check(result)
        damaged |= bool(verdict.problems)
        if as_json:
            print(json.dumps(asdict(verdict) | {"folder": str(verdict.folder)}))
            continue
        say(f"{'damaged' if verdict.problems else 'ok'} {verdict.folder}: {verdict.blocks} blocks")
        for line in (*verdict.problems, *verdict.notes):
            say(f"  {line}")
    if damaged:
        raise typer.Exit(1)


@app.command(epilog="Example: `widefield clean masks/`")
def clean(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder given to `segment --out`.")],
    *,
    engines: Annotated[bool, typer.Option("--engines", help="Also forget compiled engines of this user.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Remove unfinished runs and staged scenes below OUT, except what a living run holds."""
    from pipeline.housekeeping import clean as sweep

    done = sweep(existing(folder, "OUT"), engines=engines)
    if as_json:
        print(json.dumps({"freed_bytes": done.freed, "living_runs": done.living}))
    else:
        say(f"{done.freed / 1e6:.1f} MB freed" + (f"; {done.living} living runs were left alone" * bool(done.living)))


def main() -> None:
    """Entry point: whatever goes wrong is one line on standard error, and an exit status."""
    _quieten()
    try:
        code = app(prog_name="widefield", standalone_mode=False)
    except typer.TyperException as error:
        code = _misuse(error)
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line, never a traceback
        complain(_line(error))
        code = error.exit_code if isinstance(error, WidefieldError) else 1
    if code == INTERRUPTED:
        complain("interrupted: what is recorded stays; the same command goes on from there")
    sys.exit(code)


def _quieten() -> None:
    """Warnings of our own packages are shown; what libraries say is not, unless somebody looks for a fault."""
    if os.environ.get(DEBUG):
        logging.basicConfig(level=logging.INFO)
        return
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: record.name.partition(".")[0] in OUR_PACKAGES)
    logging.basicConfig(handlers=[handler], format="widefield: %(message)s")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _misuse(error: typer.TyperException) -> int:
    """Arguments that do not parse: one line, and where help is. Nothing at all was said: the help has been shown."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "widefield"
    if message := error.format_message():
        complain(f"{message.replace('Value error, ', '').rstrip('.')}: see {command} --help")
    return error.exit_code


def _line(error: Exception) -> str:
    if os.environ.get(DEBUG):
        err.print_exception()
    if isinstance(error, WidefieldError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}"
    kind = type(error).__name__
    return f"{kind}: {error} (a fault of this program: please report it; {DEBUG}=1 shows where)"
