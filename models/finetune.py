"""Fine-tuning: a training that goes on from a whole bundle, for the same classes and more.

The network is the bundle's. Classes are told by their names, whatever their ids: each that the bundle knows keeps its
weights in the layer that ends in the classes, and its colour, code and title. A new one starts there from Glorot's
normal and a bias of 0, as in any training; the encoder and the decoder are the bundle's for all of them.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.bundle import Bundle, load_module, open_bundle
from models.config import TrainConfig
from models.contract import PALETTE
from models.errors import TrainingError
from models.spec import Band, Class, ModelSpec

TAKEN = ("licence", "attribution", "tiles", "halo", "units")
"""Settings that are the bundle's too, unless they are given."""


def continued(config: TrainConfig, start: Path) -> TrainConfig:
    """The configuration with the bundle's settings in the place of what was left at its default.

    Raises:
        TrainingError: the network that it asks for is not the bundle's.
    """
    bundle = open_bundle(start)
    default = {name: getattr(TrainConfig(chips=config.chips, out=config.out), name) for name in _names()}
    network, spec = _network(bundle.spec), bundle.spec
    if config.task != network["task"]:
        raise TrainingError(f"{start} was trained to {network['task']}, this training is to {config.task}")
    for name, theirs in network.items():
        ours = getattr(config, name)
        if ours not in (default[name], theirs):
            raise TrainingError(
                f"{start} has {name} {theirs}, this training {ours}: leave it out, or do not start there"
            )
    held = {name: getattr(spec, name) for name in TAKEN if name != "units"}
    held |= {"units": tuple(band.unit for band in spec.bands)}
    left = {name: value for name, value in held.items() if getattr(config, name) == default[name]}
    return replace(config, **network, **left)


def _names() -> list[str]:
    return [field.name for field in fields(TrainConfig)]


def _network(spec: ModelSpec) -> dict[str, Any]:
    """What a configuration says of a network."""
    plan = spec.trained
    network: dict[str, Any] = {"encoder": plan.encoder, "width": plan.width, "variant": dict(plan.variant)}
    if plan.decoder is None:
        return {"task": "classify", **network}
    decoder = {name: getattr(plan, name) for name in ("decoder", "decoder_channels", "output_stride")}
    return {"task": "segment", **network, **decoder}


def continued_bands(measured: tuple[Band, ...], dtype: str, spec: ModelSpec) -> tuple[Band, ...]:
    """The measured bands with the bundle's normalisation; their range is what either training has seen.

    Raises:
        TrainingError: names, units or type are not the bundle's, to whose pixels its weights belong.
    """
    ours, theirs = ([f"{band.name} in {band.unit}" for band in bands] for bands in (measured, spec.bands))
    if ours != theirs or dtype not in spec.dtypes:
        raise TrainingError(
            f"chips have {', '.join(ours)} as {dtype}, the bundle to start from {', '.join(theirs)} as "
            f"{' or '.join(spec.dtypes)}: give the same bands, or take its encoder alone (encoder_from)"
        )
    pairs = zip(measured, spec.bands, strict=True)
    return tuple(
        known.model_copy(update={"low": min(known.low, band.low), "high": max(known.high, band.high)})
        for band, known in pairs
    )


def continued_spec(spec: ModelSpec, config: TrainConfig, bundle: Bundle) -> ModelSpec:
    """`spec` as one derived from the bundle: classes that it knows look as they did, where nothing else was asked for.

    Raises:
        TrainingError: the bundle's classes have codes, and a new one has none.
    """
    known = {entry.name: entry for entry in bundle.spec.classes}
    used = {entry.color for entry in bundle.spec.classes}
    free = cycle([color for color in PALETTE if color not in used] or PALETTE)
    classes = [_dressed(entry, known.get(entry.name), config, free) for entry in spec.classes]
    coded = [entry.code is not None for entry in classes]
    if any(coded) and not all(coded):
        bare = classes[coded.index(False)].name
        raise TrainingError(f"classes of {bundle.path} have codes, {bare} has none: give every class a code")
    described = spec.model_dump() | {"classes": [entry.model_dump() for entry in classes]}
    described |= {"dtypes": bundle.spec.dtypes, "derived_from": bundle.digest}
    return ModelSpec.model_validate(described)


def _dressed(ours: Class, theirs: Class | None, config: TrainConfig, free: Iterator[str]) -> Class:
    """With the colour, code and title that the bundle has for it; a new one with a colour that none has."""
    color, code = (next(free), None) if theirs is None else (theirs.color, theirs.code)
    return ours.model_copy(
        update={
            "color": ours.color if config.colors else color,
            "code": ours.code if config.codes else code,
            "title": theirs.title if theirs else "",
        }
    )


def check_classes(bundle: Bundle, names: list[str]) -> None:
    """Refuse chips without a class that the bundle has.

    Raises:
        TrainingError: one has vanished.
    """
    gone = [entry.name for entry in bundle.spec.classes if entry.name not in names]
    if gone:
        raise TrainingError(
            f"{bundle.path} has the class {gone[0]}, the chips have {', '.join(names)}: name all of its classes, or "
            "take its encoder alone (encoder_from)"
        )


def load_whole(module: nn.Module, bundle: Bundle, names: list[str]) -> str:
    """Put the bundle's weights into a network of its architecture for the classes `names`; tells what it took.

    What the bundle has no weights for stays as it is: new classes, and auxiliary heads.

    Raises:
        TrainingError: a class has vanished.
    """
    check_classes(bundle, names)
    theirs, ours = load_module(bundle).state_dict(), module.state_dict()
    last = _last_layer(module)
    for name in [name for name in theirs if name.rpartition(".")[0] == last]:
        theirs[name] = _grown(ours[name], theirs[name], [names.index(entry.name) for entry in bundle.spec.classes])
    module.load_state_dict({**ours, **theirs})
    new = ", ".join(name for name in names if name not in {entry.name for entry in bundle.spec.classes})
    return f"all of bundle {bundle.digest[:12]}; new classes: {new or 'none'}"


def _grown(ours: Tensor, theirs: Tensor, rows: list[int]) -> Tensor:
    grown = ours.clone()
    grown[rows] = theirs
    return grown


def _last_layer(module: nn.Module) -> str:
    """Name of the layer that ends in the classes: the head's last one with weights."""
    layers: list[str] = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return [name for name in layers if name.partition(".")[0] == "head"][-1]
