"""ONNX graphs with random weights, drawn for tests node by node: what other makers' exporters write."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.onnxgraph import read_graph

FREE = ("n", 3, "h", "w")


def drawn_graph(*, channels=3, axes=FREE, opset=20, tail=(), outputs=("y",), per=1, rank=4, seed=0):
    """A network with one level below the image: conv, relu, pool, conv, transposed conv, conv to `channels`.

    `tail`: operators after that, each (op_type, attributes), of which the last gives `y`; `per`: pixels between two
    answers; `axes` of the input `x`; `outputs`: which tensors are given out, of `rank` axes.
    """
    rng = np.random.default_rng(seed)
    bands = axes[1] if isinstance(axes[1], int) else 3
    weights = {
        "w1": rng.normal(0, 0.3, (8, bands, 3, 3)),
        "w2": rng.normal(0, 0.2, (8, 8, 3, 3)),
        "w3": rng.normal(0, 0.3, (8, 8, 2, 2)),
        "w4": rng.normal(0, 0.5, (channels, 8, 1, 1)),
        "b4": rng.normal(0, 0.5, channels),
    }
    steps = [
        ("Conv", ["x", "w1"], {"pads": [1, 1, 1, 1]}),
        ("Relu", [], {}),
        ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["w2"], {"pads": [1, 1, 1, 1], "strides": [per, per]}),
        ("ConvTranspose", ["w3"], {"strides": [2, 2]}),
        ("Conv", ["w4", "b4"], {}),
        *((op, [], attributes) for op, attributes in tail),
    ]
    nodes, last = [], ""
    for at, (op, names, attributes) in enumerate(steps):
        entries = names if names[:1] == ["x"] else [last, *names]
        last = "y" if at == len(steps) - 1 else f"t{at}"
        nodes.append(helper.make_node(op, entries, [last], name=f"node{at}", **attributes))
    return model_of(nodes, weights, axes, outputs, opset, rank)


def model_of(nodes, weights, axes, outputs, opset, rank=4):
    constants = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in outputs]
    graph = helper.make_graph(nodes, "drawn", [entry], given, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def reread(model, folder):
    """The model as `read_graph` finds it in a file."""
    file = folder / "drawn.onnx"
    onnx.save(model, file)
    return read_graph(file)
