import gc
import json
import logging
import subprocess
import sys
import weakref
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle
from typer.testing import CliRunner

from flows import engines as commands
from models.engines import backends, speed
from models.engines import prepare as preparing
from models.engines.backends import BACKENDS, GATE, MODELS, NETWORK, digest_of_sources
from models.engines.base import Batch, EngineRecord, EngineRequest
from models.engines.cache import Cache, digest_of
from models.engines.load import load_engine
from models.engines.prepare import candidates, choice_fields, engine_fields, gated_fields, graph_fields, prepare, ranked
from models.engines.torch import predict
from models.errors import EngineError, UnavailableError
from models.serve import Serve, served

REQUEST = EngineRequest("openvino", "fp32", tile=64, dtype="uint8", batch=2, threads=1, target="cpu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return draw_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "c"


def tiles(count, seed=0):
    rng = np.random.default_rng(seed)
    pixels, valid = rng.integers(0, 256, (count, 3, 64, 64), np.uint8), rng.random((count, 64, 64)) > 0.1
    return Batch(pixels, valid, np.ones(3, np.float32), np.zeros(3, np.float32))


def cut(batch, size):
    for i in range(0, len(batch.pixels), size):
        yield replace(batch, pixels=batch.pixels[i : i + size], valid=batch.valid[i : i + size])


def in_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def prepared(bundle, cache):
    """What a process says that has the engine built: the record, and whether it loaded torch or OpenVINO itself."""
    return in_fresh_process(f"""
import sys
from models.engines.base import EngineRequest
from models.engines.prepare import engine_fields, graph_fields, prepare, ranked
print(prepare({str(bundle.path)!r}, {REQUEST!r}, {str(cache)!r}).to_json())
print({{"torch", "onnx", "openvino"}} & set(sys.modules))
""")


@pytest.fixture(scope="module")
def record(prepared):
    return EngineRecord.from_json(prepared[0])


def test_records_survive_json(record):
    assert EngineRecord.from_json(record.to_json()) == record
    assert record.request == REQUEST


def test_a_record_says_what_the_engine_is_and_costs(record, bundle):
    assert (record.backend, record.precision, record.tile, record.batch) == ("openvino", "fp32", 64, 2)
    assert "openvino 20" in record.version
    assert record.bundle == bundle.digest
    assert 50e6 < record.peak_bytes < 1e9
    assert 0 < record.seconds_per_tile < 10
    assert record.parity["probes"] == 20
    assert record.parity["reasons"] == []


def test_openvino_gives_the_planes_of_eager_pytorch_also_for_a_short_batch(record, bundle, cache):
    batch = tiles(3)
    planes = list(load_engine(bundle.path, record, cache).map(cut(batch, 2)))
    assert [part.shape for part in planes] == [(2, 2, 64, 64), (1, 2, 64, 64)]
    expected = predict(served(bundle), batch)
    assert len(np.unique(expected[:, 0])) > 1
    np.testing.assert_array_equal(np.concatenate(planes)[:, 0], expected[:, 0])
    assert np.abs(np.concatenate(planes)[:, 1].astype(int) - expected[:, 1]).max() <= 1


def test_a_tiles_planes_depend_neither_on_its_batch_nor_on_the_process(record, bundle, cache):
    batch, engine = tiles(4), load_engine(bundle.path, record, cache)
    alone = np.concatenate(list(engine.map(cut(batch, 1))))
    paired = np.concatenate(list(engine.map(cut(batch, 2))))
    backwards = np.concatenate(list(load_engine(bundle.path, record, cache).map(list(cut(batch, 1))[::-1])))
    np.testing.assert_array_equal(paired, alone)
    np.testing.assert_array_equal(backwards[::-1], alone)


def test_an_engine_goes_on_after_a_consumer_that_stopped_early(record, bundle, cache):
    engine, batches = load_engine(bundle.path, record, cache), list(cut(tiles(5), 1))
    expected = list(engine.map(batches))
    planes = engine.map(iter(batches))
    np.testing.assert_array_equal(next(planes), expected[0])
    planes.close()
    np.testing.assert_array_equal(np.concatenate(list(engine.map(batches))), np.concatenate(expected))


def test_having_an_engine_built_loads_neither_torch_nor_openvino(prepared):
    assert prepared[1] == "set()"


def test_loading_openvino_loads_no_torch(record, bundle, cache):
    code = f"""
import sys
from models.engines.base import EngineRecord
from models.engines.load import load_engine
load_engine({str(bundle.path)!r}, EngineRecord.from_json({record.to_json()!r}), {str(cache)!r})
print({{"torch", "onnx", "openvino"}} & set(sys.modules))
"""
    assert in_fresh_process(code) == ["{'openvino'}"]


def test_an_engine_is_built_and_measured_once(record, bundle, cache):
    assert prepare(bundle.path, REQUEST, cache) == record


def test_the_null_engine_answers_zeros_and_is_measured_too(bundle, cache):
    record = prepare(bundle.path, replace(REQUEST, backend="null", precision="auto"), cache)
    assert (record.precision, record.parity) == ("fp32", None)
    assert 10e6 < record.peak_bytes < 500e6
    planes = list(load_engine(bundle.path, record, cache).map([tiles(2), tiles(1)]))
    assert [part.shape for part in planes] == [(2, 2, 64, 64), (1, 2, 64, 64)]
    assert not any(part.any() for part in planes)


def test_the_torch_engine_gives_the_planes_of_eager_pytorch(bundle, cache):
    record = prepare(bundle.path, replace(REQUEST, backend="torch", batch=1), cache)
    batch = tiles(2)
    planes = np.concatenate(list(load_engine(bundle.path, record, cache).map(cut(batch, 1))))
    np.testing.assert_array_equal(planes[:, 0], predict(served(bundle), batch)[:, 0])


def test_a_changed_byte_in_the_graph_is_never_loaded_but_built_again(record, bundle, cache, caplog):
    (graph,) = (cache / "graph").glob("*/model.bin")
    content = bytearray(graph.read_bytes())
    graph.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    with caplog.at_level(logging.WARNING):
        engine = load_engine(bundle.path, record, cache)
    assert "has changed on disk" in caplog.text
    assert graph.read_bytes() == content
    assert engine.record == record


def test_a_worker_refuses_an_engine_that_it_would_make_differently(record, bundle, cache, tmp_path):
    with pytest.raises(EngineError, match=r"would make another engine.*device 'another one', here"):
        load_engine(bundle.path, replace(record, digest="0" * 64, device="another one"), cache)
    other = draw_bundle(tmp_path / "other", seed=1)
    with pytest.raises(EngineError, match="was made of bundle"):
        load_engine(other.path, record, cache)


def test_a_graph_that_came_out_in_other_bytes_is_another_engine_and_can_be_planned(tmp_path, bundle):
    asked, store = replace(REQUEST, batch=1), Cache(tmp_path / "c")
    record = prepare(bundle.path, asked, store.root)
    graph = store.get("graph", graph_fields(bundle, asked))

    def otherwise(folder):
        for name in graph.files:
            (folder / name).write_bytes((graph.path / name).read_bytes() + b"\n" * name.endswith("xml"))

    store.make("graph", graph_fields(bundle, asked), otherwise, lambda _: False)
    other = prepare(bundle.path, asked, store.root)
    assert other.digest != record.digest
    assert other.parity["reasons"] == []
    assert load_engine(bundle.path, other, store.root).record == other
    with pytest.raises(EngineError, match="the graph differs"):
        load_engine(bundle.path, record, store.root)


def test_auto_falls_back_loudly_when_the_fastest_is_refused(bundle, cache, caplog):
    wanted = EngineRequest("auto", "auto", tile=64, dtype="uint8", batch=2, threads=2, streams=1)
    best, *others = ranked(bundle, wanted, Cache(cache))

    def refuse(folder):
        (folder / "refused.json").write_text('{"reason": "labels 0.02 above 0.001"}')

    Cache(cache).make("engine", gated_fields(bundle, best), refuse)
    with caplog.at_level(logging.WARNING):
        assert prepare(bundle.path, wanted, cache).request in others
    assert f"{best.backend} {best.precision}: labels 0.02 above 0.001" in caplog.text
    with pytest.raises(EngineError, match=r"labels 0\.02"):
        prepare(bundle.path, best, cache)


def test_a_failing_child_is_an_error_with_its_last_line():
    with pytest.raises(EngineError, match=r"failed: models\.errors\.BundleError: /nowhere is no bundle"):
        preparing.run_child({"job": "build", "request": {}, "bundle": "/nowhere", "cache": "/nowhere"})


@pytest.mark.parametrize(("changes", "said"), [({"tile": 96}, "has tiles 64"), ({"dtype": "int16"}, "takes uint8")])
def test_what_the_bundle_does_not_promise_is_refused(bundle, cache, changes, said):
    with pytest.raises(EngineError, match=said):
        prepare(bundle.path, replace(REQUEST, **changes), cache)


def compiled(folder, serve, dtype, precision):
    from models.engines.openvino import OpenVINOEngine, convert, unavailable
    from models.export import export_onnx

    if reason := unavailable("cpu", precision):
        pytest.skip(reason)
    convert(export_onnx(serve, folder / "m.onnx", tile=64, dtype=dtype), folder)
    facts = {"digest": "", "version": "", "device": "", "bundle": "", "peak_bytes": 0, "seconds_per_tile": 0.0}
    asked = {"backend": "openvino", "precision": precision, "tile": 64, "batch": 1, "dtype": dtype, "threads": 1}
    return OpenVINOEngine(EngineRecord(**facts, **asked, parity=None), folder)


def test_bf16_normalises_stored_values_in_full_precision(tmp_path):
    """Counts around 10^4 with a small spread: rounded to 8 bits, they would lose their differences."""
    network = torch.nn.Conv2d(1, 2, 1)
    network.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
    torch.nn.init.zeros_(network.bias)
    serve = Serve(network, [1.0], [0.002], ("labels", "confidence")).eval()
    pixels = np.random.default_rng(0).integers(9980, 10020, (1, 1, 64, 64)).astype(np.uint16)
    batch = Batch(pixels, np.ones((1, 64, 64), bool), np.full(1, 1.0001e-4, np.float32), np.full(1, -1e-4, np.float32))
    (planes,) = compiled(tmp_path, serve, "uint16", "bf16").map([batch])
    expected = predict(serve, batch)
    np.testing.assert_array_equal(planes[:, 0], expected[:, 0])
    assert np.abs(planes[:, 1].astype(int) - expected[:, 1]).max() <= 2


@pytest.mark.parametrize(
    ("dtype", "poison", "precision"),
    [("float32", np.nan, "bf16"), ("float32", np.inf, "fp32"), ("int16", -9999, "fp32")],
)
def test_what_invalid_pixels_store_reaches_nobody_in_openvino(tmp_path, dtype, poison, precision):
    torch.manual_seed(0)
    serve = Serve(torch.nn.Conv2d(3, 3, 3, padding=1), [100.0] * 3, [50.0] * 3, ("labels", "confidence")).eval()
    clean = tiles(1)
    pixels = np.where(clean.valid[:, None], clean.pixels, 100).astype(dtype)
    poisoned = np.where(clean.valid[:, None], clean.pixels, poison).astype(dtype)
    everywhere = replace(clean, pixels=pixels, valid=np.ones_like(clean.valid))
    engine = compiled(tmp_path, serve, dtype, precision)
    expected, found = engine.map([everywhere, replace(clean, pixels=poisoned)])
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found[:, 0])) == 3


def test_a_network_whose_first_batch_takes_long_is_measured_all_the_same(monkeypatch):
    class Slow:
        record = SimpleNamespace(streams=1, batch=1)

        def map(self, batches):
            yield from batches

    monkeypatch.setattr(speed, "SECONDS", 0.0)
    assert len(list(speed._rounds(Slow(), "batch"))) == speed.WARM_UP + 1


class Clocked:
    """An engine whose batches take as long as they are told to."""

    def __init__(self, request, clock, seconds):
        self.record, self.clock, self.seconds = request, clock, seconds
        self.batches = 0

    def map(self, batches):
        for batch in batches:
            self.batches += 1
            self.clock[0] += self.seconds
            yield batch


def race_of(bundle, monkeypatch, seconds):
    """The answer of a race whose runners take so many seconds a tile, and how many batches each of them ran."""
    clock, runners = [0.0], {}
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])

    def start(request):
        if isinstance(seconds[request.backend], Exception):
            raise seconds[request.backend]
        return runners.setdefault(request.backend, Clocked(request, clock, seconds[request.backend]))

    answer = speed.race(bundle, [replace(REQUEST, backend=name, batch=1) for name in seconds], start)
    return answer, {name: runner.batches for name, runner in runners.items()}


def test_a_race_orders_engines_by_speed_and_drops_the_hopeless_early(bundle, monkeypatch):
    absent = UnavailableError("there is no compiler")
    runners = {"openvino": 0.11, "inductor": absent, "torch": 0.9, "onnxruntime": 0.1}
    answer, batches = race_of(bundle, monkeypatch, runners)
    assert [label.split()[0] for label in answer["order"]] == ["onnxruntime", "openvino", "torch"]
    assert answer["seconds"] == pytest.approx({"openvino fp32 1": 0.11, "torch fp32 1": 0.9, "onnxruntime fp32 1": 0.1})
    assert (answer["out"], answer["failed"]) == ({"inductor fp32 1": "there is no compiler"}, {})
    assert batches["torch"] == 2
    assert batches["onnxruntime"] == 1 + speed.TURNS
    assert batches["openvino"] == 2 + 1 + speed.TURNS


def test_one_that_fails_in_whatever_way_does_not_end_a_race(bundle, monkeypatch):
    runners = {"openvino": 0.2, "inductor": KeyError("fp16"), "torch": 0.1, "onnxruntime": EngineError("no graph")}
    answer, _ = race_of(bundle, monkeypatch, runners)
    assert [label.split()[0] for label in answer["order"]] == ["torch", "openvino"]
    assert answer["failed"] == {"inductor fp32 1": "KeyError: 'fp16'", "onnxruntime fp32 1": "no graph"}


def test_a_race_holds_the_leader_and_one_challenger(bundle):
    alive = weakref.WeakSet()

    def start(request):
        gc.collect()
        assert len(alive) <= 1
        alive.add(engine := Clocked(request, [0.0], 0.0))
        engine.itself = engine  # threads and callbacks make such circles
        return engine

    requests = [replace(REQUEST, backend=name, batch=1) for name in BACKENDS if name != "null"]
    assert speed.race(bundle, requests, start)["failed"] == {}


def test_on_a_gpu_rounds_keep_the_slots_full(bundle):
    engine = Clocked(replace(REQUEST, target="cuda", batch=1), [0.0], 0.0)
    speed.Runner("", engine, "batch").round()
    assert engine.batches == speed.WARM_UP + speed.RUNS


AUTO = EngineRequest("auto", "fp32", tile=64, dtype="uint8", threads=1, streams=1, target="cpu")


def test_a_comparison_with_failures_is_told_and_made_anew(bundle, tmp_path, monkeypatch, caplog):
    answer = {"order": ["torch fp32 1"], "seconds": {}, "out": {}, "failed": {"openvino fp32 1": "KeyError: 'x'"}}
    asked = []
    monkeypatch.setattr(preparing, "run_child", lambda job: asked.append(job["job"]) or answer)
    store = Cache(tmp_path / "c")
    assert [request.backend for request in ranked(bundle, AUTO, store)] == ["torch"]
    assert "openvino fp32 1 failed as engines were compared, and is left out: KeyError: 'x'" in caplog.text
    answer["failed"] = {}
    ranked(bundle, AUTO, store)
    ranked(bundle, AUTO, store)
    assert len(asked) == 2
    ranked(bundle, AUTO, store, again=True)
    assert len(asked) == 3


def test_a_comparison_that_is_killed_does_not_end_auto(bundle, tmp_path, monkeypatch, caplog):
    def child(job):
        raise EngineError("killed by signal 9") if job["job"] == "race" else UnavailableError("nothing here")

    monkeypatch.setattr(preparing, "run_child", child)
    with pytest.raises(UnavailableError, match=r"openvino fp32: nothing here; .*torch fp32: nothing here"):
        prepare(bundle.path, AUTO, tmp_path / "c")
    assert "could not be compared, so the likeliest is tried first: killed by signal 9" in caplog.text


def test_a_gpu_that_no_engine_can_use_is_left_alone_or_the_way_out_is_told(bundle, tmp_path, monkeypatch, caplog):
    def passes(bundle, request, cache, *, again):
        if request.target == "cuda":
            raise UnavailableError("PyTorch is installed without CUDA")
        return request.target

    monkeypatch.setattr("models.engines.device.default_target", lambda: "cuda")
    monkeypatch.setattr(preparing, "device", str)
    monkeypatch.setattr(preparing, "_first_that_passes", passes)
    assert prepare(bundle.path, replace(AUTO, target="auto"), tmp_path / "c") == "cpu"
    assert "no engine can use the GPU, so the processor computes: PyTorch is installed without CUDA" in caplog.text
    with pytest.raises(UnavailableError, match=r"pip install 'widefield\[gpu\]', or choose --device cpu"):
        prepare(bundle.path, replace(AUTO, target="cuda"), tmp_path / "c")


def test_a_gpu_knows_one_stream_and_each_engine_its_own_precisions(bundle):
    on_gpu = replace(AUTO, backend="torch", target="cuda", streams=4)
    assert [found.streams for found in candidates(on_gpu, bundle)] == [1]
    assert "openvino" not in {found.backend for found in candidates(replace(AUTO, precision="fp16"), bundle)}


def test_children_find_a_bundle_that_is_named_from_here(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle.path.parent)
    near = replace(bundle, path=bundle.path.relative_to(bundle.path.parent))
    assert speed.measure(near, replace(AUTO, backend="null"), Cache(tmp_path / "c")).seconds_per_tile > 0


def test_a_child_answers_apart_from_what_libraries_print_and_tells_its_warnings():
    lines = in_fresh_process("""
import io, logging, os, sys
from models.engines import build
def job(_):
    logging.getLogger("models.engines.drawn").warning("level %d", 5)
    os.write(1, b"what libraries print")
    return {"a": 1}
build.JOBS["drawn"], sys.stdin = job, io.StringIO('{"job": "drawn"}')
build.main()
""")
    told = {"answer": {"a": 1}, "warnings": [["models.engines.drawn", "level 5"]]}
    assert [json.loads(line) for line in lines] == [told]


def test_warnings_of_a_child_are_told_as_our_own(monkeypatch, caplog):
    told = {"answer": {"a": 1}, "warnings": [["models.engines.drawn", "level 5 %"]]}
    done = SimpleNamespace(returncode=0, stdout=f"{json.dumps(told)}\n")
    monkeypatch.setattr(preparing.subprocess, "run", lambda *_, **__: done)
    assert preparing.run_child({"job": "drawn"}) == {"a": 1}
    assert caplog.record_tuples == [("models.engines.drawn", logging.WARNING, "level 5 %")]


def test_noise_does_not_decide_a_race(bundle, monkeypatch):
    answer, _ = race_of(bundle, monkeypatch, {"openvino": 0.102, "torch": 0.1})
    assert answer["order"][0].startswith("openvino")


def test_speed_is_of_all_streams_together(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    engine = Clocked(replace(REQUEST, streams=2, batch=4), clock, 0.08)
    assert list(speed._rounds(engine, "batch"))[1:] == pytest.approx([0.02] * speed.RUNS)


CHANGES = {
    "backend": "onnxruntime",
    "precision": "bf16",
    "tile": 96,
    "dtype": "uint16",
    "batch": 3,
    "threads": 2,
    "streams": 2,
    "target": "cuda",
    "tta": True,
    "planes": ("labels",),
}


def test_every_field_of_a_request_makes_another_engine(bundle, monkeypatch):
    monkeypatch.setattr(preparing, "device", str)
    assert set(CHANGES) == {field.name for field in fields(EngineRequest)}
    known = {digest_of(engine_fields(bundle, REQUEST))}
    for name, value in CHANGES.items():
        known.add(digest_of(engine_fields(bundle, replace(REQUEST, **{name: value}))))
    assert len(known) == 1 + len(CHANGES)


@pytest.mark.parametrize("backend", [name for name, backend in BACKENDS.items() if backend.artefact])
def test_a_compiled_graph_is_found_again_only_for_what_it_was_compiled_for(bundle, backend):
    asked = replace(REQUEST, backend=backend, target=BACKENDS[backend].targets[0])
    changed = {"tile", "dtype", "batch", "tta", "planes"}
    changed |= {"precision", "threads"} if BACKENDS[backend].artefact == "compiled" else set()
    first = digest_of(graph_fields(bundle, asked))
    other = {name: digest_of(graph_fields(bundle, replace(asked, **{name: CHANGES[name]}))) for name in CHANGES}
    assert {name for name in changed if other[name] == first} == set()
    assert other["streams"] == first


def test_another_bundle_library_or_device_makes_another_engine(bundle, tmp_path, monkeypatch):
    known = [digest_of(engine_fields(draw_bundle(tmp_path / "other", seed=1), REQUEST))]
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "device", lambda _: "another processor")
        known.append(digest_of(engine_fields(bundle, REQUEST)))
    with monkeypatch.context() as patch:
        patch.setattr(backends, "digest_of_sources", lambda *_: "other code")
        known.append(digest_of(engine_fields(bundle, REQUEST)))
    with monkeypatch.context() as patch:
        patch.setattr(backends, "version", lambda name: f"0 of {name}")
        known.append(digest_of(engine_fields(bundle, REQUEST)))
    assert len({*known, digest_of(engine_fields(bundle, REQUEST))}) == 5


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=str)
def test_all_code_that_decides_is_found(backend):
    for name in (*NETWORK, *GATE, f"engines/{backend.name}", *backend.helpers):
        assert list(MODELS.glob(f"{name}.py")), name


def test_a_changed_byte_in_the_code_changes_its_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "MODELS", tmp_path)
    digests = set()
    for code in ("a = 1", "a = 2"):
        (tmp_path / "serve.py").write_text(code)
        digest_of_sources.cache_clear()
        digests.add(digest_of_sources("serve"))
    digest_of_sources.cache_clear()
    assert len(digests) == 2


def test_what_is_missing_today_is_not_remembered(bundle, cache, monkeypatch):
    wanted = replace(REQUEST, backend="torch", batch=1, streams=1, dtype="uint8", planes=("confidence", "labels"))
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "run_child", lambda _: {"unavailable": "there is no compiler"})
        with pytest.raises(UnavailableError, match="no compiler"):
            prepare(bundle.path, wanted, cache)
    assert prepare(bundle.path, wanted, cache).planes == ("confidence", "labels")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "torch", "onnxruntime"])
def test_augmentation_and_probabilities_pass_the_gate(bundle, cache, backend):
    planes = ("labels", "probability-c2", "confidence")
    record = prepare(bundle.path, replace(REQUEST, backend=backend, batch=1, tta=True, planes=planes), cache)
    batch = tiles(1)
    (found,) = load_engine(bundle.path, record, cache).map([batch])
    expected = predict(served(bundle, planes=planes, tta=True), batch)
    assert np.abs(found.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(found[:, 0], expected[:, 0])


def command(*arguments):
    return CliRunner().invoke(commands.engines, [str(argument) for argument in arguments])


def test_bench_fails_where_nothing_could_be_measured_and_takes_a_type(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("WIDEFIELD_CACHE", str(tmp_path / "c"))
    asked = ("bench", "--bundle", bundle.path, "--engine", "torch", "--precision", "fp32")
    for reason, code in (("there is no compiler", 1), (None, 0)):
        facts = {"seconds_per_tile": 1.0, "peak_bytes": 1, "reason": reason, "scene": 1.0}
        monkeypatch.setattr(commands, "_measured", lambda _, each, facts=facts: vars(each) | facts)
        assert command(*asked).exit_code == code
    assert "int8 pixels" in str(command(*asked, "--dtype", "int8").exception)


def test_clean_forgets_what_has_not_been_used(tmp_path, monkeypatch):
    monkeypatch.setenv("WIDEFIELD_CACHE", str(tmp_path / "c"))
    Cache().make("graph", {"a": 1}, lambda folder: (folder / "x").write_bytes(bytes(500)))
    assert json.loads(command("clean", "--older-than", 1, "--json").stdout) == {"freed_bytes": 0}
    assert json.loads(command("clean", "--json").stdout)["freed_bytes"] > 500


def test_engines_are_compared_once_for_all_bundles_of_one_kind(bundle, tmp_path):
    chosen = list(candidates(AUTO, bundle))
    known = digest_of(choice_fields(bundle, AUTO, chosen))
    retrained = draw_bundle(tmp_path / "retrained", seed=7)
    wider = draw_bundle(tmp_path / "wider", architecture=bundle.spec.trained.model_copy(update={"width": 0.1}))
    assert digest_of(choice_fields(retrained, AUTO, chosen)) == known
    assert digest_of(choice_fields(wider, AUTO, chosen)) != known
