import pytest
import torch
from drawn_weights import draw_state
from torch import nn

from models.classifier import create_classifier
from models.errors import EngineError
from models.inception import ENCODERS
from models.inception.blocks import Conv, Pool, Residual, ResidualModule, Style, build
from models.rewrite import SharedLeads, fold_norms, fold_scales, rewritten, share_leads
from models.segmenter import create_segmenter
from models.serve import EAGER


def drawn(network):
    network.load_state_dict(draw_state({name: tuple(value.shape) for name, value in network.state_dict().items()}))
    return network.eval()


def module(step, **style):
    return drawn(nn.Sequential(build(step, 3, Style(**style))[0]))


def logits(network, height=75, width=90):
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.inference_mode():
        return network.double()(x)


def kinds(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_rewrites_together_leave_the_logits_of_a_segmenter_alone(encoder):
    network = drawn(create_segmenter(encoder, 3, width=0.1, decoder_channels=(8,) * 5))
    copy = rewritten(network, 3, EAGER)
    assert not kinds(copy, nn.BatchNorm2d)
    assert kinds(copy, SharedLeads)
    torch.testing.assert_close(logits(rewritten(network.double(), 3, EAGER)), logits(network), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_rewrites_together_leave_the_logits_of_a_published_classifier_alone(encoder):
    network = drawn(create_classifier(encoder, classes=5, width=0.1)).double()
    torch.testing.assert_close(logits(rewritten(network, 3, EAGER)), logits(network), rtol=1e-9, atol=1e-9)


def test_rewriting_leaves_the_network_itself_alone():
    network = drawn(create_segmenter("inception_resnet_v1", 3, width=0.1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rewritten(network, 3, EAGER)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert {module.scale for module in kinds(network, ResidualModule)} == {0.17, 0.10, 0.20}


def test_a_residual_modules_scale_moves_into_its_projection():
    network = module(Residual({"a": Conv(8)}, 0.25))
    copy = rewritten(network, 3, [fold_scales])
    assert copy[0].scale == 1
    torch.testing.assert_close(copy[0].conv2d.weight, 0.25 * network[0].conv2d.weight)
    torch.testing.assert_close(copy[0].conv2d.bias, 0.25 * network[0].conv2d.bias)


def test_the_1x1_convolutions_on_a_modules_input_become_one():
    network = module({"a": Conv(8), "b": [Conv(16), Conv(8, 3)], "c": [Pool("avg"), Conv(8)], "d": Pool("max")})
    copy = rewritten(network, 3, [fold_norms, share_leads])
    assert copy[0].widths == {"a": 8, "b": 16}
    assert copy[0].conv.weight.shape == (24, 3, 1, 1)
    assert len(kinds(copy, nn.Conv2d)) == len(kinds(network, nn.Conv2d)) - 1
    torch.testing.assert_close(logits(copy), logits(network), rtol=1e-5, atol=1e-5)


def test_a_1x1_convolution_with_a_stride_stays_where_it_is():
    network = module({"a": Conv(8, 1, 2), "b": Conv(8, 1, 2)})
    assert not kinds(rewritten(network, 3, [fold_norms, share_leads]), SharedLeads)


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_without_a_normalisation_are_joined_with_their_biases(bias):
    network = module({"a": Conv(8), "b": [Conv(16), Conv(8, 3)]}, bn=False)
    for lead in (network[0].a, network[0].b[0]):
        lead.conv.bias = lead.conv.bias if bias else None
    copy = rewritten(network, 3, [share_leads])
    assert kinds(copy, SharedLeads)
    torch.testing.assert_close(logits(copy), logits(network), rtol=1e-5, atol=1e-5)


def test_a_normalisation_that_is_not_folded_keeps_the_convolutions_apart():
    assert not kinds(rewritten(module({"a": Conv(8), "b": Conv(8)}), 3, [share_leads]), SharedLeads)


def test_a_projection_that_two_modules_share_is_refused():
    network = nn.Sequential(*(module(Residual({"a": Conv(8)}, 0.25))[0] for _ in range(2)))
    network[1].conv2d = network[0].conv2d
    with pytest.raises(EngineError, match="share that projection with no other"):
        rewritten(network, 3, [fold_scales])


def test_a_module_that_joins_its_branches_otherwise_is_refused():
    network = module({"a": Conv(8), "b": Conv(8)}, bn=False)

    class Backwards(type(network[0])):
        def forward(self, x):
            return torch.cat([branch(x) for branch in reversed(list(self.children()))], 1)

    network[0].__class__ = Backwards
    with pytest.raises(EngineError, match="in their order"):
        rewritten(network, 3, [share_leads])
