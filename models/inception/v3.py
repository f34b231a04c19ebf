"""Inception v3 (Szegedy et al. 2015, "Rethinking the Inception architecture", arXiv:1512.00567), as it was released."""

from torch import Tensor, nn
from torch.nn import functional

from models.inception.blocks import Conv, ConvBN, Pool, Step, Style, V, adaptive_mean
from models.inception.encoder import Network


def network() -> Network:
    """Inception v3. Layers are named as in TF-slim, torchvision and timm.

    It differs from the paper as its weights do: the 5x5 of the first modules is kept, and the stem has a 1x1 and a
    second pool. torchvision's weights count the padding in averages; `count_include_pad=False` is for those of Keras
    and TF-slim.
    """
    table: dict[str, Step] = {
        "Conv2d_1a_3x3": Conv(32, 3, 2, V),
        "Conv2d_2a_3x3": Conv(32, 3, 1, V),
        "Conv2d_2b_3x3": Conv(64, 3),
        "pool1": Pool("max", 2, V),
        "Conv2d_3b_1x1": Conv(80),
        "Conv2d_4a_3x3": Conv(192, 3, 1, V),
        "pool2": Pool("max", 2, V),
        "Mixed_5b": _a(32),
        "Mixed_5c": _a(64),
        "Mixed_5d": _a(64),
        "Mixed_6a": reduction_a(),
        "Mixed_6b": module_b(128),
        "Mixed_6c": module_b(160),
        "Mixed_6d": module_b(160),
        "Mixed_6e": module_b(192),
        "Mixed_7a": reduction_b(),
        "Mixed_7b": module_c(),
        "Mixed_7c": module_c(),
    }
    ends = ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")
    return Network(table, ends, count_include_pad=True, dropout=0.5, aux={"Mixed_6e": Aux}, aux_weight=0.4)


def _a(pool: int) -> Step:
    """35x35, the paper's figure 4."""
    return {
        "branch1x1": Conv(64),
        "branch5x5": [Conv(48), Conv(64, 5)],
        "branch3x3dbl": [Conv(64), Conv(96, 3), Conv(96, 3)],
        "branch_pool": [Pool("avg"), Conv(pool)],
    }


def reduction_a() -> Step:
    """35x35 to 17x17, figure 10."""
    return {
        "branch3x3": Conv(384, 3, 2, V),
        "branch3x3dbl": [Conv(64), Conv(96, 3), Conv(96, 3, 2, V)],
        "branch_pool": Pool("max", 2, V),
    }


def module_b(c: int) -> Step:
    """17x17, figure 6 with n = 7; `c`: filters of the inner layers."""
    return {
        "branch1x1": Conv(192),
        "branch7x7": [Conv(c), Conv(c, (1, 7)), Conv(192, (7, 1))],
        "branch7x7dbl": [Conv(c), Conv(c, (7, 1)), Conv(c, (1, 7)), Conv(c, (7, 1)), Conv(192, (1, 7))],
        "branch_pool": [Pool("avg"), Conv(192)],
    }


def reduction_b() -> Step:
    """17x17 to 8x8."""
    return {
        "branch3x3": [Conv(192), Conv(320, 3, 2, V)],
        "branch7x7x3": [Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, V)],
        "branch_pool": Pool("max", 2, V),
    }


def module_c() -> Step:
    """8x8, figure 7."""
    fork: Step = {"a": Conv(384, (1, 3)), "b": Conv(384, (3, 1))}
    return {
        "branch1x1": Conv(320),
        "branch3x3": [Conv(384), fork],
        "branch3x3dbl": [Conv(448), Conv(384, 3), fork],
        "branch_pool": [Pool("avg"), Conv(192)],
    }


class Aux(nn.Module):
    """The auxiliary classifier after the last 17x17 module: average 5x5/3, 1x1 128, 5x5 768, linear.

    On maps of less than 17 cells, where those leave nothing, the average adapts to 5x5.
    """

    def __init__(self, channels: int, classes: int, style: Style) -> None:
        super().__init__()
        self.conv0 = ConvBN(channels, 128, 1, eps=style.eps)
        self.conv1 = ConvBN(128, 768, 5, padded=False, eps=style.eps)
        self.fc = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        small = min(x.shape[-2:]) < 17
        x = adaptive_mean(x, 5) if small else functional.avg_pool2d(x, 5, 3)
        return self.fc(self.conv1(self.conv0(x)).mean((2, 3)))  # type: ignore[no-any-return] # torch's modules return Any
