"""Training: chips in, a bundle out, one loop in plain sight.

`OUT/training.ckpt` holds everything that the next step needs and is replaced atomically: a killed training that is
started again with the same configuration goes on there, and ends with the weights of one that was not killed.
`OUT/train.jsonl` holds one line for every few steps. The bundle is written to OUT at the end.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from models import metrics
from models.bundle import Bundle, make_card, save_bundle, stored_state
from models.classifier import Classifier
from models.config import TrainConfig
from models.dataset import Chips, Sampler, draw_probes, measure_bands, normalised, open_chips, read_ahead
from models.decoder import DECODERS
from models.errors import TrainingError
from models.network import network_from_spec
from models.objective import Objective
from models.spec import Architecture, Band, Class, ModelSpec
from models.start import Network, freeze, initialise, parameter_groups, settled, start_digest, starting_bands

PALETTE = ("#3B4252", "#E4572E", "#17BEBB", "#FFC914", "#76B041", "#8E6C8A", "#2E86AB", "#F18F01")
"""Colours of classes that the configuration gives none."""

LARGEST_PATCHES = 1152
"""Largest tile of several patches that a classifier is served with, in pixels."""

Report = Callable[[dict[str, Any]], None]


def train(config: TrainConfig, report: Report = lambda _: None) -> Bundle:
    """Train, score on the validation chips with the weights as stored, write the bundle.

    The same configuration and chips give the same weights: bitwise on a CPU at the same number of threads.

    Args:
        config: what to do.
        report: takes each line of the log as a dictionary: `step`, `loss`, `lr`, `seconds`, now and then `val`.

    Raises:
        TrainingError: no chips, a loss that is not finite, or a checkpoint of another configuration in OUT.
    """
    chips, config = open_chips(config.chips), settled(config)
    check_task(config, chips)
    measured = measure_bands(chips, chips.indices("train"), config.units)
    spec = make_spec(config, chips, starting_bands(measured, chips.header.dtype, config))
    config.out.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    with _repeatable(config):
        module, log = network_from_spec(spec, aux=config.aux), _Log(config.out / "train.jsonl", report)
        taken = initialise(module, config)
        if config.encoder_from is not None:
            log.write(step=0, encoder=taken)
        _fit(config, fabric, chips, spec, module, log, deviations=tuple(band.std for band in measured))
        if isinstance(module, Classifier):
            module.aux = nn.ModuleDict()  # they served the training alone
        module.load_state_dict(stored_state(module, config.storage))
        val = validate(module, chips, spec.bands, fabric)
    bundle = _finish(config, chips, spec, module, val)
    (config.out / "training.ckpt").unlink(missing_ok=True)
    return bundle


def _fit(  # noqa: PLR0917 - one caller
    config: TrainConfig,
    fabric: Fabric,
    chips: Chips,
    spec: ModelSpec,
    module: Network,
    log: "_Log",
    *,
    deviations: tuple[float, ...],
) -> None:
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    model, optimizer = fabric.setup(module, torch.optim.AdamW(parameter_groups(module, config), lr=config.lr))
    if isinstance(module, Classifier):
        model.mark_forward_method("with_aux")
    checkpoint = _Checkpoint(
        fabric, config.out / "training.ckpt", config.key(spec, chips.digest(), start_digest(config.encoder_from))
    )
    start = checkpoint.resume(model=model, optimizer=optimizer)
    sampler, objective = _sampler(config, chips, spec, deviations), _objective(config, fabric, chips)
    with closing(read_ahead(sampler.batch_at, range(start, config.steps))) as batches:
        for step, (images, labels) in enumerate(batches, start):
            torch.manual_seed((config.seed << 32) + step)  # what dropout draws, on any device, killed or not
            freeze(module, encoder=step < config.freeze)
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step) * group["factor"]
            x = fabric.to_device(images.contiguous(memory_format=torch.channels_last))
            loss = objective.loss(model, x, fabric.to_device(labels))
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


def check_task(config: TrainConfig, chips: Chips) -> None:
    """Refuse chips that were cut for the other task.

    Raises:
        TrainingError: their labels are of pixels where images are to be classified, or the other way round.
    """
    if chips.header.task != config.task:
        raise TrainingError(f"{config.chips} holds chips to {chips.header.task}: make chips to {config.task}")
    if config.task == "classify" and config.crop != chips.edge:
        raise TrainingError(f"crop is {config.crop}: images are classified whole, and have {chips.edge} pixels")


def _objective(config: TrainConfig, fabric: Fabric, chips: Chips) -> Objective:
    weights = class_weights(chips) if config.class_weights == "balanced" else None
    return Objective(config.task, None if weights is None else fabric.to_device(weights), config.label_smoothing)


def class_weights(chips: Chips) -> Tensor:
    """(K,): n / (K n_k) for n labels of the training chips, n_k of them of class k; 0 for a class without any."""
    counts = np.zeros(256, np.int64)
    for index in chips.indices("train"):
        counts += np.bincount(np.asarray(chips.labels[index]).ravel(), minlength=256)
    counts = counts[: len(chips.header.classes)]
    weights = np.where(counts, counts.sum() / (len(counts) * np.maximum(counts, 1)), 0)
    return torch.from_numpy(weights.astype(np.float32))


def _sampler(config: TrainConfig, chips: Chips, spec: ModelSpec, deviations: tuple[float, ...]) -> Sampler:
    return Sampler(
        chips,
        chips.indices("train"),
        spec.bands,
        batch=config.batch,
        crop=config.crop,
        seed=config.seed,
        augmentation=config.augmentation,
        foreground=config.foreground,
        deviations=deviations,
    )


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
        self.fabric.save(partial, {**parts, "step": step, "key": self.key})
        partial.replace(self.path)

    def resume(self, **parts: Any) -> int:
        """Restore `parts` in place where there is a checkpoint; the number of steps that are done."""
        if not self.path.exists():
            return 0
        if self.fabric.load(self.path, weights_only=True)["key"] != self.key:
            raise TrainingError(f"{self.path} belongs to other settings or chips: delete it, or choose another folder")
        rest = self.fabric.load(self.path, parts, weights_only=True)
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
    """Scores over the whole validation chips, in eval mode (`models.metrics.scores`): pooled pixels, or images.

    `confusion` holds the counts themselves: a row for each true class, a column for each predicted one.
    """
    names = [c.name for c in chips.header.classes]
    counts = np.zeros((len(names), len(names)), np.int64)
    objective = Objective(chips.header.task)
    model.eval()
    for index in chips.indices("val"):
        x, _, labels = normalised(chips, index, bands)
        wanted = objective.targets(labels[None]).numpy()
        counts += metrics.confusion(wanted, _predict(model, x, fabric), len(names))
    return {**metrics.scores(counts, names), "confusion": counts.tolist()}


@torch.inference_mode()
def _predict(model: nn.Module, x: Tensor, fabric: Fabric | None) -> NDArray[np.uint8]:
    batch = x[None].contiguous(memory_format=torch.channels_last)
    logits = model(batch if fabric is None else fabric.to_device(batch))
    labels: NDArray[np.uint8] = logits.argmax(1).to(torch.uint8).cpu().numpy()
    return labels


def make_spec(config: TrainConfig, chips: Chips, bands: tuple[Band, ...]) -> ModelSpec:
    """The data contract that the chips and the configuration imply."""
    classes = chips.header.classes
    colors = (config.colors + PALETTE * len(classes))[: len(classes)]
    codes = (config.codes + (None,) * len(classes))[: len(classes)]
    return ModelSpec(
        name=config.name,
        architecture=_architecture(config),
        bands=bands,
        dtypes=(chips.header.dtype,),
        resolution=chips.header.resolution,
        classes=tuple(
            Class(id=c.id, name=c.name, color=color, code=code)
            for c, color, code in zip(classes, colors, codes, strict=True)
        ),
        objects=chips.header.objects,
        boundary=chips.header.boundary,
        licence=config.licence,
        attribution=config.attribution,
        **_sizes(config),
    )


def _architecture(config: TrainConfig) -> Architecture:
    encoder: dict[str, Any] = {"encoder": config.encoder, "width": config.width, "variant": dict(config.variant)}
    if config.task == "classify":
        return Architecture(**encoder, decoder=None, decoder_channels=())
    channels = config.decoder_channels or DECODERS[config.decoder].WIDTHS
    return Architecture(
        **encoder, decoder=config.decoder, decoder_channels=channels, output_stride=config.output_stride
    )


def _sizes(config: TrainConfig) -> dict[str, Any]:
    """Tiles and halo of a segmenter; a classifier's follow from its patch."""
    if config.task == "segment":
        return {"halo": config.halo, "tiles": config.tiles}
    tiles = tuple(config.crop * count for count in (2, 4, 8) if count == 2 or config.crop * count <= LARGEST_PATCHES)
    return {"halo": 0, "tiles": tiles, "stride": config.crop, "cell": config.crop}


def _finish(config: TrainConfig, chips: Chips, spec: ModelSpec, module: nn.Module, val: dict[str, object]) -> Bundle:
    start = config.encoder_from and {"name": config.encoder_from.name, "digest": start_digest(config.encoder_from)}
    facts = {
        "val": val,
        "chips": {split: len(chips.indices(split)) for split in ("train", "val")},
        "chip_edge": chips.edge,
        "training": {**asdict(config), "chips": config.chips.name, "out": None, "card": None, "encoder_from": start},
    }
    probes, valid = draw_probes(chips)
    card = make_card(config.card, spec, val)
    return save_bundle(config.out, spec, module, facts, card, probes, valid=valid, storage=config.storage)
