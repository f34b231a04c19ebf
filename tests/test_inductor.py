"""PyTorch's compiler. What takes it long stands under `slow`; two convolutions show the rest."""

import copy
import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle

from models.engines import inductor
from models.engines.base import Batch, EngineRequest
from models.engines.fused import fuse_relus
from models.engines.inductor import OPTIONS, extract_library, fastest, opened, package_graph, workshop
from models.engines.load import load_engine
from models.engines.native import NativeGraph
from models.engines.prepare import prepare
from models.engines.ring import Threads
from models.engines.torch import predict, signed_graph, tensors
from models.errors import EngineError
from models.inception.blocks import ConvBN
from models.serve import Serve, served
from models.spec import Architecture

EDGE = 32

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),  # PyTorch's own
    pytest.mark.xdist_group("inductor"),  # compiled once
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


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
    return native(tmp_path_factory.mktemp("native"), "model.so")


QUICK = OPTIONS["cpu"] | {"aot_inductor.compile_wrapper_opt_level": "O0", "cpp.vec_isa_ok": True}
"""Half of the time: what calls the kernels is not optimised, and what the processor has is not tried out."""


def native(folder, name):
    """The two convolutions, compiled."""
    with workshop(folder / "workshop") as scratch:
        graph = signed_graph(drawn_serve(), "uint16")
        package_graph(graph, signed_tensors(batch()), scratch / "model.pt2", QUICK)
        extract_library(scratch / "model.pt2", folder / name)
    assert not scratch.exists()
    return folder / name


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


@pytest.mark.parametrize("target", OPTIONS)
def test_inductor_still_has_the_options_that_are_set(target):
    from torch._inductor import config

    assert set(OPTIONS[target]) <= set(config.get_config_copy()) | inductor.NEWER


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

    variants = {"odd": Refused}
    with caplog.at_level(logging.WARNING), pytest.raises(EngineError, match="odd: Inductor cannot compile the network"):
        fastest(variants, signed_tensors(batch()), tmp_path, Threads(), OPTIONS["cpu"])
    assert "left out: odd" in caplog.text


@pytest.mark.parametrize("error", [AssertionError(), TypeError("no such operator"), RuntimeError("ptxas is gone")])
def test_whatever_fails_in_a_variant_the_other_one_is_kept(tmp_path, monkeypatch, error):
    class Fused(torch.nn.Module):
        def forward(self, *inputs):
            raise error

    def compiled(program, package_path, inductor_configs):
        Path(package_path).write_bytes(b"")

    def no_room():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiled)
    monkeypatch.setattr(inductor, "_seconds", lambda *_: 1.0)
    variants = {"fused": Fused, "large": no_room, "plain": lambda: signed_graph(drawn_serve(), "uint16")}
    assert fastest(variants, signed_tensors(batch()), tmp_path, Threads(), OPTIONS["cpu"]).stem == "plain"


REQUEST = EngineRequest("inductor", "fp32", tile=128, dtype="uint8", batch=2, threads=2, target="cpu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    plan = Architecture(encoder="inception_v1", width=0.25, decoder_channels=(32, 16, 16, 8, 8))
    return draw_bundle(tmp_path_factory.mktemp("bundle") / "b", architecture=plan, tiles=(128,))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "c"


def tiles(count=3):
    rng = np.random.default_rng(0)
    pixels, valid = rng.integers(0, 256, (count, 3, 128, 128), np.uint8), rng.random((count, 128, 128)) > 0.1
    return Batch(pixels, valid, np.ones(3, np.float32), np.zeros(3, np.float32))


def cut(one, size=2):
    for i in range(0, len(one.pixels), size):
        yield replace(one, pixels=one.pixels[i : i + size], valid=one.valid[i : i + size])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_inception_v1_passes_its_gate_and_only_its_code_lies_in_the_cache(bundle, cache):
    record = prepare(bundle.path, REQUEST, cache)
    assert (record.backend, record.target, record.parity["reasons"]) == ("inductor", "cpu", [])
    (entry,) = (path for path in (cache / "graph").iterdir() if path.is_dir())
    assert sorted(path.name for path in entry.iterdir()) == ["manifest.json", "model.so"]
    planes = np.concatenate(list(load_engine(bundle.path, record, cache).map(cut(tiles()))))
    expected = predict(served(bundle), tiles())
    assert np.mean(planes[:, 0] != expected[:, 0]) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_path_gives_the_same_bytes(library):
    code = f"from test_inductor import *\nnative(Path({str(library.parent)!r}), 'again.so')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    assert library.with_name("again.so").read_bytes() == library.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_readers_run_while_native_code_computes(bundle, cache):
    engine, gaps = load_engine(bundle.path, prepare(bundle.path, REQUEST, cache), cache), []
    done = threading.Event()

    def count():
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(1e-4)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    reader = threading.Thread(target=count)
    batches = list(cut(tiles(40)))
    list(engine.map(batches[:1]))
    start = time.perf_counter()
    reader.start()
    list(engine.map(batches))
    seconds = (time.perf_counter() - start) / len(batches)
    done.set()
    reader.join()
    assert np.median(gaps) < seconds / 4
    assert len(gaps) > 4 * len(batches)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_faster_of_two_variants_is_kept_and_answers_like_eager_pytorch(tmp_path):
    """Both are compiled and run for real; here cuDNN's operations are PyTorch's own, called through Python."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(ConvBN(2, 8, 3, bn=False, bias=True), torch.nn.Conv2d(8, 3, 3, padding=1))
    plain, fused = (Serve(copy.deepcopy(layer), [3e4] * 2, [15e3] * 2, ("labels", "confidence")).eval() for _ in "ab")
    fuse_relus(fused.network)
    inputs = signed_tensors(batch())
    variants = {"plain": lambda: signed_graph(plain, "uint16"), "fused": lambda: signed_graph(fused, "uint16")}
    with workshop(tmp_path / "workshop") as scratch:
        best = fastest(variants, inputs, scratch, Threads(), QUICK)
        assert best.stem in variants
        for name in variants:
            found = opened(scratch / f"{name}.pt2")(*inputs).numpy()
            np.testing.assert_array_equal(found[:, 0], predict(plain, batch())[:, 0])
        with pytest.raises(EngineError, match="operations without native code"):
            extract_library(scratch / "fused.pt2", tmp_path / "model.so")


@needs_gpu
@pytest.mark.gpu
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_gpu_passes_the_gate(bundle, cache, precision):
    record = prepare(bundle.path, replace(REQUEST, target="cuda", precision=precision), cache)
    assert record.parity["reasons"] == []
    planes = np.concatenate(list(load_engine(bundle.path, record, cache).map(cut(tiles()))))
    assert np.mean(planes[:, 0] != predict(served(bundle), tiles())[:, 0]) < 2e-2
