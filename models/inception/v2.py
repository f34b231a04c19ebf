"""Inception v2, BN-Inception (Ioffe & Szegedy 2015, "Batch Normalization", arXiv:1502.03167)."""

from models.inception.blocks import Conv, Pool, Step, V
from models.inception.encoder import Network

#      1x1  3x3r  3x3  d3x3r d3x3  pool, proj
TABLE = {
    "3a": (64, 64, 64, 64, 96, "avg", 32),
    "3b": (64, 64, 96, 64, 96, "avg", 64),
    "3c": (0, 128, 160, 64, 96, "max", 0),
    "4a": (224, 64, 96, 96, 128, "avg", 128),
    "4b": (192, 96, 128, 96, 128, "avg", 128),
    "4c": (160, 128, 160, 128, 160, "avg", 128),
    "4d": (96, 128, 192, 160, 192, "avg", 128),
    "4e": (0, 128, 192, 192, 256, "max", 0),
    "5a": (352, 192, 320, 160, 224, "avg", 128),
    "5b": (352, 192, 320, 192, 224, "max", 128),
}
"""The paper's figure 5: filters of each module; those without 1x1 and projection have stride 2.

In 4c, 4d and 4e the paper's output sizes contradict its filters. These are its filters, as they were released.
"""


def network() -> Network:
    """BN-Inception with the released filter counts (608, 608 and 1056 channels after 4c, 4d and 4e).

    As the released weights have it: convolutions with a bias in front of the normalisation, eps 1e-5, averages that
    count the padding. The public networks cannot run where a stride meets an odd map (240, 496, 500 pixels); here both
    sides of such a module give ceil(n/2), which is the same wherever those run.
    """
    pool = Pool("max", 2, V, ceil=True)
    table: dict[str, Step] = {
        "conv1_7x7_s2": Conv(64, 7, 2),
        "pool1": pool,
        "conv2_3x3_reduce": Conv(64),
        "conv2_3x3": Conv(192, 3),
        "pool2": pool,
        **{f"inception_{name}": _module(name) for name in TABLE},
    }
    ends = ("conv1_7x7_s2", "conv2_3x3", "inception_3b", "inception_4d", "inception_5b")
    return Network(table, ends, bias=True, eps=1e-5, count_include_pad=True)


def _module(name: str) -> Step:
    one, reduce3, three, reduced, double, pool, project = TABLE[name]
    if not one:
        return {
            "3x3": [Conv(reduce3), Conv(three, 3, 2)],
            "double_3x3": [Conv(reduced), Conv(double, 3), Conv(double, 3, 2)],
            "pool": Pool("max", 2, ceil=True),
        }
    return {
        "1x1": Conv(one),
        "3x3": [Conv(reduce3), Conv(three, 3)],
        "double_3x3": [Conv(reduced), Conv(double, 3), Conv(double, 3)],
        "pool": [Pool("avg" if pool == "avg" else "max"), Conv(project)],
    }
