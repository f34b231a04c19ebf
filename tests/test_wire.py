import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from drawn_bundle import drawn_spec
from onnx import TensorProto, helper
from torch import nn

from models.engines.base import EngineRequest
from models.export import INPUTS
from models.halves import export_wired
from models.serve import serve_network
from models.wire import COMPARED, joined, wire_ready, wired

TILE = 32
PLANES = ("labels", "confidence", "probability-c1")


@functools.cache
def exported(dtype):
    """A small served graph and what becomes of it; one of them with augmentation."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    serve = serve_network(network, drawn_spec(), planes=PLANES, tta=dtype == "int16")
    with tempfile.TemporaryDirectory() as folder:
        request = EngineRequest("tensorrt", "fp32", TILE, dtype, 2)
        return serve, wire_ready(onnx.load(export_wired(serve, Path(folder) / "model.onnx", request)))


def run(model, arrays):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, arrays)[0]


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_every_value_of_a_raster_survives_its_bytes(dtype):
    pixels = np.arange(1 << 16, dtype=np.uint16).astype(dtype).reshape(1, 1, 256, 256)
    sent = wired(pixels)
    assert (sent.dtype, sent.shape) == (np.uint8, (1, 1, 256, 512))
    assert np.array_equal(joined(torch.from_numpy(sent).float(), dtype).numpy(), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_other_rasters_go_as_they_are(dtype):
    pixels = np.zeros((1, 3, 4, 4), dtype)
    assert wired(pixels) is pixels


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_the_wired_graph_gives_the_planes_of_eager_pytorch(dtype):
    serve, model = exported(dtype)
    rng = np.random.default_rng(0)
    pixels = rng.integers(np.iinfo(dtype).min if dtype == "int16" else 0, 256, (2, 3, TILE, TILE)).astype(dtype)
    valid = (rng.random((2, TILE, TILE)) > 0.1).astype(np.uint8)
    if dtype == "float32":
        pixels[:, :, valid[0] == 0] = np.nan
        valid[1] = valid[0]
    radiometry = np.full(3, 0.25, np.float32), np.full(3, 30, np.float32)
    with torch.inference_mode():
        expected = serve(*map(torch.from_numpy, (pixels, valid, *radiometry))).numpy()
    found = run(model, dict(zip(INPUTS, (wired(pixels), valid, *radiometry), strict=True)))
    assert len(np.unique(expected[:, 0])) > 1
    assert np.mean(found[:, 0] != expected[:, 0]) < 1e-3
    assert np.abs(found.astype(int) - expected)[:, 1:].max() <= 1


@pytest.mark.parametrize(("classes", "keep"), [(2, 0), (5, 1), (COMPARED, 0)])
def test_comparisons_find_the_class_that_a_sort_finds_ties_included(classes, keep):
    sort = helper.make_node("ArgMax", ["logits"], ["labels"], axis=1, keepdims=keep)
    model = planes_of([helper.make_node("Identity", ["x"], ["logits"]), sort], classes, "labels", keep)
    ready = wire_ready(model)
    assert "ArgMax" not in {node.op_type for node in ready.graph.node}
    logits = np.random.default_rng(0).integers(0, 4, (2, classes, 8, 8)).astype(np.float32)
    assert np.array_equal(run(ready, {"x": logits}), run(model, {"x": logits}))


def test_only_the_output_is_cast_to_8_bits():
    graph = exported("uint16")[1].graph
    narrow = [
        node.output[0]
        for node in graph.node
        if node.op_type == "Cast" and helper.get_attribute_value(node.attribute[0]) == TensorProto.UINT8
    ]
    assert narrow == [value.name for value in graph.output] == ["planes"]


def planes_of(nodes, classes, last, keep):
    cast = helper.make_node("Cast", [last], ["planes"], to=TensorProto.UINT8)
    shape = [2, 1, 8, 8] if keep else [2, 8, 8]
    graph = helper.make_graph(
        [*nodes, cast],
        "labels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, classes, 8, 8])],
        [helper.make_tensor_value_info("planes", TensorProto.UINT8, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)
