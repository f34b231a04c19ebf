"""The served graph with a network of half the width: fp16 or bf16 between a normalisation and a decision in fp32.

TensorRT 11 types every layer as the file does, so the file decides where it computes in half precision. Normalisations
are folded before the weights are rounded: the exporter, which would fold them itself, leaves kernels in fp32 that way.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from torch import nn

from models.bundle import Bundle
from models.engines.base import EngineRequest
from models.engines.torch import DTYPES
from models.errors import EngineError
from models.export import INPUTS, OUTPUT, write_onnx
from models.serve import Serve, served
from models.wire import Wired

OPSET: Final = 22
"""The first with convolutions in bf16."""

KINDS: Mapping[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""ONNX's names of the halves."""
SIZED: Final = frozenset({"Resize", "Upsample"})
"""Operators whose inputs behind the first, regions and scales, are float32 whatever they enlarge."""


def export_half(bundle: Bundle, request: EngineRequest, path: Path) -> Path:
    """Write the graph that serves `bundle`, its pixels as `models.wire` has them, its network in `request.precision`.

    Raises:
        EngineError: a weight is beyond what the precision holds, or an imported graph cannot be cast.
    """
    if bundle.spec.imported:
        from models.imported import write_served

        rework = partial(half_graph, precision=request.precision)
        return write_served(bundle, request, path, opset=OPSET, entrance=_entrance, rework=rework)
    serve = served(bundle, planes=request.planes, tta=request.tta)
    return export_wired(serve, path, request)


def export_wired(serve: Serve, path: Path, request: EngineRequest) -> Path:
    """The same of a served graph, whose network is cast in place."""
    halve(serve.network, request.precision)
    wire = Wired(serve, request.dtype).eval()
    example = wire.example(request.tile, request.batch)
    return write_onnx(wire, example, path, inputs=INPUTS, outputs=[OUTPUT], opset=OPSET)


def _entrance(serve: Serve, request: EngineRequest) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    wire = Wired(serve, request.dtype, leave=False)
    return wire, wire.example(request.tile, request.batch)


def halve(network: nn.Module, precision: str) -> nn.Module:
    """Cast a network in place; every weight must stay finite.

    Raises:
        EngineError: one does not, which fp16 alone can do.
    """
    for name, values in network.state_dict().items():
        if values.is_floating_point():
            _check_range(name, values, precision)
    return network.to(DTYPES[precision])


def _check_range(name: str, values: torch.Tensor, precision: str) -> None:
    limit = torch.finfo(DTYPES[precision]).max
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not largest <= limit:
        raise EngineError(f"{name} reaches {largest:.3g}, {precision} ends at {limit:.3g}: choose bf16 or fp32")


def half_graph(model: ModelProto, precision: str) -> ModelProto:
    """A copy of a network's graph that computes in `precision` between an input and outputs that stay in float32.

    Raises:
        EngineError: a weight is beyond what the precision holds, or the graph has branches or loops.
    """
    half = ModelProto()
    half.CopyFrom(model)
    if precision == "fp32":
        return half
    graph, kind = half.graph, KINDS[precision]
    exact = {name for node in graph.node if node.op_type in SIZED for name in node.input[1:]}
    for tensor in _tensors(graph, exact):
        _halve_tensor(tensor, precision)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in {AttributeProto.GRAPH, AttributeProto.GRAPHS}:
                raise EngineError(f"the graph has a {node.op_type}, whose branches are not cast: choose precision fp32")
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    _cast_ends(graph, kind)
    del graph.value_info[:]
    return half


def _tensors(graph: GraphProto, exact: set[str]) -> Iterator[TensorProto]:
    """The constants in float32, less those that an operator wants in it."""
    held = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        held += [(node.output[0], attribute.t) for attribute in node.attribute if attribute.HasField("t")]
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name in {"value_float", "value_floats"}:
                values = helper.get_attribute_value(attribute)
                attribute.CopyFrom(
                    helper.make_attribute("value", onnx.numpy_helper.from_array(np.array(values, np.float32)))
                )
                held.append((node.output[0], attribute.t))
    return (tensor for name, tensor in held if name not in exact and tensor.data_type == TensorProto.FLOAT)


def _halve_tensor(tensor: TensorProto, precision: str) -> None:
    values, name = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()), tensor.name
    _check_range(name, values, precision)
    raw = values.to(DTYPES[precision]).contiguous().view(torch.uint16).numpy().astype("<u2").tobytes()
    tensor.CopyFrom(helper.make_tensor(name, KINDS[precision], tuple(values.shape), raw, raw=True))


def _cast_ends(graph: GraphProto, kind: int) -> None:
    first, last = graph.input[0].name, [value.name for value in graph.output]
    inner = {first: f"{first}/half"} | {name: f"{name}/half" for name in last}
    for node in graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = inner.get(name, name)
    graph.node.insert(0, _cast(first, inner[first], kind))
    graph.node.extend(_cast(inner[name], name, TensorProto.FLOAT) for name in last)


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=kind)
