"""Inception v1, GoogLeNet (Szegedy et al. 2014, "Going deeper with convolutions", arXiv:1409.4842)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.inception.blocks import Conv, ConvBN, Lrn, Pool, Step, Style, V, adaptive_mean
from models.inception.encoder import Network

#      1x1  3x3r  3x3  5x5r  5x5  proj
TABLE = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""The paper's table 1: filters of each Inception module."""


def network(*, kernel5: Literal[3, 5] = 5, bn: bool = True) -> Network:
    """GoogLeNet. Layers are named as in torchvision.

    Args:
        kernel5: 5 as in the paper. 3 is the network that was released with weights: TF-slim's 3x3 in the place of the
            5x5, and a 2x2 pool in front of 5a.
        bn: with batch normalisation, as all later users have it; without it, the paper's biases and its two local
            response normalisations.
    """
    if kernel5 not in {3, 5}:
        raise ValueError(f"kernel5 is {kernel5!r}: choose 5 (the paper) or 3 (the released weights)")
    if not isinstance(bn, bool):
        raise ValueError(f"bn is {bn!r}: choose true or false")  # noqa: TRY004 - a variant that there is not

    def module(name: str) -> Step:
        one, reduce3, three, reduce5, five, project = TABLE[name]
        return {
            "branch1": Conv(one),
            "branch2": [Conv(reduce3), Conv(three, 3)],
            "branch3": [Conv(reduce5), Conv(five, kernel5)],
            "branch4": [Pool("max"), Conv(project)],
        }

    pool = Pool("max", 2, V, ceil=True)
    table: dict[str, Step] = {
        "conv1": Conv(64, 7, 2),
        "pool1": pool,
        **({} if bn else {"norm1": Lrn()}),
        "conv2": Conv(64),
        "conv3": Conv(192, 3),
        **({} if bn else {"norm2": Lrn()}),
        "pool2": pool,
        **{f"inception{name}": module(name) for name in ("3a", "3b")},
        "pool3": pool,
        **{f"inception{name}": module(name) for name in ("4a", "4b", "4c", "4d", "4e")},
        "pool4": Pool("max", 2, V, kernel=2 if kernel5 == 3 else 3, ceil=True),
        **{f"inception{name}": module(name) for name in ("5a", "5b")},
    }
    return Network(
        table,
        ("conv1", "conv3", "inception3b", "inception4e", "inception5b"),
        bn=bn,
        dropout=0.4,
        aux={"inception4a": Aux, "inception4d": Aux},
        aux_weight=0.3,
    )


class Aux(nn.Module):
    """The auxiliary classifier on 4a and 4d: average to 4x4, 1x1, two linear layers.

    The average adapts to the map, as torchvision's does, whose weights are stored; the paper's (5x5, stride 3) gives
    4x4 only for the 14x14 map of a 224-pixel image.
    """

    def __init__(self, channels: int, classes: int, style: Style) -> None:
        super().__init__()
        self.conv = ConvBN(channels, 128, 1, bn=style.bn, bias=not style.bn, eps=style.eps)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = torch.flatten(self.conv(adaptive_mean(x, 4)), 1)
        x = functional.dropout(functional.relu(self.fc1(x), inplace=True), 0.7, self.training)
        return self.fc2(x)  # type: ignore[no-any-return] # torch's modules return Any
