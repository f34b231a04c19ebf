"""What a command line may say, as frozen values: each field is one option, and its help."""

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from pipeline.errors import LabelError, UsageError
from pipeline.grid import Window

if TYPE_CHECKING:
    from pipeline.segment import SegmentRequest


EngineName = Literal["auto", "torch", "inductor", "openvino", "onnxruntime", "tensorrt", "null"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
DeviceName = Literal["auto", "cpu", "cuda"]

ScenePath = Annotated[
    str,
    typer.Argument(metavar="SCENE", help="A raster; or an archive: a folder, an fsspec address, a STAC catalogue."),
]
Match = Annotated[
    str | None,
    typer.Option(
        help="Of an archive: only paths (of a STAC catalogue: names of items) that fit this glob, as in 'north/*.tif'."
    ),
]
Backfill = Annotated[bool, typer.Option("--backfill", help="Of an archive: redo the results of another bundle too.")]
Check = Annotated[bool, typer.Option("--check", help="Of an archive: verify finished results, mend what is damaged.")]


def bundle_folder(place: str) -> Path:
    """The folder of a bundle; a registry, in a folder or at an address, stands for its champion."""
    from models.registry import resolve

    return resolve(place)


BundleDir = Annotated[
    Path,
    typer.Option(
        "--bundle",
        parser=bundle_folder,
        metavar="PATH",
        help="Folder of the trained model; or a registry, which stands for its champion.",
    ),
]
OutDir = Annotated[Path, typer.Option("--out", help="Folder for results; each scene gets a folder of its name.")]
ResultDir = Annotated[Path, typer.Argument(metavar="OUT", help="A result, or a folder of results.")]
Images = Annotated[Path, typer.Option("--images", help="Folder of labelled GeoTIFF scenes, or one scene.")]
Labels = Annotated[
    Path, typer.Option("--labels", help="Vector file, class raster, or a folder of them named after the scenes.")
]
Attribute = Annotated[
    str | None, typer.Option(help="Field of the polygons that holds the class; without it all are class 1.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, one line a scene.")]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", help="Address of a Dask scheduler; its workers must see --out.")
]
KeepStaged = Annotated[bool, typer.Option("--keep-staged", help="Keep the staged zarr for the next run.")]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How scenes are read, cut and computed: the same for every command that segments."""

    block: Annotated[
        int | None, typer.Option(min=1, help="Wanted block edge in pixels; the nearest whole number of cores is taken.")
    ] = None
    tile: Annotated[int | None, typer.Option(min=1, help="Largest tile allowed, in pixels: one of the bundle's.")] = (
        None
    )
    workers: Annotated[int, typer.Option(min=1, help="Worker processes on this machine.")] = 1
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Engine threads a worker (part of the engine's identity); all cores, at most 8, if not given: with "
            "several workers, give cores / workers.",
        ),
    ] = None
    engine: Annotated[
        EngineName,
        typer.Option(help="What runs the network; `auto`: the fastest that passes; `null`: the pipeline alone."),
    ] = "auto"
    precision: Annotated[
        PrecisionName,
        typer.Option(help="`auto`: the fastest that this machine has and parity holds for."),
    ] = "auto"
    device: Annotated[DeviceName, typer.Option(help="`auto`: a GPU where there is one.")] = "auto"
    streams: Annotated[
        int, typer.Option(min=0, help="Batches that an engine computes side by side; 0: as many as pay, measured once.")
    ] = 0
    batch: Annotated[int, typer.Option(min=1, help="Tiles that the engine computes at once.")] = 1
    tta: Annotated[
        bool,
        typer.Option("--tta", help="See each tile in its eight orientations: at eight times the work."),
    ] = False
    probabilities: Annotated[
        str | None,
        typer.Option(help="Also publish probabilities of these classes, with commas between; `all`: each."),
    ] = None
    stage: Annotated[
        Literal["always", "auto", "never"],
        typer.Option(
            help="Tile the scene into zarr first; `auto`: if it is made of strips, JPEG 2000, or on a network."
        ),
    ] = "auto"
    bands: Annotated[
        str | None, typer.Option(help="Bands of the file in the bundle's order, counted from 1, as in 1,2,3.")
    ] = None
    nodata: Annotated[float | None, typer.Option(help="Nodata of a file that does not say, or says it wrongly.")] = None
    window: Annotated[str | None, typer.Option(help="A part of the scene: ROW,COL,HEIGHT,WIDTH in pixels.")] = None
    any_resolution: Annotated[
        bool, typer.Option("--any-resolution", help="Do not insist on the bundle's range of pixel sizes.")
    ] = False
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="Open plain rasters only: no VRT, no sidecars; says what it ignores.")
    ] = False
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse scenes of more pixels.")] = 10**12

    def request(self, path: str, name: str, bundle: Path, out: Path, **more: Any) -> "SegmentRequest":
        """The request to segment one scene into `out / name`.

        Raises:
            UsageError: the bands or the window are not numbers as they should be.
        """
        from pipeline.plan import PlanOptions
        from pipeline.scene import SceneAddress
        from pipeline.segment import SegmentRequest
        from pipeline.sources.policy import SourcePolicy

        bands = numbers(self.bands, "--bands", least=1)
        options = PlanOptions(
            block=self.block,
            stage={"always": True, "never": False}.get(self.stage),
            any_resolution=self.any_resolution,
            workers=self.workers,
        )
        policy = SourcePolicy("untrusted" if self.untrusted else "named", max_pixels=self.max_pixels)
        return SegmentRequest(
            scene=SceneAddress(path, bands, self.nodata, self._part(), policy=policy),
            bundle=bundle,
            out=out,
            name=name,
            options=options,
            backend=self.engine,
            precision=self.precision,
            target=self.device,
            streams=self.streams,
            batch=self.batch,
            tta=self.tta,
            planes=planes_of(bundle, self.probabilities),
            tile=self.tile,
            threads=self.threads,
            **more,
        )

    def _part(self) -> Window | None:
        part = numbers(self.window, "--window", count=4)
        try:
            return Window(*part) if part else None
        except ValueError as error:
            raise UsageError(f"--window {self.window}: {error}") from None


def numbers(text: str | None, option: str, *, count: int | None = None, least: int = 0) -> tuple[int, ...] | None:
    """`1,2,3` as whole numbers, each at least `least`.

    Raises:
        UsageError: they are something else, or not `count` of them.
    """
    if text is None:
        return None
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: give whole numbers with commas between them") from None
    if count is not None and len(values) != count:
        raise UsageError(f"{option} {text}: got {len(values)} numbers, {count} are needed")
    if min(values) < least:
        raise UsageError(f"{option} {text}: the least number allowed is {least}")
    return values


def planes_of(bundle: Path, probabilities: str | None) -> tuple[str, ...]:
    """What is to be stored of each pixel: nothing but what the bundle names, or the probabilities of classes besides.

    Raises:
        UsageError: the bundle has no such class.
        BundleError: it cannot be opened.
    """
    if not probabilities:
        return ()
    from models.bundle import open_bundle
    from models.spec import PROBABILITY, check_planes

    spec = open_bundle(bundle).spec
    wanted = [entry.name for entry in spec.classes] if probabilities == "all" else probabilities.split(",")
    planes = tuple(dict.fromkeys((*spec.planes, *(PROBABILITY + name.strip() for name in wanted))))
    try:
        check_planes(planes, spec.classes)
    except ValueError as error:
        raise UsageError(f"--probabilities {probabilities}: {error}") from None
    return planes


def named(scene: str) -> str:
    """A scene as the user named it: an absolute path, or an address that something else than a folder answers.

    Raises:
        UsageError: it is a path, and nothing is there.
    """
    if os.path.exists(scene):  # noqa: PTH110 - Path.exists raises where a name is too long
        return str(Path(scene).absolute())
    if ":" in scene or scene.startswith("/vsi"):
        return scene
    raise UsageError(f"{scene}: no such file or folder")


def existing(path: Path, option: str) -> Path:
    """The path that an option names.

    Raises:
        UsageError: nothing is there.
    """
    if not path.exists():
        raise UsageError(f"{option} {path}: no such file or folder")
    return path


@contextlib.contextmanager
def readable(path: Path | None, option: str) -> Iterator[None]:
    """Turns what comes of reading the small file that an option names into a usage error."""
    try:
        yield
    except (OSError, UnicodeDecodeError, LabelError) as error:
        raise UsageError(f"{option} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def spelled_out(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its parameter `options` replaced by the fields of that parameter's class."""
    hints = get_type_hints(command, include_extras=True)
    kind = hints.pop("options")
    types = get_type_hints(kind, include_extras=True)
    own = [
        given.replace(annotation=hints[given.name])
        for given in inspect.signature(command).parameters.values()
        if given.name != "options"
    ]
    theirs = [
        inspect.Parameter(
            option.name, inspect.Parameter.KEYWORD_ONLY, default=_default(option), annotation=types[option.name]
        )
        for option in fields(kind)
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = kind(**{option.name: given.pop(option.name) for option in fields(kind)})
        command(**given, options=chosen)

    run.__signature__ = inspect.Signature([*own, *theirs])  # type: ignore[attr-defined]  # what inspect.signature reads
    run.__annotations__ = {each.name: each.annotation for each in (*own, *theirs)}
    return run


def _default(option: "Field[Any]") -> Any:
    if option.default_factory is not MISSING:
        return option.default_factory()
    return inspect.Parameter.empty if option.default is MISSING else option.default
