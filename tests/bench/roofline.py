"""The least time that a network can take on a device: layer by layer, from ceilings that are measured on the spot.

A layer takes at least its arithmetic at the rate of a large matrix product, and at least its bytes (inputs, weights and
output, each moved once) at the rate of a large copy. Activations and additions cost nothing: an engine that is any good
fuses them into the convolution before them. The sum over layers is what an engine is held against.
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SECONDS = 1.0
"""For each ceiling."""
MATRIX = {"cuda": 8192, "cpu": 1536}
COPY = {"cuda": 1 << 30, "cpu": 1 << 28}
"""Bytes."""
MOVED = {"cat", "max_pool2d_with_indices", "avg_pool2d", "upsample_bilinear2d", "upsample_nearest2d", "pixel_shuffle"}
"""Operators beside convolutions that write a map of their own."""


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches at best."""

    flops: float
    """Of a large matrix product, in FLOP/s."""
    bandwidth: float
    """Of a large copy, bytes read and bytes written, in B/s."""


@dataclass(frozen=True)
class Layer:
    """One operator on one shape."""

    kind: str
    flop: float
    bytes: float

    def seconds(self, ceilings):
        """Least time."""
        return max(self.flop / ceilings.flops, self.bytes / ceilings.bandwidth)


class Recorder(TorchDispatchMode):
    """Collects the layers of whatever runs inside, on tensors without memory."""

    def __init__(self, itemsize):
        super().__init__()
        self.itemsize, self.layers = itemsize, []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        """Run it, and note what it costs."""
        out = operator(*args, **kwargs or {})
        name = operator.overloadpacket.__name__.strip("_")
        if name == "convolution":
            x, weight = args[:2]
            rows, cols = weight.shape[-2:]
            sizes = x.numel() + weight.numel() + out.numel()
            flop = 2 * out.numel() * weight[0].numel()
            self.layers.append(Layer(f"convolution {rows} x {cols}", flop, sizes * self.itemsize))
        elif name in MOVED:
            sources = args[0] if isinstance(args[0], list | tuple) else args[:1]
            first = out[0] if isinstance(out, tuple) else out
            sizes = sum(source.numel() for source in sources) + first.numel()
            self.layers.append(Layer(name, 0.0, sizes * self.itemsize))
        return out


def layers(network, bands, tile, batch, dtype):
    """What one batch through `network` consists of; the network is left without its weights."""
    network = network.to("meta", dtype)
    with torch.no_grad(), Recorder(dtype.itemsize) as recorder:
        network(torch.empty((batch, bands, tile, tile), device="meta", dtype=dtype))
    return recorder.layers


def measure(device, dtype, seconds=SECONDS):
    """The ceilings of a device at a precision."""
    edge = MATRIX[device]
    a, b = (torch.randn((edge, edge), device=device).to(dtype) for _ in range(2))
    source = torch.empty(COPY[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product = best(lambda: a @ b, device, seconds)
        copy = best(lambda: target.copy_(source), device, seconds)
    return Ceilings(2 * edge**3 / product, 2 * COPY[device] / copy)


def best(work, device, seconds=SECONDS):
    """Least seconds of a call, over as many as fit into `seconds`; by events on a GPU."""
    work()
    least, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        least = min(least, timed(work, device))
    return least


def timed(work, device):
    """Seconds of one call on the device."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def by_kind(found, ceilings):
    """Rows: kind, how many, GFLOP, MB, least ms, share of the whole, what bounds most of it."""
    total = sum(layer.seconds(ceilings) for layer in found)
    groups = defaultdict(list)
    for layer in found:
        groups[layer.kind].append(layer)
    for kind, group in sorted(groups.items(), key=lambda item: -sum(layer.seconds(ceilings) for layer in item[1])):
        least = sum(layer.seconds(ceilings) for layer in group)
        bound = sum(
            layer.seconds(ceilings) for layer in group if layer.flop / ceilings.flops < layer.bytes / ceilings.bandwidth
        )
        flop, size = sum(layer.flop for layer in group), sum(layer.bytes for layer in group)
        figures = [f"{flop / 1e9:.1f}", f"{size / 1e6:.0f}", f"{1e3 * least:.3f}", f"{100 * least / total:.0f} %"]
        yield [kind, len(group), *figures, f"{100 * bound / least:.0f} %"]
