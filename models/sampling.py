"""Chips -> seeded, augmented batches. Batch number `step` of a seed is always the same batch."""

from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.dataset import Chips
from models.errors import TrainingError
from models.spec import NODATA, Band


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
