"""Inception-ResNet v2 (Szegedy et al. 2016, arXiv:1602.07261): as released, and the paper's widths."""

from typing import Literal

from models.inception import resnet_v1, v4
from models.inception.blocks import Conv, Pool, Repeat, Residual, Step, V
from models.inception.encoder import Network


def network(*, variant: Literal["released", "paper"] = "released") -> Network:
    """Inception-ResNet v2. Layers are named as in timm and Cadene's collection.

    Args:
        variant: `released`: 10/20/10 modules behind v1's stem and one mixed module, the last of them without scale and
            ReLU, and a 1x1 to 1536 channels; every public weight is of this network. `paper`: 5/10/5 modules behind
            Inception v4's stem, where the module's widths that the figures print (1154 and 2048) are those of its
            inputs, 1152 and 2144.
    """
    if variant == "paper":
        return _paper()
    if variant != "released":
        raise ValueError(f"variant is {variant!r}: choose 'released' or 'paper'")
    table: dict[str, Step] = {
        **resnet_v1.stem(),
        "maxpool_5a": Pool("max", 2, V),
        "mixed_5b": _mixed_5b(),
        "repeat": Repeat(Residual(_a(), 0.17), 10),
        "mixed_6a": v4.reduction_a(256, 256, 384, 384),
        "repeat_1": Repeat(Residual(_b(), 0.10), 20),
        "mixed_7a": resnet_v1.reduction_b(288, 288, 320),
        "repeat_2": Repeat(Residual(_c(), 0.20), 9),
        "block8": Residual(_c(), 1.0, linear=True),
        "conv2d_7b": Conv(1536),
    }
    return Network(table, ("conv2d_2b", "conv2d_4a", "repeat", "repeat_1", "conv2d_7b"))


def _paper() -> Network:
    table: dict[str, Step] = {
        **v4.stem(),
        "repeat": Repeat(Residual(_a(), 0.17), 5),
        "mixed_6a": v4.reduction_a(256, 256, 384, 384),
        "repeat_1": Repeat(Residual(_b(), 0.10), 10),
        "mixed_7a": resnet_v1.reduction_b(288, 288, 320),
        "repeat_2": Repeat(Residual(_c(), 0.20), 5),
    }
    return Network(table, ("conv_2b", "mixed_4a", "repeat", "repeat_1", "repeat_2"))


def _mixed_5b() -> Step:
    """The module that the released network has in front of the residual ones."""
    return {
        "branch0": Conv(96),
        "branch1": [Conv(48), Conv(64, 5)],
        "branch2": [Conv(64), Conv(96, 3), Conv(96, 3)],
        "branch3": [Pool("avg"), Conv(64)],
    }


def _a() -> dict[str, Step]:
    """35x35, figure 16."""
    return {
        "branch0": Conv(32),
        "branch1": [Conv(32), Conv(32, 3)],
        "branch2": [Conv(32), Conv(48, 3), Conv(64, 3)],
    }


def _b() -> dict[str, Step]:
    """17x17, figure 17."""
    return {"branch0": Conv(192), "branch1": [Conv(128), Conv(160, (1, 7)), Conv(192, (7, 1))]}


def _c() -> dict[str, Step]:
    """8x8, figure 19."""
    return {"branch0": Conv(192), "branch1": [Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1))]}
