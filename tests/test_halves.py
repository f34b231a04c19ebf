import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_wire import run
from torch import nn

from models.errors import EngineError
from models.halves import KINDS, half_graph, halve

SHAPE = [1, 3, 8, 8]


def graph(kernel):
    """Convolution, bias as a constant, enlarged twice: what half precision is made of, and what must stay out of it."""
    bias = numpy_helper.from_array(np.float32([0.1, 0.2]))
    nodes = [
        helper.make_node("Constant", [], ["b"], value=bias),
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["c", "", "scales"], ["y"], mode="nearest"),
    ]
    whole = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 16, 16])],
        [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(np.float32([1, 1, 2, 2]), "scales")],
    )
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def kernel():
    return np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_convolutions_are_cast_and_what_goes_in_and_out_is_not(precision):
    half = half_graph(graph(kernel()), precision)
    onnx.checker.check_model(half, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert types == {"w": KINDS[precision], "scales": TensorProto.FLOAT}
    ends = (*half.graph.input, *half.graph.output)
    assert {end.type.tensor_type.elem_type for end in ends} == {TensorProto.FLOAT}


def test_a_graph_in_fp16_is_the_network_in_fp16():
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    exact, half = run(graph(kernel()), {"x": x}), run(half_graph(graph(kernel()), "fp16"), {"x": x})
    assert 0 < np.abs(half - exact).max() < 0.01


@pytest.mark.parametrize("values", [70000.0, np.inf, np.nan])
def test_a_weight_beyond_fp16_is_refused_by_name(values):
    large = kernel()
    large[0, 0, 0, 0] = values
    with pytest.raises(EngineError, match=r"w reaches .*, fp16 ends at 6.55e\+04: choose bf16 or fp32"):
        half_graph(graph(large), "fp16")
    network = nn.Conv2d(3, 2, 3)
    network.weight.data = torch.from_numpy(large)
    with pytest.raises(EngineError, match=r"weight reaches .*, fp16 ends at"):
        halve(network, "fp16")


def test_bf16_holds_what_fp16_does_not():
    network = nn.Conv2d(3, 2, 3)
    nn.init.constant_(network.weight, 70000)
    assert halve(network, "bf16").weight.dtype == torch.bfloat16


def test_a_graph_with_branches_is_refused():
    model = graph(kernel())
    inner = helper.make_graph([], "then", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    with pytest.raises(EngineError, match="the graph has a If, whose branches are not cast"):
        half_graph(model, "fp16")
