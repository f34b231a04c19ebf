"""ONNX Runtime as an engine, held to eager PyTorch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle, drawn_spec
from torch import nn

from models.bundle import Bundle
from models.engines.base import Batch, EngineRecord, EngineRequest
from models.engines.onnxruntime import GRAPH, OnnxRuntimeEngine, load, session, unavailable
from models.engines.prepare import prepare
from models.engines.torch import predict
from models.errors import EngineError
from models.export import export_onnx
from models.inception import ENCODERS
from models.serve import serve_network
from models.spec import Architecture

REQUEST = EngineRequest("onnxruntime", "fp32", tile=64, dtype="uint8", batch=2, threads=2, streams=2, target="cpu")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A served network of two convolutions, and the folder of its graph."""
    folder = tmp_path_factory.mktemp("graph")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    serve = serve_network(network, drawn_spec())
    export_onnx(serve, folder / GRAPH, tile=64, dtype="uint8", batch=2)
    return serve, folder


def record(**changes):
    facts = {"digest": "d", "version": "v", "device": "cpu", "bundle": "b", "peak_bytes": 0}
    settled = {**REQUEST.__dict__, **facts, "seconds_per_tile": 0.0, "parity": None}
    return replace(EngineRecord(**settled), **changes)


def batches(count, size):
    rng = np.random.default_rng(0)
    for _ in range(count):
        pixels, valid = rng.integers(0, 256, (size, 3, 64, 64), np.uint8), rng.random((size, 64, 64)) > 0.1
        yield Batch(pixels, valid, np.ones(3, np.float32), np.zeros(3, np.float32))


@pytest.mark.parametrize("streams", [1, 2])
def test_planes_are_those_of_eager_pytorch_in_the_order_of_the_batches(compiled, streams):
    serve, folder = compiled
    engine = OnnxRuntimeEngine(record(streams=streams), 3, folder / GRAPH)
    given = [*batches(4, 2), *batches(1, 1)]  # the last one is padded
    for batch, found in zip(given, engine.map(iter(given)), strict=True):
        expected = predict(serve, batch)
        assert found.shape == expected.shape
        assert np.mean(found[:, 0] != expected[:, 0]) < 1e-3
        assert np.abs(found.astype(int) - expected)[:, 1].max() <= 1
    assert engine.meter.times().busy > 0


def test_it_says_what_it_cannot_do():
    assert unavailable("cpu", "fp32") is None
    assert "take tensorrt, inductor or torch on a GPU" in unavailable("cuda", "fp32")
    assert "compute in fp32, not in bf16" in unavailable("cpu", "bf16")


def test_a_graph_that_is_gone_or_damaged_is_refused_in_one_line(tmp_path):
    with pytest.raises(EngineError, match="has no exported graph here: prepare its engine again"):
        load(record(), Bundle(tmp_path, "d", drawn_spec()), None)
    with pytest.raises(EngineError, match="ONNX Runtime does not take the graph") as refused:
        session(b"nonsense", 1)
    assert "\n" not in str(refused.value)


def test_what_fails_on_a_batch_fails_the_map(compiled):
    engine = OnnxRuntimeEngine(record(dtype="int16"), 3, compiled[1] / GRAPH)
    wrong = next(batches(1, 2))
    with pytest.raises(EngineError, match="ONNX Runtime failed on a batch"):
        list(engine.map([replace(wrong, pixels=wrong.pixels.astype(np.int16))]))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_every_encoder_passes_the_gate(tmp_path, encoder):
    plan = Architecture(encoder=encoder, width=0.1, decoder_channels=(8, 8, 8, 8, 8))
    bundle = draw_bundle(tmp_path / "b", architecture=plan, tiles=(128,))
    request = replace(REQUEST, tile=128, threads=1, streams=1)
    assert prepare(bundle.path, request, tmp_path / "cache").parity["reasons"] == []
