"""Rewrites of a trained network: the same logits from fewer operations.

fold_norms     convolution ─► normalisation           becomes   convolution
fold_scales    x + scale * project(branches)          becomes   x + project(branches)
share_leads    x ─┬─► 1x1 ─► ReLU ─► rest             becomes   x ─► 1x1 ─► ReLU ─┬─► rest
                  └─► 1x1 ─► ReLU ─► rest                                         └─► rest
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.errors import EngineError
from models.inception.blocks import ConvBN, Parallel, ResidualModule

Rewrite = Callable[[nn.Module], None]
"""Changes a network in eval mode, in place; its logits stay."""

PROBE = (96, 97)
"""Rows and columns of the image on which a rewrite is checked: published padding needs 75, and 97 is odd."""


def rewritten(network: nn.Module, bands: int, rewrites: Sequence[Rewrite]) -> nn.Module:
    """A copy in eval mode after `rewrites`, in their order. Each is checked: in float64 the logits stay.

    Raises:
        EngineError: they do not; which rewrite changed them, and what it takes for granted.
    """
    network = copy.deepcopy(network).eval()
    exact = copy.deepcopy(network).double()
    x = torch.randn(1, bands, *PROBE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = exact(x)
    for rewrite in rewrites:
        rewrite(network)
        rewrite(exact)
        with torch.inference_mode():
            found = exact(x)
        if not torch.allclose(expected, found, rtol=1e-9, atol=1e-9 * float(expected.abs().max())):
            raise EngineError(DEMANDS[rewrite])
    return network


def fold_norms(network: nn.Module) -> None:
    """Each convolution absorbs the batch normalisation declared right behind it."""
    for parent, first, second in list(_pairs(network)):
        conv, norm = getattr(parent, first), getattr(parent, second)
        setattr(parent, first, fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d)))
        setattr(parent, second, nn.Identity())


def fold_scales(network: nn.Module) -> None:
    """Each residual module's projection absorbs the scale of its result."""
    for module in network.modules():
        if isinstance(module, ResidualModule):
            project = module.conv2d
            for values in (project.weight, project.bias):
                if values is not None:
                    values.data.mul_(module.scale)
            module.scale = 1.0


def share_leads(network: nn.Module) -> None:
    """In each Inception module the 1x1 convolutions on its input become one; normalisation is folded before."""
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, Parallel):
                leads = {key: lead for key, branch in module.named_children() if (lead := _lead(branch))}
                if len(leads) > 1:
                    setattr(parent, name, SharedLeads(module, leads))


class SharedLeads(nn.Module):
    """An Inception module that computes all 1x1 convolutions on its input at once.

    x ─► conv, ReLU ─► split ─┬─► rest of a branch ──┬─► joined, as declared
    └────────────────────────►│   branch without one ─┘
    """

    def __init__(self, module: Parallel, leads: Mapping[str, ConvBN]) -> None:
        super().__init__()
        self.conv = _joined([lead.conv for lead in leads.values()])
        self.widths = {name: lead.conv.out_channels for name, lead in leads.items()}
        self.rest = nn.ModuleDict(
            {name: _rest(branch) if name in leads else branch for name, branch in module.named_children()}
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, sum of the branches' channels, H', W')."""
        heads = torch.split(functional.relu(self.conv(x), inplace=True), list(self.widths.values()), 1)
        inputs = dict(zip(self.widths, heads, strict=True))
        return torch.cat([branch(inputs.get(name, x)) for name, branch in self.rest.items()], 1)


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Parent and names of each convolution that is followed by a batch normalisation of its channels."""
    for parent in network.modules():
        for (first, conv), (second, norm) in pairwise(parent.named_children()):
            convolution = isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
            if convolution and isinstance(norm, nn.BatchNorm2d) and norm.num_features == conv.out_channels:
                yield parent, first, second


def _lead(branch: nn.Module) -> ConvBN | None:
    """The layer that a branch begins with, if it is a 1x1 convolution of every cell, with a ReLU alone behind it."""
    first = branch[0] if isinstance(branch, nn.Sequential) else branch
    if not isinstance(first, ConvBN) or not isinstance(first.bn, nn.Identity):
        return None
    conv = first.conv
    return first if (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0)) else None


def _rest(branch: nn.Module) -> nn.Sequential:
    return nn.Sequential(*list(branch)[1:]) if isinstance(branch, nn.Sequential) else nn.Sequential()


def _joined(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution that gives the channels of all `convs`, 1x1 with a bias, one behind the other."""
    weight = torch.cat([conv.weight for conv in convs]).detach()
    one = nn.Conv2d(weight.shape[1], len(weight), 1, device=weight.device, dtype=weight.dtype)
    one.weight.data = weight
    biases = [conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias for conv in convs]
    assert one.bias is not None  # noqa: S101 - made with one
    one.bias.data = torch.cat(biases).detach()
    return one


DEMANDS: Mapping[Rewrite, str] = {
    fold_norms: "folding batch normalisation changes this network: each BatchNorm2d must stand right behind the "
    "convolution that it normalises",
    fold_scales: "folding the scales of its residual modules changes this network: each must add its scaled projection "
    "to its input, and share that projection with no other module",
    share_leads: "joining the 1x1 convolutions of its Inception modules changes this network: each module must give "
    "all its branches the same input, and join what they give in their order",
}
"""What is said where a rewrite changes the logits."""
