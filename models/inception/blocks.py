"""What the networks of the Inception family are made of: the words of their tables, and the layers these stand for.

Conv(96, 3)                  convolution, batch normalisation, ReLU
Pool("max"), Lrn()           layers without weights
[step, step]                 one after the other
{"a": step, "b": step}       side by side on the same input, joined along the channels
Residual({...}, scale)       side by side, projected to the input's channels, scaled and added to it
Repeat(step, 4)              the same module again and again
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Kernel = int | tuple[int, int]
Padding = Literal["same", "valid"]

V = True
"""Marks a layer that the published network does not pad, as the papers' figures do."""


@dataclass(frozen=True)
class Conv:
    """A convolution of the table."""

    filters: int
    kernel: Kernel = 1
    """Rows and columns, or both at once."""
    stride: int = 1
    valid: bool = False


@dataclass(frozen=True)
class Pool:
    """A pool of the table."""

    kind: Literal["max", "avg"]
    stride: int = 1
    valid: bool = False
    kernel: int = 3
    ceil: bool = False
    """Published as Caffe's pool: no padding in front, and the last window may overhang."""


@dataclass(frozen=True)
class Lrn:
    """Local response normalisation over five channels (Krizhevsky et al. 2012), as GoogLeNet has it without BN."""


@dataclass(frozen=True)
class Residual:
    """A residual module: `x + scale * project(branches(x))`, then ReLU unless it is `linear`."""

    branches: "Mapping[str, Step]"
    scale: float
    linear: bool = False


@dataclass(frozen=True)
class Repeat:
    """`count` modules of one kind, each with weights of its own."""

    step: "Step"
    count: int


Step: TypeAlias = "Conv | Pool | Lrn | Residual | Repeat | Sequence[Step] | Mapping[str, Step]"


@dataclass(frozen=True)
class Style:
    """How the layers of a table are made."""

    padding: Padding = "same"
    """`same`: every layer is padded, and stride 2 takes n to ceil(n/2). `valid`: as published."""
    width: float = 1.0
    """Multiplier of the channels."""
    bn: bool = True
    bias: bool = False
    """Whether convolutions have a bias although a normalisation follows."""
    eps: float = 1e-3
    """Of batch normalisation."""
    count_include_pad: bool = False
    """Whether averages at the border count the padding, as the weights were trained."""


def build(step: Step, inputs: int, style: Style) -> tuple[nn.Module, int]:
    """The layer that `step` stands for on `inputs` channels, and the channels that it gives."""
    built: tuple[nn.Module, int]
    match step:
        case Conv():
            built = _conv(step, inputs, style)
        case Pool():
            built = _pool(step, style), inputs
        case Lrn():
            built = LocalResponseNorm(), inputs
        case Residual():
            branches, joined = _branches(step.branches, inputs, style)
            built = ResidualModule(branches, nn.Conv2d(joined, inputs, 1), step.scale, linear=step.linear), inputs
        case Repeat():
            built = _chain([step.step] * step.count, inputs, style)
        case Mapping():
            built = _branches(step, inputs, style)
        case _:
            built = _chain(step, inputs, style)
    return built


def _conv(step: Conv, inputs: int, style: Style) -> tuple[nn.Module, int]:
    filters, bias = scaled(step.filters, style.width), style.bias or not style.bn
    padded = style.padding == "same" or not step.valid
    return ConvBN(
        inputs, filters, step.kernel, step.stride, padded=padded, bn=style.bn, bias=bias, eps=style.eps
    ), filters


def _chain(steps: Sequence[Step], inputs: int, style: Style) -> tuple[nn.Module, int]:
    layers, channels = [], inputs
    for step in steps:
        layer, channels = build(step, channels, style)
        layers.append(layer)
    return nn.Sequential(*layers), channels


def _branches(steps: Mapping[str, Step], inputs: int, style: Style) -> tuple["Parallel", int]:
    built = {name: build(step, inputs, style) for name, step in steps.items()}
    branches = Parallel({name: layer for name, (layer, _) in built.items()})
    return branches, sum(channels for _, channels in built.values())


def _pool(step: Pool, style: Style) -> nn.Module:
    if step.kind == "avg":
        return nn.AvgPool2d(step.kernel, step.stride, step.kernel // 2, count_include_pad=style.count_include_pad)
    if step.stride == 1:
        return nn.MaxPool2d(step.kernel, 1, step.kernel // 2)
    if step.ceil:
        return Halve(step.kernel, published=step.valid and style.padding == "valid")
    return nn.MaxPool2d(step.kernel, step.stride, 0 if step.valid and style.padding == "valid" else step.kernel // 2)


def scaled(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of 8 and at least 8; `channels` itself at width 1."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)


class ConvBN(nn.Module):
    """Convolution, batch normalisation, ReLU.

    (N, inputs, H, W) -> (N, outputs, ceil(H/stride), ceil(W/stride)), aligned with the pixels, if `padded`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Kernel,
        stride: int = 1,
        *,
        padded: bool = True,
        bn: bool = True,
        bias: bool = False,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        rows, cols = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (rows // 2, cols // 2) if padded else 0
        self.conv = nn.Conv2d(inputs, outputs, (rows, cols), stride, padding, bias=bias)
        self.bn = nn.BatchNorm2d(outputs, eps=eps) if bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, rectify."""
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Halve(nn.Module):
    """Maximum with stride 2 over what is not negative: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    On even sizes it is the published `MaxPool2d(3, 2, ceil_mode=True)`, which drops the last row of an odd size, as
    `published` does too. There the last window overhangs, and padding would copy the map for nothing; elsewhere it is
    padded by hand, which every engine understands alike: OpenVINO refuses windows larger than the map.
    """

    def __init__(self, kernel: int = 3, *, published: bool = False) -> None:
        super().__init__()
        self.kernel, self.published = kernel, published

    def forward(self, x: Tensor) -> Tensor:
        """Pad below and to the right where needed, take the maximum."""
        rows, cols = (self._missing(size) for size in x.shape[-2:])
        if rows or cols:
            x = functional.pad(x, (0, cols, 0, rows))
        return functional.max_pool2d(x, self.kernel, 2, ceil_mode=True)

    def _missing(self, size: int) -> int:
        if size % 2 == 0 and size >= self.kernel:
            return 0
        return (size + self.kernel) % 2 if self.published else size % 2 + self.kernel - 2


class LocalResponseNorm(nn.Module):
    """`x / (1 + 1e-4 * mean of x² over five neighbouring channels)^0.75`, with Caffe's constants."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        channels = x.shape[1]
        square = functional.pad(x * x, (0, 0, 0, 0, 2, 2))
        mean = sum(square[:, shift : shift + channels] for shift in range(5)) / 5
        return x / (1 + 1e-4 * mean) ** 0.75


def adaptive_mean(x: Tensor, cells: int) -> Tensor:
    """(N, C, H, W) -> (N, C, cells, cells): what `adaptive_avg_pool2d` gives, with a gradient that repeats on GPUs."""
    rows, cols = (_averages(size, cells).to(x) for size in x.shape[-2:])
    return rows @ x @ cols.T


def _averages(size: int, cells: int) -> Tensor:
    """(cells, size): row i averages from floor(i size / cells) to ceil((i + 1) size / cells)."""
    starts = [cell * size // cells for cell in range(cells)]
    ends = [-(-(cell + 1) * size // cells) for cell in range(cells)]
    rows = torch.zeros(cells, size, dtype=torch.float64)
    for row, start, end in zip(rows, starts, ends, strict=True):
        row[start:end] = 1 / (end - start)
    return rows


class Parallel(nn.Module):
    """Branches side by side: the Inception module."""

    def __init__(self, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, sum of the branches' channels, H', W')."""
        return torch.cat([branch(x) for branch in self.children()], 1)


class ResidualModule(nn.Module):
    """Branches side by side, projected linearly (`conv2d`), scaled down and added to the input.

    Szegedy et al. 2016: without the scale, of 0.1 to 0.3, networks of this width die early in training.
    """

    def __init__(self, branches: Parallel, project: nn.Conv2d, scale: float, *, linear: bool) -> None:
        super().__init__()
        self.branches = branches
        self.conv2d = project
        self.scale, self.linear = scale, linear

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        projected = self.conv2d(self.branches(x))
        x = x + (projected if self.scale == 1 else self.scale * projected)
        return x if self.linear else functional.relu(x, inplace=True)
