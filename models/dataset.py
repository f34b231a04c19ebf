"""chips.zarr -> seeded, augmented batches. Batch number `step` of a seed is always the same batch."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, cast

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional

from models.errors import TrainingError
from models.ground import PLACE, cells
from models.scoring import Part
from models.spec import NODATA, Band, ClassName, DType, Value, check_objects

IN_MEMORY = 2 << 30
"""Chips of up to this many bytes are read once and kept; larger sets are read chip by chip."""

PROBE_EDGE = 128
"""Edge of a probe, in pixels."""

T = TypeVar("T")


class ChipClass(Value):
    """A class as `chips.zarr` names it."""

    id: int
    name: ClassName


class Chip(Value):
    """Where a chip was cut."""

    scene: str
    row: int
    col: int
    split: Literal["train", "val", "sealed"]
    """Sealed chips are for the gate between two models alone: neither training nor choosing sees them."""
    slot: Annotated[int, Field(ge=0)]
    """Where in the arrays it lies."""
    place: Annotated[str, Field(pattern=PLACE)] | None = None
    """Of its first pixel on the Earth: two scenes over the same ground agree. None where that is not known."""

    @property
    def ground(self) -> str:
        """The place of its first pixel: on the Earth, else in its scene."""
        return self.place or f"{self.scene}/{self.row}/{self.col}"


class ChipScene(Value):
    """A scene that chips were cut from."""

    model_config = ConfigDict(extra="ignore")

    fingerprint: str
    labels: str = ""
    """Fingerprint of its labels; not known of chips of schema 1."""
    origin: Literal["drawn", "corrected", "model"] = "drawn"
    """Who made the labels."""


class ChipsHeader(Value):
    """The attributes of `chips.zarr` that training needs."""

    model_config = ConfigDict(extra="ignore")

    schema_version: Literal[1, 2]
    bands: tuple[str, ...]
    dtype: DType
    classes: tuple[ChipClass, ...]
    chips: tuple[Chip, ...]
    seed: int
    resolution: tuple[float, float] | None
    task: Literal["segment", "classify"] = "segment"
    """Whether pixels have labels, or images: then all labelled pixels of a chip have the same."""
    objects: tuple[int, ...] = ()
    """Ids of the classes whose connected pixels are things to be counted."""
    boundary: int | None = None
    """Id of the class that keeps touching objects apart."""
    extent: tuple[float, float, float, float] | None = None
    """West, south, east and north of all scenes in degrees, where they have a georeference."""
    scenes: dict[str, ChipScene] = Field(default_factory=dict)
    """By the name that chips have for them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_objects(self.objects, self.boundary, len(self.classes))
        slots = [chip.slot for chip in self.chips]
        if len(set(slots)) < len(slots):
            raise ValueError("two chips lie in one slot")
        return self


@dataclass(frozen=True)
class Chips:
    """All chips of one folder, in the order of their records: N squares of S x S pixels with C bands."""

    header: ChipsHeader
    pixels: Any
    """(N, C, S, S), own dtype; an array, or a zarr array that reads a chip when indexed."""
    valid: Any
    """(N, S, S) uint8, 1 where the scene has data."""
    labels: Any
    """(N, S, S) uint8, class ids or 255."""
    scale: NDArray[np.float32]
    """(N, C): value = stored * scale + offset."""
    offset: NDArray[np.float32]
    """(N, C)."""
    objects: Any | None = None
    """(N, S, S) uint16, 0 where there is no object, ids of one chip; None, or 0 all over a chip, where labels have
    none."""

    @property
    def edge(self) -> int:
        """S."""
        return int(self.pixels.shape[-1])

    def digest(self) -> str:
        """SHA-256 over the classes, and each record's split, pixels, valid mask, labels, scale and offset; slots do not
        matter.
        """
        content = hashlib.sha256("/".join(entry.name for entry in self.header.classes).encode())
        for index, chip in enumerate(self.header.chips):
            content.update(chip.split.encode())
            for array in (self.pixels, self.valid, self.labels, self.scale, self.offset):
                content.update(np.asarray(array[index]).tobytes())
        return content.hexdigest()

    def indices(self, split: str) -> list[int]:
        """Chips of `train`, `val` or `sealed`, in order."""
        return [i for i, chip in enumerate(self.header.chips) if chip.split == split]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(N, K) labelled pixels of each chip, by class."""
        of = (np.bincount(np.asarray(self.labels[i]).ravel(), minlength=256) for i in range(len(self.header.chips)))
        return np.array([each[: len(self.header.classes)] for each in of], np.int64)

    def cells(self, index: int) -> list[Part]:
        """The cells of ground that one chip lies on, and where in it."""
        return list(cells(self.header.chips[index].ground, self.edge, self.edge))

    def values(self, index: int) -> NDArray[np.float32]:
        """(C, S, S) of one chip in the bands' unit; whatever is stored where the scene is invalid."""
        scale, offset = self.scale[index, :, None, None], self.offset[index, :, None, None]
        return cast("NDArray[np.float32]", np.asarray(self.pixels[index], np.float32) * scale + offset)

    def known(self, index: int) -> NDArray[np.bool_]:
        """(S, S), where one chip has data in all bands that can be computed with."""
        return cast("NDArray[np.bool_]", (self.valid[index] != 0) & np.isfinite(self.pixels[index]).all(0))


@dataclass(frozen=True)
class _Records:
    """A stored array by record instead of by slot; each chip is read when it is asked for."""

    stored: Any
    slots: list[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.slots), *self.stored.shape[1:])

    def __getitem__(self, index: int) -> NDArray[Any]:
        return np.asarray(self.stored[self.slots[index]])


def open_chips(path: Path) -> Chips:
    """The chips at `path`, read into memory where they are small.

    Raises:
        TrainingError: there are none, or they are not what `pipeline/chips.py` writes.
    """
    try:
        group = zarr.open_group(path, mode="r")
        header = _read_header(dict(group.attrs))
        stored: dict[str, Any] = {name: group[name] for name in ("pixels", "valid", "labels", "scale", "offset")}
        stored |= {"objects": group["objects"]} if "objects" in group else {}
    except (OSError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path} holds no chips of schema 1 or 2 ({error}): make them again from images and labels"
        ) from error
    slots = [chip.slot for chip in header.chips]
    if slots and max(slots) >= stored["pixels"].shape[0]:
        raise TrainingError(f"{path} lists a chip in slot {max(slots)}, but has {stored['pixels'].shape[0]} slots")
    size = len(slots) * sum(array.nbytes // max(array.shape[0], 1) for array in stored.values())
    arrays = {name: _by_record(array, slots, size <= IN_MEMORY or array.ndim == 2) for name, array in stored.items()}
    return Chips(header, **arrays)


def _read_header(attributes: dict[str, Any]) -> ChipsHeader:
    """Of schema 1, in which a chip's number was its slot and a scene had a fingerprint alone, as of schema 2."""
    attributes["schema_version"] = attributes.pop("schema", None)
    if attributes["schema_version"] == 1:
        attributes["chips"] = [{**chip, "slot": slot} for slot, chip in enumerate(attributes["chips"])]
        attributes["scenes"] = {name: {"fingerprint": mark} for name, mark in attributes.get("scenes", {}).items()}
    return ChipsHeader.model_validate(attributes)


def _by_record(stored: Any, slots: list[int], whole: bool) -> Any:
    if not whole:
        return _Records(stored, slots)
    return stored[:] if slots == list(range(stored.shape[0])) else stored.oindex[np.array(slots, int)]


def measure_bands(chips: Chips, indices: list[int], units: tuple[str, ...] = ()) -> tuple[Band, ...]:
    """Range, mean and deviation of each band over the valid pixels of the chips `indices`, in the band's unit.

    Raises:
        TrainingError: no chip has a valid pixel, or there are more or fewer units than bands.
    """
    bands = len(chips.header.bands)
    if units and len(units) != bands:
        raise TrainingError(f"the chips have {bands} bands, but {len(units)} have units, as set or as in the start")
    count, total, square = 0, np.zeros(bands), np.zeros(bands)
    low, high = np.full(bands, np.inf), np.full(bands, -np.inf)
    for index in indices:
        seen = chips.values(index)[:, chips.known(index)].astype(np.float64)
        if not seen.size:
            continue
        count += seen.shape[1]
        total, square = total + seen.sum(1), square + (seen**2).sum(1)
        low, high = np.minimum(low, seen.min(1)), np.maximum(high, seen.max(1))
    if not count:
        raise TrainingError("no training chip has a valid pixel: check the images' nodata and the split")
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    std[std == 0] = 1
    return tuple(
        Band(name=name, unit=unit, low=float(lo), high=float(hi), mean=float(m), std=float(s))
        for name, unit, lo, hi, m, s in zip(
            chips.header.bands, units or ("DN",) * bands, low, high, mean, std, strict=True
        )
    )


@dataclass(frozen=True)
class Augmentation:
    """How far training images may be changed. All zeros: crops only."""

    zoom: float = 1.33
    """Half of the crops are enlarged or reduced by up to this factor; 1 leaves all as they are."""
    dihedral: bool = True
    """Flips and quarter turns."""
    gain: float = 0.15
    """Deviation of the logarithm of the contrast, of all bands together; a third of it for each band alone."""
    offset: float = 0.2
    """Deviation of the brightness, in deviations of the band; a third of it for each band alone."""
    gamma: float = 0.2
    """Deviation of the logarithm of the exponent, over the band's range."""


@dataclass(frozen=True)
class Sampler:
    """Draws batches from the chips `indices`."""

    chips: Chips
    indices: list[int]
    bands: tuple[Band, ...]
    _: KW_ONLY
    batch: int
    """Crops a batch."""
    crop: int
    """Edge of a crop in pixels, at most the chips' edge."""
    seed: int = 0
    augmentation: Augmentation = Augmentation()
    foreground: float = 0.0
    """Share of the crops for which a class other than 0 is drawn first, and then a chip that holds it."""
    deviations: tuple[float, ...] = ()
    """Of the bands, in their units, where that is not what their normalisation divides by."""
    rows: slice = field(default_factory=lambda: slice(None))
    """Which crops of each batch are made here: each of several processes makes some of the same batch."""

    def __post_init__(self) -> None:
        if not self.indices:
            raise TrainingError("there are no training chips: check the labels and the split")
        if self.crop > self.chips.edge:
            raise TrainingError(
                f"crops of {self.crop} pixels do not fit chips of {self.chips.edge}: choose a smaller crop"
            )

    def batch_at(self, step: int) -> tuple[Tensor, Tensor]:
        """Batch number `step`: normalised (N, C, H, W) float32 and labels (N, H, W) uint8; 0 and 255 where invalid."""
        rng = np.random.default_rng((self.seed, step))
        chips = [normalised(self.chips, index, self.bands) for index in self._draw(rng)[self.rows]]
        images, valid, labels = (torch.stack(parts) for parts in zip(*chips, strict=True))
        transforms = torch.stack([self._transform(rng) for _ in range(self.batch)])[self.rows]
        images, valid, labels = warp(images, valid, labels, transforms, self.crop)
        return self._jitter(images, rng) * valid[:, None], labels

    @cached_property
    def _holding(self) -> list[NDArray[np.int64]]:
        """For each class other than 0 that occurs, the chips that hold it; all chips, where none occurs."""
        indices, counts = np.asarray(self.indices), self.chips.counts[self.indices]
        return [indices[held > 0] for held in counts.T[1:] if held.any()] or [indices]

    def _draw(self, rng: np.random.Generator) -> list[int]:
        chosen = rng.choice(np.asarray(self.indices), self.batch)
        if self.foreground:
            rich = rng.random(self.batch) < self.foreground
            classes = rng.integers(len(self._holding), size=self.batch)
            chosen = np.where(rich, [rng.choice(self._holding[each]) for each in classes], chosen)
        return [int(index) for index in chosen]

    def _transform(self, rng: np.random.Generator) -> Tensor:
        """(2, 3): output coordinates in [-1, 1] -> chip coordinates in [-1, 1], x before y as torch has it."""
        reach = np.log(self.augmentation.zoom)
        zoom = np.exp(rng.uniform(-reach, reach)) if rng.random() < 0.5 else 1.0
        edge = min(round(self.crop / zoom), self.chips.edge)
        row, col = rng.integers(0, self.chips.edge - edge, 2, endpoint=True)
        flip, turn = (rng.integers(2), rng.integers(4)) if self.augmentation.dihedral else (0, 0)
        quarter = np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), turn)
        matrix = np.diag([1.0 - 2.0 * flip, 1.0]) @ quarter
        centre = (2 * np.array([col, row]) + edge) / self.chips.edge - 1
        return torch.from_numpy(np.column_stack((matrix * edge / self.chips.edge, centre)).astype(np.float32))

    def _jitter(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Gamma, contrast and brightness, drawn for each image and, more gently, for each of its bands."""
        much, n, bands = self.augmentation, self.batch, x.shape[1]

        def draw(deviation: float) -> Tensor:
            noise = rng.normal(size=(n, 1)) + rng.normal(size=(n, bands)) / 3
            return torch.from_numpy((deviation * noise).astype(np.float32))[self.rows, :, None, None]

        low, high = (
            torch.tensor([[(getattr(b, end) - b.mean) / b.std] for b in self.bands]) for end in ("low", "high")
        )
        low, span = low[:, None], (high - low).clamp(min=1e-6)[:, None]
        curved = ((x - low) / span).clamp(0, 1) ** draw(much.gamma).exp() * span + low
        stds = [band.std for band in self.bands]
        brighter = torch.tensor(self.deviations or stds) / torch.tensor(stds)
        return curved * draw(much.gain).exp() + draw(much.offset) * brighter[:, None, None]


def normalised(chips: Chips, index: int, bands: tuple[Band, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """One whole chip: x (C, S, S) float32, valid (S, S) bool, labels (S, S) uint8; 0 and 255 where invalid."""
    mean, std = (np.array([getattr(b, name) for b in bands], np.float32)[:, None, None] for name in ("mean", "std"))
    known = chips.known(index)
    x = np.where(known, (chips.values(index) - mean) / std, np.float32(0))
    labels = np.where(known, chips.labels[index], np.uint8(NODATA))
    return torch.from_numpy(x), torch.from_numpy(known), torch.from_numpy(labels)


def warp(x: Tensor, valid: Tensor, labels: Tensor, transforms: Tensor, edge: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut, turn, flip and scale in one resampling: bilinear for pixels, nearest for labels.

    Where the transform is a whole number of pixels, everything comes out unchanged. A pixel that draws on an invalid
    one, or on the outside, is invalid: 0, False and 255.

    Args:
        x: (N, C, S, S) float32.
        valid: (N, S, S) bool.
        labels: (N, S, S) uint8.
        transforms: (N, 2, 3), as `torch.nn.functional.affine_grid` takes them.
        edge: rows and columns of the results.
    """
    grid = functional.affine_grid(transforms, [len(x), 1, edge, edge], align_corners=False)
    stack = torch.cat((x, valid[:, None]), 1)
    stack = functional.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    ids = functional.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0]
    known = stack[:, -1] > 0.999
    return stack[:, :-1] * known[:, None], known, ids.to(torch.uint8).where(known, NODATA)


class ReadAhead(Generic[T]):
    """`make(step)` for each step in order, computed up to `depth` steps ahead by `threads` threads."""

    def __init__(
        self,
        make: Callable[[int], T],
        steps: range,
        depth: int = 3,
        threads: int = 1,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._steps, self._clock = make, iter(steps), clock
        self._pool = ThreadPoolExecutor(threads, "read-ahead")
        self._pending: deque[Future[T]] = deque()
        self._waited, self._since = 0.0, clock()
        for _ in range(depth):
            self._begin()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next one, as soon as it is ready, or what went wrong in making it."""
        if not self._pending:
            raise StopIteration
        began = self._clock()
        made = self._pending.popleft().result()
        self._waited += self._clock() - began
        self._begin()
        return made

    def waiting(self) -> float:
        """Share of the time since the last call, or since the start, in which the next one was not ready."""
        now = self._clock()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share

    def close(self) -> None:
        """Let go of what nobody will ask for."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        for step in islice(self._steps, 1):
            self._pending.append(self._pool.submit(self._make, step))


def draw_probes(
    chips: Chips, *, budget: int = 1_000_000, most: int = 20
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Central crops and their valid masks, from validation chips spread over the list, within `budget` bytes."""
    edge = chips.edge if chips.header.task == "classify" else min(PROBE_EDGE, chips.edge)
    start = (chips.edge - edge) // 2
    part = (..., slice(start, start + edge), slice(start, start + edge))
    each = edge * edge * (len(chips.header.bands) * np.dtype(chips.header.dtype).itemsize + 1)
    pool = chips.indices("val") or chips.indices("train")
    count = min(most, len(pool), max(budget // each, 1))
    chosen = [pool[i * len(pool) // count] for i in range(count)]
    return [np.asarray(chips.pixels[i])[part] for i in chosen], [np.asarray(chips.valid[i])[part] for i in chosen]
