"""Jobs around `monai.inferers.sliding_window_inference`: with eager PyTorch, with our engine inside, and its memory."""

import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from monai.inferers import sliding_window_inference

from models.bundle import load_module, open_bundle
from pipeline import resources

TORCH = {"roi": 512, "overlap": 0.25, "mode": "gaussian", "batch": 4}
"""What a careful user would ask for."""


def job(job):
    """Read, normalise, infer in eager PyTorch, decide, write; seconds of all of it, the model's loading included."""
    start, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(resources.cores())
    layout = torch.channels_last if job["channels_last"] else torch.contiguous_format
    bundle = open_bundle(Path(job["bundle"]))
    network = load_module(bundle).eval().to(memory_format=layout)
    image, georeference = read(job["scene"])
    mean, std = (torch.tensor([getattr(b, n) for b in bundle.spec.bands]).reshape(-1, 1, 1) for n in ("mean", "std"))

    def predict(tiles):
        return network(tiles.contiguous(memory_format=layout))

    planes = decided(blended((image - mean) / std, predict, **TORCH | job.get("setting", {})))
    write(job["out"], planes, georeference)
    took = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    return took | ({"differ": differing(job["ours"], planes)} if "ours" in job else {})


def inside(job):
    """The same loop around graphs that OpenVINO runs, loaded beforehand: a report for each of `settings`.

    The answer for each: seconds from file to mask, and the share of labels that differ from those in `whole`.
    """
    import openvino as ov

    config = {"INFERENCE_PRECISION_HINT": job["hint"], "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}
    config["INFERENCE_NUM_THREADS"] = str(job["threads"])
    whole = np.load(job["whole"]) if "whole" in job else None
    core, reports = ov.Core(), []
    for setting in job["settings"]:
        compiled = core.compile_model(setting["graph"], "CPU", config)
        request, batch = compiled.create_infer_request(), compiled.input(0).shape[0]

        def predict(tiles, request=request, batch=batch):
            full = torch.nn.functional.pad(tiles, (0, 0, 0, 0, 0, 0, 0, batch - len(tiles)))
            request.infer([ov.Tensor(np.ascontiguousarray(full.numpy()), shared_memory=True)])
            return torch.from_numpy(request.get_output_tensor().data[: len(tiles)].copy())

        predict(torch.zeros(tuple(compiled.input(0).shape)))  # the first one fills caches
        start, cpu = time.perf_counter(), time.process_time()
        image, georeference = read(job["scene"])
        loop = {name: setting[name] for name in ("roi", "overlap", "mode")}
        planes = decided(blended(image, predict, batch=batch, **loop))
        write(job["out"], planes, georeference)
        took = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        if whole is None:  # one window as large as the scene
            np.save(job["keep"], planes[0])
        else:
            took["differ"] = float(np.mean(planes[0] != whole))
        reports.append(setting | took)
    return {"settings": reports}


def memory(job):
    """Most resident bytes of the loop on a scene of `edge` pixels and one band, around a network that costs nothing."""
    edge, classes = job["edge"], job["classes"]
    before = resources.peak_memory()
    answer = torch.zeros((1, classes, TORCH["roi"], TORCH["roi"]))
    image = torch.zeros((1, edge, edge), dtype=torch.uint8).float()
    planes = decided(blended(image, lambda tiles: answer.expand(len(tiles), -1, -1, -1).clone(), **TORCH))
    return {"peak": resources.peak_memory(), "before": before, "planes": planes.shape}


def read(path):
    """Pixels (C, H, W), float32, and the profile's georeference."""
    with rasterio.open(path) as scene:
        return torch.from_numpy(scene.read()).float(), {"crs": scene.crs, "transform": scene.transform}


def blended(image, predict, *, roi, overlap, mode, batch):
    """Logits (1, K, H, W), float32, of a normalised image (C, H, W)."""
    with torch.inference_mode():
        return sliding_window_inference(
            image[None], (roi, roi), sw_batch_size=batch, predictor=predict, overlap=overlap, mode=mode
        )


def decided(logits):
    """Planes (2, H, W), uint8: labels, and `round(254 p)`."""
    with torch.inference_mode():
        confidence, labels = torch.softmax(logits, 1).max(1)
        return torch.cat([labels.to(torch.uint8), torch.round(254 * confidence).to(torch.uint8)]).numpy()


def write(path, planes, georeference):
    """A tiled, compressed GeoTIFF of planes (P, H, W)."""
    count, height, width = planes.shape
    profile = {"driver": "GTiff", "tiled": True, "compress": "deflate", "dtype": "uint8", "nodata": 255}
    with rasterio.open(path, "w", count=count, height=height, width=width, **profile, **georeference) as file:
        file.write(planes)


def differing(ours, planes):
    """Share of pixels whose label differs from the first band of a file."""
    with rasterio.open(ours) as file:
        return float(np.mean(file.read(1) != planes[0]))
