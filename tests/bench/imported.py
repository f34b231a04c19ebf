"""An imported network, all the way: a U-Net of segmentation-models-pytorch over the drone scene, beside MONAI's loop.

`PYTHONPATH=build/parity python -m tests.bench imported [whole|smoke] [WEIGHTS]`; WEIGHTS is what `make quality` leaves
of that network's training, `runs/quality/smp-resnet34-0/training.ckpt`; without it the weights are random, and so are
the labels.
"""

import json
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.windows import Window as Part

from examples.smp_unet import network, said, write_onnx
from models.importing import Said
from pipeline import resources
from pipeline.executors import SerialExecutor
from pipeline.grid import Window
from pipeline.importing import import_network
from pipeline.scene import SceneAddress
from pipeline.seams import seams
from pipeline.segment import SegmentRequest, plan_request, segment_scene
from tests.bench.common import BUILDINGS, ROOT, mosaic, record, table, verdict

WEIGHTS = ROOT / "runs/quality/smp-resnet34-0/training.ckpt"
PROBED = ROOT / "examples/scenes/catanduanes-val.tif"
PARTS = {"whole": (0, 0, 4096, 8192), "smoke": (0, 0, 1024, 1024)}
SHARE = 1e-3
"""Of labels that may differ from those of MONAI's blended windows."""


def run(size="whole", weights=WEIGHTS):
    """Markdown: the halo that was found, the time, the seams, and how the mask differs from MONAI's."""
    missing = [name for name in ("monai", "segmentation_models_pytorch") if find_spec(name) is None]
    if missing:
        return f"Left out: {' and '.join(missing)} not installed: `make parity`, `make bench`.\n"
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        facts = _facts(Path(scratch), PARTS[size], Path(weights))
    rows = [[name, facts[name]] for name in ("weights", "halo", "tile", "engine")]
    rows += [["file to mask", f"{facts['seconds']:.0f} s"], ["MONAI's loop", f"{facts['monai_seconds']:.0f} s"]]
    rows += [["labels that differ from MONAI's", f"{100 * facts['differ']:.4f} %"], ["seams", facts["seams"]]]
    if size != "smoke":
        reached = f"{100 * facts['differ']:.4f} %, {verdict(facts['differ'], SHARE, least=False)}"
        told = ("imported U-Net: labels that differ from MONAI's blended ones", f"at most {100 * SHARE:g} %", reached)
        record("imported", facts | {"size": size}, [told])
    return table(["what", "found"], rows)


def _facts(scratch, part, weights):
    module = network("resnet34", 2, 3, weights if weights.exists() else None)
    write_onnx(module, 3, scratch / "model.onnx")
    what = Said.model_validate(said("resnet34", json.loads((BUILDINGS / "spec.json").read_text())))
    scene = mosaic(scratch)
    probed = [PROBED] if part == PARTS["smoke"] else [PROBED, scene]  # a few megapixels hold too few undecided ones
    scenes = [SceneAddress(str(path)) for path in probed]
    bundle = import_network(scratch / "model.onnx", what, scratch / "bundle", scenes=scenes)
    address = SceneAddress(str(scene), window=Window(*part))
    request = SegmentRequest(address, bundle.path, scratch / "out", "drone", tile=min(1152, *part[2:]))
    plan_request(request)  # the engine is built
    start = time.perf_counter()
    facts = segment_scene(request, SerialExecutor())
    seconds = time.perf_counter() - start
    found = seams(request.folder, SerialExecutor())
    labels, monai_seconds = _blended(module, scene, part, bundle.spec)
    with rasterio.open(request.folder / "mask.tif") as mask:
        differ = float(np.mean(mask.read(1) != labels))
    engine = facts["engine"]
    return {
        "weights": "trained" if weights.exists() else "random",
        "halo": bundle.spec.halo,
        "tile": engine["tile"],
        "engine": f"{engine['backend']} {engine['precision']}",
        "seconds": seconds,
        "monai_seconds": monai_seconds,
        "differ": differ,
        "seams": "one core, no border" if found is None else found.line(),
    }


def _blended(module, scene, part, spec):
    """Labels (H, W) by MONAI's loop around the package's own network, and its seconds."""
    from tests.bench.sliding import TORCH, blended, decided

    torch.set_num_threads(resources.cores())
    start = time.perf_counter()
    row, col, height, width = part
    with rasterio.open(scene) as file:
        image = torch.from_numpy(file.read(window=Part(col, row, width, height))).float()
    mean, std = (torch.tensor([getattr(band, name) for band in spec.bands]) for name in ("mean", "std"))
    image = (image - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
    return decided(blended(image, module, **TORCH))[0], time.perf_counter() - start
