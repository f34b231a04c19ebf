"""Training: chips in, a bundle out, one loop in plain sight.

`OUT/training.ckpt` holds everything that the next step needs and is replaced atomically: a killed training that is
started again with the same configuration goes on there, and ends with the weights of one that was not killed.
`OUT/train.jsonl` holds one line for every few steps. The bundle is written to OUT at the end.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from models.averaging import Average
from models.bundle import Bundle, make_card, open_bundle, save_bundle, stored_state
from models.classifier import Classifier
from models.config import TrainConfig
from models.contract import make_spec
from models.dataset import Chips, draw_probes, measure_bands, open_chips
from models.errors import TrainingError
from models.finetune import continued_spec
from models.journal import Checkpoint, Log, Report
from models.network import network_from_spec
from models.objective import Objective
from models.optimizer import make_optimizer
from models.readahead import ReadAhead
from models.sampling import Sampler
from models.spec import Band, ModelSpec
from models.spread import spread
from models.start import freeze, initialise, settled, start_facts, starting_bands
from models.validation import validate

GPU_READERS = 8
"""Threads that make batches beside a GPU, at most: a batch of 8 takes one of them about 80 ms, a step less. Beside a
training on the processor one thread is ahead of it anyway."""


def train(config: TrainConfig, report: Report = lambda _: None) -> Bundle:
    """Train, score on the validation chips with the weights as stored, write the bundle.

    The same configuration and chips give the same weights: bitwise on a CPU at the same number of threads.

    Args:
        config: what to do.
        report: takes each line of the log as a dictionary: `step`, `loss`, `lr`, `seconds`, now and then `val`.

    Raises:
        TrainingError: no chips, a loss that is not finite, or a checkpoint of another configuration in OUT.
    """
    config = settled(config)
    fabric = make_fabric(config)
    if config.devices == 1:
        _run(fabric, config, report)
    else:
        spread(fabric, _run, config, report)
    (config.out / "training.ckpt").unlink(missing_ok=True)
    return open_bundle(config.out)


def _run(fabric: Fabric, config: TrainConfig, report: Report) -> None:
    """All of it, in each of the processes; the first one alone writes and reports."""
    chips = open_chips(config.chips)
    check_task(config, chips)
    measured = measure_bands(chips, chips.indices("train"), config.units)
    bands = starting_bands(measured, chips.header.dtype, config)
    spec, started = make_spec(config, chips, bands), start_facts(config)
    if config.start is not None:
        spec = continued_spec(spec, config, open_bundle(config.start))
    config.out.mkdir(parents=True, exist_ok=True)
    log = Log(config.out / "train.jsonl" if fabric.is_global_zero else None, report)
    with _repeatable(config, fabric):
        module = network_from_spec(spec, aux=config.aux)
        taken = initialise(module, config, [entry.name for entry in spec.classes])
        if not (config.out / "training.ckpt").exists():  # else the log goes on
            log.restart()
            if started:
                log.write(step=0, start=taken)
        begun = json.dumps({name: fact["digest"] for name, fact in started.items()})
        deviations = tuple(band.std for band in measured)
        kept = fit(config, chips, bands, module, log, fabric, deviations=deviations, start=begun)
        if fabric.is_global_zero:
            _finish(config, chips, spec, kept, fabric)


def fit(  # noqa: PLR0917 - what is trained, on what, told to whom
    config: TrainConfig,
    chips: Chips,
    bands: tuple[Band, ...],
    module: nn.Module,
    log: Log,
    fabric: Fabric | None = None,
    *,
    deviations: tuple[float, ...] = (),
    start: str = "",
) -> nn.Module:
    """Train `module` in place, and return the network to keep: itself, or the average of its weights (`config.ema`).

    Goes on from `config.out / "training.ckpt"` where there is one, and leaves one there.

    Args:
        config: how; what it says of the network's architecture does not matter here.
        chips: with the labels of pixels, or of images if the network is a classifier.
        bands: what the chips are normalised with.
        module: any network from normalised (N, C, H, W) to logits (N, K, H, W), or a `Classifier`.
        log: takes a line for every few steps.
        fabric: of `make_fabric`.
        deviations: of the bands, where that is not what their normalisation divides by.
        start: names the content of the weights that `module` comes with, where that is not the seed's.

    Raises:
        TrainingError: a loss that is not finite, or a checkpoint of other settings.
    """
    fabric = fabric or make_fabric(config)
    key = config.key(bands=bands, network=module, chips=chips.digest(), start=start, deviations=deviations)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    model, optimizer = fabric.setup(module, make_optimizer(module, config))
    if isinstance(module, Classifier):
        model.mark_forward_method("with_aux")
    average = Average(module, config.ema) if config.ema else None
    kept = average.module if average else module
    state = {"model": model, "optimizer": optimizer, **({"average": kept} if average else {})}
    checkpoint = Checkpoint(fabric, config.out / "training.ckpt", key)
    first, objective = checkpoint.resume(**state), _objective(config, fabric, chips)
    with closing(_batches(config, chips, bands, fabric, range(first, config.steps), deviations)) as batches:
        for step, (images, labels) in enumerate(batches, first):
            draw = step * fabric.world_size + fabric.global_rank
            torch.manual_seed((config.seed << 32) + draw)  # what dropout draws, on any device, killed or not
            freeze(module, encoder=step < config.freeze)
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step) * group["factor"]
            loss = objective.loss(model, fabric.to_device(images), fabric.to_device(labels))
            optimizer.zero_grad()
            fabric.backward(loss)
            norm = fabric.clip_gradients(model, optimizer, max_norm=config.clip, error_if_nonfinite=False)
            log.add(_finite(step, loss, norm))
            optimizer.step()
            if average:
                average.update(step)

            done = step + 1
            if done % config.log_every == 0:
                log.write(step=done, lr=config.rate(step), loss=log.mean(), waiting=round(batches.waiting(), 4))
            if done % config.validate_every == 0 and done < config.steps and fabric.is_global_zero:
                with fabric.autocast():
                    log.write(step=done, val=validate(kept, chips, bands, fabric))
            if done % config.save_every == 0 or done == config.steps:
                checkpoint.save(done, **state)
    return kept


def make_fabric(config: TrainConfig) -> Fabric:
    """Devices and precision."""
    strategy = DDPStrategy(start_method="spawn") if config.devices > 1 else "auto"
    return Fabric(accelerator=config.accelerator, devices=config.devices, strategy=strategy, precision=config.precision)


def _batches(  # noqa: PLR0917 - one caller
    config: TrainConfig,
    chips: Chips,
    bands: tuple[Band, ...],
    fabric: Fabric,
    steps: range,
    deviations: tuple[float, ...],
) -> ReadAhead[tuple[Tensor, Tensor]]:
    """Images and labels of each step, laid out as the device wants them, made ahead."""
    sampler = Sampler(
        chips,
        chips.indices("train"),
        bands,
        batch=config.batch,
        crop=config.crop,
        seed=config.seed,
        augmentation=config.augmentation,
        foreground=config.foreground,
        deviations=deviations,
        rows=slice(fabric.global_rank, None, fabric.world_size),
    )
    gpu = fabric.device.type == "cuda"

    def make(step: int) -> tuple[Tensor, Tensor]:
        images, labels = sampler.batch_at(step)
        images = images.contiguous(memory_format=torch.channels_last)
        return (images.pin_memory(), labels.pin_memory()) if gpu else (images, labels)

    threads = min(GPU_READERS, os.cpu_count() or 1) if gpu else 1
    return ReadAhead(make, steps, depth=max(2 * threads, 3), threads=threads)


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
    weights = None if weights is None else fabric.to_device(weights)
    return Objective(config.task, config.terms, weights, config.label_smoothing)


def class_weights(chips: Chips) -> Tensor:
    """(K,): n / (K n_k) for n labels of the training chips, n_k of them of class k; 0 for a class without any."""
    counts = chips.counts[chips.indices("train")].sum(0)
    weights = np.where(counts, counts.sum() / (len(counts) * np.maximum(counts, 1)), 0)
    return torch.from_numpy(weights.astype(np.float32))


def _finite(step: int, loss: Tensor, norm: Tensor | None) -> float:
    """The loss, if it and the gradient can be stepped with; both come from the device at once.

    Raises:
        TrainingError: they are infinite, or no numbers.
    """
    numbers = torch.stack([loss.detach(), loss.detach() if norm is None else norm]).tolist()
    for what, number in zip(("loss", "gradient"), numbers, strict=True):
        if not math.isfinite(number):
            raise TrainingError(
                f"the {what} of step {step} is {number}: lower the learning rate, lengthen the warm-up, or check the "
                "chips"
            )
    return float(numbers[0])


@contextmanager
def _repeatable(config: TrainConfig, fabric: Fabric) -> Iterator[None]:
    """Seed, thread count and deterministic algorithms; all as before afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads or (threads if fabric.device.type == "cpu" else 1))  # readers share the cores
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


def _finish(config: TrainConfig, chips: Chips, spec: ModelSpec, module: nn.Module, fabric: Fabric) -> None:
    """Score the network with its weights as they are stored, and write the bundle."""
    if isinstance(module, Classifier):
        module.aux = nn.ModuleDict()  # they served the training alone
    module.load_state_dict(stored_state(module, config.storage))
    val = validate(module, chips, spec.bands, fabric)
    started: dict[str, Any] = {"start": None, "encoder_from": None, **start_facts(config)}
    facts = {
        "val": val,
        "chips": {split: len(chips.indices(split)) for split in ("train", "val")},
        "chip_edge": chips.edge,
        "labels": {name: scene.model_dump() for name, scene in chips.header.scenes.items()},
        "extent": chips.header.extent,
        "training": {**asdict(config), "chips": config.chips.name, "out": None, "card": None, **started},
    }
    probes, valid = draw_probes(chips)
    card = make_card(config.card, spec, val)
    save_bundle(config.out, spec, module, facts, card, probes, valid=valid, storage=config.storage)
