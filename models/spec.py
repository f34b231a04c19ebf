"""What a model expects and what it promises: a data contract, valid from birth.

A `ModelSpec` travels in every bundle as `spec.json`. It holds no weights and imports no torch, so that planning a
run costs nothing.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from models.errors import BundleError

SCHEMA: Final = 4
"""Version of `spec.json`; 3, which knew neither imported networks nor thresholds nor planes of probabilities, 2, which
knew no objects, and 1, which had neither variants of encoders nor classifiers, are read as well."""
NODATA: Final = 255
"""The value of every uint8 plane where the scene is invalid; never a class."""
WIDE_NODATA: Final = 65535
"""Likewise in a published mask of uint16, which a legend with a code above 254 needs."""

DType = Literal["uint8", "uint16", "int16", "float32"]
Plane = str
"""`labels`, `confidence` (of the best class), or `probability-<class>`."""
PROBABILITY: Final = "probability-"
"""Begins the name of the plane of one class's probability."""
Colour = Annotated[str, Field(pattern=r"^#[0-9A-F]{6}$")]
ClassName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Value(BaseModel):
    """Frozen, strict, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Band(Value):
    """One input band, in the order in which the network takes it."""

    name: str
    unit: str = "DN"
    """Physical unit after radiometry (`value = stored * scale + offset`): `DN`, `reflectance`, ..."""
    low: float
    """Lower end of the range seen in training, in `unit`."""
    high: float
    """Upper end of the range seen in training, in `unit`."""
    mean: float
    """Subtracted in the first layer, in `unit`; invalid pixels enter the network as this value."""
    std: Annotated[float, Field(gt=0)]
    """Divides in the first layer, in `unit`."""


class Class(Value):
    """One class of the mask."""

    id: Annotated[int, Field(ge=0, lt=NODATA)]
    """Index in the logits and value in `mask.zarr`."""
    name: ClassName
    color: Colour
    title: str = ""
    code: Annotated[int, Field(ge=0, lt=WIDE_NODATA)] | None = None
    """Value in a customer's legend, written in the place of `id` into all that is published."""


class Architecture(Value):
    """Arguments of `models.segmenter.create_segmenter` or `models.classifier.create_classifier`."""

    encoder: str
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    padding: Literal["same", "valid"] = "same"
    variant: dict[str, bool | int | str] = {}
    """Options of that encoder, such as `kernel5` or `count_include_pad`."""
    decoder: Literal["unet", "fpn"] | None = "unet"
    """None: a classifier."""
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    """Output channels of the U-Net's stages, deepest first; of an FPN its pyramid's and its output's; of a classifier
    none."""
    output_stride: Literal[1, 2, 4] = 1
    """Pixels between two logits; they are enlarged to the input's size bilinearly."""


class Imported(Value):
    """A network that was trained elsewhere: its maker's ONNX graph, which the bundle holds as `network.onnx`."""

    format: Literal["onnx"] = "onnx"
    input: str
    """Name of the tensor (N, C, H, W), float32, normalised, that enters the graph."""
    output: str
    """Name of the tensor (N, `channels`, H / `output_stride`, W / `output_stride`) that is taken from it."""
    channels: Annotated[int, Field(ge=1, le=NODATA)]
    """One a class; or 1, the second class of two."""
    activation: Literal["logits", "softmax", "sigmoid"] = "logits"
    """What the output has been through already; `sigmoid` with one channel alone."""
    output_stride: Annotated[int, Field(ge=1)] = 1
    """Pixels between two answers; they are enlarged to the input's size bilinearly."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """The only number of images that the graph takes; None: any."""
    edge: Annotated[int, Field(ge=1)] | None = None
    """The only height and width that the graph takes, in pixels; None: every multiple of the stride."""


def _origin(architecture: Any) -> str:
    """Tag of an architecture, as a value or as JSON has it."""
    if isinstance(architecture, dict):
        return "imported" if "format" in architecture or "channels" in architecture else "trained"
    return "imported" if isinstance(architecture, Imported) else "trained"


class ModelSpec(Value):
    """A model as the rest of the system sees it: a segmenter, or a classifier of square patches."""

    schema_version: Literal[1, 2, 3, 4] = SCHEMA
    name: ClassName
    architecture: Annotated[
        Annotated[Architecture, Tag("trained")] | Annotated[Imported, Tag("imported")], Discriminator(_origin)
    ]
    bands: Annotated[tuple[Band, ...], Field(min_length=1)]
    dtypes: Annotated[tuple[DType, ...], Field(min_length=1)]
    """Pixel types that may enter; a range in `bands` is meant in the band's unit, not in these."""
    resolution: tuple[float, float] | None = None
    """Smallest and largest ground size of a pixel, in metres; None where the model does not care."""
    classes: Annotated[tuple[Class, ...], Field(min_length=2, max_length=NODATA)]
    objects: tuple[int, ...] = ()
    """Ids of the classes whose connected pixels are things to be counted."""
    boundary: int | None = None
    """Id of the class that keeps touching objects apart."""
    planes: tuple[Plane, ...] = ("labels", "confidence")
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of two classes: the probability from which on a pixel is the second; None: the more probable class."""
    stride: Annotated[int, Field(ge=1)] = 32
    """Total stride of the network, in pixels: core, halo and tile are multiples of it."""
    halo: Annotated[int, Field(ge=0)]
    """Margin of a tile whose prediction is thrown away, in pixels; measured."""
    tiles: Annotated[tuple[int, ...], Field(min_length=1)]
    """Allowed tile edges in pixels, ascending."""
    tile: int | None = None
    """Largest of them that is taken where nobody asks for another one; measured by `probe`."""
    cell: Annotated[int, Field(ge=1)] = 1
    """Edge of the squares that get one class each, in pixels: 1, or the patch of a classifier. One pixel of the
    published mask stands for one square."""
    licence: str
    """SPDX identifier of the weights' licence."""
    attribution: str = ""
    """Credit line that outputs must carry."""
    derived_from: str | None = None
    """Digest of the bundle that this one was made from."""

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        ids = [c.id for c in self.classes]
        if ids != list(range(len(ids))):
            raise ValueError(f"class ids are {ids}: they must be 0, 1, 2, ... in order")
        if len({c.name for c in self.classes}) != len(ids):
            raise ValueError("class names repeat")
        codes = [c.code for c in self.classes if c.code is not None]
        if codes and len(codes) != len(ids):
            bare = [c.name for c in self.classes if c.code is None]
            raise ValueError(f"class {bare[0]} has no code, others have: give every class a code of its own, or none")
        if len(set(codes)) != len(codes):
            raise ValueError(f"codes of classes repeat: {codes}")
        return self

    @model_validator(mode="after")
    def _check_objects(self) -> Self:
        check_objects(self.objects, self.boundary, len(self.classes))
        return self

    @model_validator(mode="after")
    def _check_planes(self) -> Self:
        check_planes(self.planes, self.classes)
        if self.threshold is not None and len(self.classes) != 2:
            raise ValueError(
                f"threshold {self.threshold} with {len(self.classes)} classes: only two are parted by one, leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_import(self) -> Self:
        plan, classes = self.imported, len(self.classes)
        if plan is None:
            return self
        if plan.channels not in ({1, 2} if classes == 2 else {classes}):
            raise ValueError(f"the graph has {plan.channels} channels for {classes} classes: one a class, or 1 for two")
        if plan.activation == ("softmax" if plan.channels == 1 else "sigmoid"):
            raise ValueError(
                f"activation {plan.activation} of {plan.channels} channels: sigmoid is of one, softmax of several"
            )
        if plan.edge is not None and self.tiles != (plan.edge,):
            raise ValueError(f"tiles are {self.tiles}: the graph takes {plan.edge} pixels alone")
        if self.stride % plan.output_stride:
            raise ValueError(f"stride {self.stride} is no multiple of the graph's output stride {plan.output_stride}")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if len({b.name for b in self.bands}) != len(self.bands):
            raise ValueError("band names repeat")
        if (self.imported is None and self.trained.decoder is None) != (self.cell > 1):
            raise ValueError(f"cell is {self.cell}: a classifier has patches of several pixels, a segmenter has cell 1")
        if self.cell > 1 and (self.stride != self.cell or self.halo):
            raise ValueError(f"stride {self.stride}, halo {self.halo}: a classifier's are its cell, {self.cell}, and 0")
        if self.cell > 1 and self.tiles[0] < 2 * self.cell:
            # The rim of a scene is filled by reflection, which needs more than what is left of its last square.
            raise ValueError(f"tile {self.tiles[0]}: a classifier needs tiles of two cells of {self.cell} at least")
        if list(self.tiles) != sorted(set(self.tiles)):
            raise ValueError(f"tiles are {self.tiles}: they must ascend")
        for edge in (*self.tiles, self.halo):
            if edge % self.stride:
                raise ValueError(f"{edge} is no multiple of the network's stride {self.stride}")
        if self.tiles[0] <= 2 * self.halo:
            raise ValueError(f"tile {self.tiles[0]} leaves no core with halo {self.halo}")
        if self.tile is not None and self.tile not in self.tiles:
            raise ValueError(f"tile is {self.tile}, and the tiles are {', '.join(map(str, self.tiles))}")
        return self

    @property
    def imported(self) -> Imported | None:
        """The network's description if it was trained elsewhere."""
        return self.architecture if isinstance(self.architecture, Imported) else None

    @property
    def trained(self) -> Architecture:
        """The network's description if it was trained here.

        Raises:
            BundleError: it was trained elsewhere.
        """
        if isinstance(self.architecture, Imported):
            raise BundleError(
                f"bundle {self.name} holds an imported ONNX graph, which is neither trained nor run by PyTorch: take a "
                "bundle that was trained here"
            )
        return self.architecture


def probability_of(plane: str, classes: Sequence[Class]) -> int | None:
    """Id of the class whose probability a plane holds; None for `labels` and `confidence`.

    Raises:
        ValueError: there is no such plane.
    """
    if plane in {"labels", "confidence"}:
        return None
    named = {PROBABILITY + entry.name: entry.id for entry in classes}
    if plane not in named:
        raise ValueError(f"plane {plane}: planes are labels, confidence, {', '.join(named)}")
    return named[plane]


def check_planes(planes: Sequence[str], classes: Sequence[Class]) -> None:
    """Planes exist, each is named once, and `labels`, of which coverage, areas and the mask are made, is among them.

    Raises:
        ValueError: it is not so.
    """
    for plane in planes:
        probability_of(plane, classes)
    if "labels" not in planes or len(set(planes)) < len(planes):
        raise ValueError(f"planes {', '.join(planes) or 'none'}: name labels at least, and each once")


def check_objects(objects: tuple[int, ...], boundary: int | None, classes: int) -> None:
    """Classes of objects, and the one between them, must be classes; the latter is none of the former.

    Raises:
        ValueError: an id is no class, is named twice, or is both; or one class is between the objects of several, so
            that nobody knows whose rim it is.
    """
    named = objects if boundary is None else (*objects, boundary)
    wrong = [each for each in named if not 0 <= each < classes]
    if wrong:
        raise ValueError(f"objects {objects}, boundary {boundary}: {wrong[0]} is no class, ids are below {classes}")
    if len(set(named)) < len(named):
        raise ValueError(f"objects {objects}, boundary {boundary}: a class is named twice")
    if boundary is not None and len(objects) > 1:
        raise ValueError(
            f"objects {objects}, boundary {boundary}: a boundary parts the objects of one class, name one, or no "
            "boundary"
        )
