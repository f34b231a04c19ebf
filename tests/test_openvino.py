"""OpenVINO: what fails in it, and what it refuses."""

import numpy as np
import pytest
from drawn_bundle import drawn_spec
from torch import nn

from models.engines.base import Batch, EngineRecord, EngineRequest
from models.engines.openvino import OpenVINOEngine, convert
from models.errors import EngineError
from models.export import export_onnx
from models.serve import serve_network

REQUEST = EngineRequest("openvino", "fp32", tile=64, dtype="uint8", batch=2, threads=1, target="cpu")
FACTS = {"digest": "", "version": "", "device": "", "bundle": "", "peak_bytes": 0, "seconds_per_tile": 0.0}
RECORD = EngineRecord(**REQUEST.__dict__, **FACTS, parity=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The graph of one convolution."""
    folder = tmp_path_factory.mktemp("graph")
    serve = serve_network(nn.Conv2d(3, 3, 3, padding=1), drawn_spec())
    convert(export_onnx(serve, folder / "model.onnx", tile=64, dtype="uint8", batch=2), folder)
    return folder


def batch(bands=3):
    ones = np.ones(bands, np.float32)
    return Batch(np.zeros((2, bands, 64, 64), np.uint8), np.ones((2, 64, 64), bool), ones, ones)


def test_another_number_of_bands_is_refused_in_one_line(folder):
    engine = OpenVINOEngine(RECORD, folder)
    with pytest.raises(EngineError, match=r"uint8 \[4, 64, 64\], bands first: .* of uint8 \[3, 64, 64\]"):
        list(engine.map([batch(4)]))
    assert engine.device_bytes == 0


def test_what_openvino_refuses_is_an_error_of_ours_and_leaves_the_engine_idle_and_able(folder, monkeypatch):
    engine = OpenVINOEngine(RECORD, folder)
    with monkeypatch.context() as patched:
        patched.setattr("models.engines.openvino.padded", lambda wrong, *_: wrong)
        with pytest.raises(EngineError, match="OpenVINO refuses a batch: ") as told:
            list(engine.map([batch(4)]))
    assert "\n" not in str(told.value)
    before = engine.meter.times().busy
    assert engine.meter.times().busy == before
    assert next(engine.map([batch()])).shape == (2, 2, 64, 64)


def test_a_graph_that_is_damaged_is_refused_in_one_line(tmp_path):
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(EngineError, match="OpenVINO cannot compile") as told:
        OpenVINOEngine(RECORD, tmp_path)
    assert "\n" not in str(told.value)
