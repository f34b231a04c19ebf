"""File to mask by `monai.inferers.sliding_window_inference`, as a careful user would write it: torch, eager, fp32."""

import time
from pathlib import Path

import numpy as np
import rasterio
import rasterio.windows
import torch
from monai.inferers import sliding_window_inference

from models.bundle import load_module, open_bundle
from pipeline import resources


def job(job):
    """Read, normalise, infer, decide, write; seconds of all of it, the model's loading included."""
    start, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(resources.cores())
    layout = torch.channels_last if job["channels_last"] else torch.contiguous_format
    bundle = open_bundle(Path(job["bundle"]))
    network = load_module(bundle).eval().to(memory_format=layout)
    row, col, height, width = job["window"]
    place = rasterio.windows.Window(col, row, width, height)
    with rasterio.open(job["scene"]) as scene:
        pixels = scene.read(window=place)
        georeference = {"crs": scene.crs, "transform": scene.window_transform(place)}
    mean, std = (torch.tensor([getattr(b, n) for b in bundle.spec.bands]).reshape(-1, 1, 1) for n in ("mean", "std"))
    image = ((torch.from_numpy(pixels).float() - mean) / std)[None]
    with torch.inference_mode():
        logits = sliding_window_inference(
            image,
            (512, 512),
            sw_batch_size=job["batch"],
            predictor=lambda tiles: network(tiles.contiguous(memory_format=layout)),
            overlap=0.25,
            mode="gaussian",
        )
        confidence, labels = torch.softmax(logits, 1).max(1)
    planes = torch.cat([labels.to(torch.uint8), torch.round(254 * confidence).to(torch.uint8)]).numpy()
    profile = {"driver": "GTiff", "tiled": True, "compress": "deflate", "count": 2, "dtype": "uint8", "nodata": 255}
    profile |= georeference
    with rasterio.open(job["out"], "w", height=height, width=width, **profile) as file:
        file.write(planes)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    with rasterio.open(job["ours"]) as file:
        differ = float(np.mean(file.read(1) != planes[0]))
    return {"wall": wall, "cpu": cpu, "differ": differ}
