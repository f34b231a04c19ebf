"""The served graph as ONNX: one file, fixed tile and batch, checked."""

import warnings
from pathlib import Path

import onnx
import torch

from models.serve import Serve

OPSET = 20
"""The newest that every engine here reads in float32."""
INPUTS = ("pixels", "valid", "scale", "offset")
OUTPUT = "planes"


def export_onnx(serve: Serve, path: Path, *, tile: int, dtype: str, batch: int = 1) -> Path:
    """Write `serve` for batches (batch, C, tile, tile) of type `dtype`. The same network gives the same bytes."""
    bands = serve.mean.shape[0]
    example = (
        torch.zeros((batch, bands, tile, tile), dtype=getattr(torch, dtype)),
        torch.ones((batch, tile, tile), dtype=torch.uint8),
        torch.ones(bands),
        torch.zeros(bands),
    )
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            serve, example, dynamo=True, opset_version=OPSET, input_names=INPUTS, output_names=[OUTPUT], verbose=False
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
