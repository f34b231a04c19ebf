"""What `widefield train` may be told, the chips that it makes, and what it says of a classifier."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.labels import Boundary, ObjectClasses, caution
from flows.options import Attribute, existing, numbers, readable
from flows.show import say
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.config import TrainConfig
    from pipeline.chips import ChipsSummary
    from pipeline.labelreport import LabelReport
    from pipeline.split import Ground

_COLOR = re.compile("#[0-9A-Fa-f]{6}")
_CODE = re.compile("[0-9]{1,5}")
_TRAINING = (
    *("task", "name", "licence", "attribution", "encoder", "width", "decoder", "output_stride", "aux", "init"),
    *("start", "encoder_from", "freeze", "encoder_rate", "steps", "batch", "warmup", "foreground", "seed"),
    *("optimizer", "loss", "ema", "class_weights", "label_smoothing", "precision", "threads", "devices"),
)
"""Options of a training that its configuration calls by the same names."""

Examples = Annotated[
    Path,
    typer.Option("--images", help="Folder of labelled scenes, or one; to classify: of one folder of images a class."),
]
ExampleLabels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="Vector file, class raster, or a folder of them, or of masks of objects, named after the scenes. To "
        "classify: nothing, or a CSV with the columns `path,class`, and `split` if it says so.",
    ),
]


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
        typer.Option(
            help="CSV with columns `scene,split`; else names ending in -train, -val or -sealed, else the ground."
        ),
    ] = None
    boundary: Boundary = None
    objects: ObjectClasses = field(default_factory=list)
    sealed: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the ground that only the gate reads; if not given, as the chips have it, or 0.",
        ),
    ] = None
    most: Annotated[
        int | None, typer.Option(min=1, help="Most chips of each split, drawn evenly over the ground; else all.")
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
    output_stride: Annotated[int, typer.Option(help="Pixels between two logits: 1 is the finest, 4 the fastest.")] = 2
    init: Annotated[
        Literal["glorot", "glorot-truncated"], typer.Option(help="Glorot's normal, plain or cut off as Keras does it.")
    ] = "glorot"
    start: Annotated[
        Path | None,
        typer.Option(
            help="Go on from this bundle, with its network, which then needs no options. Classes that it knows by name "
            "keep their weights, others may be added.",
        ),
    ] = None
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
    optimizer: Annotated[
        Literal["adamw", "sgd"], typer.Option(help="`sgd` (Nesterov, 0.9) wants a --rate some thirty times as large.")
    ] = "adamw"
    loss: Annotated[
        str | None,
        typer.Option(
            help="`ce`, `dice`, `focal`, or a sum such as ce+dice: that of pixels if not given, and `ce` of images."
        ),
    ] = None
    ema: Annotated[
        float,
        typer.Option(min=0, help="Keep the average of the weights, of which each step keeps this share: 0.99, or 0."),
    ] = 0.0
    class_weights: Annotated[
        Literal["none", "balanced"], typer.Option(help="`balanced`: rare classes weigh more, in all terms but Dice.")
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
        float,
        typer.Option(
            min=0, max=1, help="Share of crops for which a class other than 0 is drawn, and then a chip with it."
        ),
    ] = 0.25
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights.")] = 0
    precision: Annotated[
        Literal["32-true", "bf16-mixed"],
        typer.Option(help="`bf16-mixed` is about twice as fast where the processor has bf16."),
    ] = "32-true"
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the processor.")] = None
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes, that share every batch.")] = 1
    licence: Annotated[str, typer.Option(help="SPDX identifier of the weights' licence.")] = "Apache-2.0"
    attribution: Annotated[str, typer.Option(help="Credit line that outputs carry.")] = ""
    card: Annotated[Path | None, typer.Option(help="Markdown for the model card: data, extent, known failures.")] = None

    def config(self, folder: Path, **more: Any) -> "TrainConfig":
        """The training into `folder`.

        Raises:
            UsageError: an option of the encoder, or the decoder's channels, are not as they should be.
            TrainingError: what is said of the network is not so of the bundle that it starts from.
        """
        from models.config import TrainConfig
        from models.start import settled

        self._check_task()
        if self.start:
            existing(self.start, "--start")
        count = {"unet": 5, "fpn": 2}[self.decoder]
        channels = numbers(self.decoder_channels, "--decoder-channels", count=count, least=1)
        config = TrainConfig(
            chips=folder / "chips.zarr",
            out=folder,
            variant=dict(map(_setting, self.variant)),
            decoder_channels=channels or (),
            crop=self.edge if self.task == "classify" else self.crop,
            lr=self.rate,
            **{name: getattr(self, name) for name in _TRAINING},
            **more,
        )
        return settled(config) if self.start else config

    def _check_task(self) -> None:
        if self.task == "segment":
            return
        if self.split is not None:
            raise UsageError("--split is for scenes: give images their split in a column of the --labels table")
        only = ("attribute", "boundary", "objects", "sealed", "most", "decoder", "decoder_channels", "output_stride")
        for name in (*only, "crop"):
            if getattr(self, name) != getattr(TrainOptions(), name):
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


def undisturbed(folder: Path) -> AbstractContextManager[None]:
    """Hold a training's folder alone: two of them would write into each other's chips, log and checkpoint.

    Raises:
        UsageError: another training, or a retraining, holds it.
    """
    from pipeline.workshop import alone

    def refuse() -> None:
        raise UsageError(f"another training holds {folder}: wait for it, or choose another --out")

    return alone(folder, refuse)


def make_chips(  # noqa: PLR0917 - where from, where to, how, and who is told
    images: Path,
    labels: Path | None,
    folder: Path,
    options: TrainOptions,
    tell: Callable[[str], None] = say,
    warn: Callable[[str], None] = caution,
    *,
    skip_unlabelled: bool = False,
    ground: "Ground | None" = None,
) -> None:
    """Write `folder / "chips.zarr"` for the task, and tell what it holds and what is suspicious about the labels.

    With `skip_unlabelled`, scenes without labels are left out, instead of being refused. `ground` says how ground is
    split where no chips are there yet.
    """
    if options.task == "classify":
        chips, kind = _image_chips(images, labels, folder, options), "left out"
    else:
        split = _split(images, options)
        found = _check(images, labels, options, skip_unlabelled=skip_unlabelled)
        for problem in found.warnings:
            warn(problem.line())
        chips, kind = _scene_chips(images, labels, folder, options, ground, split=split), "without a label"
    shares = ", ".join(f"{name} {share:.1%}" for name, share in chips.shares.items())
    more = f", {chips.sealed} sealed" * bool(chips.sealed) + f", {chips.left} not drawn" * bool(chips.left)
    kept = f"; {chips.kept} were there" * bool(chips.kept)
    if options.task == "segment" and not chips.val:
        warn("warning: none of the ground is for validation: name a scene `...-val`, or give --split")
    tell(f"chips: {chips.train} to train on, {chips.val} to validate{more}, {chips.dropped} {kind}; {shares}{kept}")


def _check(images: Path, labels: Path | None, options: TrainOptions, *, skip_unlabelled: bool) -> "LabelReport":
    """What the labels hold; what training would refuse is an error here."""
    from pipeline.labelcheck import check_labels

    if labels is None:
        raise UsageError("--labels is missing: name the file or the folder of the scenes' labels")
    if not options.classes:
        raise UsageError("--class is missing: name each class, 0 first, as in --class background --class building")
    report = check_labels(
        images,
        existing(labels, "--labels"),
        classes=options.legend()[0],
        attribute=options.attribute,
        bands=numbers(options.bands, "--bands", least=1),
        boundary=options.boundary,
        objects=options.objects or None,
        unlabelled=skip_unlabelled,
    )
    report.raise_errors()
    return report


def _split(images: Path, options: TrainOptions) -> dict[str, str] | None:
    """The split of the scenes that a table names, each of which must be there."""
    from pipeline.labels import list_images
    from pipeline.split import check_scenes, read_split

    if options.split is None:
        return None
    with readable(options.split, "--split"):
        split = read_split(options.split)
    check_scenes(split, [image.stem for image in list_images(images)])
    return split


def _scene_chips(
    images: Path,
    labels: Path | None,
    folder: Path,
    options: TrainOptions,
    ground: "Ground | None",
    *,
    split: dict[str, str] | None,
) -> "ChipsSummary":
    from pipeline.chips import write_chips
    from pipeline.labels import labelled

    assert labels is not None  # noqa: S101 - checked before
    pairs, _ = labelled(images, labels)
    return write_chips(
        [pair.image for pair in pairs],
        [pair.labels for pair in pairs],
        folder / "chips.zarr",
        classes=options.legend()[0],
        size=options.edge,
        seed=options.seed,
        attribute=options.attribute,
        boundary=options.boundary,
        objects=options.objects or None,
        split=split,
        bands=numbers(options.bands, "--bands", least=1),
        ground=ground,
        sealed=options.sealed,
        most=options.most,
    )


def _image_chips(images: Path, labels: Path | None, folder: Path, options: TrainOptions) -> "ChipsSummary":
    from pipeline.imagefolder import class_names, list_examples, write_image_chips

    if labels is not None:
        existing(labels, "--labels")
    examples = list_examples(images, labels)
    return write_image_chips(
        examples,
        folder / "chips.zarr",
        classes=options.legend()[0] or class_names(examples),
        size=options.edge,
        seed=options.seed,
        bands=numbers(options.bands, "--bands", least=1),
    )


def show_confusion(bundle: "Bundle") -> None:
    """Draw a classifier's confusion matrix beside its bundle, and say its scores."""
    from models.bundle import load_metrics
    from pipeline.publish.confusion import write_confusion

    val = load_metrics(bundle)["val"]
    write_confusion(bundle.path / "confusion.png", val["confusion"], [entry.name for entry in bundle.spec.classes])
    scores = ", ".join(f"{name} {value:.3f}" for name, value in val["f1"].items() if value is not None)
    accuracy = "-" if val["accuracy"] is None else f"{val['accuracy']:.3f}"
    say(f"accuracy {accuracy}; F1 {scores}; {bundle.path / 'confusion.png'}")
