"""Decoders, built from what an encoder declares and nothing else: U-Net, and a light feature pyramid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.inception.blocks import ConvBN

Size = tuple[int, int]
"""Rows and columns."""


def enlarged(x: Tensor, size: Size) -> Tensor:
    """(N, C, ceil(H/2), ceil(W/2)) -> (N, C, H, W), `size` being (H, W): each cell twice, cropped, never stretched."""
    return functional.interpolate(x, size=size, mode="nearest")


def check_levels(strides: Sequence[int], output_stride: int) -> None:
    """Refuse levels that a decoder cannot join.

    Raises:
        ValueError: the encoder's strides do not double from 2 on, or the output's is none of 1, 2, 4.
    """
    if list(strides) != [2 << level for level in range(len(strides))]:
        raise ValueError(f"the encoder's strides are {tuple(strides)}: they must be 2, 4, 8, ...")
    if output_stride not in {1, 2, 4}:
        raise ValueError(f"output stride is {output_stride}: choose 1, 2 or 4")


class Stage(nn.Module):
    """Enlarge to a given size, join the skip, convolve twice."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(inputs + skip, outputs, 3)
        self.conv2 = ConvBN(outputs, outputs, 3)

    def forward(self, x: Tensor, size: Size, skip: Tensor | None = None) -> Tensor:
        """(N, inputs, h, w) and (N, skip, *size) -> (N, outputs, *size)."""
        x = enlarged(x, size)
        return self.conv2(self.conv1(x if skip is None else torch.cat((x, skip), 1)))  # type: ignore[no-any-return] # torch


class UNet(nn.Module):
    """Maps, finest first -> (N, channels, ceil(H/s), ceil(W/s)) for output stride s (Ronneberger et al. 2015).

    From the deepest map up, in steps of two, each step with the encoder's map of its size; at stride 1 there is none.
    """

    WIDTHS = (256, 128, 64, 32, 16)

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], widths: Sequence[int], output_stride: int = 1
    ) -> None:
        """`widths`: output channels of the stages, deepest first, one for each of `channels`.

        With an output stride, the stages beyond it, and their widths, are left out.

        Raises:
            ValueError: the widths do not match the encoder, or see `check_levels`.
        """
        super().__init__()
        check_levels(strides, output_stride)
        if len(widths) != len(channels):
            raise ValueError(
                f"{len(widths)} decoder channels, but the encoder has {len(channels)} levels: give one each"
            )
        stages = len(channels) - int(math.log2(output_stride))
        outputs = tuple(widths)[:stages]
        inputs = [channels[-1], *outputs[:-1]]
        skips = [*reversed(channels[:-1]), 0][:stages]
        self.stages = nn.ModuleList(Stage(*sizes) for sizes in zip(inputs, skips, outputs, strict=True))
        self.channels = outputs[-1]

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """`size`: rows and columns of the network's input."""
        *skips, x = features
        sizes: list[tuple[Size, Tensor | None]] = [((s.shape[-2], s.shape[-1]), s) for s in reversed(skips)]
        for stage, (rows_and_columns, skip) in zip(self.stages, [*sizes, (size, None)], strict=False):
            x = stage(x, rows_and_columns, skip)
        return x


class FPN(nn.Module):
    """Maps, finest first -> (N, channels, ceil(H/s), ceil(W/s)) for output stride s.

    A feature pyramid (Lin et al. 2017): each map is projected to one width and added to the enlarged one below it. The
    pyramid's levels are convolved once, and added up from the deepest to the finest (as in Kirillov et al. 2019).
    """

    WIDTHS = (128, 64)

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], widths: Sequence[int], output_stride: int = 4
    ) -> None:
        """`widths`: channels of the pyramid, and of the maps that are added up. Maps finer than the output are unused.

        Raises:
            ValueError: there are not two widths, or see `check_levels`.
        """
        super().__init__()
        check_levels(strides, output_stride)
        if len(widths) != 2:
            raise ValueError(f"{len(widths)} decoder channels, but a feature pyramid has 2: its own, and the output's")
        pyramid, self.channels = widths
        used = [width for width, stride in zip(channels, strides, strict=True) if stride >= output_stride]
        self.lateral = nn.ModuleList(nn.Conv2d(width, pyramid, 1) for width in used)
        self.smooth = nn.ModuleList(ConvBN(pyramid, self.channels, 3) for _ in used)
        self.last = ConvBN(self.channels, self.channels, 3) if output_stride == 1 else None

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """`size`: rows and columns of the network's input."""
        used = list(features)[-len(self.lateral) :]
        deepest = self.lateral[-1](used[-1])
        pyramid, total = deepest, self.smooth[-1](deepest)
        for level in reversed(range(len(used) - 1)):
            rows_and_columns = (used[level].shape[-2], used[level].shape[-1])
            pyramid = enlarged(pyramid, rows_and_columns) + self.lateral[level](used[level])
            total = enlarged(total, rows_and_columns) + self.smooth[level](pyramid)
        return total if self.last is None else self.last(enlarged(total, size))  # type: ignore[no-any-return] # torch


DECODERS: dict[str, type[UNet | FPN]] = {"unet": UNet, "fpn": FPN}
