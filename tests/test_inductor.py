"""PyTorch's compiler. What takes it long stands under `slow`; two convolutions show the rest."""

import logging
import shutil
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle, drawn_spec

from models.engines import inductor
from models.engines.base import Batch, EngineRecord, EngineRequest
from models.engines.inductor import OPTIONS, extract_library, fastest, opened, package_graph
from models.engines.load import load_engine
from models.engines.native import NativeGraph
from models.engines.prepare import prepare
from models.engines.ring import Threads
from models.engines.torch import TorchEngine, predict, signed_graph, tensors
from models.errors import EngineError
from models.serve import Serve, served
from models.spec import Architecture

EDGE = 32

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # PyTorch's own


def drawn_serve(bands=2, classes=3):
    """Two convolutions between the normalisation and the planes."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(bands, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, classes, 3, padding=1)
    )
    return Serve(network, [30000.0] * bands, [15000.0] * bands, ("labels", "confidence")).eval()


def batch(seed=0, count=2):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 65536, (count, 2, EDGE, EDGE), np.uint16)
    return Batch(pixels, rng.random((count, EDGE, EDGE)) > 0.1, np.ones(2, np.float32), np.zeros(2, np.float32))


def signed_tensors(one):
    return tensors(replace(one, pixels=one.pixels.view(np.int16)))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    graph = signed_graph(drawn_serve(), "uint16")
    package_graph(graph, signed_tensors(batch()), folder / "model.pt2", OPTIONS["cpu"])
    extract_library(folder / "model.pt2", folder / "model.so")
    (folder / "model.pt2").unlink()
    return folder / "model.so"


def called(graph, one):
    return graph(one.pixels, one.valid.view(np.uint8), one.scale, one.offset)


def test_native_code_gives_the_planes_of_eager_pytorch_for_uint16(library):
    found = called(NativeGraph(library), batch())
    expected = predict(drawn_serve(), batch())
    assert (batch().pixels > 32767).any()
    np.testing.assert_array_equal(found[:, 0], expected[:, 0])
    assert np.abs(found[:, 1].astype(int) - expected[:, 1]).max() <= 1


def test_several_threads_may_call_native_code_at_once(library):
    graph, found = NativeGraph(library, runners=3), {}
    expected = [called(graph, batch(seed)) for seed in range(12)]
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: called(graph, batch(seed))}))
        for seed in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, planes in enumerate(expected):
        np.testing.assert_array_equal(found[seed], planes)
    assert any((expected[0] != planes).any() for planes in expected)


def test_what_is_no_library_is_refused(tmp_path):
    (tmp_path / "model.so").write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"model\.so cannot be loaded"):
        NativeGraph(tmp_path / "model.so")


def test_a_failure_inside_native_code_is_an_error_of_ours(library):
    with pytest.raises(EngineError, match="the compiled graph failed"):
        NativeGraph(library, runners=0)


def test_another_number_of_arrays_is_refused_before_native_code_sees_it(library):
    with pytest.raises(EngineError, match="got 1 arrays: this graph takes 4"):
        NativeGraph(library)(batch().pixels)


def test_without_a_compiler_it_is_unavailable_and_says_the_way_out(monkeypatch):
    from torch._inductor import config

    assert inductor.unavailable("cpu", "fp32") is None
    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    assert inductor.unavailable("cpu", "fp32") == "Inductor needs a C++ compiler: install g++, or name one in CXX"


def test_without_a_gpu_it_is_unavailable_there():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "sees no GPU" in inductor.unavailable("cuda", "bf16")


def test_a_variant_that_cannot_be_compiled_is_left_out_and_none_is_an_error(tmp_path, caplog):
    class Refused(torch.nn.Module):
        def forward(self, pixels, valid, scale, offset):
            if pixels.sum() > 0:  # depends on the data
                return valid
            return scale

    variants = (("odd", Refused()) for _ in range(1))
    with caplog.at_level(logging.WARNING), pytest.raises(EngineError, match="odd: Inductor cannot compile the network"):
        fastest(variants, signed_tensors(batch()), tmp_path, Threads(), OPTIONS["cpu"])
    assert "left out: odd" in caplog.text


def test_readers_run_while_native_code_computes(library):
    """The interpreter's lock is free meanwhile: a thread that only counts gets on as if nothing else ran."""
    graph, computing, turns = NativeGraph(library), threading.Event(), []

    def count():
        computing.wait()
        while computing.is_set():
            turns.append(time.perf_counter())
            time.sleep(1e-4)

    reader = threading.Thread(target=count)
    reader.start()
    computing.set()
    one = batch()
    for _ in range(200):
        called(graph, one)
    computing.clear()
    reader.join()
    assert len(turns) > 20
