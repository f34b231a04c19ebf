"""Eager PyTorch as an engine, on a processor or a GPU: the slowest, and the one that is always there."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle import Bundle
from models.engines.base import Batch, Engine, EngineRecord, Planes, Precision, Target
from models.engines.meter import Meter
from models.engines.ring import WARM_UP, Cuda, Device, Slot, Stream, Work, device_errors
from models.engines.ringed import RingEngine
from models.engines.slots import overlapped, padded, slots_of
from models.serve import EAGER, Serve, served

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""PyTorch's names of the precisions."""

INPUTS = ("pixels", "valid", "scale", "offset")
"""Of a served graph, in its order."""


class Predictor(Protocol):
    """What gives planes (N, P, T, T) from the four inputs: `Serve`, or something compiled of it."""

    def __call__(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor, /) -> Tensor:
        """As `Serve.forward`."""
        ...


class TorchEngine:
    """An engine on the processor, run by one thread for each stream, which share `threads` helpers."""

    device_bytes: Final = 0
    """Its memory is the processor's."""

    def __init__(self, record: EngineRecord, bands: int, load: Callable[[], Callable[[Batch], Planes]]) -> None:
        """`load`, called by such a thread, gives what predicts a batch of the engine's size.

        Raises:
            EngineError: it fails, mostly because memory ran out.
        """
        self.record, self.meter, self._bands = record, Meter(), bands
        threads = max(1, record.threads // record.streams)
        self._pool = ThreadPoolExecutor(record.streams, "engine", torch.set_num_threads, (threads,))
        with device_errors("the network cannot be loaded"):
            self._predict = self._pool.submit(load).result()

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """Planes (N, P, T, T) of each batch, in order; the next batch is pulled while one is computed."""
        return overlapped(batches, self._start, slots_of(self.record), self.meter)

    def _start(self, batch: Batch) -> Callable[[], Planes]:
        running = self._pool.submit(self._run, padded(batch, self.record, self._bands))
        return lambda: running.result()[: len(batch.pixels)]

    def _run(self, batch: Batch) -> Planes:
        with self.meter.running(), device_errors("PyTorch failed on a batch"):
            return self._predict(batch)


class Unsigned(nn.Module):
    """A served graph for uint16, which PyTorch hardly computes in: its pixels come as the int16 of the same bits."""

    def __init__(self, serve: Serve) -> None:
        super().__init__()
        self.serve = serve

    def forward(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """As `Serve.forward`."""
        return self.serve(pixels.to(torch.int32) & 0xFFFF, valid, scale, offset)  # type: ignore[no-any-return] # modules return Any


def load(record: EngineRecord, bundle: Bundle, folder: Path | None) -> Engine:
    """The engine; nothing is compiled.

    Raises:
        EngineError: the processor or the GPU has no room for it.
    """
    del folder

    def eager() -> Serve:
        return laid_out(served(bundle, EAGER, planes=record.planes, tta=record.tta, stacked=False), record.precision)

    if record.target == "cpu":
        return TorchEngine(record, len(bundle.spec.bands), lambda: partial(predict, eager()))
    repeat_exactly()
    with device_errors("the network cannot be loaded onto the GPU"):
        serve = eager().cuda()
    return on_device(record, bundle, signed_graph(serve, record.dtype), Cuda())


def on_device(record: EngineRecord, bundle: Bundle, predictor: Predictor, device: Device) -> RingEngine:
    """An engine that runs `predictor`, which lies on `device` and takes `signed` pixels, in a ring.

    What a GPU computes for a slot is recorded once and replayed. The first slot warms up for all: what runs beside a
    recording has memory of its own, as much again.
    """

    def program(slot: Slot, stream: Stream) -> Work:
        return stream.graphed(computing(predictor, slot), 0 if slot.index else WARM_UP)

    planes = record.planes or bundle.spec.planes
    return RingEngine(record, len(bundle.spec.bands), len(planes), device, program, signed)


def computing(predictor: Predictor, slot: Slot) -> Work:
    """What computes a slot's planes."""
    arrays, output = [slot.device[name] for name in INPUTS], slot.output  # the slot will hold what is returned

    def compute() -> None:
        with torch.inference_mode():
            output.copy_(predictor(*arrays))

    return compute


def repeat_exactly() -> None:
    """Have GPUs give the same bytes in every process, and full precision where it is asked for.

    Left alone, cuDNN may time its algorithms in each process anew, and float32 is multiplied with 10 bits of mantissa.
    """
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def signed_graph(serve: Serve, dtype: str) -> nn.Module:
    """The graph that takes pixels of `dtype` as `signed` gives them."""
    return Unsigned(serve) if dtype == "uint16" else serve


def signed(pixels: NDArray[Any]) -> NDArray[Any]:
    """uint16 as the int16 of the same bits, other types as they are; no copy if it is contiguous."""
    pixels = np.ascontiguousarray(pixels)
    return pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels


def laid_out(serve: Serve, precision: str) -> Serve:
    """The network in its precision, kernels and maps with channels last."""
    serve.network.to(DTYPES[precision]).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # stubs lack it
    return serve


def predict(predictor: Predictor, batch: Batch) -> Planes:
    """The planes of one batch, here and now."""
    with torch.inference_mode():
        return np.asarray(predictor(*tensors(batch)).numpy())


def tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The graph's inputs: pixels, valid, scale, offset."""
    valid = np.require(batch.valid, requirements=["C", "W"]).view(np.uint8)
    pixels, scale, offset = (np.require(a, requirements=["C", "W"]) for a in (batch.pixels, batch.scale, batch.offset))
    return torch.from_numpy(pixels), torch.from_numpy(valid), torch.from_numpy(scale), torch.from_numpy(offset)


def unavailable(target: Target, precision: Precision) -> str | None:
    """Why it cannot serve here; None if it can."""
    if target == "cuda":
        return _unavailable_on_gpu(precision)
    # There are no public names for what oneDNN convolves in.
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return "this processor does not compute in bf16: choose --precision fp32"
    if precision == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():  # noqa: SLF001
        return "this processor does not compute in fp16: choose --precision bf16 or fp32"
    return None


def _unavailable_on_gpu(precision: Precision) -> str | None:
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU: choose --device cpu"
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "this GPU does not compute in bf16: choose --precision fp16"
    return None
