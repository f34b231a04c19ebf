"""Convolutions that rectify what they give before it is written to memory, as cuDNN has them.

    conv ─► ReLU            becomes  conv_relu        half of the traffic: the map is written once, not written,
    x + conv ─► ReLU        becomes  conv_add_relu    read and written again

On a processor the two operations compute the same thing by PyTorch's ordinary ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.inception.blocks import ConvBN, ResidualModule

STILL = [1, 1]
"""The dilation of every convolution here; also the stride of a projection."""


@torch.library.custom_op("widefield::conv_relu", mutates_args=(), device_types="cuda")
def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """`max(0, conv(x) + bias)`: (N, C, H, W), (K, C, h, w), (K,) -> (N, K, H', W')."""
    return torch.ops.aten.cudnn_convolution_relu(x, weight, bias, stride, padding, STILL, 1)  # type: ignore[no-any-return] # torch


@conv_relu.register_kernel("cpu")
def _conv_relu(x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    return functional.conv2d(x, weight, bias, tuple(stride), tuple(padding)).relu_()


@conv_relu.register_fake
def _conv_relu_shape(x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    return functional.conv2d(x, weight, bias, tuple(stride), tuple(padding)).contiguous(
        memory_format=torch.channels_last
    )


@torch.library.custom_op("widefield::conv_add_relu", mutates_args=(), device_types="cuda")
def conv_add_relu(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
    """`max(0, shortcut + conv(x) + bias)`: (N, C, H, W), (K, C, 1, 1), (K,), (N, K, H, W) -> (N, K, H, W)."""
    return torch.ops.aten.cudnn_convolution_add_relu(  # type: ignore[no-any-return] # torch
        x, weight, shortcut, 1.0, bias, STILL, [0, 0], STILL, 1
    )


@conv_add_relu.register_kernel("cpu")
def _conv_add_relu(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
    return functional.conv2d(x, weight, bias).add_(shortcut).relu_()


@conv_add_relu.register_fake
def _conv_add_relu_shape(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(shortcut, memory_format=torch.channels_last)


def fuse_relus(network: nn.Module) -> None:
    """Each convolution absorbs the ReLU behind it, and a residual module's projection the addition as well.

    Normalisation and scales are folded before: what is not stays as it is.
    """
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, ConvBN) and isinstance(module.bn, nn.Identity) and _plain(module.conv):
                setattr(parent, name, ConvReLU(module.conv))
            if isinstance(module, ResidualModule) and not module.linear and module.scale == 1:
                setattr(parent, name, AddReLU(module))


class ConvReLU(nn.Module):
    """A convolution and the ReLU behind it: (N, C, H, W) -> (N, K, H', W')."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, _bias(conv)
        self.stride, self.padding = list(conv.stride), [int(edge) for edge in conv.padding]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and rectify."""
        return conv_relu(x, self.weight, self.bias, self.stride, self.padding)  # type: ignore[no-any-return] # torch


class AddReLU(nn.Module):
    """A residual module that projects, adds and rectifies at once: (N, C, H, W) -> the same shape."""

    def __init__(self, module: ResidualModule) -> None:
        super().__init__()
        self.branches = module.branches
        self.weight, self.bias = module.conv2d.weight, _bias(module.conv2d)

    def forward(self, x: Tensor) -> Tensor:
        """Branch out, project, add, rectify."""
        return conv_add_relu(self.branches(x), self.weight, self.bias, x)  # type: ignore[no-any-return] # torch


def _plain(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.dilation == (1, 1) and not isinstance(conv.padding, str)


def _bias(conv: nn.Conv2d) -> Tensor:
    return nn.Parameter(conv.weight.new_zeros(conv.out_channels)) if conv.bias is None else conv.bias
