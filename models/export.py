"""The served graph as ONNX: one file, fixed tile, checked."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from models.bundle import Bundle
from models.engines.base import EngineRequest
from models.serve import Serve, served

OPSET = 20
"""The newest that every engine here reads in float32."""
INPUTS = ("pixels", "valid", "scale", "offset")
OUTPUT = "planes"
Axes = tuple[dict[int, str] | None, ...] | None
"""Of each input: its axes without a fixed length, by name."""


def export_served(bundle: Bundle, request: EngineRequest, path: Path) -> Path:
    """Write the graph that serves a bundle, its own network or one that was imported, for a request's batches."""
    if bundle.spec.imported:
        from models.imported import write_served

        return write_served(bundle, request, path)
    serve = served(bundle, planes=request.planes, tta=request.tta)
    return export_onnx(serve, path, tile=request.tile, dtype=request.dtype, batch=request.batch)


def export_onnx(serve: Serve, path: Path, *, tile: int, dtype: str, batch: int | None = 1) -> Path:
    """Write `serve` for batches (batch, C, tile, tile) of type `dtype`, of any length if `batch` is None.

    The same network gives the same bytes.
    """
    inputs = example(serve, tile, dtype, batch or 2)  # the exporter takes an axis of 1 for a fixed one
    axes = None if batch else ({0: "batch"}, {0: "batch"}, None, None)
    return write_onnx(serve, inputs, path, inputs=INPUTS, outputs=[OUTPUT], axes=axes)


def example(serve: Serve, tile: int, dtype: str, batch: int) -> tuple[Tensor, ...]:
    """Inputs of the served graph, of the right shapes and types."""
    bands = serve.mean.shape[0]
    return (
        torch.zeros((batch, bands, tile, tile), dtype=getattr(torch, dtype)),
        torch.ones((batch, tile, tile), dtype=torch.uint8),
        torch.ones(bands),
        torch.zeros(bands),
    )


def write_onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Axes = None,
    opset: int = OPSET,
) -> Path:
    """Write `module` for inputs like `example`, checked; `axes`: those of each input that may have any length."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=axes,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - the dynamo exporter always returns one
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _strip(model: onnx.ModelProto) -> None:
    """Remove what tells of the exporting machine: stack traces and source paths."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in model.functions:
        for node in (function, *function.node):
            del node.metadata_props[:]
            node.doc_string = ""
