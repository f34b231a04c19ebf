import hashlib

import pytest
import torch
from torch.nn import functional

from models.inception import ENCODERS, create_encoder
from models.inception.blocks import Halve, Inception, scaled
from models.inception.v1 import TABLE

PUBLIC = "1fdea230e2e2951117b4dbafee55af374a77065888f79b06f331e1de51b08872"
"""Digest of the names and shapes of torchvision's googlenet without fc and aux."""


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_names_and_shapes_are_those_of_the_public_weights():
    state = create_encoder("inception_v1", kernel5=3).state_dict()
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in state.items())
    assert hashlib.sha256(repr(shapes).encode()).hexdigest() == PUBLIC


def test_parameters_are_torchvisions_and_the_papers():
    bn = 7280  # one scale for each channel; its shift takes the place of the paper's bias
    assert size(create_encoder("inception_v1", kernel5=3)) == 5_599_904
    assert size(create_encoder("inception_v1")) - bn == 6_998_552 - 1_025_000


def test_the_papers_table_gives_its_output_channels():
    inputs, outputs = 192, []
    for row in TABLE.values():
        inputs = Inception(inputs, row).channels
        outputs.append(inputs)
    assert outputs == [256, 480, 512, 512, 512, 528, 832, 832, 1024]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_keeps_its_declaration_at_every_size(name):
    encoder = create_encoder(name, bands=2, width=0.25).eval().to("meta")
    for edge in range(64, 98):
        maps = encoder(torch.zeros(1, 2, edge, edge + 3, device="meta"))
        sizes = [(-(-edge // stride), -(-(edge + 3) // stride)) for stride in encoder.strides]
        assert [tuple(m.shape[1:]) for m in maps] == [(c, *s) for c, s in zip(encoder.channels, sizes, strict=True)]


@pytest.mark.parametrize("edge", [14, 15, 16, 17])
def test_halving_is_the_public_pool_but_never_drops_a_row(edge):
    x = torch.rand(1, 2, edge, edge)
    public = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    assert Halve()(x).shape[-1] == -(-edge // 2)
    assert torch.equal(Halve()(x)[..., : edge // 2, : edge // 2], public)


def test_widths_are_multiples_of_eight_and_at_least_eight():
    assert [scaled(c, 0.75) for c in (16, 24, 64, 208)] == [16, 16, 48, 160]
    assert [scaled(c, 0.25) for c in (16, 64)] == [8, 16]
    assert scaled(529, 1.0) == 529


def test_an_unknown_encoder_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"'inception_v9'.*inception_v1"):
        create_encoder("inception_v9")
