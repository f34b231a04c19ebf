import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from drawn_bundle import drawn_spec
from torch import nn

from models.export import INPUTS, export_onnx
from models.serve import serve_network

TILE = 32


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 3, 3, padding=1))


def export(path, dtype, batch=1):
    serve = serve_network(network(), drawn_spec())
    return serve, export_onnx(serve, path / "model.onnx", tile=TILE, dtype=dtype, batch=batch)


@pytest.mark.parametrize(("dtype", "batch"), [("uint8", 1), ("uint16", 3), ("int16", 1), ("float32", 1)])
def test_onnx_runtime_gives_the_planes_of_eager_pytorch(tmp_path, dtype, batch):
    serve, path = export(tmp_path, dtype, batch)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 1000, (batch, 3, TILE, TILE)).astype(dtype)
    valid = (rng.random((batch, TILE, TILE)) > 0.1).astype(np.uint8)
    arrays = (pixels, valid, np.full(3, 0.25, np.float32), np.full(3, -1, np.float32))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, dict(zip(INPUTS, arrays, strict=True)))
    with torch.inference_mode():
        expected = serve(*map(torch.from_numpy, arrays)).numpy()
    assert len(np.unique(expected[:, 0])) > 1
    assert np.mean(found[:, 0] != expected[:, 0]) < 1e-3
    assert np.abs(found[:, 1].astype(int) - expected[:, 1]).max() <= 1


def test_the_same_network_gives_the_same_bytes_in_one_file(tmp_path):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        contents.append(export(tmp_path / name, "uint8")[1].read_bytes())
        assert [file.name for file in (tmp_path / name).iterdir()] == ["model.onnx"]
    assert contents[0] == contents[1]


def test_shapes_are_fixed_and_nothing_tells_of_the_exporting_machine(tmp_path):
    path = export(tmp_path, "uint16", batch=2)[1]
    graph = onnx.load(path).graph
    shapes = [[axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.input]
    assert shapes == [[2, 3, TILE, TILE], [2, TILE, TILE], [3], [3]]
    assert [value.name for value in graph.input] == list(INPUTS)
    assert b"torch/nn" not in path.read_bytes()
    assert b".py" not in path.read_bytes()
