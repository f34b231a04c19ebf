"""Training of a segmenter from scratch: chips in, a bundle out, one loop in plain sight.

`OUT/training.ckpt` holds everything that the next step needs and is replaced atomically: a killed training that is
started again with the same configuration goes on there, and ends with the weights of one that was not killed.
`OUT/train.jsonl` holds one line for every few steps. The bundle is written to OUT at the end.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from models import metrics
from models.bundle import Bundle, Storage, make_card, save_bundle, stored_state
from models.dataset import Augmentation, Chips, Sampler, draw_probes, measure_bands, normalised, open_chips, read_ahead
from models.errors import TrainingError
from models.init import glorot_normal_
from models.losses import segmentation_loss
from models.network import network_from_spec
from models.spec import Architecture, Band, Class, ModelSpec

PALETTE = ("#3B4252", "#E4572E", "#17BEBB", "#FFC914", "#76B041", "#8E6C8A", "#2E86AB", "#F18F01")
"""Colours of classes that the configuration gives none."""

Report = Callable[[dict[str, Any]], None]


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
    encoder: str = "inception_v1"
    width: float = 0.75
    """Multiplier of the encoder's channels."""
    decoder_channels: tuple[int, ...] = (192, 128, 64, 32, 16)
    """Deepest first."""
    steps: int = 3000
    batch: int = 8
    """Crops a step."""
    crop: int = 256
    """Edge of a crop, in pixels."""
    lr: float = 2e-3
    """Largest learning rate, after the warm-up."""
    weight_decay: float = 1e-2
    """Of convolutions only."""
    warmup: int = 100
    """Steps until the largest learning rate; a cosine leads from there to 0."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    foreground: float = 0.0
    """Share of the crops that is drawn from chips with a class other than 0."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: str = "auto"
    """As Lightning Fabric names it: auto, cpu, gpu, ..."""
    threads: int | None = None
    """Threads of the CPU; as torch chooses if None. Runs repeat bitwise at the same number."""
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
        for name in ("steps", "batch", "crop", "log_every", "save_every", "validate_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: it must be at least 1")

    def key(self, spec: ModelSpec, chips: str) -> str:
        """Digest of what decides the weights: these settings, and the chips' bytes."""
        idle = {"chips", "out", "card", "name", "licence", "attribution", "colors", "codes", "storage", "tiles", "halo"}
        idle |= {"log_every", "save_every", "validate_every", "threads", "accelerator"}
        facts: dict[str, Any] = {name: value for name, value in asdict(self).items() if name not in idle}
        facts["bands"] = [band.model_dump() for band in spec.bands]
        facts["chips"] = chips
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: linear warm-up, then a cosine to 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))


def train(config: TrainConfig, report: Report = lambda _: None) -> Bundle:
    """Train, score on the validation chips with the weights as stored, write the bundle.

    The same configuration and chips give the same weights: bitwise on a CPU at the same number of threads.

    Args:
        config: what to do.
        report: takes each line of the log as a dictionary: `step`, `loss`, `lr`, `seconds`, now and then `val`.

    Raises:
        TrainingError: no chips, a loss that is not finite, or a checkpoint of another configuration in OUT.
    """
    chips = open_chips(config.chips)
    spec = make_spec(config, chips, measure_bands(chips, chips.indices("train"), config.units))
    config.out.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    with _repeatable(config):
        module = glorot_normal_(network_from_spec(spec), seed=config.seed)
        _fit(config, fabric, chips, spec, module, _Log(config.out / "train.jsonl", report))
        module.load_state_dict(stored_state(module, config.storage))
        val = validate(module, chips, spec.bands, fabric)
    bundle = _finish(config, chips, spec, module, val)
    (config.out / "training.ckpt").unlink(missing_ok=True)
    return bundle


def _fit(config: TrainConfig, fabric: Fabric, chips: Chips, spec: ModelSpec, module: nn.Module, log: "_Log") -> None:  # noqa: PLR0917 - one caller
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    model, optimizer = fabric.setup(module, torch.optim.AdamW(_groups(module, config.weight_decay), lr=config.lr))
    checkpoint = _Checkpoint(fabric, config.out / "training.ckpt", config.key(spec, chips.digest()))
    start = checkpoint.resume(model=model, optimizer=optimizer)
    sampler = _sampler(config, chips, spec)
    with closing(read_ahead(sampler.batch_at, range(start, config.steps))) as batches:
        for step, (x, labels) in enumerate(batches, start):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            logits = model(fabric.to_device(x.contiguous(memory_format=torch.channels_last)))
            loss = segmentation_loss(logits, fabric.to_device(labels))
            log.add(_finite(loss, "loss", step))
            optimizer.zero_grad()
            fabric.backward(loss)
            norm = fabric.clip_gradients(model, optimizer, max_norm=config.clip, error_if_nonfinite=False)
            _finite(norm, "gradient", step)
            optimizer.step()

            done = step + 1
            if done % config.log_every == 0:
                log.write(step=done, lr=config.rate(step), loss=log.mean())
            if done % config.validate_every == 0 and done < config.steps:
                log.write(step=done, val=validate(model, chips, spec.bands, fabric))
            if done % config.save_every == 0 or done == config.steps:
                checkpoint.save(done, model=model, optimizer=optimizer)


def _sampler(config: TrainConfig, chips: Chips, spec: ModelSpec) -> Sampler:
    return Sampler(
        chips,
        chips.indices("train"),
        spec.bands,
        batch=config.batch,
        crop=config.crop,
        seed=config.seed,
        augmentation=config.augmentation,
        foreground=config.foreground,
    )


def _groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    kernels = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def _finite(value: Tensor | None, what: str, step: int) -> float:
    number = math.nan if value is None else float(value.detach())
    if not math.isfinite(number):
        raise TrainingError(
            f"the {what} of step {step} is {number}: lower the learning rate, lengthen the warm-up, or check the chips"
        )
    return number


@dataclass(frozen=True)
class _Checkpoint:
    """All that the next step needs, in one file that is replaced atomically."""

    fabric: Fabric
    path: Path
    key: str
    """What decides the weights: a checkpoint of another key is refused."""

    def save(self, step: int, **parts: Any) -> None:
        """Replace the checkpoint by one after `step` steps."""
        partial = self.path.with_suffix(".partial")
        self.fabric.save(partial, {**parts, "step": step, "key": self.key, "rng": torch.get_rng_state()})
        partial.replace(self.path)

    def resume(self, **parts: Any) -> int:
        """Restore `parts` in place where there is a checkpoint; the number of steps that are done."""
        if not self.path.exists():
            return 0
        if self.fabric.load(self.path, weights_only=True)["key"] != self.key:
            raise TrainingError(f"{self.path} belongs to other settings or chips: delete it, or choose another folder")
        rest = self.fabric.load(self.path, parts, weights_only=True)
        torch.set_rng_state(rest["rng"])
        return int(rest["step"])


@contextmanager
def _repeatable(config: TrainConfig) -> Iterator[None]:
    """Seed, thread count and deterministic algorithms; all as before afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads or threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


class _Log:
    """Appends JSON lines to OUT/train.jsonl and reports them."""

    def __init__(self, path: Path, report: Report) -> None:
        self.path, self.report = path, report
        self.losses: list[float] = []
        self.started = time.monotonic()

    def add(self, loss: float) -> None:
        """Note the loss of one step."""
        self.losses.append(loss)

    def mean(self) -> float:
        """Mean loss since the last call."""
        losses, self.losses = self.losses, []
        return sum(losses) / len(losses)

    def write(self, **facts: Any) -> None:
        """One line."""
        facts["seconds"] = round(time.monotonic() - self.started, 2)
        with self.path.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        self.report(facts)


def validate(
    model: nn.Module, chips: Chips, bands: tuple[Band, ...], fabric: Fabric | None = None
) -> dict[str, object]:
    """Scores over the pooled pixels of the whole validation chips, in eval mode (`models.metrics.scores`)."""
    names = [c.name for c in chips.header.classes]
    counts = np.zeros((len(names), len(names)), np.int64)
    model.eval()
    for index in chips.indices("val"):
        x, _, labels = normalised(chips, index, bands)
        counts += metrics.confusion(labels.numpy(), _predict(model, x, fabric), len(names))
    return metrics.scores(counts, names)


@torch.inference_mode()
def _predict(model: nn.Module, x: Tensor, fabric: Fabric | None) -> NDArray[np.uint8]:
    batch = x[None].contiguous(memory_format=torch.channels_last)
    logits = model(batch if fabric is None else fabric.to_device(batch))
    labels: NDArray[np.uint8] = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
    return labels


def make_spec(config: TrainConfig, chips: Chips, bands: tuple[Band, ...]) -> ModelSpec:
    """The data contract that the chips and the configuration imply."""
    classes = chips.header.classes
    colors = (config.colors + PALETTE * len(classes))[: len(classes)]
    codes = (config.codes + (None,) * len(classes))[: len(classes)]
    return ModelSpec(
        name=config.name,
        architecture=Architecture(encoder=config.encoder, width=config.width, decoder_channels=config.decoder_channels),
        bands=bands,
        dtypes=(chips.header.dtype,),
        resolution=chips.header.resolution,
        classes=tuple(
            Class(id=c.id, name=c.name, color=color, code=code)
            for c, color, code in zip(classes, colors, codes, strict=True)
        ),
        halo=config.halo,
        tiles=config.tiles,
        licence=config.licence,
        attribution=config.attribution,
    )


def _finish(config: TrainConfig, chips: Chips, spec: ModelSpec, module: nn.Module, val: dict[str, object]) -> Bundle:
    facts = {
        "val": val,
        "chips": {split: len(chips.indices(split)) for split in ("train", "val")},
        "chip_edge": chips.edge,
        "training": {**asdict(config), "chips": config.chips.name, "out": None, "card": None},
    }
    probes, valid = draw_probes(chips)
    card = make_card(config.card, spec, val)
    return save_bundle(config.out, spec, module, facts, card, probes, valid=valid, storage=config.storage)
