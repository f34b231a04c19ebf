import math

import pytest
import torch
from torch import nn

from models.classifier import create_classifier
from models.inception import ENCODERS, create_encoder
from models.init import glorot_normal_
from models.segmenter import create_segmenter


@pytest.mark.parametrize("truncated", [False, True])
def test_the_deviation_of_each_layer_is_glorots(truncated):
    for layer, fans in [
        (nn.Conv2d(64, 128, 3), 9 * (64 + 128)),
        (nn.Conv2d(64, 64, 3, groups=2), 9 * (32 + 64)),
        (nn.Conv2d(32, 64, (1, 7)), 7 * (32 + 64)),
        (nn.Linear(300, 200), 500),
    ]:
        glorot_normal_(layer, truncated=truncated, seed=0)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.02)
        assert layer.bias.abs().max() == 0


def test_the_truncated_variant_ends_at_two_of_its_wider_deviations():
    layer = glorot_normal_(nn.Conv2d(64, 128, 3), truncated=True, seed=0)
    end = 2 * math.sqrt(2 / (9 * 192)) / 0.87962566
    assert 0.98 * end < layer.weight.abs().max().item() <= end


def test_normalisations_become_the_identity():
    layer = nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight.fill_(7), layer.bias.fill_(7), layer.running_mean.fill_(7)
    state = glorot_normal_(layer).state_dict()
    assert [state[n].tolist() for n in ("weight", "bias", "running_mean", "running_var")] == [
        [1] * 3,
        [0] * 3,
        [0] * 3,
        [1] * 3,
    ]


def test_a_seeded_network_repeats_whatever_the_global_generator_does():
    first = glorot_normal_(create_encoder("inception_v1", width=0.25), seed=5).state_dict()
    torch.manual_seed(9)
    again = glorot_normal_(create_encoder("inception_v1", width=0.25), seed=5).state_dict()
    other = glorot_normal_(create_encoder("inception_v1", width=0.25), seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.conv.weight"], other["conv1.conv.weight"])


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(
    "network",
    [
        *(create_classifier(name, classes=5, width=0.5) for name in ENCODERS),
        create_segmenter("inception_v1", 3, width=0.5),
        create_segmenter("inception_v1", 3, width=0.5, decoder="fpn", output_stride=4),
    ],
    ids=[*ENCODERS, "unet", "fpn"],
)
def test_every_layer_of_a_network_has_glorots_deviation(network, truncated):
    layers = [m for m in glorot_normal_(network, truncated=truncated, seed=1).modules() if hasattr(m, "weight")]
    kernels = [m.weight for m in layers if m.weight.ndim > 1]
    for weight in kernels:
        outputs, inputs, *window = weight.shape
        wanted = math.sqrt(2 / ((inputs + outputs) * math.prod(window)))
        assert weight.std().item() == pytest.approx(wanted, rel=4.5 / math.sqrt(2 * weight.numel()) + 1e-4)
    assert len(kernels) > 20
    assert all(m.bias is None or m.bias.abs().max() == 0 for m in layers)
