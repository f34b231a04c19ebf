"""Whole networks with drawn weights, for speed and memory: the same bytes each time, so that engines are built once.

He's normal for every kernel, the statistics of real crops for every normalisation. Such a network is chaotic: each
level amplifies what the one before has rounded, and the gate would rightly refuse bf16. So the decoder listens to its
skips more than to what comes up from the deep (at the same cost), and the head's bias makes one class rare, as it is in
most masks: few labels are a near tie, as in a trained network.
"""

from pathlib import Path

import numpy as np
import rasterio
import rasterio.windows
import torch
from torch import nn

from models.bundle import save_bundle
from models.network import network_from_spec
from models.spec import Architecture, Band, Class, ModelSpec
from tests.bench.common import ROOT

DAMPING = 0.1
"""What the decoder's kernels take of deeper levels, beside those of He's normal."""
SCENE = ROOT / "examples/scenes/catanduanes-val.tif"
CROP = 256
RARE = 0.01
"""Share of the crops' pixels that are not class 0."""
HALO = 64
TILES = (512, 1024, 1152, 2048)
MEAN, STD = (134.0, 137.0, 98.0), (48.0, 40.0, 47.0)


def he_bundle(folder, encoder, *, classes=2, bands=3, output_stride=2, halo=HALO, tiles=TILES):
    """The folder of a bundle: `encoder` at full width with a U-Net, He-initialised."""
    path = Path(folder) / f"{encoder}-{classes}-{bands}-{output_stride}-{halo}"
    if not (path / "bundle.json").exists():
        spec = he_spec(encoder, classes, bands, output_stride, halo, tiles)
        crops = real_crops(bands)
        save_bundle(path, spec, he_network(spec, crops), {}, f"# {spec.name}: drawn weights\n", crops, storage="fp32")
    return path


def he_spec(encoder, classes, bands, output_stride, halo, tiles):
    """What such a bundle promises."""
    return ModelSpec(
        name=f"he-{encoder}",
        architecture=Architecture(encoder=encoder, output_stride=output_stride),
        bands=tuple(Band(name=f"b{i}", low=0, high=255, mean=MEAN[i % 3], std=STD[i % 3]) for i in range(bands)),
        dtypes=("uint8",),
        classes=tuple(Class(id=i, name=f"c{i}", color=f"#0000{16 * i:02X}") for i in range(classes)),
        halo=halo,
        tiles=tiles,
        licence="Apache-2.0",
    )


def real_crops(bands, count=3):
    """Crops (C, CROP, CROP) along the diagonal of the example scene; a fourth band repeats the first."""
    with rasterio.open(SCENE) as scene:
        places = (rasterio.windows.Window(100 + 300 * i, 200 + 600 * i, CROP, CROP) for i in range(count))
        crops = [scene.read(window=place) for place in places]
    return [np.ascontiguousarray(crop[[i % len(crop) for i in range(bands)]]) for crop in crops]


def he_network(spec, crops, seed=0):
    """The network of `spec` in eval mode."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums in the same order on every machine
    torch.manual_seed(seed)
    network = network_from_spec(spec)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the statistics are those of the crops
    _damp(network)
    mean, std = (torch.tensor([getattr(band, name) for band in spec.bands]) for name in ("mean", "std"))
    x = (torch.from_numpy(np.stack(crops)).float() - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        network.train()(x)
        logits = network.eval()(x)
        others = logits[:, 1:].amax(1) - logits[:, 0]
        network.head.bias[0] += torch.quantile(others.flatten(), 1 - RARE)
    torch.set_num_threads(threads)
    return network


def _damp(network):
    """Quieten what comes up from deeper levels: the map that a stage enlarges, which lies before the skip."""
    width = network.encoder.channels[-1]
    for stage in network.decoder.stages:
        stage.conv1.conv.weight.data[:, :width] *= DAMPING
        width = stage.conv1.conv.out_channels
