"""AdamW or SGD over a network's parameters, in groups that share decay and rate."""

from typing import Any

import torch
from torch import nn

from models.classifier import Classifier
from models.config import TrainConfig
from models.segmenter import Segmenter

DECAY = {"adamw": 1e-2, "sgd": 1e-4}
"""Weight decay where a configuration names none."""
MOMENTUM = 0.9
"""Of SGD, as Nesterov has it."""


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that the configuration names, its rate to be set at each step."""
    groups = parameter_groups(module, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def parameter_groups(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Kernels decay, vectors do not; `factor` is the share of the learning rate that a group takes."""
    encoder = module.encoder.parameters() if isinstance(module, Segmenter | Classifier) else ()
    inside = {id(parameter) for parameter in encoder}
    full = DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        decay = full if parameter.ndim > 1 else 0.0
        factor = config.encoder_rate if id(parameter) in inside else 1.0
        groups.setdefault((decay, factor), []).append(parameter)
    return [{"params": group, "weight_decay": decay, "factor": factor} for (decay, factor), group in groups.items()]
