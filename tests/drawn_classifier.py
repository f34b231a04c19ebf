"""A bundle of a classifier with random weights, drawn for tests: one class a square of 32 pixels."""

import numpy as np
import torch
from drawn_bundle import drawn_crops, drawn_spec
from torch import nn

from models.bundle import save_bundle
from models.init import glorot_normal_
from models.network import network_from_spec
from models.spec import Architecture

CELL = 32


def classifier_spec(**changes):
    architecture = Architecture(encoder="inception_v1", width=0.25, decoder=None)
    return drawn_spec(**{"architecture": architecture, "cell": CELL, "stride": CELL, "tiles": (64, 128), **changes})


def drawn_classifier(spec, seed=0):
    """Glorot weights and random statistics; the head's logits are centred on `squares`, so that every class occurs."""
    network = glorot_normal_(network_from_spec(spec), seed=seed).eval()
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.5)
    with torch.no_grad():
        logits = network(normalised(in_squares(squares(8, 8)), spec))
        network.head.fc.weight /= logits.std(0).mean()
        network.head.fc.bias -= logits.mean(0) / logits.std(0).mean()
    return network


def squares(rows, cols, seed=0):
    """(3, rows * CELL, cols * CELL), uint8 from 1 on: noise around another colour in each square."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(40, 200, (3, rows, cols)).repeat(CELL, 1).repeat(CELL, 2)
    return np.clip(colour + rng.normal(0, 25, colour.shape), 1, 255).astype(np.uint8)


def in_squares(pixels):
    """(C, H, W) -> (squares, C, CELL, CELL), row by row."""
    bands, height, width = pixels.shape
    cut = pixels.reshape(bands, height // CELL, CELL, width // CELL, CELL)
    return cut.transpose(1, 3, 0, 2, 4).reshape(-1, bands, CELL, CELL)


def normalised(pixels, spec):
    """As the network takes them."""
    mean, std = (np.array([getattr(band, name) for band in spec.bands]).reshape(-1, 1, 1) for name in ("mean", "std"))
    return torch.from_numpy(((pixels - mean) / std).astype(np.float32))


def draw_classifier(path, seed=0, **changes):
    spec = classifier_spec(**changes)
    return save_bundle(path, spec, drawn_classifier(spec, seed), {}, "# Drawn\n", drawn_crops(), storage="fp32")
