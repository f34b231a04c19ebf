"""What the networks of the Inception family share: convolution with normalisation, the aligned pool, the width rule."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def scaled(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of 8 and at least 8; `channels` itself at width 1."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)


class ConvBN(nn.Module):
    """Convolution without bias, batch normalisation (eps 1e-3), ReLU.

    (N, inputs, H, W) -> (N, outputs, ceil(H/stride), ceil(W/stride)), aligned with the pixels.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, rectify."""
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Halve(nn.Module):
    """3x3 maximum with stride 2: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    On what is not negative it equals the public `MaxPool2d(3, 2, ceil_mode=True)`, which drops the last row of an odd
    size, and every engine pads it alike.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pad below and to the right, take the maximum."""
        return functional.max_pool2d(functional.pad(x, (0, 2, 0, 2)), 3, 2)


class Inception(nn.Module):
    """The module of Inception v1: four branches side by side, joined along the channels."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int], kernel5: int = 5) -> None:
        """`widths`: 1x1 | 3x3 reduce, 3x3 | 5x5 reduce, 5x5 | pool projection, as the paper's table has them."""
        super().__init__()
        one, reduce3, three, reduce5, five, project = widths
        self.channels = one + three + five + project
        self.branch1 = ConvBN(inputs, one, 1)
        self.branch2 = nn.Sequential(ConvBN(inputs, reduce3, 1), ConvBN(reduce3, three, 3))
        self.branch3 = nn.Sequential(ConvBN(inputs, reduce5, 1), ConvBN(reduce5, five, kernel5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvBN(inputs, project, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, channels, H, W)."""
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), 1)
