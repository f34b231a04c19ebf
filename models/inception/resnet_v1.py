"""Inception-ResNet v1 (Szegedy et al. 2016, arXiv:1602.07261, figures 10 to 14), and the variant of FaceNet."""

from typing import Literal

from torch import Tensor, nn

from models.inception.blocks import Conv, Pool, Repeat, Residual, Step, V
from models.inception.encoder import Network
from models.inception.v4 import reduction_a


def network(*, variant: Literal["paper", "facenet"] = "paper") -> Network:
    """Inception-ResNet v1, 5/10/5 modules with scales 0.17, 0.10 and 0.20. Layers are named as in facenet-pytorch.

    Args:
        variant: `facenet` has one more module, without scale and ReLU, and an embedding of 512 in its head: the network
            that has public weights.
    """
    if variant not in {"paper", "facenet"}:
        raise ValueError(f"variant is {variant!r}: choose 'paper' or 'facenet'")
    table: dict[str, Step] = {
        **stem(),
        "conv2d_4b": Conv(256, 3, 2, V),
        "repeat_1": Repeat(Residual(_a(), 0.17), 5),
        "mixed_6a": reduction_a(192, 192, 256, 384),
        "repeat_2": Repeat(Residual(_b(), 0.10), 10),
        "mixed_7a": reduction_b(256, 256, 256),
        "repeat_3": Repeat(Residual(_c(), 0.20), 5),
    }
    ends = ("conv2d_2b", "conv2d_4a", "repeat_1", "repeat_2")
    if variant == "paper":
        return Network(table, (*ends, "repeat_3"))
    table["block8"] = Residual(_c(), 1.0, linear=True)
    return Network(table, (*ends, "block8"), dropout=0.6, head=FaceNetHead)


def stem() -> dict[str, Step]:
    """Figure 14 up to 192 channels; the released Inception-ResNet v2 has it, too."""
    return {
        "conv2d_1a": Conv(32, 3, 2, V),
        "conv2d_2a": Conv(32, 3, 1, V),
        "conv2d_2b": Conv(64, 3),
        "maxpool_3a": Pool("max", 2, V),
        "conv2d_3b": Conv(80),
        "conv2d_4a": Conv(192, 3, 1, V),
    }


def _a() -> dict[str, Step]:
    """35x35, figure 10."""
    return {
        "branch0": Conv(32),
        "branch1": [Conv(32), Conv(32, 3)],
        "branch2": [Conv(32), Conv(32, 3), Conv(32, 3)],
    }


def _b() -> dict[str, Step]:
    """17x17, figure 11."""
    return {"branch0": Conv(128), "branch1": [Conv(128), Conv(128, (1, 7)), Conv(128, (7, 1))]}


def reduction_b(left: int, middle: int, right: int) -> Step:
    """17x17 to 8x8, figure 12: the filters in which its branches end, beside 384 and the pool."""
    return {
        "branch0": [Conv(256), Conv(384, 3, 2, V)],
        "branch1": [Conv(256), Conv(left, 3, 2, V)],
        "branch2": [Conv(256), Conv(middle, 3), Conv(right, 3, 2, V)],
        "branch3": Pool("max", 2, V),
    }


def _c() -> dict[str, Step]:
    """8x8, figure 13."""
    return {"branch0": Conv(192), "branch1": [Conv(192), Conv(192, (1, 3)), Conv(192, (3, 1))]}


class FaceNetHead(nn.Module):
    """Mean over the map, an embedding of 512 channels with normalisation, a linear classifier."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(channels, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=1e-3)
        self.logits = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.dropout(x.mean((2, 3)))
        return self.logits(self.last_bn(self.last_linear(x)))  # type: ignore[no-any-return] # torch
