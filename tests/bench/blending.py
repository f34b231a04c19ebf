"""Our engine inside MONAI's loop: what blending costs at which seam error, and what it holds in memory.

`python -m tests.bench blending`, `blending-v1` or `blending-resnet` [smoke]: both sides run one network in OpenVINO at
the same precision and threads, loaded beforehand, from a file to a mask. The seam error is the share of labels that
differ from one prediction of the whole image by the same engine.

`python -m tests.bench blending-memory [whole|smoke]`: peak memory for 8 classes.
"""

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import rasterio

from models.bundle import open_bundle
from models.engines.openvino import GRAPH, HINTS, convert
from tests.bench.against import cut, work
from tests.bench.common import BUILDINGS, MIB, measured, mosaic, record, table, verdict, watch, world
from tests.bench.networks import he_bundle

SHORT = (
    (512, 0.25, "constant"),
    (512, 0.25, "gaussian"),
    (1024, 0.125, "gaussian"),
    (1152, 0.111, "constant"),
    (1152, 0.111, "gaussian"),
    (1152, 0.25, "constant"),
    (1152, 0.25, "gaussian"),
)
"""Roi, overlap, mode; 0.111 of 1152 is the overlap of our tiles with a halo of 64. MONAI's own default is an overlap of
0.25, constant; the roi is always the caller's."""
LONG = (
    *SHORT,
    (512, 0.5, "gaussian"),
    (1024, 0.25, "gaussian"),
    (1152, 0.375, "gaussian"),
    (1152, 0.5, "gaussian"),
)
LARGE_ROI = (
    (512, 0.25, "constant"),
    (512, 0.25, "gaussian"),
    (512, 0.5, "gaussian"),
    (1152, 0.25, "gaussian"),
    (1152, 0.375, "gaussian"),
    (1152, 0.5, "gaussian"),
    (2048, 0.125, "constant"),
    (2048, 0.125, "gaussian"),
    (2048, 0.25, "gaussian"),
    (2048, 0.5, "gaussian"),
)
"""For a bundle with a halo of 128: 0.125 of 2048 is the overlap of its tiles."""


@dataclass(frozen=True)
class Case:
    """A network, the part of the scene, our tile, and MONAI's settings beside it."""

    network: str
    window: tuple[int, int, int, int]
    """One that our tiles cover without waste."""
    tile: int
    settings: tuple[tuple[int, float, str], ...]


CASES = {
    "blending": Case("buildings", (0, 0, 3584, 3584), 2048, LARGE_ROI),
    "blending-v1": Case("inception_v1", (0, 0, 4096, 4096), 1152, LONG),
    "blending-resnet": Case("inception_resnet_v2", (0, 0, 4096, 4096), 1152, SHORT),
}
WANTED = {"default": 1.35, "best": 1.0, "memory": 0.1}
BATCHES = {512: 4}
"""By roi; one window at a time where it is large: OpenVINO is as fast, with less memory."""
SMOKE = {"window": (0, 0, 512, 896), "tile": 512, "settings": SHORT[:2]}

CLASSES = 8
EDGES = (4096, 8192)
"""Of the scenes on which MONAI's memory is measured, in pixels."""
LARGE = 36000 * 18000
PART = (2048, 16384, 4096, 4096)


def run(name, size="window"):
    """Markdown: every setting beside ours, and the best one at equal seam error."""
    case = replace(CASES[name], **SMOKE) if size == "smoke" else CASES[name]
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        folder = Path(scratch)
        bundle = BUILDINGS if case.network == "buildings" else he_bundle(folder, case.network)
        scene = cut(mosaic(folder), case.window, folder / "scene.tif")
        ours, engine = _ours(bundle, scene, case.tile, scratch)
        whole = _whole(bundle, scene, engine, folder)
        ours["differ"] = _share(ours.pop("mask"), whole)
        facts = {"ours": ours, "settings": _inside(bundle, scene, engine, folder, case.settings, whole)}
    rows, told = _table(case, ours, facts["settings"])
    if size != "smoke":
        record(name, facts, told)
    head = ["loop", "roi", "overlap", "mode", "network pixels a pixel", "s", "CPU s", "seam error", "times ours"]
    return table(head, rows) + "\n" + table(["what", "wanted", "reached"], told)


def _ours(bundle, scene, tile, scratch):
    """Seconds of ours without loading, the mask, and the engine that was planned."""
    job = {"job": "segment", "scene": str(scene), "bundle": str(bundle), "engine": "openvino", "tile": tile}
    job |= {"stage": None, "executor": "serial", "keep": str(Path(scratch) / "ours.tif")}
    measured(job | {"only_plan": True}, scratch)
    facts = measured(job, scratch, "wall", "cpu", "bottleneck", "engine", "grid")
    wall = facts["wall"] - facts["bottleneck"]["seconds"]["start"]
    return {"wall": wall, "cpu": facts["cpu"], "grid": facts["grid"], "mask": job["keep"]}, facts["engine"]


def _whole(bundle, scene, engine, folder):
    """The file of the labels that one prediction of the whole image gives."""
    with rasterio.open(scene) as file:
        shape = file.shape
    graph = _graph(bundle, folder, shape, 1)
    job = {"job": "blending.whole", "scene": str(scene), "graph": graph, "keep": str(folder / "whole.npy")}
    watch(job | _config(engine))
    return job["keep"]


def whole(job):
    """The labels of the whole image, into a file."""
    import openvino as ov
    import torch

    from tests.bench.sliding import decided, read

    config = {"INFERENCE_PRECISION_HINT": job["hint"], "INFERENCE_NUM_THREADS": str(job["threads"])}
    request = ov.Core().compile_model(job["graph"], "CPU", config).create_infer_request()
    image, _ = read(job["scene"])
    request.infer([image[None].numpy()])
    np.save(job["keep"], decided(torch.from_numpy(request.get_output_tensor().data))[0])
    return {}


def _inside(bundle, scene, engine, folder, settings, whole):
    chosen = []
    for roi, overlap, mode in settings:
        graph = _graph(bundle, folder, (roi, roi), BATCHES.get(roi, 1))
        chosen.append({"roi": roi, "overlap": overlap, "mode": mode, "graph": graph})
    job = {"job": "sliding.inside", "scene": str(scene), "settings": chosen, "whole": whole}
    return measured(job | _config(engine), folder, "settings")["settings"]


def _config(engine):
    return {"hint": HINTS[engine["precision"]], "threads": engine["threads"]}


def _graph(bundle, folder, shape, batch):
    """The network alone, normalisation included: float32 pixels in, logits out. Exported once, in a process apart."""
    out = folder / f"graph-{shape[0]}-{shape[1]}-{batch}"
    if not out.exists():
        watch({"job": "blending.export", "bundle": str(bundle), "out": str(out), "shape": [batch, *shape]})
    return str(out / GRAPH)


def export(job):
    """Write such a graph."""
    import torch

    from models.export import write_onnx
    from models.serve import served
    from tests.bench.loops import Predictor

    bundle, out = open_bundle(Path(job["bundle"])), Path(job["out"])
    out.mkdir()
    network = Predictor(served(bundle).network, bundle.spec.bands, len(bundle.spec.classes), torch.contiguous_format)
    batch, rows, cols = job["shape"]
    example = (torch.zeros((batch, len(bundle.spec.bands), rows, cols)),)
    convert(write_onnx(network.eval(), example, out / "model.onnx", inputs=["pixels"], outputs=["logits"]), out)
    return {}


def _share(mask, whole):
    with rasterio.open(mask) as file:
        return float(np.mean(file.read(1) != np.load(whole)))


def _table(case, ours, settings):
    network, effort = case.network, f"{ours['grid']['overhead']:.2f}"
    rows = [["widefield", case.tile, f"halo {ours['grid']['halo']}", "cores", effort, *_figures(ours), ""]]
    for setting in settings:
        roi, overlap = setting["roi"], setting["overlap"]
        effort = f"{work(case.window[2:], roi, overlap):.2f}"
        times = f"{setting['wall'] / ours['wall']:.2f}"
        rows.append(["MONAI", roi, overlap, setting["mode"], effort, *_figures(setting), times])
    told = [
        _told(f"our engine in MONAI's loop at its defaults, roi {one['roi']}, times our seconds ({network})", one, ours)
        for one in settings
        if (one["overlap"], one["mode"]) == (0.25, "constant")
    ]
    equal = [one for one in settings if one["differ"] <= ours["differ"]]
    name = f"the same, its best setting at no more seam error than ours, times our seconds ({network})"
    best = min(equal, key=lambda one: one["wall"], default=None)
    told.append(_told(name, best, ours, "best") if best else (name, "at least 1", "none has so few seams"))
    return rows, told


def _figures(fact):
    return [f"{fact['wall']:.1f}", f"{fact['cpu']:.1f}", f"{100 * fact['differ']:.4f} %"]


def _told(name, setting, ours, kind="default"):
    wanted, times = WANTED[kind], setting["wall"] / ours["wall"]
    return name, f"at least {wanted}", f"{times:.2f} ({verdict(times, wanted, least=True)})"


def memory(size="window"):
    """Markdown: peak bytes of both for 648 megapixels and 8 classes; MONAI's by extrapolation where it does not fit."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        bundle = he_bundle(scratch, "inception_v1", classes=CLASSES, bands=1)
        job = {"job": "segment", "scene": str(world()), "bundle": str(bundle), "engine": "auto", "stage": None}
        job |= {"executor": "serial", "out": f"{scratch}/out"}
        part = {"whole": {}, "window": {"window": PART}, "smoke": {"window": PART[:2] + SMOKE["window"][2:]}}[size]
        job |= {"tile": SMOKE["tile"]} if size == "smoke" else {}
        planned = watch(job | {"only_plan": True}).answer["planned"]
        watch(job | part | {"only_plan": True})
        ours = max(watch(job | part).peaks.values())
    theirs = [watch({"job": "sliding.memory", "edge": edge, "classes": CLASSES}).answer["peak"] for edge in EDGES]
    slope = (theirs[1] - theirs[0]) / (EDGES[1] ** 2 - EDGES[0] ** 2)
    large = theirs[1] + slope * (LARGE - EDGES[1] ** 2)
    share = ours / large
    reached = f"{share:.3f} ({verdict(share, WANTED['memory'], least=False)})"
    told = [("peak memory, 648 Mpx of 8 classes, share of MONAI's", f"at most {WANTED['memory']}", reached)]
    facts = {"ours": ours, "planned": planned, "monai": dict(zip(map(str, EDGES), theirs, strict=True))}
    if size != "smoke":
        record("blending-memory", facts | {"bytes_per_pixel": slope, "extrapolated": large}, told)
    what = {"whole": "648 Mpx", "window": "a part of 17 Mpx", "smoke": "a part of 0.5 Mpx"}[size]
    rows = [[f"widefield, {what}", f"{ours / MIB:.0f}", f"measured; planned for 648 Mpx: {planned / MIB:.0f}"]]
    for edge, peak in zip(EDGES, theirs, strict=True):
        rows.append([f"MONAI, {edge**2 / 1e6:.0f} Mpx", f"{peak / MIB:.0f}", "measured"])
    buffers = f"image, logits and weights: {4 * (1 + CLASSES + 1)}; their softmax: {4 * CLASSES}"
    rows.append(["MONAI, 648 Mpx", f"{large / MIB:.0f}", f"{slope:.1f} bytes a pixel, from these two ({buffers})"])
    return table(["what", "peak MiB", "how it is known"], rows)


BENCHES = {
    **{name: partial(run, name) for name in CASES},
    "blending-memory": memory,
}
