"""Everything about one GPU in one go; on a machine without one, the same steps on its processor with small sizes.

`python -m tests.bench gpu [STEP...]`, the steps in the order in which they run:

    roofline   measured ceilings, and the least time of each kind of layer, by output stride
    ladder     engines from eager channels-last upwards, each as a share of the roofline
    sweep      tile, batch, precision and output stride of the fastest engine
    stages     where a batch's time goes, by events: copies in, network, copies out; the slowest operators
    path       image.zarr to mask.zarr beside the engine, and file to mask by how the scene is stored

Only `path` puts engines through their gate; the others measure speed alone, so that a sweep takes minutes.
"""

import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import rasterio
import rasterio.shutil
import torch

from models.bundle import load_module, open_bundle
from models.engines.base import EngineRequest
from models.engines.cache import Cache
from models.engines.device import device as described
from models.engines.speed import measure
from models.engines.torch import DTYPES, laid_out, signed_graph, tensors
from models.errors import EngineError
from models.probes import probes
from models.rewrite import rewritten
from models.serve import EAGER, served
from pipeline import resources
from tests.bench import roofline
from tests.bench.common import measured, record, spread, table, verdict
from tests.bench.networks import SCENE, he_bundle

BANDS = 3
USUAL_STRIDE = 2


@dataclass(frozen=True)
class Sizes:
    """What is run on a kind of device."""

    network: str
    tile: int
    batch: int
    precisions: tuple[str, ...]
    """The usual one first."""
    tiles: tuple[int, ...]
    batches: tuple[int, ...]
    strides: tuple[int, ...]
    scene: int
    """Edge of the scene, in pixels; of the one in JPEG 2000, which takes long to write, half of it."""
    seconds: float
    """For each ceiling."""


SIZES = {
    "cuda": Sizes("inception_resnet_v2", 1024, 4, ("fp16", "bf16"), (1024, 2048), (1, 2, 4, 8), (1, 2, 4), 16384, 2.0),
    "cpu": Sizes("inception_v1", 128, 1, ("bf16", "fp32"), (128, 256), (1, 2), (2,), 1024, 0.2),
}
LADDER = {"cuda": ("torch", "inductor", "tensorrt"), "cpu": ("torch", "openvino")}
TILES = (128, 256, 512, 1024, 1152, 2048)
HALO = {"cuda": 64, "cpu": 32}
WANTED = {"roofline": 0.6, "zarr": 0.9, "speed": 350.0, "stretch": 500.0}
WAYS = {
    "deflate COG": ("COG", "deflate.tif", {"compress": "DEFLATE", "predictor": "YES"}),
    "JPEG COG": ("COG", "jpeg.tif", {"compress": "JPEG", "quality": 85}),
    "JPEG 2000": ("JP2OpenJPEG", "scene.jp2", {"quality": 25, "reversible": "NO"}),
}


class Bench:
    """What the steps share, and what they have found so far."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.sizes, self.cache = SIZES[self.device], Cache()
        self.ceilings, self.best = {}, None
        """Of the device, by precision; the request of the fastest engine of the ladder."""
        self.facts, self.told = {"device": described(self.device), "cores": resources.cores()}, []

    def bundle(self, stride=USUAL_STRIDE):
        """The network at an output stride."""
        return he_bundle(self.folder, self.sizes.network, output_stride=stride, halo=HALO[self.device], tiles=TILES)

    def request(self, backend, **changes):
        """An engine of that backend, at the device's usual sizes unless told otherwise."""
        sizes = self.sizes
        usual = {"precision": sizes.precisions[0], "tile": sizes.tile, "batch": sizes.batch, "target": self.device}
        return EngineRequest(backend, dtype="uint8", **usual | changes)

    def speed(self, request, stride=USUAL_STRIDE):
        """Network megapixels a second, or why there is no such engine here."""
        try:
            found = measure(open_bundle(self.bundle(stride)), request, self.cache)
        except EngineError as error:
            return str(error)
        return request.tile**2 / 1e6 / found.seconds_per_tile

    def least(self, request, stride=USUAL_STRIDE):
        """Megapixels a second that the roofline allows."""
        dtype = DTYPES[request.precision]
        if dtype not in self.ceilings:
            self.ceilings[dtype] = roofline.measure(self.device, dtype, self.sizes.seconds)
        network = rewritten(load_module(open_bundle(self.bundle(stride))), BANDS, EAGER)
        found = roofline.layers(network, BANDS, request.tile, request.batch, dtype)
        seconds = sum(layer.seconds(self.ceilings[dtype]) for layer in found)
        return request.batch * request.tile**2 / 1e6 / seconds


def run(*steps):
    """Markdown of all steps, or of those that are named."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as folder:
        bench = Bench(folder)
        texts = [f"On {bench.facts['device']}, with {bench.facts['cores']} cores.\n"]
        for name in steps or STEPS:
            texts += [f"### {name}\n", STEPS[name](bench)]
            bench.facts["text"] = "\n".join(texts)
            headline = bench.told if bench.device == "cuda" else ()
            record("gpu", bench.facts, headline)  # after each step: a machine may be taken away
            sys.stderr.write(f"{name} done\n")
    return "\n".join(texts)


def ceilings(bench):
    """Ceilings and layers."""
    sizes, texts = bench.sizes, []
    dtype = DTYPES[sizes.precisions[0]]
    for stride in sizes.strides:
        allowed = bench.least(bench.request("torch"), stride)
        network = rewritten(load_module(open_bundle(bench.bundle(stride))), BANDS, EAGER)
        found = roofline.layers(network, BANDS, sizes.tile, sizes.batch, dtype)
        rows = list(roofline.by_kind(found, bench.ceilings[dtype]))
        bench.facts[f"roofline {stride}"] = {"mpx_per_second": allowed, "rows": rows}
        head = ["layer", "how many", "GFLOP", "MB", "least ms", "share", "of it bound by memory"]
        texts += [f"Output stride {stride}: at most {allowed:.3g} Mpx/s.\n", table(head, rows)]
    top = bench.ceilings[dtype]
    bench.facts["ceilings"] = {"flops": top.flops, "bandwidth": top.bandwidth}
    measured_ = (
        f"Measured: {top.flops / 1e12:.2f} TFLOP/s of {sizes.precisions[0]}, {top.bandwidth / 1e9:.0f} GB/s copied."
    )
    batch = f"A batch is {sizes.batch} x {sizes.tile} x {sizes.tile}."
    return "\n".join([f"{measured_} {batch}\n", *texts])


def ladder(bench):
    """Every backend at the usual sizes."""
    rows, speeds = [], {}
    for backend in LADDER[bench.device]:
        for precision in bench.sizes.precisions:
            request = bench.request(backend, precision=precision)
            speed = bench.speed(request)
            if isinstance(speed, str):
                rows.append([backend, precision, "", "", speed.replace("|", "/")])
                continue
            speeds[request] = speed
            rows.append([backend, precision, f"{speed:.3g}", f"{speed / bench.least(request):.2f}", ""])
    bench.best = max(speeds, key=speeds.get, default=None)
    bench.facts["ladder"] = rows
    if bench.best:
        share = speeds[bench.best] / bench.least(bench.best)
        reached = f"{share:.2f} ({verdict(share, WANTED['roofline'], least=True)})"
        name = f"{bench.best.backend} {bench.best.precision}, share of the roofline"
        bench.told.append((name, f"at least {WANTED['roofline']}", reached))
    return table(["engine", "precision", "network Mpx/s", "share of the roofline", "or why not"], rows)


def fastest(bench):
    """The fastest engine of the ladder, which is run for it if it has not been."""
    if bench.best is None:
        ladder(bench)
    if bench.best is None:
        raise EngineError("no engine of the ladder runs here: see the step 'ladder'")
    return bench.best


def sweep(bench):
    """The fastest engine with one thing changed at a time; scene pixels count what halos cost."""
    best, rows = fastest(bench), []
    for stride, precision, tile, batch in _points(bench.sizes, best.precision):
        request = bench.request(best.backend, precision=precision, tile=tile, batch=batch)
        speed = bench.speed(request, stride)
        if isinstance(speed, str):
            rows.append([stride, precision, tile, batch, "", "", "", speed.replace("|", "/")])
            continue
        scene = speed * ((tile - 2 * HALO[bench.device]) / tile) ** 2
        share = f"{speed / bench.least(request, stride):.2f}"
        rows.append([stride, precision, tile, batch, f"{speed:.3g}", f"{scene:.3g}", share, ""])
    bench.facts["sweep"] = rows
    head = ["output stride", "precision", "tile", "batch", "network Mpx/s", "scene Mpx/s", "share of the roofline"]
    return f"{best.backend}.\n\n" + table([*head, "or why not"], rows)


def _points(sizes, precision):
    """Output stride, precision, tile and batch: the usual ones, then each of them changed; compiling takes minutes."""
    usual = (USUAL_STRIDE, precision, sizes.tile, sizes.batch)
    choices = (sizes.strides, sizes.precisions, sizes.tiles, sizes.batches)
    changed = ((*usual[:i], choice, *usual[i + 1 :]) for i, others in enumerate(choices) for choice in others)
    return dict.fromkeys([usual, *changed])


def stages(bench):
    """Copies and the network, each by itself, timed on the device; then PyTorch's own profile of the network."""
    sizes, device = bench.sizes, bench.device
    bundle = open_bundle(bench.bundle())
    serve = signed_graph(laid_out(served(bundle, EAGER), sizes.precisions[0]), "uint8").to(device)
    probe = next(probes(bundle, sizes.tile, "uint8")).batch
    host = [part.repeat(sizes.batch, *[1] * (part.ndim - 1)) if part.ndim > 1 else part for part in tensors(probe)]
    host = [part.pin_memory() for part in host] if device == "cuda" else host
    with torch.inference_mode():
        held = [part.to(device) for part in host]
        planes = serve(*held)
        answer = torch.empty(planes.shape, dtype=planes.dtype, pin_memory=device == "cuda")
        work = {
            "copy in": lambda: [a.copy_(b, non_blocking=True) for a, b in zip(held, host, strict=True)],
            "network, eager": lambda: serve(*held),
            "copy out": lambda: answer.copy_(planes, non_blocking=True),
        }
        seconds = {name: roofline.best(call, device, sizes.seconds) for name, call in work.items()}
        operators = _profile(lambda: serve(*held), device)
    megapixels, total = sizes.batch * sizes.tile**2 / 1e6, sum(seconds.values())
    rows = [
        [name, f"{1e3 * value:.3f}", f"{100 * value / total:.1f} %", f"{megapixels / value:.3g}"]
        for name, value in seconds.items()
    ]
    bench.facts["stages"] = {"seconds": seconds, "operators": operators}
    text = table(["stage of a batch", "ms", "share, if nothing overlapped", "Mpx/s"], rows)
    return text + "\n" + table(["operator", "calls", "ms on the device", "share"], operators)


def _profile(work, device, most=10):
    """Rows of the slowest operators of one call."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    # A kernel stands there twice: under the operator that launched it, and by itself.
    operators = (one for one in profiler.key_averages() if one.device_type == DeviceType.CPU)
    found = sorted(operators, key=lambda one: -getattr(one, name))
    total = sum(getattr(one, name) for one in found) or 1
    times = ((one, getattr(one, name)) for one in found[:most])
    return [
        [one.key[:60].replace("|", "/"), one.count, f"{t / 1e3:.3f}", f"{100 * t / total:.0f} %"] for one, t in times
    ]


def path(bench):
    """The whole way, gated: image.zarr to mask.zarr beside the engine; file to mask."""
    best, sizes = fastest(bench), bench.sizes
    job = {"bundle": str(bench.bundle()), "engine": best.backend, "precision": best.precision, "target": bench.device}
    job |= {"tile": sizes.tile, "batch": sizes.batch, "executor": "serial"}
    scenes = _scenes(bench)
    facts = measured(
        job | {"job": "engine", "stage": True, "rounds": 3, "scene": str(scenes["deflate COG"])},
        bench.folder,
        "rounds",
    )
    shares = [one["alone"]["wall"] / one["phase"]["wall"] for one in facts["rounds"]]
    megapixels = sizes.scene**2 / 1e6
    speeds = [megapixels / one["phase"]["wall"] for one in facts["rounds"]]
    digits = 1 if bench.device == "cuda" else 3
    rows = [["image.zarr to mask.zarr", spread(speeds, digits), spread(shares, 3), "", "", ""]]
    for name, scene in scenes.items():
        rows.append(_file(bench, job, name, scene))
    bench.facts["path"] = {"zarr": facts, "rows": rows}
    reached = verdict(median(shares), WANTED["zarr"], least=True)
    bench.told.append(
        (
            "zarr to mask on a GPU, share of the engine's speed",
            f"at least {WANTED['zarr']}",
            f"{spread(shares, 3)} ({reached})",
        )
    )
    if bench.device == "cuda":
        reached = verdict(median(speeds), WANTED["speed"], least=True)
        told = f"at least {WANTED['speed']:.0f}, {WANTED['stretch']:.0f} as the stretch"
        bench.told.append(("zarr to mask, Mpx/s", told, f"{spread(speeds)} ({reached})"))
    head = ["from", "scene Mpx/s", "share of the engine's speed", "engine busy", "it waited for input", "limit"]
    return table(head, rows)


def _file(bench, job, name, scene):
    job |= {"job": "segment", "stage": None, "scene": str(scene)}
    facts = measured(job, bench.folder, "wall", "bottleneck")
    found = facts["bottleneck"]
    with rasterio.open(scene) as file:
        megapixels = file.height * file.width / 1e6
    seconds, limit = found["seconds"], found["limit"]
    waited = f"{seconds['waiting_for_input']:.2f} s"
    wall = facts["wall"] - seconds["start"]
    return [name, f"{megapixels / wall:.3g}", "", f"{100 * found['engine_share']:.0f} %", waited, limit]


def _scenes(bench):
    """One scene in several forms: the example scene, mirrored over and over."""
    made = {}
    for name, (driver, file, options) in WAYS.items():
        edge = bench.sizes.scene // (2 if driver.startswith("JP2") else 1)
        flat = _mirrored(bench.folder / f"flat-{edge}.tif", edge)
        made[name] = bench.folder / file
        with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
            rasterio.shutil.copy(flat, made[name], driver=driver, **options)
    return made


def _mirrored(path, edge):
    if path.exists():
        return path
    with rasterio.open(SCENE) as source:
        pixels, crs, transform = source.read(), source.crs, source.transform
    square = np.concatenate([pixels, pixels[:, ::-1]], 1)
    square = np.concatenate([square, square[:, :, ::-1]], 2)
    _, rows, cols = square.shape
    profile = {"driver": "GTiff", "tiled": True, "count": BANDS, "dtype": "uint8", "crs": crs, "transform": transform}
    with rasterio.open(path, "w", height=edge, width=edge, **profile) as file:
        for row, col in product(range(0, edge, rows), range(0, edge, cols)):
            height, width = min(rows, edge - row), min(cols, edge - col)
            window = rasterio.windows.Window(col, row, width, height)
            file.write(square[:BANDS, :height, :width], window=window)
    return path


STEPS = {"roofline": ceilings, "ladder": ladder, "sweep": sweep, "stages": stages, "path": path}
