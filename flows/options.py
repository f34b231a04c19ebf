"""What a command line may say, as frozen values: each field is one option, and its help."""

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from pipeline.errors import LabelError, UsageError
from pipeline.grid import Window

if TYPE_CHECKING:
    from models.config import TrainConfig
    from pipeline.segment import SegmentRequest

_COLOR = re.compile("#[0-9A-Fa-f]{6}")
_TRAINING = (
    *("task", "name", "licence", "attribution", "encoder", "width", "decoder", "output_stride", "aux", "init"),
    *("encoder_from", "freeze", "encoder_rate", "steps", "batch", "warmup", "foreground", "seed"),
    *("class_weights", "label_smoothing", "precision", "threads"),
)
"""Options of a training that its configuration calls by the same names."""
_CODE = re.compile("[0-9]{1,5}")

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
BundleDir = Annotated[Path, typer.Option("--bundle", help="Folder of the trained model.")]
OutDir = Annotated[Path, typer.Option("--out", help="Folder for results; each scene gets a folder of its name.")]
ResultDir = Annotated[Path, typer.Argument(metavar="OUT", help="A result, or a folder of results.")]
Images = Annotated[Path, typer.Option("--images", help="Folder of labelled GeoTIFF scenes, or one scene.")]
Examples = Annotated[
    Path,
    typer.Option("--images", help="Folder of labelled scenes, or one; to classify: of one folder of images a class."),
]
ExampleLabels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="Vector file, class raster, or a folder of them named after the scenes. To classify: nothing, or a CSV "
        "with the columns `path,class`, and `split` if it says so.",
    ),
]
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
        Literal["auto", "torch", "openvino", "null"],
        typer.Option(help="What runs the network; `null` measures the pipeline alone."),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="`auto`: bf16 where the processor has it and parity holds."),
    ] = "auto"
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


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What decides what a training gives, beside the scenes and their labels."""

    task: Annotated[
        Literal["segment", "classify"],
        typer.Option(help="A class for each pixel, or one for each image of a folder with one folder a class."),
    ] = "segment"
    classes: Annotated[
        list[str],
        typer.Option(
            "--class",
            help="NAME, NAME=#RRGGBB or NAME=#RRGGBB:CODE, once for each class, 0 first. Of images: the names of "
            "their folders, if not given.",
        ),
    ] = field(default_factory=list)
    name: Annotated[str, typer.Option(help="Name of the model.")] = "segmenter"
    attribute: Attribute = None
    split: Annotated[
        Path | None,
        typer.Option(help="CSV with columns `scene,split`; else names ending in -train or -val, else the ground."),
    ] = None
    chip: Annotated[
        int | None,
        typer.Option(
            min=32, help="Edge of a chip, in pixels: 512, or 256 if images are classified; they are scaled to it."
        ),
    ] = None
    bands: Annotated[str | None, typer.Option(help="Bands of the files to train on, counted from 1.")] = None
    encoder: Annotated[
        str,
        typer.Option(help="inception_v1, _v2, _v2_factorized, _v3, _v4, inception_resnet_v1 or inception_resnet_v2."),
    ] = "inception_v1"
    variant: Annotated[
        list[str], typer.Option(help="Option of the encoder as NAME=VALUE: kernel5=3, bn=false, variant=facenet, ...")
    ] = field(default_factory=list)
    width: Annotated[float, typer.Option(min=0.01, help="Multiplier of the encoder's channels.")] = 1.0
    decoder: Annotated[
        Literal["unet", "fpn"], typer.Option(help="`fpn` is lighter; docs/models.md has both measured.")
    ] = "unet"
    decoder_channels: Annotated[
        str | None,
        typer.Option(help="Of the U-Net's five stages, deepest first; of the FPN its pyramid and its output."),
    ] = None
    output_stride: Annotated[
        int, typer.Option(help="Pixels between two logits: 1 is the finest, 4 takes the least memory and time.")
    ] = 2
    init: Annotated[
        Literal["glorot", "glorot-truncated"], typer.Option(help="Glorot's normal, plain or cut off as Keras does it.")
    ] = "glorot"
    encoder_from: Annotated[
        Path | None,
        typer.Option(
            help="Start the encoder from this bundle, or from a file of public weights (`widefield weights`)."
        ),
    ] = None
    freeze: Annotated[int, typer.Option(min=0, help="First steps in which the encoder stays as it is.")] = 0
    encoder_rate: Annotated[
        float, typer.Option(min=0, help="Learning rate of the encoder, as a share of the rest's.")
    ] = 1.0
    class_weights: Annotated[
        Literal["none", "balanced"], typer.Option(help="`balanced`: rare classes weigh more in the cross-entropy.")
    ] = "none"
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of each label that is spread over all classes.")
    ] = 0.0
    aux: Annotated[bool, typer.Option("--aux", help="Train a classifier with its network's auxiliary heads.")] = False
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 2400
    batch: Annotated[int, typer.Option(min=1, help="Crops a step.")] = 8
    crop: Annotated[int, typer.Option(min=32, help="Edge of a crop, in pixels; images are classified whole.")] = 256
    rate: Annotated[float, typer.Option(help="Largest learning rate.")] = 1.5e-3
    warmup: Annotated[int, typer.Option(min=0, help="Steps until the largest learning rate.")] = 200
    foreground: Annotated[
        float, typer.Option(min=0, max=1, help="Share of crops from chips with a class other than 0.")
    ] = 0.25
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights.")] = 0
    precision: Annotated[
        Literal["32-true", "bf16-mixed"],
        typer.Option(help="`bf16-mixed` is about twice as fast where the processor has bf16."),
    ] = "32-true"
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the processor.")] = None
    licence: Annotated[str, typer.Option(help="SPDX identifier of the weights' licence.")] = "Apache-2.0"
    attribution: Annotated[str, typer.Option(help="Credit line that outputs carry.")] = ""
    card: Annotated[Path | None, typer.Option(help="Markdown for the model card: data, extent, known failures.")] = None

    def config(self, folder: Path, **more: Any) -> "TrainConfig":
        """The training into `folder`.

        Raises:
            UsageError: an option of the encoder, or the decoder's channels, are not as they should be.
        """
        from models.config import TrainConfig

        self._check_task()
        count = {"unet": 5, "fpn": 2}[self.decoder]
        channels = numbers(self.decoder_channels, "--decoder-channels", count=count, least=1)
        return TrainConfig(
            chips=folder / "chips.zarr",
            out=folder,
            variant=dict(map(_setting, self.variant)),
            decoder_channels=channels or (),
            crop=self.edge if self.task == "classify" else self.crop,
            lr=self.rate,
            **{name: getattr(self, name) for name in _TRAINING},
            **more,
        )

    def _check_task(self) -> None:
        if self.task == "segment":
            return
        if self.split is not None:
            raise UsageError("--split is for scenes: give images their split in a column of the --labels table")
        for name in ("attribute", "decoder", "decoder_channels", "output_stride", "crop"):
            if getattr(self, name) != getattr(type(self), name):
                raise UsageError(f"--{name.replace('_', '-')} is for --task segment: a classifier has none")

    @property
    def edge(self) -> int:
        """Of a chip, in pixels."""
        return self.chip or {"segment": 512, "classify": 256}[self.task]

    def legend(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
        """Names of the classes, their colours and their codes; no colours leave the choice to the training.

        Raises:
            UsageError: a colour or a code is none, or only some classes have one.
        """
        if not self.classes:
            return (), (), ()
        names, _, looks = zip(*(text.partition("=") for text in self.classes), strict=True)
        colors, _, codes = zip(*(look.partition(":") for look in looks), strict=True)
        wrong = [text for text, color in zip(self.classes, colors, strict=True) if not _COLOR.fullmatch(color)]
        if any(colors) and wrong:
            raise UsageError(f"--class {wrong[0]}: give every class a colour, as in building=#E4572E, or none")
        wrong = [text for text, code in zip(self.classes, codes, strict=True) if not _CODE.fullmatch(code)]
        if any(codes) and wrong:
            raise UsageError(f"--class {wrong[0]}: give every class a code, as in forest=#229922:311, or none")
        return (
            names,
            tuple(color.upper() for color in colors) if any(colors) else (),
            tuple(int(code) for code in codes) if any(codes) else (),
        )


def _setting(text: str) -> tuple[str, bool | int | str]:
    """NAME=VALUE as a name and a truth value, a whole number, or a word."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise UsageError(f"--variant {text}: give NAME=VALUE, as in kernel5=3")
    if value.lower() in {"true", "false"}:
        return name, value.lower() == "true"
    return name, int(value) if value.isdecimal() else value


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
