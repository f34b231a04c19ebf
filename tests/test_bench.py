"""What the benchmarks compute themselves, held to those who know: a convolution's arithmetic, MONAI's own windows."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.bench import roofline
from tests.bench.against import work
from tests.bench.networks import RARE, he_network, he_spec, real_crops


def test_a_layer_of_the_roofline_is_a_convolutions_arithmetic_and_its_bytes():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2))
    convolution, pool = roofline.layers(network, 4, 16, 2, torch.bfloat16)
    assert convolution.flop == 2 * (2 * 8 * 16 * 16) * (4 * 3 * 3)
    assert convolution.bytes == 2 * (2 * 4 * 16 * 16 + 8 * 4 * 3 * 3 + 2 * 8 * 16 * 16)
    assert (pool.flop, pool.bytes) == (0, 2 * (2 * 8 * 16 * 16 + 2 * 8 * 8 * 8))


def test_a_layer_takes_the_longer_of_arithmetic_and_memory():
    ceilings = roofline.Ceilings(flops=100.0, bandwidth=10.0)
    assert roofline.Layer("compute", 1000.0, 10.0).seconds(ceilings) == 10.0
    assert roofline.Layer("memory", 1000.0, 1000.0).seconds(ceilings) == 100.0


@pytest.mark.parametrize("overlap", [0.0, 0.111, 0.25, 0.5])
@pytest.mark.parametrize("shape", [(700, 700), (4096, 3904), (500, 2000)])
def test_windows_are_counted_as_monai_lays_them(shape, overlap):
    utils = pytest.importorskip("monai.inferers.utils")
    roi, image = (512, 512), tuple(max(length, 512) for length in shape)
    step = utils._get_scan_interval(image, roi, 2, (overlap, overlap))
    count = len(utils.dense_patch_slices(image, roi, step))
    assert work(shape, 512, overlap) == pytest.approx(count * 512**2 / math.prod(image))


def test_a_drawn_network_for_benchmarks_has_a_rare_class_on_real_crops():
    spec, crops = he_spec("inception_v1", 2, 3, 2, 64, (512,)), real_crops(3)
    network = he_network(spec, crops)
    mean, std = (torch.tensor([getattr(band, name) for band in spec.bands]) for name in ("mean", "std"))
    x = (torch.from_numpy(np.stack(crops)).float() - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        share = float((network(x).argmax(1) != 0).float().mean())
    assert share == pytest.approx(RARE, rel=0.05)
