"""Glorot-normal initialisation, the default for training from scratch.

Each convolution and linear layer draws its weights from a normal distribution with deviation
`sqrt(2 / (fan_in + fan_out))` and starts with bias 0; each batch normalisation is the identity (1 and 0).
With batch normalisation the scale does not change what a layer computes, only the size of its effective steps (first
layers move fast): training starts with a warm-up.
Without it, activations shrink layer by layer (0.20 to 0.02 of their scale through Inception v1).
"""

import math

import torch
from torch import nn

TRUNCATED_STD = 0.87962566103423978
"""Deviation of a standard normal that is cut off at -2 and 2."""


def glorot_normal_(module: nn.Module, truncated: bool = False, seed: int | None = None) -> nn.Module:
    """Initialise `module` in place, layer by layer in the order of `module.modules()`, and return it.

    Args:
        module: a network, or a part of one.
        truncated: cut the normal off at two of its deviations and widen it so that the deviation stays, as Keras does.
        seed: the same seed gives the same weights; None draws from torch's global generator.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            _glorot_normal_(layer.weight, truncated, generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    return module


def _glorot_normal_(weight: torch.Tensor, truncated: bool, generator: torch.Generator | None) -> None:
    outputs, inputs, *kernel = weight.shape
    std = math.sqrt(2 / ((inputs + outputs) * math.prod(kernel)))
    if not truncated:
        nn.init.normal_(weight, 0.0, std, generator=generator)
        return
    wide = std / TRUNCATED_STD
    nn.init.trunc_normal_(weight, 0.0, wide, -2 * wide, 2 * wide, generator=generator)
