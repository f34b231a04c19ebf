"""What decides what a training gives: one frozen value."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from models.bundle import Storage
from models.errors import TrainingError, UsageError
from models.inception.family import check_variant
from models.losses import TERMS
from models.sampling import Augmentation
from models.spec import Band


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training gives, beside the chips' bytes."""

    chips: Path
    """chips.zarr."""
    out: Path
    """Folder of the bundle, its checkpoint and its log."""
    name: str = "segmenter"
    licence: str = "Apache-2.0"
    """SPDX identifier of the weights' licence."""
    attribution: str = ""
    """Credit line that outputs must carry."""
    card: str = ""
    """Markdown of the model card, before the scores: data, extent, licences, known failures."""
    colors: tuple[str, ...] = ()
    """`#RRGGBB` of each class; of a palette where there are fewer."""
    codes: tuple[int, ...] = ()
    """Values of the classes in a customer's legend; none if empty."""
    units: tuple[str, ...] = ()
    """Unit of each band; DN if empty."""
    task: Literal["segment", "classify"] = "segment"
    """A class for each pixel, or one for each image, whose label is then the same all over the chip."""
    encoder: str = "inception_v1"
    width: float = 1.0
    """Multiplier of the encoder's channels."""
    variant: Mapping[str, bool | int | str] = field(default_factory=dict)
    """Options of the encoder, as `models.inception.create_encoder` takes them."""
    decoder: Literal["unet", "fpn"] = "unet"
    """Of a segmenter."""
    decoder_channels: tuple[int, ...] = ()
    """As the decoder's class takes them; its own if empty."""
    output_stride: Literal[1, 2, 4] = 2
    """Pixels between two logits of a segmenter; docs/models.md has what 1 costs and 4 loses."""
    aux: bool = False
    """Auxiliary heads, where a classifier has them: they serve the training alone."""
    init: Literal["glorot", "glorot-truncated"] = "glorot"
    """Initialisation of all that does not start from `encoder_from` or `start`."""
    encoder_from: Path | None = None
    """A bundle, or a file of public weights, whose encoder is the start."""
    start: Path | None = None
    """A bundle to go on from, with its network, which then need not be described, and its classes and more."""
    freeze: int = 0
    """First steps in which the encoder stays as it is, statistics included."""
    encoder_rate: float = 1.0
    """Learning rate of the encoder, as a share of the rest's."""
    steps: int = 3000
    batch: int = 8
    """Crops a step."""
    crop: int = 256
    """Edge of a crop, in pixels."""
    lr: float = 2e-3
    """Largest learning rate, after the warm-up."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """SGD has Nesterov's momentum of 0.9, and wants a rate some thirty times as large."""
    weight_decay: float | None = None
    """Of convolutions only; 1e-2 for AdamW and 1e-4 for SGD if None."""
    warmup: int = 100
    """Steps until the largest learning rate; a cosine leads from there to 0."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    foreground: float = 0.0
    """Share of the crops for which a class other than 0 is drawn first, and then a chip that holds it."""
    loss: str | None = None
    """Terms joined by `+`: `ce`, `dice`, `focal`; `ce+dice` of pixels, and `ce` of images, if None."""
    ema: float = 0.0
    """Share of the weights' average that a step keeps, at most: 0 stores the last weights themselves."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs each class by the inverse of its share of the labels, in all terms but Dice."""
    label_smoothing: float = 0.0
    """Share of each label that the cross-entropy spreads evenly over all classes (Szegedy et al. 2015)."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: str = "auto"
    """As Lightning Fabric names it: auto, cpu, gpu, ..."""
    devices: int = 1
    """Of this machine, one process each, which share every batch."""
    threads: int | None = None
    """Threads of the CPU; if None as torch chooses, or one for each reader beside a GPU. Runs repeat bitwise at the
    same number."""
    log_every: int = 20
    """Steps between two lines of the log."""
    save_every: int = 100
    """Steps between two checkpoints."""
    validate_every: int = 500
    """Steps between two validations."""
    storage: Storage = "fp16"
    tiles: tuple[int, ...] = (256, 512, 1024, 1152, 2048)
    """Tile ladder of the bundle, in pixels."""
    halo: int = 64
    """Margin of a tile that is thrown away, in pixels, until it has been measured."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "log_every", "save_every", "validate_every", "devices"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: it must be at least 1")
        self._check_ranges()
        self._check_network()
        self._check_start()
        self._check_loss()

    def _check_ranges(self) -> None:
        for name, (fits, allowed) in self._ranges().items():
            if not fits:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be {allowed}")

    def _ranges(self) -> dict[str, tuple[bool, str]]:
        """Whether each number fits, and what does: beside the command line, nobody else looks."""
        return {
            "lr": (0 < self.lr < math.inf, "above 0, such as 0.002"),
            "weight_decay": (self.weight_decay is None or 0 <= self.weight_decay < math.inf, "at least 0"),
            "foreground": (0 <= self.foreground <= 1, "from 0 to 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "at least 0 and below 1"),
            "ema": (0 <= self.ema < 1, "below 1, such as 0.999, or 0 for none"),
            "seed": (0 <= self.seed < 2**32, f"from 0 to {2**32 - 1}"),
            "warmup": (self.warmup >= 0, "at least 0"),
            "freeze": (self.freeze >= 0, "at least 0"),
            "encoder_rate": (0 <= self.encoder_rate < math.inf, "at least 0"),
            "clip": (self.clip > 0, "above 0"),
        }

    def _check_network(self) -> None:
        try:
            network = check_variant(self.encoder, self.variant)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if self.aux and not (network.aux and self.task == "classify"):
            raise UsageError(
                "auxiliary heads are those of the classifiers inception_v1 and inception_v3: leave them out"
            )
        if self.output_stride not in {1, 2, 4}:
            raise UsageError(f"output stride is {self.output_stride}: choose 1, 2 or 4")
        if not 0 < self.width <= 4:
            raise UsageError(f"width is {self.width}: it must be above 0, and at most 4")

    def _check_start(self) -> None:
        if self.start and self.encoder_from:
            raise UsageError("a training starts from a whole bundle or from an encoder: name one of them")
        if self.freeze and not (self.start or self.encoder_from):
            raise UsageError("a frozen encoder needs a start: name a bundle or public weights, or freeze nothing")
        if self.batch % self.devices:
            raise UsageError(f"a batch of {self.batch} cannot be shared by {self.devices} devices: choose a multiple")
        if self.devices > 1 and self.freeze:
            raise UsageError("an encoder is frozen on one device alone: choose one device, or freeze nothing")

    def _check_loss(self) -> None:
        if not set(self.terms) <= set(TERMS) or len(set(self.terms)) < len(self.terms):
            raise UsageError(f"loss is {self.loss}: join some of {', '.join(TERMS)} by +, each once, as in ce+dice")
        if self.label_smoothing and "ce" not in self.terms:
            raise UsageError(f"labels are smoothed in the cross-entropy, loss is {self.loss}: add ce, or smooth none")
        if self.class_weights != "none" and self.terms == ("dice",):
            raise UsageError("Dice weighs all classes alike: leave class weights out, or add ce or focal to the loss")

    @property
    def terms(self) -> tuple[str, ...]:
        """Of the loss."""
        return tuple((self.loss or {"segment": "ce+dice", "classify": "ce"}[self.task]).split("+"))

    def key(
        self,
        *,
        bands: tuple[Band, ...],
        network: nn.Module,
        chips: str,
        start: str = "",
        deviations: tuple[float, ...] = (),
    ) -> str:
        """Digest of what decides the weights: these settings, the network's tensors by name and shape, the chips'
        bytes and their bands' deviations, and the bytes of the start.
        """
        idle = {"chips", "out", "card", "name", "licence", "attribution", "colors", "codes", "storage", "tiles", "halo"}
        idle |= {"log_every", "save_every", "validate_every", "threads", "accelerator", "encoder_from", "start"}
        facts: dict[str, Any] = {name: value for name, value in asdict(self).items() if name not in idle}
        facts["bands"] = [band.model_dump() for band in bands]
        facts["network"] = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
        facts |= {"chips": chips, "start": start, "deviations": deviations}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: linear warm-up, then a cosine to 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))
