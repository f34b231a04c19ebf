"""The graph that is compiled: a scene's own integers in, finished uint8 planes out.

pixels, valid, scale, offset ──► value = stored * scale + offset ──► (value - mean) / std ──► network ──► softmax
                                             invalid pixels: 0, the mean ──┘             labels, confidence ◄┘

Test-time augmentation happens in here as well: the network sees the tile in its eight orientations (the dihedral group
D4), and the probabilities are averaged. Eager PyTorch takes one orientation after the other, in an eighth of the
memory; a graph that is compiled holds the network once, and gives it all of them as a batch.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from models.bundle import Bundle, load_module
from models.classifier import Patches
from models.rewrite import Rewrite, fold_norms, fold_scales, rewritten, share_leads
from models.spec import PROBABILITY, ModelSpec

CONFIDENCE = 254
"""Level of certainty: 255 stays nodata."""
VIEWS = 8
"""Orientations of a tile: four quarter turns, each with and without a mirror."""

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
        *,
        cell: int = 1,
        names: Sequence[str] = (),
        threshold: float | None = None,
        tta: bool = False,
        stacked: bool = True,
    ) -> None:
        """`names`: of the classes, for their planes; `threshold`: of the second of two; `tta`: average all views.

        `stacked`: all views go through the network as one batch, else one by one. The network of a compiled graph then
        stands in it once: unrolled, Inception v1 has six times the nodes, and takes OpenVINO four times as long and
        more memory to compile. Eager PyTorch takes 75 MB for 512 x 512 pixels one by one, and 444 MB stacked.
        """
        super().__init__()
        self.network = network if cell == 1 else Patches(network, cell)
        self.cell = cell
        """Pixels along the square that one answer of the network is for."""
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)
        self.planes, self.names, self.tta, self.stacked = tuple(planes), tuple(names), tta, stacked
        self.handicap = None if threshold is None else math.log(threshold / (1 - threshold))
        """What is taken from the second class's logit before the best is chosen."""

    def forward(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Planes (N, P, T, T), uint8, from pixels (N, C, T, T), valid (N, T, T) 0 or 1, scale (C,) and offset (C,)."""
        return self.spread(self.decide(self.logits(pixels, valid, scale, offset)))

    def enter(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """What the network takes: (N * V, C, T, T), normalised, V = 8 views with augmentation, else 1.

        What is stored in invalid pixels, NaN included, has no influence.
        """
        x = self.normalised(pixels, valid, scale, offset)
        return torch.cat(list(_turned(x))) if self.tta else x

    def normalised(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """(N, C, T, T): the tile as it lies."""
        value = pixels.to(torch.float32) * scale.reshape(-1, 1, 1) + offset.reshape(-1, 1, 1)
        x = torch.where(valid.unsqueeze(1) != 0, (value - self.mean) / self.std, 0.0)
        return x.to(self._dtype())

    def leave(self, logits: Tensor) -> Tensor:
        """Planes (N, P, T, T), uint8, of what the network answers: (N * V, K, T / cell, T / cell)."""
        return self.spread(self.decide(self.merged(logits.to(torch.float32))))

    def logits(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """(N, K, T / cell, T / cell), float32; with augmentation the logarithm of the mean probability."""
        if self.stacked or not self.tta:
            return self.merged(self.network(self.enter(pixels, valid, scale, offset)).to(torch.float32))
        turned = _turned(self.normalised(pixels, valid, scale, offset))
        return _log_mean(torch.softmax(self.network(view).to(torch.float32), 1) for view in turned)

    def merged(self, logits: Tensor) -> Tensor:
        """(N * V, K, ...) -> (N, K, ...): all views of a tile as one."""
        if not self.tta:
            return logits
        return _log_mean(torch.softmax(logits, 1).chunk(VIEWS))

    def decide(self, logits: Tensor) -> Tensor:
        """(N, K, ...) -> (N, P, ...), uint8: the best class, and `round(254 p)` of probabilities.

        With a threshold, the second class is the best one where its probability reaches it; the confidence is always
        the probability of the label.
        """
        best, labels = self.handicapped(logits).max(1)
        total = torch.exp(logits - best.unsqueeze(1)).sum(1)
        planes = [self._plane(name, logits, labels, best, total) for name in self.planes]
        return torch.stack([plane.to(torch.uint8) for plane in planes], 1)

    def handicapped(self, logits: Tensor) -> Tensor:
        """(N, K, ...) of which the largest decides the label."""
        if self.handicap is None:
            return logits
        return torch.stack([logits[:, 0], logits[:, 1] - self.handicap], 1)

    def _plane(self, name: str, logits: Tensor, labels: Tensor, best: Tensor, total: Tensor) -> Tensor:
        if name == "labels":
            return labels
        if name == "confidence" and self.handicap is None:
            return torch.round(CONFIDENCE / total)
        own = logits.gather(1, labels.unsqueeze(1)).squeeze(1) if name == "confidence" else self._logit(name, logits)
        return torch.round(CONFIDENCE * torch.exp(own - best) / total)

    def _logit(self, plane: str, logits: Tensor) -> Tensor:
        return logits[:, self.names.index(plane.removeprefix(PROBABILITY))]

    def spread(self, planes: Tensor) -> Tensor:
        """(N, P, T / cell, T / cell) -> (N, P, T, T): each answer all over its square."""
        if self.cell == 1:
            return planes
        images, count, rows, cols = planes.shape
        squares = planes[:, :, :, None, :, None].expand(-1, -1, -1, self.cell, -1, self.cell)
        return squares.reshape(images, count, rows * self.cell, cols * self.cell)

    def _dtype(self) -> torch.dtype:
        return next((weight.dtype for weight in self.network.parameters()), torch.float32)


def _turned(x: Tensor) -> Iterator[Tensor]:
    for turn in range(4):
        turned = torch.rot90(x, turn, (-2, -1))
        yield turned
        yield turned.flip(-1)


def _log_mean(views: Iterable[Tensor]) -> Tensor:
    """Of the probabilities of all views, turned back; the sum is all that is held."""
    total = reduce(torch.add, _turned_back(views))
    return torch.log((total / VIEWS).clamp_min(torch.finfo(torch.float32).tiny))


def _turned_back(views: Iterable[Tensor]) -> Iterator[Tensor]:
    for index, view in enumerate(views):
        yield torch.rot90(view.flip(-1) if index % 2 else view, -(index // 2), (-2, -1))


def serve_network(
    network: nn.Module, spec: ModelSpec, *, planes: Sequence[str] = (), tta: bool = False, stacked: bool = True
) -> Serve:
    """`network` between the normalisation and `planes`, those of `spec` if empty, in eval mode."""
    mean, std = zip(*((band.mean, band.std) for band in spec.bands), strict=True)
    names = [entry.name for entry in spec.classes]
    return Serve(
        network,
        mean,
        std,
        planes or spec.planes,
        cell=spec.cell,
        names=names,
        threshold=spec.threshold,
        tta=tta,
        stacked=stacked,
    ).eval()


def served(
    bundle: Bundle,
    rewrites: Sequence[Rewrite] = COMPILED,
    *,
    planes: Sequence[str] = (),
    tta: bool = False,
    stacked: bool = True,
) -> Serve:
    """What is compiled: the bundle's network in fp32 after `rewrites`, which leave its logits alone."""
    network = rewritten(load_module(bundle), len(bundle.spec.bands), rewrites)
    return serve_network(network, bundle.spec, planes=planes, tta=tta, stacked=stacked)
