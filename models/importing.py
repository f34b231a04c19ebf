"""Making a bundle of somebody else's network: what its owner says of it in `spec.yaml`, and what trying it shows.

    name: roofs                         halo: 96             optional; measured on scenes if left out
    licence: MIT                        tiles: [512, 1024]   optional
    activation: logits                  stride: 32           the network takes multiples of it
    divisor: 255                        threshold: 0.4       optional, of two classes
    dtypes: [uint8]                     input, output: x, y  names of tensors, where the graph has several
    bands:
    - {name: red, mean: 0.485, std: 0.229, low: 0, high: 255}
    classes: [background, {name: roof, color: "#E4572E"}]

`mean` and `std` are the maker's, of pixels divided by `divisor`; `low` and `high`, the range seen in training, are of
pixels as they are.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from models.engines.onnxruntime import answer, session
from models.errors import BundleError, EngineError
from models.onnxgraph import shape_of, shaped
from models.spec import Band, Class, ClassName, DType, Imported, ModelSpec, Plane, Value

PALETTE: Final = ("#3B4252", "#E4572E", "#17BEBB", "#FFC914", "#76B041", "#8E6C8A", "#2E86AB", "#F18F01")
"""Colours of classes that are given none."""
TILES: Final = (256, 512, 1024, 1152, 2048)
"""Edges that a bundle gets where its owner names none: those of more than four halos."""
LEAST: Final = 64
"""Edge of the smallest image that a graph is tried on, in pixels."""
CLOSE: Final = 1e-3
"""By how much of their deviation answers may differ for a batch and for its images one by one, whose sums may be taken
in another order."""

Form = Literal["onnx", "program"]
"""An ONNX file, or an exported program of PyTorch's."""
Array = NDArray[np.float32]


class SaidBand(Value):
    """A band as the network's owner knows it."""

    name: str
    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0
    low: float | None = None
    high: float | None = None
    """Range seen in training; of bytes 0 to 255 if not given."""
    unit: str = "DN"


class SaidClass(Value):
    """A class; its place in the list is its id."""

    name: ClassName
    color: Annotated[str, Field(pattern="^#[0-9A-Fa-f]{6}$")] | None = None
    title: str = ""
    code: int | None = None


class Said(Value):
    """What the network's owner says of it."""

    name: ClassName
    licence: str
    attribution: str = ""
    card: str = ""
    """Model card, Markdown."""
    bands: Annotated[tuple[SaidBand, ...], Field(min_length=1)]
    divisor: Annotated[float, Field(gt=0)] = 1.0
    """By which its maker divided pixels before mean and deviation."""
    dtypes: Annotated[tuple[DType, ...], Field(min_length=1)] = ("uint8",)
    classes: Annotated[tuple[SaidClass, ...], Field(min_length=2)]
    activation: Literal["logits", "softmax", "sigmoid"]
    threshold: float | None = None
    objects: tuple[ClassName, ...] = ()
    boundary: ClassName | None = None
    planes: tuple[Plane, ...] = ("labels", "confidence")
    resolution: tuple[float, float] | None = None
    stride: Annotated[int, Field(ge=1)] = 32
    halo: Annotated[int, Field(ge=0)] | None = None
    tiles: tuple[int, ...] | None = None
    input: str | None = None
    output: str | None = None

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        bare = [band.name for band in self.bands if band.low is None or band.high is None]
        if bare and self.dtypes != ("uint8",):
            raise ValueError(
                f"band {bare[0]} of {', '.join(self.dtypes)} pixels: give low and high, the range seen in training"
            )
        return self


def read_said(file: Path) -> Said:
    """`spec.yaml`; a class may be no more than its name.

    Raises:
        BundleError: it cannot be read, or says what nobody would act upon, or too little.
    """
    try:
        facts = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BundleError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(facts, dict):
        raise BundleError(f"{file} holds no keys: it should say name, licence, bands, classes and activation")
    if isinstance(facts.get("classes"), list):
        facts["classes"] = [{"name": entry} if isinstance(entry, str) else entry for entry in facts["classes"]]
    try:
        return Said.model_validate(facts)
    except ValidationError as error:
        raise BundleError(f"{file}: {_faults(error)}") from error


def spec_of(said: Said, plan: Imported, halo: int) -> ModelSpec:
    """The data contract of an imported network.

    Raises:
        BundleError: what is said does not fit together, or not the graph.
    """
    ids = {entry.name: index for index, entry in enumerate(said.classes)}
    unknown = [name for name in (*said.objects, said.boundary) if name is not None and name not in ids]
    if unknown:
        raise BundleError(f"objects, boundary: {unknown[0]} is no class, classes are {', '.join(ids)}")
    try:
        return ModelSpec(
            name=said.name,
            architecture=plan,
            bands=tuple(_band(entry, said.divisor) for entry in said.bands),
            dtypes=said.dtypes,
            resolution=said.resolution,
            classes=tuple(_class(entry, index) for index, entry in enumerate(said.classes)),
            objects=tuple(ids[name] for name in said.objects),
            boundary=None if said.boundary is None else ids[said.boundary],
            planes=said.planes,
            threshold=said.threshold,
            stride=said.stride,
            halo=halo,
            tiles=said.tiles or _tiles(plan, halo, said.stride),
            licence=said.licence,
            attribution=said.attribution,
        )
    except ValidationError as error:
        raise BundleError(f"{said.name}: {_faults(error)}") from error


def read_network(file: Path, form: Form, said: Said) -> tuple[bytes, Imported]:
    """What a bundle keeps of a network, `network.onnx`, and its description.

    Raises:
        BundleError: the file cannot be read, or does not fit what is said of it.
    """
    if form == "program":
        from models.program import read_program as read
    else:
        from models.onnxgraph import read_graph as read
    graph, plan = examined(read(file), said)
    return graph.SerializeToString(deterministic=True), plan


def examined(model: onnx.ModelProto, said: Said) -> tuple[onnx.ModelProto, Imported]:
    """The graph with all axes free that turn out to be, and its description, by trying it on noise.

    Raises:
        BundleError: it is no segmentation network of these bands and classes, or takes images otherwise than we do.
    """
    entry, told = _input(model, said)
    trial = Trial(model, entry, _output(model, said), len(said.bands), (told[0], _told_edge(told)))
    channels, output_stride = trial.answers_of(said.stride)
    wanted = {len(said.classes), 1} if len(said.classes) == 2 else {len(said.classes)}
    if channels not in wanted:
        raise BundleError(
            f"the graph answers with {channels} channels for {len(said.classes)} classes: name as many classes in "
            "spec.yaml, the background included"
        )
    trial.check_activation(said.activation)
    batch, edge = trial.only_batch(), trial.only_edge(said.stride)
    plan = Imported(
        input=entry,
        output=trial.output,
        channels=channels,
        activation=said.activation,
        output_stride=output_stride,
        batch=batch,
        edge=edge,
    )
    return shaped(model, entry, (batch or "batch", len(said.bands), edge or "height", edge or "width")), plan


class Trial:
    """A graph, tried on noise: what it answers, and which of its axes are free."""

    def __init__(
        self, model: onnx.ModelProto, entry: str, output: str, bands: int, told: tuple[int | None, int | None]
    ) -> None:
        """`told`: number of images and edge that the graph itself says it takes.

        Raises:
            BundleError: ONNX Runtime does not take it.
        """
        self.input, self.output, self.bands = entry, output, bands
        self.batch, self.edge = told
        free = shaped(model, entry, ("batch", bands, "height", "width"))
        try:
            self._free = session(free.SerializeToString(), 1)
        except EngineError as error:
            raise BundleError(str(error)) from error
        self._draw = np.random.default_rng(0)
        self.first: Array = np.zeros(0, np.float32)
        """Its answers to `images`."""
        self.images: Array = np.zeros(0, np.float32)

    def answers_of(self, stride: int) -> tuple[int, int]:
        """Channels, and pixels between two answers.

        Raises:
            BundleError: the answers are no image, or not finite, or not the same twice.
        """
        self.edge = self.edge or max(stride, -(-LEAST // stride) * stride)
        self.images = self._noise(self.batch or 1, self.edge, self.edge)
        try:
            self.first, again = self._run(self.images), self._run(self.images)
        except EngineError as error:
            raise BundleError(
                f"the graph does not take {self.images.shape[0]} images of {self.bands} bands and {self.edge} x "
                f"{self.edge} px: is its stride {stride}? ({error})"
            ) from error
        if self.first.ndim != 4 or self.first.shape[2] != self.first.shape[3] or self.edge % self.first.shape[2]:
            raise BundleError(
                f"{self.output} has shape {self.first.shape} for images {self.images.shape}: it must be (N, K, H, W), "
                "of the same size or a whole fraction of it: export logits as NCHW"
            )
        if self.first.dtype != np.float32:
            raise BundleError(
                f"{self.output} is of type {self.first.dtype}, not float32: export what the best class is chosen by"
            )
        if not np.isfinite(self.first).all() or not np.array_equal(self.first, again):
            raise BundleError(
                f"{self.output} is not finite, or differs from call to call: export the network in eval mode"
            )
        return self.first.shape[1], self.edge // self.first.shape[2]

    def check_activation(self, activation: str) -> None:
        """Refuse probabilities that are called logits, and logits that are called probabilities."""
        inside = bool((self.first >= 0).all() and (self.first <= 1).all())
        whole = inside and bool((np.abs(self.first.sum(1) - 1) < CLOSE).all())
        if activation == "logits" and whole and self.first.shape[1] > 1:
            raise BundleError(f"{self.output} holds probabilities, which sum to 1: say `activation: softmax`")
        if activation == "logits" and inside and self.first.shape[1] == 1:
            raise BundleError(
                f"{self.output} holds values from {self.first.min():.3g} to {self.first.max():.3g}, which are "
                "probabilities: say `activation: sigmoid`"
            )
        if (activation == "softmax" and not whole) or (activation == "sigmoid" and not inside):
            raise BundleError(
                f"{self.output} holds values from {self.first.min():.3g} to {self.first.max():.3g}: these are no "
                f"probabilities of a {activation}, say `activation: logits`"
            )

    def only_batch(self) -> int | None:
        """The number of images that it takes; None if two at once give what each one gives."""
        images = self._noise(2, *self.images.shape[2:])
        try:
            together = self._run(images)
            single = np.concatenate([self._run(images[:1]), self._run(images[1:])])
        except EngineError:
            return self.batch or 1
        same = together.shape == single.shape and np.abs(together - single).max() <= CLOSE * max(single.std(), 1e-12)
        return None if same else self.batch or 1

    def only_edge(self, stride: int) -> int | None:
        """The height and width that it takes; None if it takes other ones, not square either.

        Raises:
            BundleError: it says that it takes any, and does not.
        """
        rows, cols = self.images.shape[2] + stride, self.images.shape[2] + 2 * stride
        per = self.images.shape[2] // self.first.shape[2]
        try:
            found = self._run(self._noise(len(self.images), rows, cols)).shape[2:]
        except EngineError:
            found = (0, 0)
        return None if found == (rows // per, cols // per) and not (rows % per or cols % per) else self.edge

    def _noise(self, *shape: int) -> Array:
        images, rows, cols = shape
        return self._draw.standard_normal((images, self.bands, rows, cols), np.float32)

    def _run(self, images: Array) -> Array:
        return np.asarray(answer(self._free, {self.input: images}, self.output))


def _input(model: onnx.ModelProto, said: Said) -> tuple[str, list[int | None]]:
    """Name and axes of the images."""
    graph = model.graph
    names = [value.name for value in graph.input]
    if said.input not in {None, *names} or (len(names) != 1 and said.input is None):
        raise BundleError(f"the graph has inputs {', '.join(names)}: name one of them in spec.yaml, as `input`")
    if len(names) != 1:
        raise BundleError(f"the graph has inputs {', '.join(names)}: only networks of one input can be imported")
    kind = graph.input[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        raise BundleError(
            f"{names[0]} is of type {onnx.TensorProto.DataType.Name(kind).lower()}: export the network in float32"
        )
    axes, bands = shape_of(graph, names[0]), len(said.bands)
    if axes is None or len(axes) != 4:
        raise BundleError(f"{names[0]} has axes {axes}: it must be images (N, C, H, W)")
    if axes[1] not in {None, bands} or (axes[1] is None and axes[3] == bands):
        nhwc = axes[3] == bands
        raise BundleError(
            f"{names[0]} has axes {axes}: it must be (N, {bands}, H, W), one channel a band of spec.yaml"
            + ("; this is (N, H, W, C): put a transposition before the network and export it again" if nhwc else "")
        )
    return names[0], axes


def _told_edge(axes: list[int | None]) -> int | None:
    rows, cols = axes[2:]
    if rows is not None and cols is not None and rows != cols:
        raise BundleError(f"the graph takes {rows} x {cols} px: tiles are square, export it with dynamic axes")
    return rows or cols


def _output(model: onnx.ModelProto, said: Said) -> str:
    names = [value.name for value in model.graph.output]
    if said.output is None and len(names) > 1:
        raise BundleError(f"the graph has outputs {', '.join(names)}: name one of them in spec.yaml, as `output`")
    if said.output not in {None, *names}:
        raise BundleError(f"the graph has no output {said.output}: its outputs are {', '.join(names)}")
    return said.output or names[0]


def _tiles(plan: Imported, halo: int, stride: int) -> tuple[int, ...]:
    if plan.edge is not None:
        return (plan.edge,)
    fitting = tuple(edge for edge in TILES if edge > 4 * halo and edge % stride == 0)
    return fitting or (max(4 * halo, -(-TILES[0] // stride) * stride),)


def _band(entry: SaidBand, divisor: float) -> Band:
    return Band(
        name=entry.name,
        unit=entry.unit,
        low=0.0 if entry.low is None else entry.low,
        high=255.0 if entry.high is None else entry.high,
        mean=entry.mean * divisor,
        std=entry.std * divisor,
    )


def _class(entry: SaidClass, index: int) -> Class:
    color = entry.color or PALETTE[index % len(PALETTE)]
    return Class(id=index, name=entry.name, color=color.upper(), title=entry.title, code=entry.code)


def _faults(error: ValidationError) -> str:
    faults = [
        (".".join(map(str, fault["loc"])), re.sub("^Value error, ", "", fault["msg"])) for fault in error.errors()
    ]
    return "; ".join(f"{place}: {text}" if place else text for place, text in faults)
