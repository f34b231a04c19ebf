"""ONNX graphs of other makers as plain data; ONNX Runtime and PyTorch are the oracles."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from drawn_onnx import FREE, drawn_graph, model_of, reread
from onnx import TensorProto, helper

from models.errors import BundleError
from models.onnxgraph import joined, opset_of, raised, read_graph, rounded, shape_of, shaped

IMAGES = np.random.default_rng(1).normal(size=(2, 3, 16, 24)).astype(np.float32)


def run(model, **inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def test_weights_in_a_second_file_are_folded_in(tmp_path):
    model = drawn_graph()
    expected = run(model, x=IMAGES)[0]
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    read = read_graph(tmp_path / "m.onnx")
    (tmp_path / "weights.bin").unlink()
    assert not any(tensor.external_data for tensor in read.graph.initializer)
    assert np.array_equal(run(read, x=IMAGES)[0], expected)


def test_weights_outside_the_folder_of_the_file_are_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    onnx.save(drawn_graph(), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../weights.bin"
    (tmp_path / "inner" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="no valid ONNX file"):
        read_graph(tmp_path / "inner" / "m.onnx")


def test_more_than_a_file_can_hold_is_refused_before_it_is_read(tmp_path):
    model = drawn_graph()
    tensor = model.graph.initializer[0]
    tensor.data_location, tensor.raw_data = TensorProto.EXTERNAL, b""
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.external_data.add(key="length", value=str(3 << 30))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"has 3\.0 GiB with its weights: at most 2 GiB"):
        read_graph(tmp_path / "m.onnx")


def outside(folder, tensor, length=None):
    """A tensor that lies in another file, which holds 3 GiB without taking them."""
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(3 << 30)
    tensor.data_location, tensor.raw_data = TensorProto.EXTERNAL, b""
    tensor.external_data.add(key="location", value="weights.bin")
    if length:
        tensor.external_data.add(key="length", value=length)


@pytest.mark.parametrize("where", ["weight", "constant", "branch"])
def test_what_has_no_length_counts_as_its_whole_file_wherever_it_is(tmp_path, where):
    model = drawn_graph()
    constant = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0]))
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])])
    choice = helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch)
    if where == "weight":
        outside(tmp_path, model.graph.initializer[0])
    elif where == "constant":
        model.graph.node.append(constant)
        outside(tmp_path, model.graph.node[-1].attribute[0].t)
    else:
        model.graph.node.append(choice)
        outside(tmp_path, model.graph.node[-1].attribute[0].g.node[0].attribute[0].t)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"has 3\.0 GiB with its weights"):
        read_graph(tmp_path / "m.onnx")


def test_a_length_below_zero_takes_nothing_away(tmp_path):
    model = drawn_graph()
    outside(tmp_path, model.graph.initializer[0])
    outside(tmp_path, model.graph.initializer[1], length=str(-(3 << 30)))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"has 3\.0 GiB with its weights"):
        read_graph(tmp_path / "m.onnx")


def test_constants_are_no_inputs(tmp_path):
    model = drawn_graph()
    constants = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer]
    model.graph.input.extend(constants)
    assert [value.name for value in reread(model, tmp_path).graph.input] == ["x"]


def test_functions_of_a_graph_are_inlined(tmp_path):
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    model = model_of([helper.make_node("Twice", ["x"], ["y"], domain="own")], {}, FREE, ["y"], 20)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(twice)
    read = reread(model, tmp_path)
    assert [node.op_type for node in read.graph.node] == ["Add"]
    assert np.array_equal(run(read, x=IMAGES)[0], 2 * IMAGES)


@pytest.mark.parametrize(
    ("node", "opset", "message"),
    [
        (helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"), 20, r"needs com\.microsoft\.Gelu"),
        (helper.make_node("RandomNormalLike", ["x"], ["y"]), 20, "draws random numbers"),
        (helper.make_node("Relu", ["x"], ["y"]), 6, "is of operator set 6: export it again"),
        (helper.make_node("Rely", ["x"], ["y"]), 20, "is no valid ONNX file"),
    ],
)
def test_what_cannot_be_imported_is_refused(tmp_path, node, opset, message):
    model = model_of([node], {}, FREE, ["y"], opset)
    if node.domain:
        model.opset_import.append(helper.make_opsetid(node.domain, 1))
    with pytest.raises(BundleError, match=message):
        reread(model, tmp_path)


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"hello")
    for name in ("m.onnx", "n.onnx"):
        with pytest.raises(BundleError, match=name):
            read_graph(tmp_path / name)


@pytest.mark.parametrize("opset", [7, 11, 13, 17])
def test_an_old_graph_gives_the_same_in_a_new_operator_set(opset):
    model = drawn_graph(opset=opset, tail=[("Softmax", {"axis": 1})] if opset >= 13 else [])
    new = raised(model, 20)
    assert opset_of(new) == 20
    assert raised(new, 13) is new
    np.testing.assert_allclose(run(new, x=IMAGES)[0], run(model, x=IMAGES)[0], rtol=1e-5, atol=1e-6)


def test_axes_are_told_fixed_and_loosened():
    model = drawn_graph(axes=(1, 3, 16, 16))
    assert shape_of(model.graph, "x") == [1, 3, 16, 16]
    free = shaped(model, "x", FREE)
    assert shape_of(free.graph, "x") == [None, 3, None, None]
    assert run(free, x=IMAGES)[0].shape == (2, 3, 16, 24)
    assert shape_of(shaped(free, "x", (2, 3, 16, 24)).graph, "x") == [2, 3, 16, 24]


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_rounding_is_that_of_convolutions_in_half_precision(precision, kind):
    weights = {"w": np.random.default_rng(2).normal(size=(4, 3, 3, 3)), "b": np.arange(4) / 7}
    model = model_of([helper.make_node("Conv", ["x", "w", "b"], ["y"])], weights, FREE, ["y"], 11)
    half, back = (lambda a: torch.tensor(a, dtype=torch.float32).to(kind).float()), torch.float32
    sums = torch.nn.functional.conv2d(half(IMAGES), half(weights["w"]), half(weights["b"]))
    found = torch.from_numpy(run(rounded(model, precision), x=IMAGES)[0])
    assert torch.equal(found.to(kind).to(back), found)
    np.testing.assert_allclose(found, sums.to(kind).to(back), rtol=torch.finfo(kind).eps, atol=1e-6)
    assert not np.array_equal(found.numpy(), run(model, x=IMAGES)[0])


def test_graphs_in_a_row_are_one_with_the_outer_names(tmp_path):
    first = reread(model_of([helper.make_node("Relu", ["x"], ["y"])], {}, FREE, ["y"], 20), tmp_path)
    middle = reread(drawn_graph(outputs=("y", "t2")), tmp_path)
    last = reread(model_of([helper.make_node("Neg", ["x"], ["planes"])], {}, FREE, ["planes"], 20), tmp_path)
    whole = joined([("enter", first), ("network", middle), ("leave", last)], [("y", "x"), ("y", "x")])
    assert [value.name for value in (*whole.graph.input, *whole.graph.output)] == ["x", "planes"]
    expected = -run(middle, x=np.maximum(IMAGES, 0))[0]
    assert np.array_equal(run(whole, x=IMAGES)[0], expected)
