"""Eager PyTorch: several streams, half precision, and the way through the ring that it takes on a GPU."""

import copy
import gc
import time
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle

from models.engines.base import Batch, EngineRecord
from models.engines.ring import Threads
from models.engines.torch import TorchEngine, laid_out, load, on_device, predict, signed, signed_graph, unavailable
from models.errors import EngineError
from models.serve import EAGER, served

DTYPES = ("uint8", "uint16", "int16", "float32")
RECORD = EngineRecord(
    digest="", backend="torch", version="", precision="fp32", device="", tile=64, batch=2, dtype="uint8", threads=1,
    bundle="", peak_bytes=0, seconds_per_tile=0.0, parity=None,
)  # fmt: skip
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return draw_bundle(tmp_path_factory.mktemp("bundle") / "b", dtypes=DTYPES)


def batches(dtype="uint8", counts=(2, 1, 2, 2, 1)):
    """Values from 0 to 255 after radiometry, stored over the whole range of a type."""
    rng = np.random.default_rng(0)
    low, high = (0, 1) if dtype == "float32" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    scale, offset = 255 / (high - low), -255 * low / (high - low)
    for count in counts:
        pixels = (low + rng.random((count, 3, 64, 64)) * (high - low)).astype(dtype)
        valid = rng.random((count, 64, 64)) > 0.1
        yield Batch(pixels, valid, np.full(3, scale, np.float32), np.full(3, offset, np.float32))


@pytest.fixture(scope="module")
def serve(bundle):
    return laid_out(served(bundle, EAGER), "fp32")


def expected(serve, dtype="uint8"):
    return [predict(serve, batch) for batch in batches(dtype)]


@pytest.fixture
def ringed(bundle, serve):
    return lambda dtype: on_device(replace(RECORD, dtype=dtype), bundle, signed_graph(serve, dtype), Threads())


@pytest.mark.parametrize("dtype", DTYPES)
def test_through_the_ring_every_type_of_pixels_gives_the_planes_of_eager_pytorch(serve, ringed, dtype):
    found = list(ringed(dtype).map(batches(dtype)))
    for planes, answer in zip(expected(serve, dtype), found, strict=True):
        np.testing.assert_array_equal(answer, planes)
    assert len(np.unique(found[0][:, 0])) > 1


def test_an_engine_in_a_ring_goes_on_after_a_consumer_that_stopped_early(serve, ringed):
    engine = ringed("uint8")
    planes = engine.map(batches())
    next(planes)
    planes.close()
    np.testing.assert_array_equal(np.concatenate(list(engine.map(batches()))), np.concatenate(expected(serve)))


def test_an_engine_in_a_ring_counts_its_time(ringed):
    engine = ringed("uint8")
    list(engine.map(batches()))
    times = engine.meter.times()
    assert 0.5 * times.total < times.busy <= times.total


def test_an_engine_in_a_ring_refuses_other_bands_and_is_idle_afterwards(ringed):
    engine = ringed("uint8")
    wrong = next(batches())
    with pytest.raises(
        EngineError, match=r"got 2 tiles of uint8 \[2, 64, 64\], bands first: .* of uint8 \[3, 64, 64\]"
    ):
        list(engine.map([replace(wrong, pixels=wrong.pixels[:, :2])]))
    before = engine.meter.times().busy
    assert engine.meter.times().busy == before


def test_an_engine_in_a_ring_is_busy_only_from_when_the_device_has_the_batch(ringed, monkeypatch):
    engine, begun = ringed("uint8"), []
    copyto = np.copyto
    monkeypatch.setattr(engine.meter, "begin", lambda: begun.append("begin") or (lambda: begun.append("end")))
    monkeypatch.setattr(np, "copyto", lambda *arrays: begun.append("copy") or copyto(*arrays))
    list(engine.map(batches(counts=(2,))))
    assert begun == ["copy"] * 4 + ["begin", "end"]


@pytest.mark.parametrize("on_ring", [True, False])
def test_an_engine_that_is_dropped_leaves_its_network_at_once(bundle, serve, on_ring):
    """Without help of the garbage collector, which comes when it likes: the next engine needs the memory."""

    def engine_of(graph):
        if on_ring:
            return on_device(RECORD, bundle, graph, Threads()), weakref.ref(graph)
        return TorchEngine(RECORD, 3, lambda: partial(predict, graph)), weakref.ref(graph)

    engine, left = engine_of(copy.deepcopy(serve))
    gc.disable()
    try:
        list(engine.map(batches()))
        assert left() is not None
        del engine
        deadline = time.monotonic() + 5
        while left() is not None and time.monotonic() < deadline:
            time.sleep(1e-3)  # a thread may be about to let it go
        assert left() is None
    finally:
        gc.enable()


def test_what_a_processor_cannot_do_is_an_error_of_ours():
    def broken(_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(EngineError, match=r"cannot be loaded: .* memory: .*: choose a smaller --tile or --batch"):
        TorchEngine(RECORD, 3, lambda: broken(0))
    with pytest.raises(EngineError, match=r"failed on a batch: .* memory: .*: choose a smaller --tile or --batch"):
        list(TorchEngine(RECORD, 3, lambda: broken).map(batches()))


def test_uint16_travels_as_the_int16_of_the_same_bits_without_a_copy():
    pixels = np.array([0, 32767, 32768, 65535], np.uint16)
    assert signed(pixels).tolist() == [0, 32767, -32768, -1]
    assert np.shares_memory(signed(pixels), pixels)


def test_two_streams_give_the_planes_of_one_in_the_same_order(bundle, serve):
    engine = load(replace(RECORD, streams=2, threads=2), bundle, None)
    for planes, answer in zip(expected(serve), engine.map(batches()), strict=True):
        np.testing.assert_array_equal(answer[:, 0], planes[:, 0])


@pytest.mark.parametrize(("precision", "share"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_half_precision_strays_little_where_the_processor_has_it(bundle, serve, precision, share):
    if reason := unavailable("cpu", precision):
        pytest.skip(reason)
    engine = load(replace(RECORD, precision=precision), bundle, None)
    labels = np.concatenate([planes[:, 0] for planes in engine.map(batches())])
    exact = np.concatenate([planes[:, 0] for planes in expected(serve)])
    assert 0 < np.mean(labels != exact) < share


def test_where_there_is_no_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert unavailable("cuda", "fp16") == "PyTorch sees no GPU: choose --device cpu"


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("precision", "share"), [("fp32", 1e-4), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_a_gpu_gives_the_planes_of_the_processor(bundle, serve, dtype, precision, share):
    engine = load(replace(RECORD, dtype=dtype, precision=precision, target="cuda"), bundle, None)
    found = list(engine.map(batches(dtype)))
    again = list(load(engine.record, bundle, None).map(batches(dtype)))
    labels = np.concatenate([planes[:, 0] for planes in found])
    assert np.mean(labels != np.concatenate([planes[:, 0] for planes in expected(serve, dtype)])) < share
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(found))
