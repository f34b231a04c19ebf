"""ONNX graphs of other makers: read as plain data, loosened, raised to a newer operator set, joined, rounded.

    enter                        network.onnx, as its maker wrote it          leave
    pixels ... ──► input (float32) ──► Conv ──► ... ──► output ──► logits ──► planes

Nothing is executed here. Names get the part that they belong to in front of them: `enter/`, `network/`, `leave/`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    compose,
    helper,
    inliner,
    version_converter,
)

from models.errors import BundleError

LARGEST = (2 << 30) - (1 << 20)
"""Bytes that an ONNX file in one piece may have: protobuf holds no more than 2 GiB."""
OLDEST = 7
"""Operator set from which on graphs can be raised."""
IR = 10
"""Version of the format that is written, which engines of today all read."""
HALF = 13
"""Operator set from which on there are values in bf16."""
DOMAINS = {"", "ai.onnx"}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
ROUNDED = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
"""Operators that an engine of half precision computes in it."""
HALVES = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16}


def read_graph(file: Path) -> ModelProto:
    """An ONNX file with its external data folded in, its local functions inlined, and of ONNX's own operators alone.

    Raises:
        BundleError: it cannot be read, is too large, is invalid, or needs operators of other makers or chance.
    """
    try:
        told = onnx.load(file, load_external_data=False)
        _check_size(file, told)
        model = onnx.load(file)
        model = inliner.inline_local_functions(model) if model.functions else model
        _tidy(model)
        onnx.checker.check_model(model, full_check=True)
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's, and those of the checker, of the inliner and of shape inference
        raise BundleError(f"{file} is no valid ONNX file: {' '.join(str(error).split())[:300]}") from error
    _check_operators(file, model)
    return model


def opset_of(model: ModelProto) -> int:
    """Version of ONNX's own operator set that a graph is written in."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in DOMAINS))


def shape_of(graph: GraphProto, name: str) -> list[int | None] | None:
    """Axes of an input or output, None where they may have any length; None if nothing is told of it."""
    for value in (*graph.input, *graph.output):
        if value.name == name and value.type.tensor_type.HasField("shape"):
            return [axis.dim_value or None for axis in value.type.tensor_type.shape.dim]
    return None


def shaped(model: ModelProto, name: str, axes: Sequence[int | str]) -> ModelProto:
    """A copy whose input `name` has these axes, by length or by name; what it makes of others is not told any more."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    value = next(value for value in copy.graph.input if value.name == name)
    value.CopyFrom(helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, list(axes)))
    for output in copy.graph.output:
        for axis in output.type.tensor_type.shape.dim:
            axis.Clear()
    return copy


def raised(model: ModelProto, opset: int) -> ModelProto:
    """The graph in operator set `opset` at least.

    Raises:
        BundleError: an operator has no successor that does the same.
    """
    if opset_of(model) >= opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises RuntimeError and its own
        raise BundleError(
            f"the graph cannot be raised from operator set {opset_of(model)} to {opset}: export it again with "
            f"opset_version={opset} ({' '.join(str(error).split())[:200]})"
        ) from error


def joined(parts: Sequence[tuple[str, ModelProto]], links: Sequence[tuple[str, str]]) -> ModelProto:
    """Graphs in a row as one: `links[i]` names the output of part i and the input of part i + 1 that takes it.

    Each part comes with its name. What leads to no output of the last part is left out. The inputs of the first and the
    outputs of the last keep their names.
    """
    ends = (0, len(parts) - 1)
    named = [
        compose.add_prefix(model, f"{part}/", rename_inputs=at != ends[0], rename_outputs=at != ends[1])
        for at, (part, model) in enumerate(parts)
    ]
    whole = named[0]
    for at, (source, target) in enumerate(links, 1):
        for model in (whole, named[at]):
            model.ir_version = IR
        ties = [(f"{parts[at - 1][0]}/{source}", f"{parts[at][0]}/{target}")]
        outputs = [value.name for value in named[at].graph.output]
        if at < len(links):
            outputs = [f"{parts[at][0]}/{links[at][0]}"]
        whole = compose.merge_models(whole, named[at], io_map=ties, outputs=outputs, producer_name="widefield")
    del whole.metadata_props[:]
    return whole


def rounded(model: ModelProto, precision: str) -> ModelProto:
    """The same graph as arithmetic of half the width would see it: what enters and leaves each convolution and product
    of matrices, weights included, is rounded to `precision`; sums stay in float32.
    """
    copy, kind = ModelProto(), HALVES[precision]
    copy.CopyFrom(raised(model, HALF))
    nodes = list(_rounding(copy.graph.node, kind))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _rounding(nodes: Sequence[NodeProto], kind: int) -> Iterator[NodeProto]:
    done: dict[str, str] = {}
    for node in nodes:
        if node.op_type not in ROUNDED:
            yield node
            continue
        for at, name in enumerate(node.input):
            if name and name not in done:
                done[name] = f"{name}/rounded"
                yield from _round(name, done[name], kind)
            node.input[at] = done.get(name, name)
        whole = node.output[0]
        node.output[0] = f"{whole}/exact"
        yield node
        yield from _round(f"{whole}/exact", whole, kind)


def _round(source: str, target: str, kind: int) -> Iterator[NodeProto]:
    half = f"{target}/half"
    yield helper.make_node("Cast", [source], [half], name=half, to=kind)
    yield helper.make_node("Cast", [half], [target], name=f"{target}/single", to=TensorProto.FLOAT)


def _tidy(model: ModelProto) -> None:
    """Constants are no inputs, and nothing tells of the exporting machine."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    real = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(real)
    model.ir_version = max(model.ir_version, 4)
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _check_operators(file: Path, model: ModelProto) -> None:
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in _nodes(model.graph) if node.domain not in DOMAINS})
    if foreign:
        raise BundleError(f"{file} needs {', '.join(foreign)}: only ONNX's own operators can be imported")
    chance = sorted({node.op_type for node in _nodes(model.graph)} & RANDOM)
    if chance:
        raise BundleError(f"{file} draws random numbers ({', '.join(chance)}): export the network for inference")
    if opset_of(model) < OLDEST:
        raise BundleError(f"{file} is of operator set {opset_of(model)}: export it again with opset_version=20")
    own = [entry for entry in model.opset_import if entry.domain in DOMAINS]
    del model.opset_import[:]
    model.opset_import.extend(own)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of branches and loops included."""
    return (node for inner in _graphs(graph) for node in inner.node)


def _check_size(file: Path, model: ModelProto) -> None:
    graphs = [model.graph, *model.functions]
    size = file.stat().st_size + sum(_outside(file.parent, tensor) for graph in graphs for tensor in _tensors(graph))
    if size > LARGEST:
        raise BundleError(f"{file} has {size / 2**30:.1f} GiB with its weights: at most 2 GiB can be imported")


def _tensors(graph: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """All tensors that may lie outside of the file: weights and constants, those of branches and loops included."""
    for inner in _graphs(graph):
        if isinstance(inner, GraphProto):
            yield from inner.initializer
            for sparse in inner.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for attribute in (attribute for node in inner.node for attribute in node.attribute):
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _graphs(graph: GraphProto | FunctionProto) -> Iterator[GraphProto | FunctionProto]:
    """A graph, and those of its branches and loops."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from _graphs(inner)


def _outside(folder: Path, tensor: TensorProto) -> int:
    """Bytes that a tensor brings from another file: of all of it from its place on, if no length is told."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return 0
    told = {entry.key: entry.value for entry in tensor.external_data}
    if "length" in told:
        return max(int(told["length"]), 0)
    other = folder / told.get("location", "")
    return max(other.stat().st_size - int(told.get("offset", 0)), 0) if other.is_file() else 0
