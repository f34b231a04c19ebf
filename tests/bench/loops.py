"""Jobs that segment as others do it: a loop by hand over rasterio's windows, and the geo-inference package.

geo-inference is not a part of any extra: `pip install --no-deps --target build/others geo-inference==3.2.4 xarray
rioxarray ttach hydra-core omegaconf antlr4-python3-runtime==4.9.3 rtree requests colorlog tqdm`, then that folder on
PYTHONPATH.
"""

import contextlib
import io
import logging
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio
import rasterio.windows
import torch
from torch import nn

from models.bundle import load_module, open_bundle
from pipeline import resources
from tests.bench.sliding import decided, differing

TILE = 512
PATCH = 1024
"""geo-inference's own default; its windows overlap by half."""


def plain(job):
    """Window by window: read, infer in eager PyTorch (channels last), cut `halo` off, write. Nothing overlaps in time.

    With a halo of 0 this is what most scripts do, seams and all.
    """
    start, cpu, halo = time.perf_counter(), time.process_time(), job["halo"]
    core = TILE - 2 * halo
    predict = _predictor(job)
    with rasterio.open(job["scene"]) as scene:
        size = {"height": scene.height, "width": scene.width, "crs": scene.crs, "transform": scene.transform}
        profile = {"driver": "GTiff", "tiled": True, "compress": "deflate", "count": 2, "dtype": "uint8", "nodata": 255}
        with rasterio.open(job["out"], "w", **profile, **size) as file:
            for row, col in np.ndindex(*(-(-length // core) for length in scene.shape)):
                _tile(scene, file, rasterio.windows.Window(col * core, row * core, core, core), halo, predict)
    took = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    with rasterio.open(job["out"]) as file:
        return took | {"differ": differing(job["ours"], file.read())}


def _tile(scene, file, core, halo, predict):
    """One core (a window that may overhang the scene) with its margin; beyond the scene there are zeros."""
    window = rasterio.windows.Window(core.col_off - halo, core.row_off - halo, TILE, TILE)
    pixels = scene.read(window=window, boundless=True, fill_value=0)
    with torch.inference_mode():
        planes = decided(predict(torch.from_numpy(pixels)[None]))
    inside = core.intersection(rasterio.windows.Window(0, 0, scene.width, scene.height))
    rows, cols = (slice(halo, halo + length) for length in (inside.height, inside.width))
    file.write(planes[:, rows, cols], window=inside)


def geo_inference(job):
    """The package on a traced network that normalises: file to mask, its own defaults."""
    predict = _predictor(job, layout=torch.contiguous_format)
    folder = Path(job["out"])
    folder.mkdir(parents=True)
    tile = torch.zeros((1, predict.bands, PATCH, PATCH), dtype=torch.uint8)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(predict, tile, check_trace=False).save(folder / "network.pt")
        start, cpu = time.perf_counter(), time.process_time()
        from geo_inference.geo_inference import GeoInference

        logging.getLogger("geo_inference").setLevel(logging.ERROR)
        arguments = {"model": str(folder / "network.pt"), "work_dir": str(folder), "device": "cpu"}
        package = GeoInference(**arguments, num_classes=predict.classes)
        name = package(inference_input=job["scene"], patch_size=PATCH)
        took = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    with rasterio.open(folder / name) as file:
        differ = differing(job["ours"], file.read())
    shutil.rmtree(folder)
    return took | {"differ": differ}


class Predictor(nn.Module):
    """Stored pixels (N, C, H, W) -> logits (N, K, H, W)."""

    def __init__(self, network, bands, classes, layout):
        super().__init__()
        self.network = network.to(memory_format=layout)
        self.layout, self.bands, self.classes = layout, len(bands), classes
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor([getattr(band, name) for band in bands]).reshape(-1, 1, 1))

    def forward(self, pixels):
        return self.network(((pixels.float() - self.mean) / self.std).contiguous(memory_format=self.layout))


def _predictor(job, layout=torch.channels_last):
    torch.set_num_threads(resources.cores())
    bundle = open_bundle(Path(job["bundle"]))
    return Predictor(load_module(bundle).eval(), bundle.spec.bands, len(bundle.spec.classes), layout).eval()
