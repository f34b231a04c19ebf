"""The served graph for a library whose integers are 8 bits wide and may only come in and go out: TensorRT.

pixels, uint8 | bytes of uint16, int16 | float32 ──► float32 ──► the served graph in floats ──► planes, uint8

A raster of uint16 or int16 goes in as it lies in memory, as bytes (N, C, T, 2 T), and is put together in the graph.
"""

from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.serve import Serve

COMPARED: Final = 64
"""Classes up to which the best one is found by comparing each with the best so far. TensorRT finds it by sorting them
all, which on images costs more than many a network (github.com/onnx/onnx-tensorrt/issues/671)."""

WIDTH: Final = {"uint8": 1, "uint16": 2, "int16": 2, "float32": 1}
"""Values on the wire for each pixel."""


class Wired(nn.Module):
    """A served graph whose pixels come as `wired` gives them, or without `leave` its first part alone."""

    def __init__(self, serve: Serve, dtype: str, *, leave: bool = True) -> None:
        super().__init__()
        self.serve, self.dtype, self.leave = serve, dtype, leave

    def forward(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """As `Serve.forward`, or as `Serve.enter`."""
        values, known = joined(pixels.to(torch.float32), self.dtype), valid.to(torch.float32)
        inside = self.serve if self.leave else self.serve.enter
        return inside(values, known, scale, offset)

    def example(self, tile: int, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs of the right shapes and types."""
        bands, width = self.serve.mean.shape[0], WIDTH[self.dtype]
        kind = torch.float32 if self.dtype == "float32" else torch.uint8
        return (
            torch.zeros((batch, bands, tile, width * tile), dtype=kind),
            torch.ones((batch, tile, tile), dtype=torch.uint8),
            torch.ones(bands),
            torch.zeros(bands),
        )


def joined(values: Tensor, dtype: str) -> Tensor:
    """Pixels (N, C, T, T) as float32 from what came over the wire, as float32: low bytes before high ones."""
    if WIDTH[dtype] == 1:
        return values
    images, bands, rows, cols = values.shape
    pairs = values.reshape(images, bands, rows, cols // 2, 2)
    low, high = pairs[..., 0], pairs[..., 1]
    if dtype == "int16":
        high = torch.where(high >= 128, high - 256, high)
    return low + 256 * high


def wired(pixels: NDArray[Any]) -> NDArray[Any]:
    """(N, C, T, T) as it goes over the wire, without a copy: uint8 and float32 as they are, others as bytes."""
    if WIDTH[str(pixels.dtype)] == 1:
        return pixels
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).view(np.uint8)


def wire_ready(model: ModelProto) -> ModelProto:
    """A copy of a served graph with no integers of 8 bits inside, and with comparisons where there was a sort."""
    ready = ModelProto()
    ready.CopyFrom(model)
    _compare_classes(ready)
    _cast_last(ready)
    onnx.checker.check_model(ready, full_check=True)
    return ready


def _cast_last(model: ModelProto) -> None:
    """Whatever becomes uint8 becomes float32 instead, which holds the same values; the output alone is cast."""
    graph, output = model.graph, model.graph.output[0].name
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.UINT8:
                attribute.i = TensorProto.FLOAT
        for index, name in enumerate(node.output):
            if name == output:
                node.output[index] = f"{output}_exact"
    graph.node.append(
        helper.make_node("Cast", [f"{output}_exact"], [output], name=f"{output}_cast", to=TensorProto.UINT8)
    )
    del graph.value_info[:]


def _compare_classes(model: ModelProto) -> None:
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    for index, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type == "ArgMax" and node.input[0] in shapes:
            options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            classes = shapes[node.input[0]][1].dim_value
            if options.get("axis", 0) == 1 and 2 <= classes <= COMPARED:
                del model.graph.node[index]
                for added in reversed(_comparisons(model, node, classes, keep=bool(options.get("keepdims", 1)))):
                    model.graph.node.insert(index, added)


def _comparisons(model: ModelProto, node: NodeProto, classes: int, *, keep: bool) -> list[NodeProto]:
    """The first of the largest, as `ArgMax` finds it: a class is better only if its logit is larger."""
    source, target = node.input[0], node.output[0]
    parts = [f"{target}_class{k}" for k in range(classes)]
    nodes = [helper.make_node("Split", [source], parts, axis=1, num_outputs=classes)]
    names = [f"{target}_is{k}" for k in range(classes)]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(float(k), np.float32), name) for k, name in enumerate(names)
    )
    best, label = parts[0], names[0]
    for k in range(1, classes):
        better, larger, chosen = (f"{target}_{what}{k}" for what in ("better", "largest", "label"))
        nodes += [
            helper.make_node("Greater", [parts[k], best], [better]),
            helper.make_node("Where", [better, names[k], label], [chosen]),
            helper.make_node("Max", [parts[k], best], [larger]),
        ]
        best, label = larger, chosen
    whole = target if keep else f"{target}_whole"
    nodes.append(helper.make_node("Cast", [label], [whole], to=TensorProto.INT64))
    if not keep:
        axis = f"{target}_axis"
        model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axis))
        nodes.append(helper.make_node("Squeeze", [whole, axis], [target]))
    return nodes
