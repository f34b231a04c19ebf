"""ONNX Runtime on the CPU: serves in fp32 where nothing better is installed, and is the oracle of what is exported."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import numpy as np

from models.bundle import Bundle
from models.engines.base import Batch, EngineRecord, EngineRequest, Planes, Precision, Target
from models.engines.meter import Meter
from models.engines.slots import overlapped, padded, slots_of
from models.errors import EngineError

GRAPH = "model.onnx"


def unavailable(target: Target, precision: Precision) -> str | None:
    """Why it cannot serve here, and the way out; None if it can."""
    if target != "cpu":
        return "ONNX Runtime is used on the CPU alone: take tensorrt, inductor or torch on a GPU"
    if precision != "fp32":
        return f"ONNX Runtime's kernels for CPUs compute in fp32, not in {precision}: ask for fp32, or take openvino"
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"onnxruntime cannot be imported ({error}): pip install onnxruntime"
    return None


def compile_graph(bundle: Bundle, request: EngineRequest, folder: Path) -> None:
    """Write the exported graph, which is all that is kept."""
    from models.export import export_served

    export_served(bundle, request, folder / GRAPH)


def load(record: EngineRecord, bundle: Bundle, folder: Path | None) -> "OnnxRuntimeEngine":
    """The engine of the graph in `folder`.

    Raises:
        EngineError: there is no graph, or ONNX Runtime does not take it.
    """
    if folder is None:
        raise EngineError(f"bundle {bundle.digest[:12]} has no exported graph here: prepare its engine again")
    return OnnxRuntimeEngine(record, len(bundle.spec.bands), folder / GRAPH)


class OnnxRuntimeEngine:
    """The exported graph in as many sessions as there are streams, each with its share of the threads."""

    device_bytes: Final = 0
    """Its memory is the processor's."""

    def __init__(self, record: EngineRecord, bands: int, graph: Path) -> None:
        self.record, self.meter, self._bands = record, Meter(), bands
        self._pool = ThreadPoolExecutor(record.streams, "engine")
        self._sessions: SimpleQueue[Any] = SimpleQueue()
        for _ in range(record.streams):
            self._sessions.put(session(graph, max(record.threads // record.streams, 1)))

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """Planes (N, P, T, T) of each batch, in order; the next batch is pulled while one is computed."""
        return overlapped(batches, self._start, slots_of(self.record), self.meter)

    def _start(self, batch: Batch) -> Callable[[], Planes]:
        running = self._pool.submit(self._run, padded(batch, self.record, self._bands))
        return lambda: running.result()[: len(batch.pixels)]

    def _run(self, batch: Batch) -> Planes:
        inputs = {
            "pixels": np.ascontiguousarray(batch.pixels),
            "valid": np.ascontiguousarray(batch.valid).view(np.uint8),
            "scale": np.ascontiguousarray(batch.scale, np.float32),
            "offset": np.ascontiguousarray(batch.offset, np.float32),
        }
        own = self._sessions.get()
        try:
            with self.meter.running():
                return np.asarray(answer(own, inputs))
        finally:
            self._sessions.put(own)


def session(graph: Path | bytes, threads: int) -> Any:
    """A session of `threads` threads that sleep while they wait, since several workers share the cores.

    Raises:
        EngineError: ONNX Runtime does not take the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        raise EngineError(f"ONNX Runtime does not take the graph: {_line(error)}") from error


def answer(own: Any, inputs: dict[str, Any], output: str | None = None) -> Any:
    """The output of that name, or the only one, for arrays by the name of each input.

    Raises:
        EngineError: ONNX Runtime fails.
    """
    try:
        return own.run(None if output is None else [output], inputs)[0]
    except Exception as error:  # likewise
        raise EngineError(f"ONNX Runtime failed on a batch: {_line(error)}") from error


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
