"""Where a training starts: Glorot's normal, and for the encoder a bundle or public weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from models.bundle import Bundle, load_module, open_bundle
from models.classifier import Classifier
from models.config import TrainConfig
from models.errors import TrainingError
from models.finetune import continued, continued_bands, load_whole
from models.init import glorot_normal_
from models.pretrained import adapted, load_public
from models.published import Published, guess
from models.segmenter import Segmenter
from models.spec import Architecture, Band

Network = Segmenter | Classifier

PHOTOGRAPHS = 57.4
"""Deviation of ImageNet's pixels, in bytes: what public weights divide by tells how large their inputs were."""


def initialise(module: Network, config: TrainConfig, classes: Sequence[str] = ()) -> str:
    """Give every layer its first weights, in place, as a settled configuration says; tells what was taken.

    `classes` are the names of the network's, for a start that tells classes by name.

    Raises:
        WeightsError: public weights do not fit, or cannot be read.
        TrainingError: the bundle to go on from has a class that is none of `classes`.
    """
    glorot_normal_(module, truncated=config.init == "glorot-truncated", seed=config.seed)
    if config.start is not None:
        return load_whole(module, open_bundle(config.start), list(classes))
    start = config.encoder_from
    if start is None:
        return "nothing: from Glorot's normal"
    if not start.is_dir():
        return str(load_public(module.encoder, start, source=_published(start, config).source, head=False))
    return _load_bundle(module, open_bundle(start))


def settled(config: TrainConfig) -> TrainConfig:
    """The configuration with the options that its start has, where it says nothing of them itself.

    Raises:
        TrainingError: the network or the encoder that it starts from is another one, or unknown.
    """
    if config.start is not None:
        return continued(config, config.start)
    start = config.encoder_from
    if start is None:
        return config
    if not start.is_dir():
        return replace(config, variant={**_published(start, config).variant, **config.variant})
    bundle = open_bundle(start)
    config = replace(config, variant={**bundle.spec.trained.variant, **config.variant})
    _check_architecture(bundle, config)
    return config


def _load_bundle(module: Network, bundle: Bundle) -> str:
    state = load_module(bundle).encoder.state_dict()
    first = next(name for name, tensor in state.items() if tensor.ndim == 4)
    state[first] = adapted(state[first], module.encoder.state_dict()[first].shape[1])
    module.encoder.load_state_dict(state)
    return f"all {len(state)} tensors of bundle {bundle.digest[:12]}"


def _check_architecture(bundle: Bundle, config: TrainConfig) -> None:
    theirs = bundle.spec.trained
    ours = Architecture(encoder=config.encoder, width=config.width, variant=dict(config.variant))
    for name in ("encoder", "width", "variant"):
        if getattr(theirs, name) != getattr(ours, name):
            raise TrainingError(
                f"{bundle.path} has {name} {getattr(theirs, name)}, this training {getattr(ours, name)}: "
                f"train with the same {name}, or start from another bundle"
            )


def _published(file: Path, config: TrainConfig) -> Published:
    """What is known of a file of public weights, by its name; refused if it is of another network."""
    published = guess(file)
    if published is None:
        raise TrainingError(
            f"{file.name} is the name of no published weights, so their network and normalisation are not known: "
            "keep the published name (`widefield weights --list`), or start from a bundle"
        )
    if published.network != config.encoder:
        raise TrainingError(f"{file.name} holds weights of {published.network}, this training is of {config.encoder}")
    return published


def start_facts(config: TrainConfig) -> dict[str, dict[str, str]]:
    """What a training starts from, by setting: the name of a bundle or a file, and the digest of its content."""
    starts = {"start": config.start, "encoder_from": config.encoder_from}
    return {key: {"name": path.name, "digest": _digest(path)} for key, path in starts.items() if path is not None}


def _digest(start: Path) -> str:
    if start.is_dir():
        return open_bundle(start).digest
    with start.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def starting_bands(measured: tuple[Band, ...], dtype: str, config: TrainConfig) -> tuple[Band, ...]:
    """The bands with the normalisation that the start was trained with, where pixels are of the same kind.

    A bundle's, if names, units and `dtype` agree; that of public weights for three bands of bytes. Other pixels keep
    their measured mean, and are divided so that the first layer meets values as large as it was trained on.
    """
    if config.start is not None:
        return continued_bands(measured, dtype, open_bundle(config.start).spec)
    start = config.encoder_from
    if start is None:
        return measured
    if start.is_dir():
        spec = open_bundle(start).spec
        same = [(band.name, band.unit) for band in spec.bands] == [(band.name, band.unit) for band in measured]
        return _normalised(measured, spec.bands) if same and dtype in spec.dtypes else measured
    normal = _published(start, config).normalisation
    if len(measured) == 3 and dtype == "uint8":
        pairs = zip(measured, normal.mean, normal.std, strict=True)
        return tuple(band.model_copy(update={"mean": mean, "std": std}) for band, mean, std in pairs)
    scale = sum(normal.std) / 3 / PHOTOGRAPHS
    return tuple(band.model_copy(update={"std": band.std * scale}) for band in measured)


def _normalised(bands: tuple[Band, ...], like: tuple[Band, ...]) -> tuple[Band, ...]:
    pairs = zip(bands, like, strict=True)
    return tuple(band.model_copy(update={"mean": other.mean, "std": other.std}) for band, other in pairs)


def freeze(module: nn.Module, *, encoder: bool) -> None:
    """Put the network into training; its encoder stays as it is, statistics included, if `encoder` is set."""
    module.train()
    if isinstance(module, Network):
        module.encoder.requires_grad_(not encoder)
        if encoder:
            module.encoder.eval()
