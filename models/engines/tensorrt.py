"""TensorRT 11, where there is an NVIDIA GPU: the served graph as a plan for one tile, one batch and one kind of GPU.

served graph ──► ONNX in fp16 or bf16 ──► network, strongly typed ──► plan ──► engine ──► one context a slot

The library comes in two flavours with one interface: `tensorrt`, for any GPU, and `tensorrt_rtx`, for those of
workstations, which makes plans without a GPU. Either is imported here alone, when it is first used.
"""

import functools
import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
import torch

from models.bundle import Bundle
from models.engines.base import Batch, EngineRecord, EngineRequest, Planes, Precision, Target
from models.engines.device import device
from models.engines.meter import Meter
from models.engines.ring import Buffer, Cuda, Device, Ring, Slot, Stream, Work
from models.engines.slots import overlapped, padded
from models.engines.trt_api import CudaEngine, ExecutionContext, Library
from models.engines.trt_plan import WORKSPACE, Plans, Shapes, logger
from models.errors import EngineError
from models.export import OUTPUT
from models.halves import export_half
from models.wire import WIDTH, wire_ready, wired

MODULES: Final = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""The flavours, the one that is preferred first, and each without its metapackage."""
RTX: Final = "tensorrt_rtx"
PLAN: Final = "plan.bin"
RTX_CAPABILITIES: Final = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX has kernels for: data centres' 9.0 and 10.0 are not among them."""
BF16_CAPABILITY: Final = 8
"""The first major compute capability with bf16."""


def unavailable(target: Target, precision: Precision) -> str | None:
    """Why TensorRT cannot serve here, and the way out; None if it can."""
    try:
        library()
    except EngineError as error:
        return str(error)
    if target == "cpu":
        return f"{_made()}: it computes on NVIDIA GPUs alone"
    if not torch.cuda.is_available():
        return f"{_made()}: PyTorch {'is installed without CUDA' if torch.version.cuda is None else 'sees no GPU'}"
    return unable(flavour(), torch.cuda.get_device_capability(), precision)


def unbuildable() -> str | None:
    """Why not even a plan can be made here; None if one can: on a GPU by either flavour, without one by RTX's."""
    try:
        return None if flavour() == RTX or torch.cuda.is_available() else _made()
    except EngineError as error:
        return str(error)


def unable(name: str, capability: tuple[int, int], precision: Precision) -> str | None:
    """What a GPU of some compute capability lacks for a flavour; None if nothing."""
    dotted = ".".join(map(str, capability))
    if name == RTX and dotted not in RTX_CAPABILITIES:
        return (
            f"tensorrt_rtx has no kernels for compute capability {dotted}, only for {', '.join(RTX_CAPABILITIES)}: "
            "install tensorrt-cu13, or choose --engine inductor"
        )
    if precision == "bf16" and capability[0] < BF16_CAPABILITY:
        return f"a GPU of compute capability {dotted} has no bf16: choose --precision fp16"
    return None


@functools.cache
def library() -> Library:
    """The flavour of TensorRT that is installed.

    Raises:
        EngineError: none is, or it cannot be loaded, or it is older than 11.
    """
    found = [name for name in MODULES if importlib.util.find_spec(name)]
    if not found:
        raise EngineError("TensorRT is not installed: pip install 'widefield[gpu]', or tensorrt-rtx for a workstation")
    try:
        module = cast("Library", importlib.import_module(found[0]))
    except (ImportError, OSError) as error:
        raise EngineError(f"{found[0]} cannot be loaded ({error}): install it anew") from error
    if hasattr(module.BuilderFlag, "FP16"):
        raise EngineError(f"{found[0]} {module.__version__} types layers as it likes: install tensorrt-cu13>=11")
    return module


def flavour() -> str:
    """`tensorrt` or `tensorrt_rtx`."""
    return RTX if "rtx" in library().__name__ else "tensorrt"


def _made() -> str:
    can = "makes plans here, and cannot run them" if flavour() == RTX else "can neither make nor run plans here"
    return f"{flavour()} {library().__version__} {can}"


def compile_graph(bundle: Bundle, request: EngineRequest, folder: Path) -> None:
    """Make the plan for `request`. How fast the GPU's kernels are is kept beside `folder`, for plans to come.

    Raises:
        EngineError: TensorRT is not here, refuses the graph, or can make no plan of it.
    """
    if reason := unbuildable():
        raise EngineError(reason)
    with tempfile.TemporaryDirectory() as scratch:
        model = wire_ready(onnx.load(export_half(bundle, request, Path(scratch) / "model.onnx")))
    plans = Plans(library(), timings=timings(folder.parent))
    shapes = inputs(len(bundle.spec.bands), request)
    plan = plans.plan(model.SerializeToString(), shapes, request.precision, workspace=workspace())
    (folder / PLAN).write_bytes(plan)


def load(record: EngineRecord, bundle: Bundle, folder: Path | None) -> "TensorRTEngine":
    """The engine, from a plan whose bytes have been verified: TensorRT trusts a plan as one trusts a program.

    Raises:
        EngineError: it cannot run here, or the plan is of another version, for another GPU or another request.
    """
    # Without a GPU, TensorRT's runtime is an object over a null pointer, and using it ends the process.
    if reason := unavailable(record.target, record.precision):
        raise EngineError(f"TensorRT cannot run here: {reason}")
    assert folder is not None  # noqa: S101 - this backend compiles
    trt = library()
    runtime = trt.Runtime(logger(trt.ILogger))
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine((folder / PLAN).read_bytes())
    if engine is None:
        raise EngineError(f"{folder / PLAN} is not for this GPU or this version of TensorRT: prepare the engine again")
    planes = len(record.planes or bundle.spec.planes)
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    return TensorRTEngine(record, engine, strategy, Cuda(), bands=len(bundle.spec.bands), planes=planes)


class TensorRTEngine:
    """A plan on a device: a context and a CUDA graph for each slot. The contexts work in turn, in the same memory."""

    def __init__(
        self, record: EngineRecord, engine: CudaEngine, strategy: Any, device: Device, *, bands: int, planes: int
    ) -> None:
        """`strategy`: for contexts whose memory is given to them.

        Raises:
            EngineError: the plan takes or gives something else, or the device has no room for it.
        """
        self.record, self.meter = record, Meter()
        self._engine, self._strategy = engine, strategy
        buffers = {name: Buffer(shape, _type(name, record.dtype)) for name, shape in inputs(bands, record).items()}
        output = Buffer((record.batch, planes, record.tile, record.tile), torch.uint8)
        _check(engine, buffers | {OUTPUT: output})
        self._memory = device.memory(Buffer((max(engine.device_memory_size_v2, 1),), torch.uint8))
        self._contexts: list[ExecutionContext] = []
        self._ring = Ring(device, buffers, output, self._program)

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """Planes (N, P, T, T) of each batch, in order; the next ones are pulled and copied while one is computed."""
        return overlapped(batches, self._start, slots=self._ring.slots, meter=self.meter)

    def _start(self, batch: Batch) -> Callable[[], Planes]:
        full = padded(batch, self.record)
        arrays = {
            "pixels": wired(full.pixels),
            "valid": full.valid.view(np.uint8),
            "scale": full.scale.astype(np.float32, copy=False),
            "offset": full.offset.astype(np.float32, copy=False),
        }
        answer = self._ring.start(arrays, self.meter.begin())
        return lambda: answer()[: len(batch.pixels)]

    def _program(self, slot: Slot, stream: Stream) -> Work:
        """A context bound to the buffers of one slot, recorded as a CUDA graph."""
        context = self._engine.create_execution_context(self._strategy)
        if context is None:
            raise EngineError("TensorRT has no room for another context: choose a smaller tile or batch")
        self._contexts.append(context)  # what has been recorded does not keep it
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        for name, tensor in (slot.device | {OUTPUT: slot.output}).items():
            context.set_tensor_address(name, tensor.data_ptr())

        def work() -> None:
            if not context.execute_async_v3(stream.handle):
                raise RuntimeError("TensorRT could not be given a batch")

        return stream.graphed(work)


def inputs(bands: int, request: EngineRequest | EngineRecord) -> Shapes:
    """Shapes of what goes in, by name."""
    tile, batch = request.tile, request.batch
    return {
        "pixels": (batch, bands, tile, tile * WIDTH[request.dtype]),
        "valid": (batch, tile, tile),
        "scale": (bands,),
        "offset": (bands,),
    }


def workspace() -> int:
    """What kernels may use beside their maps, in bytes: at most a quarter of what is free on the GPU."""
    return min(WORKSPACE, torch.cuda.mem_get_info()[0] // 4) if torch.cuda.is_available() else WORKSPACE


def timings(folder: Path) -> Path | None:
    """The file in `folder` for the speeds of this GPU's kernels; none for RTX, which chooses them on the GPU."""
    if flavour() == RTX:
        return None
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{library().__version__} {device('cuda')}")
    return folder / f"timings-{name}.bin"


def _type(name: str, dtype: str) -> torch.dtype:
    floats = name in {"scale", "offset"} or (name, dtype) == ("pixels", "float32")
    return torch.float32 if floats else torch.uint8


def _check(engine: CudaEngine, buffers: dict[str, Buffer]) -> None:
    """Refuse a plan that would read or write beyond the buffers."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    kinds = {torch.uint8: "UINT8", torch.float32: "FLOAT"}
    found = {name: (tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name).name) for name in names}
    wanted = {name: (buffer.shape, kinds[buffer.dtype]) for name, buffer in buffers.items()}
    if found != wanted:
        raise EngineError(f"the plan takes and gives {found}, not {wanted}: prepare the engine again")
