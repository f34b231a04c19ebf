"""What follows from a network's table alone: parameters, multiply-adds, receptive field."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.inception.blocks import Halve, Parallel, ResidualModule
from models.inception.encoder import Encoder

Field = tuple[int, int]
"""Pixels that a cell sees along an axis, and pixels between two cells."""


def parameters(module: nn.Module) -> int:
    """Trained numbers."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, edge: int, bands: int = 3) -> int:
    """Of convolutions and linear layers, for one image of `edge` x `edge` pixels."""
    module = module.to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(torch.zeros(1, bands, edge, edge, device="meta"))
    return counter.get_total_flops() // 2


def receptive_fields(encoder: Encoder) -> list[int]:
    """Pixels that each level sees along rows or columns, whichever is more, finest first."""
    return [max(seen) for seen in zip(*(_along(encoder, axis) for axis in (0, 1)), strict=True)]


def _along(encoder: Encoder, axis: int) -> list[int]:
    field, found = (1, 1), []
    for name, layer in encoder.named_children():
        field = _through(layer, field, axis)
        if name in encoder.ends:
            found.append(field[0])
    return found


def _through(layer: nn.Module, field: Field, axis: int) -> Field:
    match layer:
        case ResidualModule():
            seen, step = _through(layer.branches, field, axis)
            return max(seen, field[0]), step
        case Parallel():
            ends = [_through(branch, field, axis) for branch in layer.children()]
            return max(seen for seen, _ in ends), ends[0][1]
        case nn.Conv2d() | nn.MaxPool2d() | nn.AvgPool2d():
            return _window(field, _on(layer.kernel_size, axis), _on(layer.stride, axis))
        case Halve():
            return _window(field, layer.kernel, 2)
        case _:
            for child in layer.children():
                field = _through(child, field, axis)
            return field


def _window(field: Field, kernel: int, stride: int) -> Field:
    seen, step = field
    return seen + (kernel - 1) * step, step * stride


def _on(size: int | tuple[int, ...], axis: int) -> int:
    return size if isinstance(size, int) else size[axis]
