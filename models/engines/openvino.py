"""The engine of choice on CPUs. Imports no torch."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, takewhile
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import numpy as np
import openvino as ov

from models.bundle import Bundle
from models.engines.base import Batch, EngineRecord, EngineRequest, Planes, Precision, Target
from models.engines.meter import Meter
from models.engines.slots import overlapped, padded, slots_of
from models.errors import EngineError

HINTS = {"fp32": "f32", "bf16": "bf16"}
GRAPH = "model.xml"


class OpenVINOEngine:
    """The exported graph, compiled here for `streams` streams that share `threads` threads, not pinned to cores."""

    device_bytes: Final = 0
    """Its memory is the processor's."""

    def __init__(self, record: EngineRecord, folder: Path) -> None:
        """From the graph in `folder`.

        Raises:
            EngineError: OpenVINO does not take it, or would compute in another precision.
        """
        self.record, self.meter = record, Meter()
        config = {
            "INFERENCE_PRECISION_HINT": HINTS[record.precision],  # left alone, it takes bf16 wherever it can
            "NUM_STREAMS": str(record.streams),
            "INFERENCE_NUM_THREADS": str(record.threads),
            "ENABLE_CPU_PINNING": "NO",  # several workers share the cores
        }
        try:
            core = ov.Core()
            compiled = core.compile_model(core.read_model(folder / GRAPH), "CPU", config)
            self._bands = compiled.input("pixels").shape[1]
            self._requests = [compiled.create_infer_request() for _ in range(slots_of(record))]
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile {folder / GRAPH}: {_line(error)}") from error
        used = compiled.get_property("INFERENCE_PRECISION_HINT")
        if used.to_string() != HINTS[record.precision]:
            raise EngineError(f"OpenVINO computes in {used.to_string()} where {record.precision} was asked for")

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """Planes (N, P, T, T) of each batch, in order; the next batch is pulled while one is computed."""
        requests = cycle(self._requests)
        slots = len(self._requests)
        return overlapped(batches, lambda batch: self._start(next(requests), batch), slots, meter=self.meter)

    def _start(self, request: Any, batch: Batch) -> Callable[[], Planes]:
        full = padded(batch, self.record, self._bands)
        inputs = {
            "pixels": np.ascontiguousarray(full.pixels),
            "valid": np.ascontiguousarray(full.valid).view(np.uint8),
            "scale": np.ascontiguousarray(full.scale, np.float32),
            "offset": np.ascontiguousarray(full.offset, np.float32),
        }
        end = self.meter.begin()
        try:
            for name, array in inputs.items():
                request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            request.set_callback(lambda _: end(), None)
            request.start_async()
        except RuntimeError as error:
            end()
            raise EngineError(f"OpenVINO refuses a batch: {_line(error)}") from error

        def wait(held: dict[str, Any] = inputs) -> Planes:
            try:
                request.wait()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed on a batch: {_line(error)}") from error
            finally:
                end()  # a batch that failed calls nobody back
            held.clear()  # until here the request read these arrays in place
            return np.array(request.get_output_tensor().data[: len(batch.pixels)])

        return wait


def unavailable(target: Target, precision: Precision) -> str | None:
    """Why it cannot serve here; None if it can."""
    if target != "cpu":
        return "it runs on CPUs alone: choose --device cpu"
    if precision == "bf16" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "this processor does not compute in bf16: choose --precision fp32"
    return None


def compile_graph(bundle: Bundle, request: EngineRequest, folder: Path) -> None:
    """Export the served graph into `folder`, in OpenVINO's own form: for any CPU and precision."""
    from models.export import export_served

    with tempfile.TemporaryDirectory() as scratch:
        onnx = Path(scratch) / "model.onnx"
        export_served(bundle, request, onnx)
        convert(onnx, folder)


def load(record: EngineRecord, bundle: Bundle, folder: Path | None) -> OpenVINOEngine:
    """The engine of a graph that `compile_graph` wrote."""
    del bundle
    assert folder is not None  # noqa: S101 - it has an artefact
    return OpenVINOEngine(record, folder)


def convert(onnx: Path, folder: Path) -> None:
    """Write the graph of an ONNX file in OpenVINO's own form: weights in full precision, normalisation marked as exact.

    Without the mark, bf16 would round the radiometry and the stored values to 8 bits before they are normalised.
    """
    try:
        ov.save_model(ov.Core().read_model(onnx), folder / GRAPH, compress_to_fp16=False)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot read the exported graph: {_line(error)}") from error
    document = ET.parse(folder / GRAPH)  # noqa: S314 - written by the line above
    for layer in takewhile(lambda layer: layer.get("type") != "Convolution", document.iter("layer")):
        _mark_exact(layer)
    document.write(folder / GRAPH, encoding="utf-8", xml_declaration=True)


def _mark_exact(layer: ET.Element) -> None:
    """Give a layer the attribute that keeps it in float32; it stands behind <data>, before the ports."""
    info = layer.find("rt_info")
    if info is None:
        info = ET.Element("rt_info")
        layer.insert(0 if layer.find("data") is None else 1, info)
    ET.SubElement(info, "attribute", {"name": "precise", "version": "0", "value": ""})


def _line(error: Exception) -> str:
    """What OpenVINO says, without the places in its source that it names before."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
