"""A bundle with random weights, drawn for tests: small, but a whole Inception segmenter."""

import numpy as np
import torch
from torch import nn

from models.bundle import save_bundle
from models.network import network_from_spec
from models.spec import Architecture, Band, Class, ModelSpec

torch.set_num_threads(1)  # networks this small lose more by waiting for helpers than they gain


def drawn_spec(**changes):
    bands = tuple(Band(name=name, low=0, high=255, mean=100 + 10 * i, std=50) for i, name in enumerate("rgb"))
    classes = tuple(Class(id=i, name=f"c{i}", color=f"#00000{i}") for i in range(3))
    architecture = Architecture(encoder="inception_v1", width=0.05, decoder_channels=(8, 8, 8, 8, 8))
    spec = {"name": "drawn", "architecture": architecture, "bands": bands, "dtypes": ("uint8",), "classes": classes}
    return ModelSpec(**{**spec, "halo": 0, "tiles": (64,), "licence": "Apache-2.0", **changes})


def drawn_network(spec, seed=0):
    """Statistics and head are randomised, so that folding matters and every class occurs."""
    torch.manual_seed(seed)
    network = network_from_spec(spec).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.5)
    nn.init.normal_(network.head.weight, std=1)
    return network


def drawn_crops(count=3, edge=48):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (3, edge // 4, edge // 4), np.uint8).repeat(4, 1).repeat(4, 2) for _ in range(count)]


def draw_bundle(path, seed=0, **changes):
    spec = drawn_spec(**changes)
    crops = [crop[: len(spec.bands)] for crop in drawn_crops()]
    return save_bundle(path, spec, drawn_network(spec, seed), {}, "# Drawn\n", crops, storage="fp32")
