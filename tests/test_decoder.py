import pytest
import torch
from torch.nn import functional

from models.decoder import FPN, UNet


@pytest.mark.parametrize("edge", [64, 65, 90, 97])
def test_the_decoder_follows_the_declared_channels_and_strides(edge):
    channels, strides = (4, 6, 5), (2, 4, 8)
    decoder = UNet(channels, strides, (12, 7, 3)).eval()
    maps = [torch.rand(2, c, -(-edge // s), -(-edge // s)) for c, s in zip(channels, strides, strict=True)]
    assert decoder(maps, (edge, edge)).shape == (2, 3, edge, edge)


def test_enlarging_repeats_each_cell_twice_and_crops():
    for edge in range(3, 70):
        x = torch.arange(-(-edge // 2), dtype=torch.float32)[None, None]
        repeated = x.repeat_interleave(2, -1)[..., :edge]
        assert torch.equal(functional.interpolate(x, size=edge, mode="nearest"), repeated)


def test_each_skip_reaches_the_output():
    decoder = UNet((4, 4, 4), (2, 4, 8), (8, 8, 8)).eval()
    maps = [torch.rand(1, 4, 32 // s, 32 // s, requires_grad=True) for s in (2, 4, 8)]
    decoder(maps, (32, 32)).sum().backward()
    assert all(m.grad.abs().sum() > 0 for m in maps)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("decoder", [lambda *a: UNet(*a[:2], (12, 7, 3), a[2]), lambda *a: FPN(*a[:2], (12, 3), a[2])])
def test_an_output_stride_gives_that_grid_at_odd_sizes(decoder, stride):
    channels, strides = (4, 6, 5), (2, 4, 8)
    maps = [torch.rand(1, c, -(-77 // s), -(-90 // s)) for c, s in zip(channels, strides, strict=True)]
    assert decoder(channels, strides, stride).eval()(maps, (77, 90)).shape[-2:] == (-(-77 // stride), -(-90 // stride))


def test_each_used_map_reaches_the_output_of_a_pyramid():
    decoder = FPN((4, 4, 4), (2, 4, 8), (8, 8), 4).eval()
    maps = [torch.rand(1, 4, 32 // s, 32 // s, requires_grad=True) for s in (2, 4, 8)]
    decoder(maps, (32, 32)).sum().backward()
    assert maps[0].grad is None
    assert all(m.grad.abs().sum() > 0 for m in maps[1:])


def test_widths_must_match_the_levels_and_strides_must_double():
    with pytest.raises(ValueError, match="2 decoder channels, but the encoder has 3 levels"):
        UNet((4, 4, 4), (2, 4, 8), (8, 8))
    with pytest.raises(ValueError, match="a feature pyramid has 2"):
        FPN((4, 4, 4), (2, 4, 8), (8, 8, 8))
    with pytest.raises(ValueError, match="output stride is 3"):
        UNet((4, 4), (2, 4), (8, 8), 3)
    with pytest.raises(ValueError, match="must be 2, 4, 8"):
        UNet((4, 4), (4, 8), (8, 8))
