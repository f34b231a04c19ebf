"""PyTorch's compiler as an engine: the served graph as native code, compiled once, loaded in a moment.

    compile   served graph ─► torch.export ─► AOTInductor ─► native code with the weights in it, laid out for it
    load      processor: model.so ─► planes        GPU: model.pt2 ─► ring, CUDA graphs ─► planes

Unlike what `torch.compile` keeps in a process, this is a file: the cache verifies it before it is loaded. On a
processor it is as fast (Inception v1, width 0.25, 512 x 512, one thread, fp32: 49 ms against 48, eager 70).

On a GPU the graph is compiled twice, with PyTorch's own convolutions and with cuDNN's, which include the ReLU; the
faster one is kept.
"""

import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.utils
from filelock import FileLock
from torch import Tensor, nn

from models.bundle import Bundle
from models.engines import torch as eager
from models.engines.base import Batch, Engine, EngineRecord, EngineRequest, Planes, Precision, Target
from models.engines.fused import fuse_relus
from models.engines.native import NativeGraph
from models.engines.ring import Cuda, Device, device_errors
from models.engines.torch import TorchEngine, laid_out, on_device, repeat_exactly, signed_graph
from models.errors import EngineError
from models.rewrite import Rewrite
from models.serve import COMPILED, served

LIBRARY, PACKAGE = "model.so", "model.pt2"
"""What is kept for a processor, and for a GPU."""

COMMON: Mapping[str, Any] = {
    "freezing": True,
    "size_asserts": False,  # what they say holds addresses: the code would be another one each time
    "aot_inductor.precompile_headers": False,  # they would lie in /tmp under a name that anyone can take
    "aot_inductor.enable_line_tables": False,
}
OPTIONS: Mapping[Target, Mapping[str, Any]] = {
    "cpu": {**COMMON, "cpp.dynamic_threads": True},  # each stream brings its own number of threads
    "cuda": {
        **COMMON,
        "max_autotune": True,
        "max_autotune_conv_backends": "ATEN,TRITON",
        "conv_1x1_as_mm": True,
    },
}
"""Of Inductor. CUDA graphs are the ring's own, one a slot."""

NEWER = frozenset({"aot_inductor.enable_line_tables"})
"""Options that PyTorch before 2.13 does not have, and does without."""

VARIANTS: Mapping[str, tuple[Rewrite, ...]] = {"plain": (), "fused": (fuse_relus,)}
"""What is compiled for a GPU and compared, by name: rewrites after those of every compiled graph."""

TIMED = 20
"""Runs of a variant that are timed, after as many to warm up."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]

log = logging.getLogger(__name__)


def unavailable(target: Target, precision: Precision) -> str | None:
    """Why it cannot serve here; None if it can."""
    if reason := eager.unavailable(target, precision):
        return reason
    if target == "cuda" and find_spec("triton") is None:
        return "Inductor writes its kernels in Triton, which is not installed: pip install triton"
    if target == "cuda" and _cuda_home() is None:
        return "Inductor needs CUDA's headers: install the CUDA toolkit, or name its folder in CUDA_HOME"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "Inductor needs a C++ compiler: install g++, or name one in CXX"
    return None


def compile_graph(bundle: Bundle, request: EngineRequest, folder: Path) -> None:
    """Write model.so or model.pt2. For a processor these are the same bytes again in a cache of the same path.

    Raises:
        EngineError: Inductor cannot compile the network; the reason.
    """
    torch.set_num_threads(request.threads)
    with workshop(folder.parent / ".inductor") as scratch:
        if request.target_here == "cpu":
            package = scratch / PACKAGE
            package_graph(_graph(bundle, request), example(bundle, request), package, OPTIONS["cpu"])
            extract_library(package, folder / LIBRARY)
        else:
            repeat_exactly()
            with device_errors("the network cannot be compiled on the GPU"):
                inputs = tuple(tensor.cuda() for tensor in example(bundle, request))
            graphs = {name: partial(_on_gpu, bundle, request, rewrites) for name, rewrites in VARIANTS.items()}
            fastest(graphs, inputs, scratch, Cuda(), OPTIONS["cuda"]).rename(folder / PACKAGE)


@contextmanager
def workshop(path: Path) -> Iterator[Path]:
    """An empty folder for all that Inductor writes meanwhile. One process at a time has it.

    Native code carries its path: were it another one each time, so would be the digest of the engine.
    """
    with FileLock(f"{path}.lock"):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        places = {"TORCHINDUCTOR_CACHE_DIR": str(path / "code"), "TRITON_CACHE_DIR": str(path / "triton")}
        if torch.cuda.is_available() and (toolkit := _cuda_home()):
            places["CUDA_HOME"] = toolkit  # named there alone, its folder of stubs is looked into for libcuda
        before = {name: os.environ.get(name) for name in places}
        os.environ.update(places)
        torch._inductor.utils.clear_caches()  # noqa: SLF001 - what is compiled now shall lie here
        try:
            yield path
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            shutil.rmtree(path, ignore_errors=True)  # a compiler that was given up may still write


def load(record: EngineRecord, bundle: Bundle, folder: Path | None) -> Engine:
    """The engine from what `compile_graph` wrote.

    Raises:
        EngineError: it was written by another version of PyTorch, or the GPU has no room for it.
    """
    assert folder is not None  # noqa: S101 - this backend has an artefact
    if record.target == "cuda":
        repeat_exactly()
        with device_errors("the compiled network cannot be loaded onto the GPU"):
            torch.cuda.empty_cache()  # native code takes its weights' memory past PyTorch, which may keep some
            predictor = opened(folder / PACKAGE)
        return on_device(record, bundle, predictor, Cuda())
    library = folder / LIBRARY
    return TorchEngine(
        record, len(bundle.spec.bands), lambda: partial(run_native, NativeGraph(library, record.streams))
    )


def run_native(graph: NativeGraph, batch: Batch) -> Planes:
    """The planes of one batch. Native code does not look at shapes: `batch` is `padded`."""
    scale, offset = (np.asarray(values, np.float32) for values in (batch.scale, batch.offset))
    return graph(batch.pixels, batch.valid.view(np.uint8), scale, offset)


def example(bundle: Bundle, request: EngineRequest) -> Inputs:
    """Inputs of the right shapes and types."""
    bands, tile = len(bundle.spec.bands), request.tile
    kind = torch.int16 if request.dtype == "uint16" else getattr(torch, request.dtype)
    pixels = torch.zeros((request.batch, bands, tile, tile), dtype=kind)
    return pixels, torch.ones((request.batch, tile, tile), dtype=torch.uint8), torch.ones(bands), torch.zeros(bands)


def package_graph(graph: nn.Module, inputs: Inputs, package: Path, options: Mapping[str, Any]) -> None:
    """Compile a graph for the device that it lies on.

    Raises:
        EngineError: Inductor cannot; the last line of what it says.
    """
    from torch._inductor import aoti_compile_and_package, config

    known = config.get_config_copy()
    chosen = {name: value for name, value in options.items() if name in known or name not in NEWER}
    try:
        with torch.no_grad():
            program = torch.export.export(graph, inputs)
            aoti_compile_and_package(program, package_path=str(package), inductor_configs=chosen)
    except Exception as error:  # tracing, compilers and assertions have exceptions of many kinds
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise EngineError(f"Inductor cannot compile the network: {last}") from error


def extract_library(package: Path, library: Path) -> None:
    """The native code of a package for a processor, which needs nothing beside it.

    Raises:
        EngineError: parts of the network would be run by Python.
    """
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        if any(name.endswith(".wrapper.json") for name in names):
            raise EngineError("Inductor cannot compile the network: it holds operations without native code")
        (native,) = (name for name in names if name.endswith(".so"))
        with archive.open(native) as source, library.open("wb") as target:
            shutil.copyfileobj(source, target)


def fastest(
    graphs: Mapping[str, Callable[[], nn.Module]],
    inputs: Any,
    scratch: Path,
    device: Device,
    options: Mapping[str, Any],
) -> Path:
    """The package of the variant that takes least time on `device`; those that fail are named in the log.

    Raises:
        EngineError: none can be made, compiled and run; the reasons.
    """
    seconds, reasons = {}, []
    for name, graph in graphs.items():
        package = scratch / f"{name}.pt2"
        try:
            with device_errors("it cannot be run"):
                package_graph(graph(), inputs, package, options)
                seconds[package] = _seconds(package, inputs, device)
        except EngineError as error:
            reasons.append(f"{name}: {error}")
            log.warning("left out: %s", reasons[-1])
    if not seconds:
        raise EngineError("; ".join(reasons))
    log.info("milliseconds a batch: %s", {package.stem: 1000 * value for package, value in seconds.items()})
    return min(seconds, key=lambda package: seconds[package])


def opened(package: Path) -> Any:
    """What a package computes, called by one thread at a time."""
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(package), run_single_threaded=True)  # its locks would not survive a recording


def _cuda_home() -> str | None:
    """The folder of the CUDA toolkit, as PyTorch finds it."""
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME


def _seconds(package: Path, inputs: Any, device: Device) -> float:
    """Seconds a run, as the ring runs it."""
    predictor, stream = opened(package), device.stream("timing")

    def compute() -> None:
        with torch.inference_mode():
            predictor(*inputs)

    work, start = stream.graphed(compute), 0.0
    for run in range(2 * TIMED):
        if run == TIMED:
            stream.record().synchronize()
            start = time.perf_counter()
        stream.enqueue(work)
    stream.record().synchronize()
    return (time.perf_counter() - start) / TIMED


def _on_gpu(bundle: Bundle, request: EngineRequest, rewrites: tuple[Rewrite, ...]) -> nn.Module:
    return _graph(bundle, request, rewrites).cuda()


def _graph(bundle: Bundle, request: EngineRequest, rewrites: tuple[Rewrite, ...] = ()) -> nn.Module:
    """The served graph for `signed` pixels, on the processor."""
    precision = request.precision
    serve = laid_out(served(bundle, COMPILED, planes=request.planes, tta=request.tta), precision)
    for rewrite in rewrites:
        rewrite(serve.network)
    return signed_graph(serve, request.dtype)
