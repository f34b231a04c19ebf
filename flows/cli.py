"""The `widefield` command. No Prefect server is needed here, and Prefect is not imported.

Exit status: 0 all is well; 1 some scene failed or a result is damaged; 2 nothing was started: an argument, the bundle
or the output folder; 130 or 143 interrupted by Ctrl-C or SIGTERM.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.bundle import bundle as bundle_app
from flows.engines import engines
from flows.labels import labels as labels_app
from flows.options import (
    AsJson,
    Attribute,
    Backfill,
    BundleDir,
    Check,
    Images,
    KeepStaged,
    Labels,
    Match,
    OutDir,
    ResultDir,
    RunOptions,
    ScenePath,
    Scheduler,
    existing,
    named,
    readable,
    spelled_out,
)
from flows.probe import check_seams, forecast, probe, show_forecast, window_of
from flows.progress import bar
from flows.registry import registry
from flows.report import report as write_report
from flows.show import complain, err, out, rows, say, score_table, summary
from flows.training import ExampleLabels, Examples, TrainOptions, make_chips, show_confusion, undisturbed
from flows.weights import weights
from pipeline.errors import SceneError, UsageError, WidefieldError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pipeline.executors import Executor
    from pipeline.nightly import ArchiveRequest
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
app.add_typer(bundle_app, name="bundle")
app.add_typer(labels_app, name="labels")
app.add_typer(engines, name="engines")
app.add_typer(weights, name="weights")
app.add_typer(registry, name="registry")
app.command(
    epilog="Examples: `widefield probe scene.tif --bundle examples/bundles/buildings --out wider` · "
    "`widefield probe north.tif south.tif --bundle B --out B2 --within 0.001 --memory 8 --batch 1,2`"
)(probe)


@app.command(
    epilog="Examples: `widefield plan scene.tif --bundle examples/bundles/buildings --block 2048` · "
    "`widefield plan archive/ --bundle B --out masks --match 'north/*'` · "
    "`widefield plan archive/ --bundle B --out masks --workers 4 --threads 2 --calibrate`"
)
@spelled_out
def plan(
    *,
    scene: ScenePath,
    bundle: BundleDir,
    folder: OutDir = Path(),
    match: Match = None,
    backfill: Backfill = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Segment a few blocks on trial, and tell hours, core-hours and bytes.")
    ] = False,
    as_json: AsJson = False,
    options: RunOptions,
) -> None:
    """Tell what segmenting SCENE would take, without doing it: tiles, blocks, bytes, memory.

    Of an archive, the scenes that are new or have changed since they were segmented into OUT.
    """
    from pipeline.archive import is_archive, scene_name
    from pipeline.calibrate import Asked, work_of
    from pipeline.segment import Engines, plan_request

    planned, engines = [], Engines()

    def show(request: "SegmentRequest") -> None:
        frozen = plan_request(request, engines)
        planned.append(Asked(request, work_of(frozen)))
        if as_json:
            print(json.dumps(frozen.to_json()))
        else:
            out.print(rows(frozen.describe()))

    failed = 0
    if is_archive(scene):
        night = _night(scene, options.request("", "", bundle, folder), match, backfill)
        failed = _plan_archive(night, show, as_json=as_json)
    else:
        with _told(scene, as_json=as_json):
            show(options.request(named(scene), scene_name(scene), bundle, folder))
    if calibrate and (found := forecast(planned, options.workers, engines)) is not None:
        if as_json:
            print(json.dumps({"calibration": found.to_json()}))
        else:
            show_forecast(found)
    if failed:
        raise typer.Exit(1)


def _night(archive: str, pattern: "SegmentRequest", match: str | None, backfill: bool) -> "ArchiveRequest":
    from pipeline.nightly import ArchiveRequest

    trust: Literal["archive", "untrusted"] = "untrusted" if pattern.scene.policy.trust == "untrusted" else "archive"
    return ArchiveRequest(archive, pattern, match=match, trust=trust, backfill=backfill)


def _plan_archive(night: "ArchiveRequest", show: "Callable[[SegmentRequest], None]", *, as_json: bool) -> int:
    """Show what waits; how many scenes failed."""
    from flows.scenes import SceneLines
    from pipeline.nightly import SceneResult, survey
    from pipeline.together import line

    lines = SceneLines(night.pattern.out, as_json=as_json)
    waiting, settled = survey(night)
    if not waiting and not settled:
        raise UsageError(_empty(night))
    for result in settled:
        if result.status == "failed":
            lines(result)
    planned = 0
    for entry in waiting:
        try:
            show(night.of(entry))
            planned += 1
        except SceneError as error:
            lines(SceneResult(entry.name, entry.address.path, "failed", line(error)))
    unchanged = sum(result.status == "unchanged" for result in settled)
    counts = f"{planned} to segment, {unchanged} unchanged, {lines.failed} failed"
    err.print(counts, highlight=False)
    return lines.failed


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
    match: Match = None,
    backfill: Backfill = False,
    check: Check = False,
    scheduler: Scheduler = None,
    keep_staged: KeepStaged = False,
    as_json: AsJson = False,
    options: RunOptions,
) -> None:
    """Segment SCENE into OUT: mask.tif, confidence.tif, a STAC item, a preview, run.json.

    An interrupted run goes on where it stopped when the same command is given again. Of an archive, only scenes that
    are new or have changed are segmented.
    """
    from models.bundle import open_bundle
    from pipeline.archive import is_archive, scene_name
    from pipeline.executors import make_executor
    from pipeline.housekeeping import make_folder
    from pipeline.stop import draining
    from pipeline.workshop import alone

    def waiting() -> None:
        complain(f"waiting for another run over an archive that writes into {folder}")

    many = is_archive(scene)
    path, name = ("", "") if many else (named(scene), scene_name(scene))
    request = options.request(path, name, bundle, folder, keep_staged=keep_staged)
    open_bundle(bundle)
    make_folder(folder)
    first = alone(folder, waiting) if many else contextlib.nullcontext()
    with first, make_executor(options.workers, scheduler, folder, target=options.device) as executor, draining():
        if many:
            night = replace(_night(scene, request, match, backfill), check=check)
            _segment_archive(night, executor, as_json=as_json)
        else:
            with _told(scene, as_json=as_json):
                _segment_one(request, executor, as_json=as_json)


@contextlib.contextmanager
def _told(scene: str, *, as_json: bool) -> "Iterator[None]":
    """Lets errors through, as a line of JSON too if that is wanted and it is the scene's own."""
    from pipeline.stop import Stopped

    try:
        yield
    except Exception as error:
        if as_json and not isinstance(error, UsageError | Stopped):
            print(json.dumps({"scene": {"path": scene}, "error": _line(error)}))
        raise


def _segment_archive(night: "ArchiveRequest", executor: "Executor", *, as_json: bool) -> None:
    from flows.scenes import SceneLines, scene_bar, show_results
    from pipeline.nightly import segment_archive

    lines = SceneLines(night.pattern.out, as_json=as_json)
    with scene_bar(lines, night.archive) as listen:
        report = segment_archive(night, executor, listen)
    if not lines.results:
        raise UsageError(_empty(night))
    show_results(lines, report.bottleneck)
    if lines.failed:
        raise typer.Exit(1)


def _empty(night: "ArchiveRequest") -> str:
    from pipeline.archive import SUFFIXES

    wanted = f", and --match {night.match}" if night.match else ""
    return f"{night.archive} holds no scene: looked for {', '.join(SUFFIXES)}{wanted}"


def _segment_one(request: "SegmentRequest", executor: "Executor", *, as_json: bool) -> None:
    from pipeline.segment import segment_scene

    with bar(request.name, err, quiet=as_json) as listen:
        facts = segment_scene(request, executor, listen)
    if as_json:
        print(json.dumps(facts))
    else:
        out.print(summary(facts, request.folder))


@app.command(
    epilog="Examples: `widefield train --images scenes --labels scenes --out buildings --class background=#3B4252 "
    "--class building=#E4572E --steps 2400 --precision bf16-mixed` · "
    "`widefield train --task classify --images trays --out tray-model --encoder inception_resnet_v2 "
    "--encoder-from inceptionresnetv2-520b38e4.pth --freeze 100 --encoder-rate 0.1`"
)
@spelled_out
def train(
    *,
    images: Examples,
    labels: ExampleLabels = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the bundle, the chips, the log and the checkpoint.")],
    options: TrainOptions,
) -> None:
    """Train a segmenter from labelled scenes, or a classifier from images; the same seed gives the same weights.

    A training that was killed goes on from its checkpoint when the same command is given again.
    """
    from models.train import train as fit
    from pipeline.housekeeping import make_folder

    with readable(options.card, "--card"):
        card = options.card.read_text(encoding="utf-8") if options.card else ""
    existing(images, "--images")
    if options.encoder_from:
        existing(options.encoder_from, "--encoder-from")
    _, colors, codes = options.legend()
    config = options.config(folder, card=card, colors=colors, codes=codes)
    make_folder(folder)
    with undisturbed(folder):
        make_chips(images, labels, folder, options)
        bundle = fit(config, lambda line: say(json.dumps(line)))
    say(f"bundle {bundle.digest[:12]} in {bundle.path}")
    say(f"report {write_report(bundle, config.chips, folder)}")
    if options.task == "classify":
        show_confusion(bundle)


@app.command(epilog="Example: `widefield report --bundle buildings --chips buildings/chips.zarr --out looked-at`")
def report(
    *,
    bundle: BundleDir,
    chips: Annotated[Path, typer.Option(help="The chips that it was trained on, or others like them.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of report.html.")],
) -> None:
    """Write the report of a training again, or on other chips: scores, curves, worst and best chips, stitching."""
    from models.bundle import open_bundle
    from pipeline.housekeeping import make_folder

    opened = open_bundle(bundle)
    make_folder(folder)
    say(f"report {write_report(opened, existing(chips, '--chips'), folder)}")


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
        executor = stack.enter_context(make_executor(options.workers, None, place, target=options.device))

        def watch(name: str) -> "AbstractContextManager[Listener]":
            return bar(name, err, quiet=as_json)

        result = score(pattern, images, labels, executor, attribute=attribute, watch=watch)
    if as_json:
        print(json.dumps(result))
    else:
        out.print(score_table(result))


@app.command(epilog="Examples: `widefield verify masks/` · `widefield verify masks/scene --seams --part 0,0,8192,8192`")
def verify(
    folder: ResultDir,
    *,
    seams: Annotated[
        bool, typer.Option("--seams", help="Also segment on a lattice shifted by half a core: do borders show?")
    ] = False,
    part: Annotated[str | None, typer.Option(help="Of --seams: a part of the scene, ROW,COL,HEIGHT,WIDTH.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check coverage, every shard's bytes, checksums and georeference of results; exit 1 if anything is wrong.

    With --seams, labels within 16 px of borders between cores may change hardly more often than elsewhere when the
    lattice is another one, or on a tenth of a thousandth of the pixels at most.
    """
    from pipeline.verify import results
    from pipeline.verify import verify as check

    wrong, window = False, window_of(part, "--part")
    for result in results(folder):
        verdict = check(result)
        wrong |= bool(verdict.problems)
        facts = asdict(verdict) | {"folder": str(verdict.folder)}
        if not as_json:
            say(f"{'damaged' if verdict.problems else 'ok'} {verdict.folder}: {verdict.blocks} blocks")
            for line in (*verdict.problems, *verdict.notes):
                say(f"  {line}")
        if seams and not verdict.problems:
            passed, facts["seams"] = check_seams(result, window, as_json=as_json)
            wrong |= not passed
        if as_json:
            print(json.dumps(facts))
    if wrong:
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
        sys.exit(error.exit_code if isinstance(error, WidefieldError) else 1)
    if code == INTERRUPTED:  # outside of what drains
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
