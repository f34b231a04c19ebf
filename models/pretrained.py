"""Public weights: checkpoints as their authors released them, loaded into the networks of this package.

A checkpoint's tensors get our names by the rules of its network. Nothing is copied before all of them fit.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from models.checkpoint import read_tensors
from models.classifier import Classifier
from models.errors import WeightsError
from models.inception.blocks import Conv
from models.inception.encoder import Encoder
from models.inception.family import create_encoder, find_network
from models.published import Source

Rules = tuple[tuple[str, str], ...]

FC: Rules = ((r"^(?:fc|last_linear|classif)\.", "head.fc."),)
REST: Rules = ((r"^(?!head\.|aux\.)", "encoder."),)
BRANCHES: Rules = ((r"^(repeat\w*\.\d+|block8)\.(branch\d)", r"\1.branches.\2"),)
"""Of residual modules, which here hold their branches in one layer."""
V4_LAYERS = (
    *("conv_1a", "conv_2a", "conv_2b", "mixed_3a", "mixed_4a", "mixed_5a"),
    *(f"inception_a.{i}" for i in range(4)),
    "reduction_a",
    *(f"inception_b.{i}" for i in range(7)),
    "reduction_b",
    *(f"inception_c.{i}" for i in range(3)),
)
"""What `features.0` to `features.21` are."""
ALIKE = 0.9
"""Share of a network's tensors that a checkpoint must have, by name, to look like it."""
SHOWN = 3
"""Names that a line lists before it counts the others."""


@dataclass(frozen=True)
class Layout:
    """How the public checkpoints of one network are made."""

    network: str
    sources: tuple[Source, ...]
    rules: Rules
    """Patterns and what replaces them, one after the other: a public name becomes `encoder.*`, `head.*` or `aux.*`."""
    variant: Mapping[str, Any] = field(default_factory=dict)
    """Options of `create_encoder` that give the network which was released."""
    classifier: str = "head.fc"
    """The layer whose rows are the classes."""
    background: bool = False
    """Whether some files have a class more, the background, in row 0."""
    bgr: bool = False
    """Whether the first kernels take blue, green, red."""

    def named(self, key: str) -> str:
        """Our name of the tensor that a checkpoint calls `key`."""
        for pattern, replacement in self.rules:
            key = re.sub(pattern, replacement, key)
        return key

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.variant.items())
        return f"{self.network}({options})" if options else self.network


LAYOUTS = (
    Layout(
        "inception_v1",
        ("torchvision",),
        (*FC, (r"^aux1\.", "aux.inception4a."), (r"^aux2\.", "aux.inception4d."), *REST),
        variant={"kernel5": 3},
    ),
    Layout(
        "inception_v2",
        ("cadene",),
        (
            *FC,
            *REST,
            (r"^(encoder\.\w+)_bn\.", r"\1.bn."),
            (r"^(encoder\.\w+)\.(weight|bias)$", r"\1.conv.\2"),
            (r"_double_3x3_reduce\.", ".double_3x3.0."),
            (r"_double_3x3_(\d)\.", r".double_3x3.\1."),
            (r"(inception_\w\w)_3x3_reduce\.", r"\1.3x3.0."),
            (r"(inception_\w\w)_3x3\.", r"\1.3x3.1."),
            (r"(inception_\w\w)_1x1\.", r"\1.1x1."),
            (r"_pool_proj\.", ".pool.1."),
        ),
        bgr=True,
    ),
    Layout(
        "inception_v3",
        ("torchvision", "timm"),
        (
            *FC,
            (r"^AuxLogits\.", "aux.Mixed_6e."),
            *REST,
            (r"(branch\w+)_(\d)([ab])\.", r"\1_\2.\3."),
            *((rf"(branch\w+)_{i + 1}\.", rf"\1.{i}.") for i in range(5)),
            (r"branch_pool\.", "branch_pool.1."),
        ),
    ),
    Layout(
        "inception_v4",
        ("timm", "cadene", "smp"),
        (
            *FC,
            *((rf"^features\.{i}\.", f"{layer}.") for i, layer in enumerate(V4_LAYERS)),
            *REST,
            (r"(branch\d)_(\d)([ab])\.", r"\1.\2.\3."),
            (r"(branch\d)_(\d)\.", r"\1.\2."),
        ),
        background=True,
    ),
    Layout(
        "inception_resnet_v1",
        ("facenet",),
        ((r"^(last_linear|last_bn|logits)\.", r"head.\1."), *BRANCHES, *REST),
        variant={"variant": "facenet"},
        classifier="head.logits",
    ),
    Layout("inception_resnet_v2", ("timm", "cadene", "smp"), (*FC, *BRANCHES, *REST), background=True),
)
"""Every network that has public weights."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint and of a module."""

    used: int
    """Tensors that were copied."""
    unused: tuple[str, ...]
    """Tensors of the checkpoint that the module does not take, by their public names."""
    missing: tuple[str, ...]
    """Tensors of the module that the checkpoint lacks: they stay as they are, scales of normalisations become 1."""

    def __str__(self) -> str:
        return f"{self.used} tensors used; unused: {_some(self.unused)}; missing: {_some(self.missing)}"


def load_public(
    module: nn.Module, weights: Mapping[str, Any] | Path | str, source: Source, *, head: bool = False
) -> LoadReport:
    """Copy public `weights` into `module`: all of its encoder, or nothing.

    A first convolution of other bands than RGB gets, for one band, the sum of the three kernels; for n bands, those of
    red, green and blue again and again, times 3/n. A grey image, the same in every band, then gives what it gave in
    RGB: exactly for one band and for multiples of three, nearly otherwise. Kernels that take BGR are turned to RGB.

    The checkpoint may lack `num_batches_tracked`, the scales of all normalisations, and auxiliary heads. Its floats may
    be of any precision.

    Args:
        module: an `Encoder`, a `Classifier`, or a network with an encoder, such as a `Segmenter`.
        weights: tensors by their public names, or a file: .pth or .pt without code, .safetensors.
        source: who released them.
        head: of a classifier, load its head and its auxiliary heads, too; they must have the same classes. Where the
            checkpoint has 1001 classes and the module 1000, row 0, the background, is dropped.

    Raises:
        WeightsError: the file cannot be read, is of another network or source, or does not fit.
    """
    target = _target(module)
    if head and not isinstance(module, Classifier):
        raise WeightsError(f"a {type(module).__name__} has no classifier that was released: load with head=False")
    layout = _layout(_encoder(module), source)
    tensors = read_tensors(weights)
    public = {layout.named(key): key for key in tensors}
    wanted = [name for name in target if head or name.startswith("encoder.")]
    _check_names(layout, wanted, tensors, public)
    if head:
        _check_classes(layout, tensors[public[f"{layout.classifier}.weight"]], target[f"{layout.classifier}.weight"])
    fitted = {
        name: _fit(layout, name, tensors[public[name]], target[name], first=name == wanted[0])
        for name in wanted
        if name in public
    }
    _copy(fitted, target, [name for name in wanted if _is_scale(name) and name not in fitted])
    unused = sorted(set(tensors) - {public[name] for name in fitted})
    return LoadReport(len(fitted), tuple(unused), tuple(name for name in target if name not in fitted))


def _encoder(module: nn.Module) -> Encoder:
    encoder = module if isinstance(module, Encoder) else getattr(module, "encoder", None)
    if not isinstance(encoder, Encoder):
        raise WeightsError(f"a {type(module).__name__} has no Inception encoder: there are no public weights for it")
    return encoder


def _target(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of `module` that public weights may set: those of its encoder; of a classifier, all."""
    if isinstance(module, Classifier):
        return dict(module.state_dict())
    return {f"encoder.{name}": tensor for name, tensor in _encoder(module).state_dict().items()}


def _layout(encoder: Encoder, source: str) -> Layout:
    """The layout of the released network that `encoder` is."""
    if source not in get_args(Source):
        raise WeightsError(f"source is {source!r}: choose one of {', '.join(get_args(Source))}")
    for layout in LAYOUTS:
        if tuple(encoder.widths) == tuple(find_network(layout.network, **layout.variant).table):
            break
    else:
        raise WeightsError(f"this network has no public weights: choose {', '.join(map(str, LAYOUTS))}")
    if source not in layout.sources:
        raise WeightsError(f"{layout.network} has no weights from {source}: choose {' or '.join(layout.sources)}")
    (name, first), *_ = find_network(layout.network, **layout.variant).table.items()
    if isinstance(first, Conv) and encoder.widths[name] != first.filters:
        raise WeightsError(f"this {layout.network} is of another width than 1, for which there are no public weights")
    return layout


def _check_names(layout: Layout, wanted: list[str], tensors: Mapping[str, Tensor], public: Mapping[str, str]) -> None:
    """Nothing may be missing but counters, all scales at once, and auxiliary heads."""
    absent = {name for name in wanted if name not in public and not name.endswith("num_batches_tracked")}
    scales = {name for name in wanted if _is_scale(name) and not name.startswith("aux.")}
    if scales <= absent:
        absent -= {name for name in wanted if _is_scale(name)}
    if not any(name.startswith("aux.") for name in public):
        absent -= {name for name in wanted if name.startswith("aux.")}
    bodies = sorted(name for name in absent if name.startswith("encoder."))
    if bodies:
        raise WeightsError(_wrong_network(layout, tensors, bodies))
    if absent:
        raise WeightsError(f"the checkpoint has no classifier ({_some(sorted(absent))} missing): load with head=False")


def _is_scale(name: str) -> bool:
    return name.endswith("bn.weight")


def _wrong_network(layout: Layout, tensors: Mapping[str, Tensor], missing: list[str]) -> str:
    alike = {other.network: _likeness(other, tensors) for other in LAYOUTS}
    best = max(alike, key=lambda network: alike[network])
    if alike[best] < ALIKE:
        seen = "looks like no network that is known here"
    elif best != layout.network:
        seen = f"looks like {best}"
    else:
        return f"the checkpoint lacks {len(missing)} tensors of {best}, such as {missing[0]}: download it again"
    return f"the checkpoint {seen}, expected {layout}: choose the encoder or the checkpoint that fits the other"


def _likeness(layout: Layout, tensors: Mapping[str, Tensor]) -> float:
    """Share of the encoder's tensors that `tensors` hold, by name."""
    own = {name for name in _narrow(layout.network).state_dict() if not name.endswith("num_batches_tracked")}
    return len(own & {layout.named(key).removeprefix("encoder.") for key in tensors}) / len(own)


def _narrow(network: str) -> Encoder:
    """The released encoder with as few channels as can be: it serves for its names."""
    (variant,) = (layout.variant for layout in LAYOUTS if layout.network == network)
    return create_encoder(network, width=0.01, **variant)


def _check_classes(layout: Layout, stored: Tensor, own: Tensor) -> None:
    if stored.shape[0] != own.shape[0] and not _has_background(layout, stored, own):
        raise WeightsError(
            f"the checkpoint has {stored.shape[0]} classes, the module {own.shape[0]}: load with head=False"
        )


def _has_background(layout: Layout, stored: Tensor, own: Tensor) -> bool:
    return layout.background and (stored.shape[0], own.shape[0]) == (1001, 1000)


def _fit(layout: Layout, name: str, stored: Tensor, own: Tensor, *, first: bool) -> Tensor:
    """The stored tensor as the module takes it; `first`: it is the kernels on the bands."""
    if own.ndim == 1 and stored.ndim == 2 and stored.shape[0] == 1:
        stored = stored[0]
    if first and stored.ndim == 4 and stored.shape[1] == 3:
        stored = adapted(stored.flip(1) if layout.bgr else stored, own.shape[1])
    if name.startswith(f"{layout.classifier}.") and _has_background(layout, stored, own):
        stored = stored[1:]
    if stored.shape != own.shape:
        shapes = f"{tuple(stored.shape)}, here {tuple(own.shape)}"
        raise WeightsError(f"{name} of the checkpoint is {shapes}: public weights are of {layout} at width 1")
    return stored


def adapted(kernels: Tensor, bands: int) -> Tensor:
    """Kernels (F, 3, H, W) of RGB for `bands` bands; see `load_public`."""
    if bands == 3:
        return kernels
    kernels = kernels.float() if kernels.dtype in {torch.float16, torch.bfloat16} else kernels
    if bands == 1:
        return kernels.sum(1, keepdim=True)
    return kernels[:, [band % 3 for band in range(bands)]] * (3 / bands)


@torch.no_grad()
def _copy(fitted: Mapping[str, Tensor], target: Mapping[str, Tensor], scales: list[str]) -> None:
    for name, tensor in fitted.items():
        target[name].copy_(tensor)
    for name in scales:
        target[name].fill_(1.0)


def _some(names: tuple[str, ...] | list[str]) -> str:
    """The first names and how many there are besides; `none`."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more or "none"
