"""Padding `same` keeps every size, padding `valid` is as published, and both hold the same weights."""

import pytest
import torch
from torch.nn import functional

from models.inception import ENCODERS, create_encoder
from models.inception.blocks import Halve

ODD = [(240, 240), (496, 496), (500, 500), (513, 481)]
"""Rows and columns; at the first three, BN-Inception's public form crashes."""
FROM_64 = [(64 + i, 97 - i) for i in range(17)] + ODD
"""Every size from 64 to 97 once."""
FROM_75 = [(75 + i, 97 - i) for i in range(12)] + ODD
"""Every size from 75 to 97, where the smallest valid map has one cell."""
VARIANTS = [
    *((name, {}) for name in ENCODERS),
    ("inception_v1", {"kernel5": 3}),
    ("inception_v1", {"bn": False}),
    ("inception_resnet_v1", {"variant": "facenet"}),
    ("inception_resnet_v2", {"variant": "paper"}),
]


def narrow(name, padding, options):
    """An encoder of eight channels a layer: small sizes run sooner on it than on the meta device."""
    return create_encoder(name, bands=2, width=0.01, padding=padding, **options).eval()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@torch.no_grad()
def test_same_halves_every_size_rounding_up_and_keeps_the_declared_channels(name, options):
    encoder = narrow(name, "same", options)
    for rows, cols in FROM_64:
        sizes, (height, width) = [], (rows, cols)
        for _ in encoder.strides:
            height, width = -(-height // 2), -(-width // 2)
            sizes.append((height, width))
        maps = encoder(torch.zeros(1, 2, rows, cols))
        assert [tuple(m.shape[1:]) for m in maps] == [(c, *s) for c, s in zip(encoder.channels, sizes, strict=True)]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@torch.no_grad()
def test_valid_runs_at_every_size_from_75_on(name, options):
    encoder = narrow(name, "valid", options)
    for rows, cols in FROM_75:
        maps = encoder(torch.zeros(1, 2, rows, cols))
        assert [m.shape[1] for m in maps] == list(encoder.channels)
        assert min(maps[-1].shape[-2:]) >= 1


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_same_and_valid_hold_the_same_weights(name, options):
    same, valid = (narrow(name, padding, options).state_dict() for padding in ("same", "valid"))
    assert {key: tensor.shape for key, tensor in same.items()} == {key: tensor.shape for key, tensor in valid.items()}


@pytest.mark.parametrize("edge", [14, 15, 16, 17])
def test_halving_is_the_public_pool_but_never_drops_a_row(edge):
    x = torch.rand(1, 2, edge, edge)
    public = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    assert Halve()(x).shape[-1] == -(-edge // 2)
    assert torch.equal(Halve()(x)[..., : edge // 2, : edge // 2], public)
    assert torch.equal(Halve(published=True)(x), public)


@pytest.mark.parametrize("edge", [14, 15, 16, 17])
def test_the_pool_of_two_in_front_of_5a_is_the_public_one_too(edge):
    x = torch.rand(1, 2, edge, edge)
    assert torch.equal(Halve(2, published=True)(x), functional.max_pool2d(x, 2, 2, ceil_mode=True))
