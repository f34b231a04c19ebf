"""The average of a network over its training, which is steadier than the network of any one step."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of `module`: a network of its own, to be scored and stored.

    Of its first steps the average forgets faster: step t keeps min(decay, (1 + t) / (10 + t)) of it, so that the
    random start soon counts for nothing. The running statistics of batch normalisation are averaged like the weights,
    not copied: they then tell of activations over the same steps as the weights do, where a copy would tell of the
    last steps alone, which are those of other weights. Whole numbers, as of batches seen, are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._pairs = list(zip(_tensors(self.module), _tensors(module), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network after step 0, 1, ..."""
        keep = min(self.decay, (1 + step) / (10 + step))
        floating = [pair for pair in self._pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([ours for ours, _ in floating], [theirs for _, theirs in floating], 1 - keep)
        for ours, theirs in self._pairs:
            if not ours.is_floating_point():
                ours.copy_(theirs)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers themselves, so that updates in place are seen."""
    return [*module.parameters(), *module.buffers()]
