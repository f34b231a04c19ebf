"""The graph that is compiled: a scene's own integers in, finished uint8 planes out.

pixels, valid, scale, offset ──► value = stored * scale + offset ──► (value - mean) / std ──► network ──► softmax
                                             invalid pixels: 0, the mean ──┘             labels, confidence ◄┘
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.bundle import Bundle, load_module
from models.classifier import Patches
from models.rewrite import Rewrite, fold_norms, fold_scales, rewritten, share_leads
from models.spec import ModelSpec

CONFIDENCE = 254
"""Level of certainty: 255 stays nodata."""

COMPILED: tuple[Rewrite, ...] = (fold_norms, fold_scales)
"""What pays in a graph that is exported.

With `share_leads`, OpenVINO 2026.4 is no faster. Times as fast on 512 x 512 pixels, one thread, in fp32 and bf16:
Inception v1 1.03 and 1.00, v3 1.01 and 1.00, v4 1.00 and 1.00, Inception-ResNet v2 0.99 and 1.01.
"""
EAGER: tuple[Rewrite, ...] = (*COMPILED, share_leads)
"""What pays where PyTorch runs the network as it stands, on several threads, which then share out fewer small layers.

Of `share_leads`, with the same networks in fp32: 1.01, 1.07, 1.01 and 1.03 times as fast on two threads of an idle
machine; 0.97 to 1.02 on one thread, in fp32 and bf16.
"""


class Serve(nn.Module):
    """A network with its normalisation before it and its decision behind it; both are computed in fp32."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        planes: Sequence[str],
        cell: int = 1,
    ) -> None:
        super().__init__()
        self.network = network if cell == 1 else Patches(network, cell)
        self.cell = cell
        """Pixels along the square that one answer of the network is for."""
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)
        self.planes = tuple(planes)

    def forward(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Planes (N, P, T, T), uint8, from pixels (N, C, T, T), valid (N, T, T) 0 or 1, scale (C,) and offset (C,)."""
        return self.spread(self.decide(self.logits(pixels, valid, scale, offset)))

    def logits(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """(N, K, T / cell, T / cell), float32. What is stored in invalid pixels, NaN included, has no influence."""
        value = pixels.to(torch.float32) * scale.reshape(-1, 1, 1) + offset.reshape(-1, 1, 1)
        x = torch.where(valid.unsqueeze(1) != 0, (value - self.mean) / self.std, 0.0)
        return self.network(x.to(self._dtype())).to(torch.float32)  # type: ignore[no-any-return] # modules return Any

    def decide(self, logits: Tensor) -> Tensor:
        """(N, K, ...) -> (N, P, ...), uint8: the best class, and `round(254 p)` of its probability."""
        best, labels = logits.max(1)
        named = {"labels": labels}
        if "confidence" in self.planes:
            named["confidence"] = torch.round(CONFIDENCE / torch.exp(logits - best.unsqueeze(1)).sum(1))
        return torch.stack([named[name].to(torch.uint8) for name in self.planes], 1)

    def spread(self, planes: Tensor) -> Tensor:
        """(N, P, T / cell, T / cell) -> (N, P, T, T): each answer all over its square."""
        if self.cell == 1:
            return planes
        images, count, rows, cols = planes.shape
        squares = planes[:, :, :, None, :, None].expand(-1, -1, -1, self.cell, -1, self.cell)
        return squares.reshape(images, count, rows * self.cell, cols * self.cell)

    def _dtype(self) -> torch.dtype:
        return next((weight.dtype for weight in self.network.parameters()), torch.float32)


def serve_network(network: nn.Module, spec: ModelSpec) -> Serve:
    """`network` between the normalisation and the planes of `spec`, in eval mode; a classifier over its squares."""
    mean, std = zip(*((band.mean, band.std) for band in spec.bands), strict=True)
    return Serve(network, mean, std, spec.planes, spec.cell).eval()


def served(bundle: Bundle, rewrites: Sequence[Rewrite] = COMPILED) -> Serve:
    """What is compiled: the bundle's network in fp32 after `rewrites`, which leave its logits alone."""
    network = rewritten(load_module(bundle), len(bundle.spec.bands), rewrites)
    return serve_network(network, bundle.spec)
