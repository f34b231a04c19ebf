"""TensorRT 11, where there is an NVIDIA GPU: the served graph as a plan for one tile, one batch and one kind of GPU.

served graph ──► ONNX in fp16 or bf16 ──► network, strongly typed ──► plan ──► engine ──► one context a slot

The library comes in two flavours with one interface: `tensorrt`, for any GPU, and `tensorrt_rtx`, for those of
workstations, which makes plans without a GPU. Either is imported here alone, when it is first used.
"""

import functools
import importlib
import importlib.util
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import onnx
import torch

from models.bundle import Bundle
from models.engines.base import EngineRecord, EngineRequest, Precision, Target
from models.engines.device import device
from models.engines.ring import Buffer, Cuda, Device, Slot, Stream, Work, device_errors
from models.engines.ringed import RingEngine
from models.engines.trt_api import CudaEngine, ExecutionContext, Library
from models.engines.trt_plan import WORKSPACE, Plans, Shapes, logger, sentence
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


def load(record: EngineRecord, bundle: Bundle, folder: Path | None) -> RingEngine:
    """The engine, from a plan whose bytes have been verified: TensorRT trusts a plan as one trusts a program.

    Raises:
        EngineError: it cannot run here, the plan is of another version, for another GPU or another request, or the GPU
            has no room for it.
    """
    # Without a GPU, TensorRT's runtime is an object over a null pointer, and using it ends the process.
    if reason := unavailable(record.target, record.precision):
        raise EngineError(f"TensorRT cannot run here: {reason}")
    assert folder is not None  # noqa: S101 - this backend compiles
    trt = library()
    torch.cuda.empty_cache()  # what PyTorch keeps of an engine before this one is lacking to TensorRT
    told = logger(trt.ILogger)
    del told.errors[:]
    try:
        runtime = trt.Runtime(told)
    except TypeError as error:  # its constructor's way of saying that it gave nothing
        raise EngineError(f"TensorRT cannot start: {sentence(told.errors)}") from error
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine((folder / PLAN).read_bytes())
    if engine is None:
        raise EngineError(
            f"TensorRT cannot load {folder / PLAN}: {sentence(told.errors)}: prepare the engine again, or choose a "
            "smaller --tile or --batch if memory ran out"
        )
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    return on_device(record, bundle, engine, strategy, Cuda())


def on_device(record: EngineRecord, bundle: Bundle, engine: CudaEngine, strategy: Any, device: Device) -> RingEngine:
    """An engine that runs a plan in a ring. `strategy`: for contexts whose memory is given to them.

    Raises:
        EngineError: the plan takes or gives something else, or the device has no room for it.
    """
    with device_errors("the plan has no room on the device"):
        memory = device.memory(Buffer((max(engine.device_memory_size_v2, 1),), torch.uint8))
    program = PlanProgram(engine, strategy, memory)
    planes = record.planes or bundle.spec.planes
    return RingEngine(record, len(bundle.spec.bands), len(planes), device, program, wired)


class PlanProgram:
    """A plan as a ring's program: each slot has a context of its own; they work in turn, in the same memory."""

    def __init__(self, engine: CudaEngine, strategy: Any, memory: torch.Tensor) -> None:
        self._engine, self._strategy, self._memory = engine, strategy, memory

    def __call__(self, slot: Slot, stream: Stream) -> Work:
        """A context bound to the buffers of one slot, recorded as a CUDA graph.

        Raises:
            EngineError: the plan takes or gives something else, or there is no room for the context.
        """
        ends = slot.device | {OUTPUT: slot.output}
        _check(self._engine, ends)
        context = self._engine.create_execution_context(self._strategy)
        if context is None:
            raise EngineError("TensorRT has no room for another context: choose a smaller --tile or --batch")
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        for name, tensor in ends.items():
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f"TensorRT does not take the memory of {name}: prepare the engine again")
        return stream.graphed(partial(self._enqueue, context, stream.handle))

    def _enqueue(self, context: ExecutionContext, stream: int) -> None:
        if not context.execute_async_v3(stream):
            raise RuntimeError("TensorRT could not be given a batch")


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


def _check(engine: CudaEngine, ends: Mapping[str, torch.Tensor]) -> None:
    """Refuse a plan that would read or write beyond its inputs and output."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    kinds = {torch.uint8: "UINT8", torch.float32: "FLOAT"}
    found = {name: (tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name).name) for name in names}
    wanted = {name: (tuple(tensor.shape), kinds[tensor.dtype]) for name, tensor in ends.items()}
    if found != wanted:
        raise EngineError(f"the plan takes and gives {found}, not {wanted}: prepare the engine again")
