"""Inception v2 of "Rethinking the Inception architecture" (Szegedy et al. 2015, arXiv:1512.00567), its table 1."""

from models.inception.blocks import Conv, Pool, Step, V
from models.inception.encoder import Network
from models.inception.v3 import module_b, module_c, reduction_a, reduction_b


def network() -> Network:
    """The factorised Inception v2: the paper's table 1, with five modules of figure 6.

    The paper leaves open how wide the branches of its modules are (figures 5, 6, 7 and 10 give their shapes alone), and
    no weights were published. Here they are those of the released Inception v3, whose second reduction it shares: 288,
    768, 1280 and 2048 channels come out as the table says. Of the five modules of figure 6, one more than v3 has, the
    first two have inner layers of 128 filters.
    """
    table: dict[str, Step] = {
        "conv1": Conv(32, 3, 2, V),
        "conv2": Conv(32, 3, 1, V),
        "conv3": Conv(64, 3),
        "pool": Pool("max", 2, V),
        "conv4": Conv(80, 3, 1, V),
        "conv5": Conv(192, 3, 2, V),
        "conv6": Conv(288, 3),
        **{f"mixed5{name}": _a() for name in "abc"},
        "reduction5": reduction_a(),
        **{f"mixed6{name}": module_b(c) for name, c in zip("abcde", (128, 128, 160, 160, 192), strict=True)},
        "reduction6": reduction_b(),
        "mixed7a": module_c(),
        "mixed7b": module_c(),
    }
    return Network(table, ("conv3", "conv4", "mixed5c", "mixed6e", "mixed7b"))


def _a() -> Step:
    """35x35, figure 5: the 5x5 as two 3x3."""
    return {
        "branch1x1": Conv(64),
        "branch3x3": [Conv(48), Conv(64, 3)],
        "branch3x3dbl": [Conv(64), Conv(96, 3), Conv(96, 3)],
        "branch_pool": [Pool("avg"), Conv(64)],
    }
