"""An imported graph as a network, and inside the graph that is compiled: both must be the network that it was."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from drawn_imports import drawn_import
from onnx import numpy_helper
from torch.nn import functional

from models.engines.base import Batch, EngineRequest
from models.engines.prepare import prepare
from models.engines.torch import tensors
from models.errors import EngineError
from models.imported import as_logits, load_imported, write_served
from models.serve import serve_network
from models.spec import Imported

REQUEST = EngineRequest("onnxruntime", "fp32", tile=64, dtype="uint16", batch=2, threads=1, target="cpu")
SIGMOID = [("Sigmoid", {})]


def tiles(dtype="uint16", count=2):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, 64, 64)).astype(dtype)
    return Batch(pixels, rng.random((count, 64, 64)) > 0.1, np.full(3, 0.9, np.float32), np.full(3, 5, np.float32))


def reference(bundle, request, precision="fp32"):
    serve = serve_network(load_imported(bundle, precision), bundle.spec, planes=request.planes, tta=request.tta)
    with torch.inference_mode():
        return serve(*tensors(tiles(request.dtype, request.batch))).numpy()


def compiled(bundle, request, folder):
    path = write_served(bundle, request, folder / "served.onnx")
    batch = tiles(request.dtype, request.batch)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = {"pixels": batch.pixels, "valid": batch.valid.view(np.uint8), "scale": batch.scale, "offset": batch.offset}
    return session.run(None, names)[0]


def test_a_graph_is_the_network_that_its_weights_make_in_pytorch(tmp_path):
    bundle = drawn_import(tmp_path)
    graph = onnx.load(bundle.network).graph
    w1, w2, w3, w4, b4 = (torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer)
    x = torch.randn(3, 3, 32, 64)
    deep = functional.max_pool2d(functional.relu(functional.conv2d(x, w1, padding=1)), 2)
    expected = functional.conv2d(
        functional.conv_transpose2d(functional.conv2d(deep, w2, padding=1), w3, stride=2), w4, b4
    )
    found = load_imported(bundle)(x)
    assert found.shape == (3, 3, 32, 64)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_images_beyond_a_fixed_number_go_one_after_the_other(tmp_path):
    bundle = drawn_import(tmp_path, plan={"batch": 2}, graph={"axes": (2, 3, "h", "w")})
    x = torch.randn(3, 3, 32, 32)
    np.testing.assert_allclose(load_imported(bundle)(x)[2:], load_imported(bundle)(x[2:]), atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "activation", "undo"),
    [
        (3, "softmax", lambda p: p),
        (1, "sigmoid", lambda p: torch.cat([1 - p, p], 1)),
        (1, "logits", lambda z: torch.cat([1 - torch.sigmoid(z), torch.sigmoid(z)], 1)),
    ],
)
def test_probabilities_come_out_as_they_went_in(channels, activation, undo):
    plan = Imported(input="x", output="y", channels=channels, activation=activation)
    answers = torch.randn(2, channels, 8, 8)
    answers = {"softmax": answers.softmax(1), "sigmoid": answers.sigmoid(), "logits": answers}[activation]
    np.testing.assert_allclose(as_logits(answers, plan).softmax(1), undo(answers), atol=1e-5)


def test_coarse_answers_are_enlarged_bilinearly_after_their_activation_is_undone():
    plan = Imported(input="x", output="y", channels=2, activation="softmax", output_stride=4)
    logits = torch.randn(1, 2, 4, 4)
    found = as_logits(logits.softmax(1), plan).softmax(1)
    expected = functional.interpolate(logits.log_softmax(1), scale_factor=4, mode="bilinear").softmax(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_saturated_probabilities_stay_finite():
    plan = Imported(input="x", output="y", channels=1, activation="sigmoid")
    assert torch.isfinite(as_logits(torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2), plan)).all()


def test_what_is_compiled_gives_the_planes_of_the_graph_as_it_was_given(tmp_path):
    planes = ("labels", "confidence", "probability-c1")
    graph = {"opset": 12, "per": 2, "tail": SIGMOID}  # an old graph with coarse probabilities of one class
    plan = {"channels": 1, "activation": "sigmoid", "output_stride": 2}
    bundle = drawn_import(tmp_path, classes=2, plan=plan, graph=graph, planes=planes, threshold=0.4)
    found, expected = compiled(bundle, REQUEST, tmp_path), reference(bundle, REQUEST)
    assert np.mean(expected[:, 0]) not in {0, 1}
    assert np.mean(found[:, 0] != expected[:, 0]) < 1e-3
    assert np.abs(found.astype(int) - expected)[:, 1:].max() <= 1
    assert found.shape == (2, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("graph", [{"opset": 7}, {"opset": 20}, {"opset": 23}])
@pytest.mark.parametrize("changes", [{"tta": True}, {"dtype": "uint8", "planes": ("probability-c2", "labels")}])
def test_graphs_of_all_ages_are_compiled_with_and_without_orientations(tmp_path, graph, changes):
    bundle = drawn_import(tmp_path, graph=graph)
    request = EngineRequest(**{**REQUEST.__dict__, **changes})
    found, expected = compiled(bundle, request, tmp_path), reference(bundle, request)
    assert np.mean(found != expected) < 1e-2
    assert np.abs(found.astype(int) - expected)[found != expected].max(initial=0) <= 2


def test_a_graph_of_a_fixed_number_of_images_takes_no_other(tmp_path):
    bundle = drawn_import(tmp_path, plan={"batch": 1}, graph={"axes": (1, 3, "h", "w")})
    with pytest.raises(EngineError, match="takes 1 images at once, not 2: export it with a dynamic batch, or choose"):
        write_served(bundle, REQUEST, tmp_path / "served.onnx")


def test_weights_rounded_to_bf16_change_the_answers_a_little(tmp_path):
    bundle = drawn_import(tmp_path)
    exact, coarse = reference(bundle, REQUEST), reference(bundle, REQUEST, "bf16")
    assert 0 < np.mean(exact[:, 0] != coarse[:, 0]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), [("onnxruntime", "fp32"), ("openvino", "fp32"), ("auto", "auto")])
def test_engines_of_an_imported_network_pass_the_gate(tmp_path, backend, precision):
    bundle = drawn_import(tmp_path / "b")
    request = EngineRequest(backend, precision, tile=64, dtype="uint8", batch=2, threads=1, target="cpu")
    record = prepare(bundle.path, request, tmp_path / "cache")
    assert record.parity["reasons"] == []
    assert record.bundle == bundle.digest


def test_pytorch_does_not_run_a_graph(tmp_path):
    bundle = drawn_import(tmp_path / "b")
    request = EngineRequest("torch", "fp32", tile=64, dtype="uint8", threads=1, target="cpu")
    with pytest.raises(EngineError, match="holds an ONNX graph, which PyTorch does not run"):
        prepare(bundle.path, request, tmp_path / "cache")
