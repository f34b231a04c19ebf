import ctypes
import functools
import hashlib
import inspect
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from drawn_bundle import draw_bundle, drawn_crops, drawn_spec
from onnx import TensorProto, helper, numpy_helper
from test_wire import run
from torch import nn

from models.bundle import Bundle, open_bundle, save_imported
from models.engines import tensorrt, trt_api
from models.engines.base import Batch, EngineRecord, EngineRequest
from models.engines.prepare import prepare
from models.engines.ring import Threads
from models.engines.torch import predict
from models.engines.trt_plan import CONVOLUTIONS, TYPES, Plans, census, remember, remembered
from models.errors import EngineError
from models.export import INPUTS, write_onnx
from models.halves import export_half, export_wired
from models.inception import ENCODERS
from models.probes import probes
from models.serve import serve_network, served
from models.spec import Architecture, Imported
from models.wire import wire_ready

try:
    TRT = tensorrt.library()
except EngineError as missing:
    pytest.skip(str(missing), allow_module_level=True)

TILE, BATCH = 32, 2
HERE = Path(__file__).parent


def request(precision="fp16", dtype="uint8", **changes):
    return EngineRequest(**{
        "backend": "tensorrt", "precision": precision, "tile": TILE, "dtype": dtype, "batch": BATCH, "threads": 1,
        "target": "cuda", **changes,
    })  # fmt: skip


@functools.cache
def exported(precision, dtype="uint8"):
    """A served graph of two convolutions, as ONNX, and ready for its wire."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    serve = serve_network(network, drawn_spec())
    with tempfile.TemporaryDirectory() as folder:
        path = export_wired(serve, Path(folder) / "model.onnx", request(precision, dtype))
        return serve, path.read_bytes(), wire_ready(onnx.load(path)).SerializeToString()


def parsed(model):
    plans = Plans(TRT)
    builder = TRT.Builder(plans._log)
    return census(plans.parsed(builder, model)), builder


def types_of(found):
    return {kind for layer, kind in found if layer in CONVOLUTIONS}


def convolution(kernel=np.float16, rows=8):
    """ONNX of one convolution on fp16, without our export; `rows` may be any number, by name."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 1, rows, 8]) for name in "xy"]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    weight = numpy_helper.from_array(np.ones((1, 1, 3, 3), kernel), "w")
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], [weight])
    opset = [helper.make_opsetid("", 22)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


@pytest.mark.parametrize("precision", TYPES)
def test_every_convolution_computes_in_the_precision_that_was_asked_for(precision):
    assert types_of(parsed(exported(precision)[2])[0]) == {TYPES[precision]}


def test_a_graph_of_another_precision_is_refused():
    with pytest.raises(EngineError, match="its convolutions would compute in HALF, not in bf16"):
        Plans(TRT).plan(exported("fp16")[2], tensorrt.inputs(3, request()), "bf16")


def test_two_builds_and_two_processes_make_the_same_plan(tmp_path):
    model, shapes = exported("fp16")[2], tensorrt.inputs(3, request())
    plans = [hashlib.sha256(Plans(TRT).plan(model, shapes, "fp16")).hexdigest() for _ in range(2)]
    (tmp_path / "model.onnx").write_bytes(model)
    code = f"""
import hashlib, pathlib, {TRT.__name__} as trt
from models.engines.trt_plan import Plans
model = pathlib.Path({str(tmp_path / "model.onnx")!r}).read_bytes()
print(hashlib.sha256(Plans(trt).plan(model, {shapes!r}, "fp16")).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent)
    assert {*plans, other.stdout.split()[-1]} == {plans[0]}


@pytest.mark.parametrize(
    ("rows", "shape", "words"),
    [
        (8, (2, 1, 8, 8), r"Input dimensions are \[1,1,8,8\] but profile dimensions are \[2,1,8,8\]"),
        (8, (1, 1, 16, 8), r"Input tensor x has static dimensions that don't match kMIN"),
        ("h", (1, 1, 8, 16), "At dimension axis 3, profile has min=16, opt=16, max=16 but tensor has 8"),
    ],
)
def test_tensorrt_itself_refuses_the_wrong_profile(rows, shape, words):
    with pytest.raises(EngineError, match=words):
        Plans(TRT).plan(convolution(rows=rows), {"x": shape}, "fp16")


def test_tensorrt_itself_refuses_shapes_that_were_left_out():
    with pytest.raises(EngineError, match="Dynamic input tensor x is missing dimensions in profile 0"):
        Plans(TRT).plan(convolution(rows="h"), {}, "fp16")


def test_tensorrt_itself_refuses_a_kernel_of_another_type():
    with pytest.raises(EngineError, match=r"must be of same type.*is Half but `kernel` is of type Float"):
        Plans(TRT).plan(convolution(np.float32), {"x": (1, 1, 8, 8)}, "fp16")


def test_the_served_graph_needs_its_wire():
    bare = exported("fp32")[1]
    with pytest.raises(EngineError, match="TensorRT does not support UINT8 types for intermediate tensors"):
        Plans(TRT).plan(bare, tensorrt.inputs(3, request("fp32")), "fp32")


def test_a_bundle_with_an_imported_graph_becomes_a_plan_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), nn.Sigmoid())
    zeros = (torch.zeros(2, 3, TILE, TILE),)
    graph = write_onnx(network.eval(), zeros, tmp_path / "network.onnx", inputs=["x"], outputs=["y"])
    plan = Imported(input="x", output="y", channels=1, activation="sigmoid")
    spec = drawn_spec(architecture=plan, classes=drawn_spec().classes[:2])
    made = save_imported(tmp_path / "imported", spec, graph.read_bytes(), "# Imported\n", drawn_crops())
    (tmp_path / "graph" / "entry").mkdir(parents=True)
    tensorrt.compile_graph(made, request("bf16", "uint16"), tmp_path / "graph" / "entry")
    assert [file.name for file in (tmp_path / "graph").rglob("*")] == ["entry", "plan.bin"]


@pytest.mark.slow
def test_a_bundle_of_our_own_in_fp16_predicts_what_eager_pytorch_does(tmp_path):
    made, wanted = draw_bundle(tmp_path / "bundle", tiles=(64,)), request(tile=64, batch=1)
    (tmp_path / "entry").mkdir()
    tensorrt.compile_graph(made, wanted, tmp_path / "entry")
    assert (tmp_path / "entry" / "plan.bin").stat().st_size > 0
    model = wire_ready(onnx.load(export_half(made, wanted, tmp_path / "model.onnx")))
    batch = next(probes(made, 64, "uint8")).batch
    arrays = (batch.pixels, batch.valid.view(np.uint8), batch.scale, batch.offset)
    labels = run(model, dict(zip(INPUTS, arrays, strict=True)))[:, 0]
    expected = predict(served(made), batch)[:, 0]
    assert len(np.unique(expected)) > 1
    assert np.mean(labels != expected) < 0.01


def test_where_tensorrt_is_missing_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setattr(tensorrt, "MODULES", ("no_tensorrt",))
    with pytest.raises(EngineError, match=r"TensorRT is not installed: pip install 'widefield\[gpu\]'"):
        tensorrt.library.__wrapped__()


def test_what_is_used_of_the_library_is_there_and_takes_as_many_arguments():
    own = vars(trt_api).values()
    for protocol in (each for each in own if inspect.isclass(each) and each.__module__ == trt_api.__name__):
        theirs = TRT if protocol is trt_api.Library else getattr(TRT, NAMES.get(protocol.__name__, protocol.__name__))
        for name in [*protocol.__annotations__, *(name for name in vars(protocol) if name[0] != "_")]:
            assert hasattr(theirs, name), f"{theirs} has no {name}"
            ours = vars(protocol).get(name)
            if inspect.isfunction(ours) and protocol is not trt_api.Library:
                assert len(inspect.signature(ours).parameters) in arities(getattr(theirs, name)), name


NAMES = {
    "HostMemory": "IHostMemory", "Tensor": "ITensor", "Layer": "ILayer", "NetworkDefinition": "INetworkDefinition",
    "OptimizationProfile": "IOptimizationProfile", "TimingCache": "ITimingCache", "BuilderConfig": "IBuilderConfig",
    "ExecutionContext": "IExecutionContext", "CudaEngine": "ICudaEngine",
}  # fmt: skip
"""Classes of theirs that have another name."""


def arities(method):
    """Numbers of arguments, `self` included, that a method of the binding may be given, by its docstring."""
    signatures = re.findall(rf"{method.__name__}\((self.*)\) ->", method.__doc__)
    for signature in signatures:
        arguments = re.sub(r"\[[^]]*\]|<[^>]*>", "", signature).split(", ")
        yield from range(sum("=" not in each for each in arguments), len(arguments) + 1)


@pytest.mark.parametrize(
    ("name", "capability", "precision", "reason"),
    [
        ("tensorrt", (9, 0), "fp16", None),
        ("tensorrt_rtx", (8, 9), "bf16", None),
        ("tensorrt_rtx", (9, 0), "fp16", "tensorrt_rtx has no kernels for compute capability 9.0"),
        ("tensorrt", (7, 5), "bf16", "a GPU of compute capability 7.5 has no bf16: choose --precision fp16"),
        ("tensorrt", (7, 5), "fp16", None),
    ],
)
def test_what_a_gpu_cannot_do_is_said(name, capability, precision, reason):
    told = tensorrt.unable(name, capability, precision)
    assert told is reason or told.startswith(reason)


@pytest.mark.skipif(tensorrt.flavour() != "tensorrt_rtx", reason="the other flavour makes plans on GPUs alone")
def test_without_a_gpu_plans_can_be_made_but_not_run():
    assert tensorrt.unbuildable() is None
    told = "makes plans here, and cannot run them: it computes on NVIDIA GPUs alone"
    assert tensorrt.unavailable("cpu", "fp16") == f"tensorrt_rtx {TRT.__version__} {told}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_plan_is_not_even_read_without_a_gpu(bundle, tmp_path):
    with pytest.raises(EngineError, match=r"TensorRT cannot run here: .* cannot run them: "):
        tensorrt.load(record(), open_bundle(bundle), tmp_path / "nowhere")


def test_timings_are_kept_whole_or_not_believed(tmp_path):
    file = tmp_path / "timings.bin"
    assert remembered(file) == b""
    remember(file, b"fast")
    assert remembered(file) == b"fast"
    assert [each.name for each in tmp_path.iterdir()] == ["timings.bin"]
    (tmp_path / "link").symlink_to(file)
    assert remembered(tmp_path / "link") == b""
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert remembered(file) == b""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # RTX takes timings, and does nothing with them
def test_a_plan_is_the_same_with_timings_and_leaves_them_behind(tmp_path):
    model, shapes, file = convolution(), {"x": (1, 1, 8, 8)}, tmp_path / "timings.bin"
    plans = [Plans(TRT, timings=timings).plan(model, shapes, "fp16") for timings in (file, file, None)]
    assert file.is_file()
    assert plans[1:] == plans[:-1]


def record(**changes):
    facts = {"digest": "", "version": "", "device": "", "bundle": "", "peak_bytes": 0, "seconds_per_tile": 0.0}
    wanted = request(**{key: value for key, value in changes.items() if key in {"precision", "dtype"}})
    return EngineRecord(**facts, parity=None, **{
        name: getattr(wanted, name)
        for name in ("backend", "precision", "tile", "batch", "dtype", "threads", "target")
    })  # fmt: skip


class OnnxRuntime:
    """`ICudaEngine` and `IExecutionContext` on a processor: ONNX Runtime on whatever lies at the addresses."""

    device_memory_size_v2 = 0

    def __init__(self, model, shapes):
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._ends = {end.name: end for end in (*self._session.get_inputs(), *self._session.get_outputs())}
        self.num_io_tensors, self.shapes, self.addresses = len(self._ends), shapes, {}

    def get_tensor_name(self, index):
        return list(self._ends)[index]

    def get_tensor_shape(self, name):
        return self._ends[name].shape

    def get_tensor_dtype(self, name):
        return TRT.DataType.FLOAT if self._ends[name].type == "tensor(float)" else TRT.DataType.UINT8

    def create_execution_context(self, strategy):
        assert strategy == TRT.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)

    def execute(self, addresses):
        arrays = {name: self._at(name, address) for name, address in addresses.items()}
        planes = arrays.pop("planes")
        planes[...] = self._session.run(None, arrays)[0]

    def _at(self, name, address):
        kind = ctypes.c_float if self.get_tensor_dtype(name) == TRT.DataType.FLOAT else ctypes.c_uint8
        shape = self.get_tensor_shape(name)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(kind)), shape)


class Context:
    def __init__(self, engine):
        self._engine, self._addresses = engine, {}

    def set_device_memory(self, address, size):
        assert (address != 0, size) == (True, 1)

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert stream == 0
        self._engine.execute(self._addresses)
        return True


def batches(dtype, counts, tile=TILE):
    rng = np.random.default_rng(0)
    for count in counts:
        pixels = rng.integers(0, 256, (count, 3, tile, tile)).astype(dtype)
        yield Batch(pixels, rng.random((count, tile, tile)) > 0.1, np.full(3, 0.5, np.float32), np.zeros(3, np.float32))


def engine_of(model, found):
    strategy = TRT.ExecutionContextAllocationStrategy.USER_MANAGED
    bundle = Bundle(HERE, found.bundle, drawn_spec())
    return tensorrt.on_device(found, bundle, OnnxRuntime(model, None), strategy, Threads())


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_slots_bind_their_buffers_and_answer_in_order(dtype):
    serve, _, model = exported("fp32", dtype)
    engine = engine_of(model, record(precision="fp32", dtype=dtype))
    tiles = list(batches(dtype, (2, 1, 2, 2, 2, 1)))
    for batch, planes in zip(tiles, engine.map(iter(tiles)), strict=True):
        expected = predict(serve, batch)
        assert planes.shape == expected.shape
        assert np.mean(planes[:, 0] != expected[:, 0]) < 1e-3
    assert engine.meter.times().busy > 0


def test_a_plan_for_another_batch_is_refused():
    with pytest.raises(EngineError, match=r"the plan takes and gives .*: prepare the engine again"):
        engine_of(exported("fp32")[2], replace(record(precision="fp32"), batch=3))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_encoder_becomes_a_plan(tmp_path, encoder, precision):
    architecture = Architecture(encoder=encoder, output_stride=2)
    made = draw_bundle(tmp_path / "bundle", architecture=architecture, tiles=(256,), halo=64)
    path = export_half(made, request(precision, tile=256), tmp_path / "model.onnx")
    model = wire_ready(onnx.load(path)).SerializeToString()
    assert types_of(parsed(model)[0]) == {TYPES[precision]}
    assert len(Plans(TRT).plan(model, tensorrt.inputs(3, request(tile=256)), precision)) > path.stat().st_size / 2


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_gpu_gives_the_planes_of_eager_pytorch(tmp_path, precision, dtype):
    if reason := tensorrt.unavailable("cuda", precision):
        pytest.skip(reason)
    made = draw_bundle(tmp_path / "bundle", dtypes=(dtype,))
    found = prepare(made.path, request(precision, dtype, tile=64), tmp_path / "cache")
    folder = next((tmp_path / "cache" / "graph").glob("*/plan.bin")).parent
    engine, serve = tensorrt.load(found, made, folder), served(made)
    tiles = list(batches(dtype, (2, 1, 2, 2), 64))
    for batch, planes in zip(tiles, engine.map(iter(tiles)), strict=True):
        assert np.mean(planes[:, 0] != predict(serve, batch)[:, 0]) < 0.02
