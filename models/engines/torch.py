"""Eager PyTorch as an engine: the slowest, and the one that is always there."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from models.bundle import Bundle
from models.engines.base import Batch, EngineRecord, Planes
from models.engines.meter import Meter
from models.engines.slots import overlapped, padded
from models.serve import EAGER, Serve, served

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchEngine:
    """The rewritten network, channels last, run by one thread with `threads` helpers."""

    def __init__(self, record: EngineRecord, bundle: Bundle) -> None:
        self.record, self.meter = record, Meter()
        self._pool = ThreadPoolExecutor(1, "engine")
        self._serve = self._pool.submit(self._load, bundle).result()

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """Planes (N, P, T, T) of each batch, in order; the next batch is pulled while one is computed."""
        return overlapped(batches, self._start, meter=self.meter)

    def _load(self, bundle: Bundle) -> Serve:
        torch.set_num_threads(self.record.threads)
        return laid_out(served(bundle, EAGER), self.record.precision)

    def _start(self, batch: Batch) -> Callable[[], Planes]:
        running = self._pool.submit(self._run, padded(batch, self.record))
        return lambda: running.result()[: len(batch.pixels)]

    def _run(self, batch: Batch) -> Planes:
        torch.set_num_threads(self.record.threads)
        with self.meter.running():
            return np.asarray(predict(self._serve, batch))


def laid_out(serve: Serve, precision: str) -> Serve:
    """The network in its precision, kernels and maps with channels last."""
    serve.network.to(DTYPES[precision]).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # stubs lack it
    return serve


def predict(serve: Serve, batch: Batch) -> Planes:
    """The planes of one batch, here and now."""
    with torch.inference_mode():
        return np.asarray(serve(*tensors(batch)).numpy())


def tensors(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The graph's inputs: pixels, valid, scale, offset."""
    valid = np.require(batch.valid, requirements=["C", "W"]).view(np.uint8)
    pixels, scale, offset = (np.require(a, requirements=["C", "W"]) for a in (batch.pixels, batch.scale, batch.offset))
    return torch.from_numpy(pixels), torch.from_numpy(valid), torch.from_numpy(scale), torch.from_numpy(offset)


def has_bf16() -> bool:
    """Whether this processor computes in bf16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - no public name
