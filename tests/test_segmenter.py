import pytest
import torch

from models.inception import ENCODERS
from models.init import glorot_normal_
from models.network import network_from_spec
from models.segmenter import create_segmenter
from models.spec import Architecture, Band, Class, ModelSpec


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return glorot_normal_(create_segmenter("inception_v1", 3, width=0.25, decoder_channels=(16, 16, 8, 8, 8))).eval()


def test_logits_have_the_inputs_size_at_odd_and_even_sizes():
    network = create_segmenter("inception_v1", 5, bands=2).to("meta")
    for edge in (64, 65, 79, 80, 81, 97):
        assert network(torch.zeros(1, 2, edge, 161 - edge, device="meta")).shape == (1, 5, edge, 161 - edge)


@pytest.mark.parametrize("decoder", ["unet", "fpn"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_decoder_gives_the_inputs_size_at_every_output_stride(decoder, stride):
    network = create_segmenter("inception_v3", 4, width=0.25, decoder=decoder, output_stride=stride).to("meta")
    for rows, cols in [(64, 97), (65, 240), (496, 500), (513, 481)]:
        assert network(torch.zeros(1, 3, rows, cols, device="meta")).shape == (1, 4, rows, cols)


SOME = (64, 65, 79, 81, 97, 240)
"""Edges around multiples of every stride."""


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("edges", [SOME, pytest.param(range(64, 98), marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_encoder_segments_at_every_size(name, edges):
    network = create_segmenter(name, 2, width=0.25).to("meta")
    for edge in edges:
        assert network(torch.zeros(1, 3, edge, edge + 1, device="meta")).shape == (1, 2, edge, edge + 1)


def test_coarse_logits_are_enlarged_by_the_stride_and_cropped():
    network = create_segmenter("inception_v1", 2, width=0.25, output_stride=4).eval()
    x = torch.randn(1, 3, 65, 66)
    with torch.inference_mode():
        coarse = network.head(network.decoder(network.encoder(x), (65, 66)))
        assert coarse.shape == (1, 2, 17, 17)
        whole = torch.nn.functional.interpolate(coarse, size=(68, 68), mode="bilinear")
        torch.testing.assert_close(network(x), whole[..., :65, :66])


def test_features_off_the_pixels_are_refused():
    with pytest.raises(ValueError, match="needs 'same'"):
        create_segmenter("inception_v3", 2, padding="valid")


def test_a_far_pixel_changes_nothing_and_a_near_one_does(network):
    x = torch.randn(1, 3, 32, 992)
    changed = x.clone()
    changed[..., -1] += 1000
    with torch.inference_mode():
        moved = (network(x) - network(changed)).abs().amax((0, 1, 2)) > 0
    assert moved[-1]
    assert not moved[:480].any()


def test_a_shift_by_the_total_stride_shifts_the_logits(network):
    x = torch.randn(1, 3, 32, 992 + 32)
    with torch.inference_mode():
        whole, part = network(x)[..., 32:], network(x[..., 32:])
    torch.testing.assert_close(whole[..., 480:-448], part[..., 480:-448], rtol=1e-4, atol=1e-5)


def test_a_spec_describes_its_network():
    plan = Architecture(encoder="inception_v1", width=0.25, decoder_channels=(16, 8, 8, 8, 8))
    band = {"low": 0, "high": 255, "mean": 100, "std": 50}
    spec = ModelSpec(
        name="two-bands",
        architecture=plan,
        bands=(Band(name="a", **band), Band(name="b", **band)),
        dtypes=("uint8",),
        classes=tuple(Class(id=i, name=f"c{i}", color="#000000") for i in range(4)),
        halo=64,
        tiles=(256,),
        licence="Apache-2.0",
    )
    module = network_from_spec(spec).eval()
    assert module(torch.zeros(1, 2, 64, 64)).shape == (1, 4, 64, 64)
    assert module.decoder.channels == 8


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="'segnet': choose one of unet, fpn"):
        create_segmenter("inception_v1", 2, decoder="segnet")
