import pytest
import torch
from drawn_weights import draw_state
from torch import nn
from torch.nn import functional

from models.engines.fused import AddReLU, ConvReLU, conv_add_relu, conv_relu, fuse_relus
from models.inception import ENCODERS
from models.inception.blocks import Conv, ConvBN, Residual, ResidualModule, Style, build
from models.rewrite import rewritten
from models.segmenter import create_segmenter
from models.serve import COMPILED

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def drawn(network):
    network.load_state_dict(draw_state({name: tuple(value.shape) for name, value in network.state_dict().items()}))
    return network.eval()


def fused(network):
    copy = rewritten(network, 3, COMPILED)
    fuse_relus(copy)
    return copy


def kinds(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


QUICK = ("inception_v1", "inception_resnet_v2")


@pytest.mark.parametrize("encoder", [pytest.param(e, marks=[] if e in QUICK else pytest.mark.slow) for e in ENCODERS])
def test_fusing_leaves_the_logits_alone_and_no_convolution_with_a_relu_of_its_own(encoder):
    network = drawn(create_segmenter(encoder, 3, width=0.1, decoder_channels=(8,) * 5)).double()
    copy = fused(network)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(copy(x), network(x), rtol=1e-9, atol=1e-9)
    assert not kinds(copy, ConvBN)
    assert len(kinds(copy, ConvReLU)) == len(kinds(network, ConvBN))
    linear = [module for module in kinds(network, ResidualModule) if module.linear]
    assert len(kinds(copy, AddReLU)) == len(kinds(network, ResidualModule)) - len(linear)
    assert len(kinds(copy, ResidualModule)) == len(linear)


def test_a_module_whose_scale_is_not_folded_stays_as_it_is():
    network = nn.Sequential(build(Residual({"a": Conv(8)}, 0.25), 3, Style(bn=False))[0])
    fuse_relus(network)
    assert kinds(network, ResidualModule)
    assert kinds(network, ConvReLU)


def test_a_convolution_whose_normalisation_is_not_folded_stays_as_it_is():
    network = nn.Sequential(build(Conv(8), 3, Style())[0])
    fuse_relus(network)
    assert kinds(network, ConvBN)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cudnn_convolution_relu", "self weight bias stride padding dilation groups"),
        ("cudnn_convolution_add_relu", "self weight z alpha bias stride padding dilation groups"),
    ],
)
def test_pytorch_still_has_cudnns_operations_with_the_arguments_that_are_given_them(name, arguments):
    schema = getattr(torch.ops.aten, name).default._schema
    assert [argument.name for argument in schema.arguments] == arguments.split()


def operands(device="cpu", dtype=torch.float32, kernel=3):
    draw = torch.Generator().manual_seed(0)
    x, shortcut = torch.randn(2, 8, 12, 10, generator=draw), torch.randn(2, 16, 12, 10, generator=draw)
    weight, bias = torch.randn(16, 8, kernel, kernel, generator=draw), torch.randn(16, generator=draw)
    moved = [each.to(device, dtype) for each in (x, weight, bias, shortcut)]
    return [each.to(memory_format=torch.channels_last) if each.ndim == 4 else each for each in moved]


def test_the_operations_keep_the_contract_of_pytorch():
    x, weight, bias, shortcut = operands()
    chosen = ("test_schema", "test_faketensor")
    torch.library.opcheck(conv_relu, (x, weight, bias, [2, 2], [1, 1]), test_utils=chosen)
    torch.library.opcheck(conv_add_relu, (x, weight[:, :, :1, :1].contiguous(), bias, shortcut), test_utils=chosen)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_cudnn_computes_what_pytorch_does(monkeypatch, dtype, close):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    exact = operands(dtype=torch.float64)
    x, weight, bias, shortcut = operands("cuda", dtype)
    found = conv_relu(x, weight, bias, [2, 2], [1, 1]).cpu().double()
    expected = functional.conv2d(*exact[:3], 2, 1).relu()
    torch.testing.assert_close(found, expected, rtol=close, atol=close * float(expected.abs().max()))
    exact, (x, weight, bias, shortcut) = operands(dtype=torch.float64, kernel=1), operands("cuda", dtype, kernel=1)
    found = conv_add_relu(x, weight, bias, shortcut).cpu().double()
    expected = (functional.conv2d(*exact[:3]) + exact[3]).relu()
    torch.testing.assert_close(found, expected, rtol=close, atol=close * float(expected.abs().max()))
