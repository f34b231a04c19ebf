"""Seeded weights under the public names, and fingerprints of what networks make of them.

Each tensor is drawn from a generator seeded by its name alone, so that any implementation with the same names can be
compared without its weights having to travel: `reference/inception_parity_seed0.json` holds what the public packages
gave.
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch

REFERENCE = Path(__file__).parent / "reference"
PUBLIC_KEYS = json.loads((REFERENCE / "inception_public_keys.json").read_text())
"""Names and shapes of every public state_dict."""
PRINTS = json.loads((REFERENCE / "inception_parity_seed0.json").read_text())["refs"]
"""Fingerprints of the public packages' outputs, by reference and level."""
REFS = json.loads((REFERENCE / "inception_refs.json").read_text())
"""Parameters, shapes and receptive fields of the public packages and of the papers."""
SOURCES = {
    "tv_googlenet": ("torchvision", "inception_v1", {"kernel5": 3}),
    "cadene_bninception": ("cadene", "inception_v2", {}),
    "timm_inception_v3": ("timm", "inception_v3", {}),
    "timm_inception_v4": ("timm", "inception_v4", {}),
    "facenet_inception_resnet_v1": ("facenet", "inception_resnet_v1", {"variant": "facenet"}),
    "timm_inception_resnet_v2": ("timm", "inception_resnet_v2", {}),
}
"""Reference -> who released it, our name of the network, and its variant."""


def draw(seed, name, shape):
    """The tensor that `name` stands for: kernels keep activations of order one, normalisations are near identity."""
    kind, random = name.rsplit(".", 1)[-1], generator(name, seed)
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.long)
    if kind == "running_var":
        values = random.uniform(0.8, 1.25, shape)
    elif len(shape) > 1:
        values = random.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif kind == "weight":
        values = random.uniform(0.8, 1.2, shape)
    else:
        values = 0.1 * random.randn(*shape)
    return torch.from_numpy(np.asarray(values))


def generator(name, seed):
    return np.random.RandomState((zlib.crc32(name.encode()) + 1000003 * seed) % 2**32)


def draw_state(shapes, seed=0):
    return {name: draw(seed, name, shape) for name, shape in shapes.items()}


def draw_empty(reference):
    """A state_dict with the names and shapes of `reference`, all ones: cheap, and enough for what looks at names."""
    return {
        name: torch.ones((), dtype=torch.long if name.endswith("tracked") else torch.float32).expand(shape)
        for name, shape in PUBLIC_KEYS[reference].items()
    }


def draw_image(height, width):
    """What a normalised image looks like: uniform in [-1, 1], (1, 3, height, width)."""
    values = generator(f"input1x3x{height}x{width}", 0).uniform(-1, 1, (1, 3, height, width))
    return torch.from_numpy(values)


def fingerprint(tensor, level):
    """Numbers that no other tensor shares: moments, extremes, a seeded projection, the first three values."""
    direction = projection(level, tensor.numel()).reshape(tensor.shape)
    return {
        "shape": list(tensor.shape),
        "mean": tensor.mean().item(),
        "std": tensor.std().item(),
        "l2": tensor.norm().item(),
        "min": tensor.min().item(),
        "max": tensor.max().item(),
        "proj": ((tensor * direction).sum() / tensor.numel() ** 0.5).item(),
        "head": tensor.flatten()[:3].tolist(),
    }


@functools.cache
def projection(level, size):
    return torch.from_numpy(generator(f"proj:{level}", 7).randn(size))
