"""Inception v4 (Szegedy et al. 2016, "Inception-v4, Inception-ResNet and ...", arXiv:1602.07261), as released."""

from models.inception.blocks import Conv, Pool, Repeat, Step, V
from models.inception.encoder import Network


def network() -> Network:
    """Inception v4: the paper's figures 3 to 9, with 1x7 before 7x1 as the weights have it."""
    table: dict[str, Step] = {
        **stem(),
        "inception_a": Repeat(_a(), 4),
        "reduction_a": reduction_a(192, 224, 256, 384),
        "inception_b": Repeat(_b(), 7),
        "reduction_b": _reduction_b(),
        "inception_c": Repeat(_c(), 3),
    }
    return Network(table, ("conv_2b", "mixed_4a", "inception_a", "inception_b", "inception_c"))


def stem() -> dict[str, Step]:
    """Figure 3: 384 channels at an eighth of the size; Inception-ResNet v2 has it in the paper, too."""
    return {
        "conv_1a": Conv(32, 3, 2, V),
        "conv_2a": Conv(32, 3, 1, V),
        "conv_2b": Conv(64, 3),
        "mixed_3a": {"pool": Pool("max", 2, V), "conv": Conv(96, 3, 2, V)},
        "mixed_4a": {
            "branch0": [Conv(64), Conv(96, 3, 1, V)],
            "branch1": [Conv(64), Conv(64, (1, 7)), Conv(64, (7, 1)), Conv(96, 3, 1, V)],
        },
        "mixed_5a": {"conv": Conv(192, 3, 2, V), "pool": Pool("max", 2, V)},
    }


def _a() -> Step:
    """35x35, figure 4."""
    return {
        "branch0": Conv(96),
        "branch1": [Conv(64), Conv(96, 3)],
        "branch2": [Conv(64), Conv(96, 3), Conv(96, 3)],
        "branch3": [Pool("avg"), Conv(96)],
    }


def reduction_a(k: int, l: int, m: int, n: int) -> Step:  # noqa: E741 - the paper's names
    """35x35 to 17x17, figure 7; the filters k, l, m, n are those of the paper's table 1."""
    return {
        "branch0": Conv(n, 3, 2, V),
        "branch1": [Conv(k), Conv(l, 3), Conv(m, 3, 2, V)],
        "branch2": Pool("max", 2, V),
    }


def _b() -> Step:
    """17x17, figure 5."""
    return {
        "branch0": Conv(384),
        "branch1": [Conv(192), Conv(224, (1, 7)), Conv(256, (7, 1))],
        "branch2": [Conv(192), Conv(192, (7, 1)), Conv(224, (1, 7)), Conv(224, (7, 1)), Conv(256, (1, 7))],
        "branch3": [Pool("avg"), Conv(128)],
    }


def _reduction_b() -> Step:
    """17x17 to 8x8, figure 8."""
    return {
        "branch0": [Conv(192), Conv(192, 3, 2, V)],
        "branch1": [Conv(256), Conv(256, (1, 7)), Conv(320, (7, 1)), Conv(320, 3, 2, V)],
        "branch2": Pool("max", 2, V),
    }


def _c() -> Step:
    """8x8, figure 6."""
    fork: Step = {"a": Conv(256, (1, 3)), "b": Conv(256, (3, 1))}
    return {
        "branch0": Conv(256),
        "branch1": [Conv(384), fork],
        "branch2": [Conv(384), Conv(448, (3, 1)), Conv(512, (1, 3)), fork],
        "branch3": [Pool("avg"), Conv(256)],
    }
