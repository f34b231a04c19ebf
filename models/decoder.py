"""The U-Net decoder, built from what an encoder declares and nothing else."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.inception.blocks import ConvBN


class Stage(nn.Module):
    """Enlarge to a given size, join the skip, convolve twice."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(inputs + skip, outputs, 3)
        self.conv2 = ConvBN(outputs, outputs, 3)

    def forward(self, x: Tensor, size: tuple[int, int], skip: Tensor | None = None) -> Tensor:
        """(N, inputs, h, w) and (N, skip, *size) -> (N, outputs, *size)."""
        # With ceil(n/2) levels, nearest to `size` repeats each cell twice and crops: nothing is stretched.
        x = functional.interpolate(x, size=size, mode="nearest")
        return self.conv2(self.conv1(x if skip is None else torch.cat((x, skip), 1)))  # type: ignore[no-any-return] # torch


class UNet(nn.Module):
    """Five maps, finest first -> (N, widths[-1], H, W), in steps of two; the last step has no skip."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], widths: Sequence[int]) -> None:
        """`widths`: output channels of the stages, deepest first, one for each of `channels`.

        Raises:
            ValueError: the widths do not match the encoder, or its strides do not double from 2 on.
        """
        super().__init__()
        if len(widths) != len(channels):
            raise ValueError(
                f"{len(widths)} decoder channels, but the encoder has {len(channels)} levels: give one each"
            )
        if list(strides) != [2 << level for level in range(len(strides))]:
            raise ValueError(f"the encoder's strides are {tuple(strides)}: they must be 2, 4, 8, ...")
        inputs = [channels[-1], *widths[:-1]]
        skips = [*reversed(channels[:-1]), 0]
        self.stages = nn.ModuleList(Stage(*sizes) for sizes in zip(inputs, skips, widths, strict=True))
        self.channels = widths[-1]

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """`size`: rows and columns of the network's input."""
        *skips, x = features
        for stage, skip in zip(self.stages, reversed(skips), strict=False):
            x = stage(x, skip.shape[-2:], skip)
        return self.stages[-1](x, size)  # type: ignore[no-any-return] # torch's modules return Any
