"""The answers that engines are held to: eager fp32 PyTorch on the probes, computed once and cached."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.bundle import Bundle, load_module
from models.engines.base import EngineRequest
from models.engines.cache import Cache, Entry
from models.engines.gate import CALIBRATION, REFERENCE
from models.engines.prepare import calibration_fields, reference_fields
from models.engines.torch import laid_out, predict, tensors
from models.parity import Reference, difference
from models.probes import Probe, probes
from models.serve import Serve, serve_network


def ensure(bundle: Bundle, request: EngineRequest, cache: Cache) -> None:
    """Have the reference, and below fp32 the calibration, in the cache."""
    stored = cache.make("reference", reference_fields(bundle, request), lambda folder: _refer(bundle, request, folder))
    if request.precision != "fp32":
        fields = calibration_fields(bundle, request)
        cache.make("calibration", fields, lambda folder: _calibrate(bundle, request, stored, folder))


def references(serve: Serve, chosen: Iterator[Probe]) -> Iterator[tuple[str, Reference]]:
    """Labels, confidence and margins of each probe; margins relative to the spread of the first probe's logits."""
    spread = 0.0
    for probe in chosen:
        with torch.inference_mode():
            logits = serve.logits(*tensors(probe.batch))
            spread = spread or max(float(logits.std()), 1e-12)
            labels, confidence = serve.spread(serve.decide(logits))[0]
            margin = serve.spread(_margin(logits, spread)[None, None])[0, 0]
        yield probe.name, Reference(labels.numpy(), confidence.numpy(), margin.numpy())


def eager(bundle: Bundle, precision: str, *, planes: tuple[str, ...] | None = None) -> Serve:
    """The bundle's network as PyTorch runs it, nothing folded."""
    spec = bundle.spec if planes is None else bundle.spec.model_copy(update={"planes": planes})
    return laid_out(serve_network(load_module(bundle), spec), precision)


def _margin(logits: Tensor, spread: float) -> Tensor:
    first, second = logits[0].topk(2, 0).values
    return torch.clamp((first - second) / spread * 1000, 0, 255).to(torch.uint8)


def _refer(bundle: Bundle, request: EngineRequest, folder: Path) -> None:
    serve = eager(bundle, "fp32", planes=("labels", "confidence"))
    answers = references(serve, probes(bundle, request.tile, request.dtype))
    arrays = {name: np.stack([one.labels, one.confidence, one.margin]) for name, one in answers}
    np.savez_compressed(folder / REFERENCE, allow_pickle=False, **arrays)


def _calibrate(bundle: Bundle, request: EngineRequest, stored: Entry, folder: Path) -> None:
    serve, found = eager(bundle, request.precision), {}
    with np.load(stored.path / REFERENCE, allow_pickle=False) as arrays:
        for probe in probes(bundle, request.tile, request.dtype):
            planes = dict(zip(bundle.spec.planes, predict(serve, probe.batch)[0], strict=True))
            found[probe.name] = difference(probe, Reference(*arrays[probe.name]), planes, request.precision)
    (folder / CALIBRATION).write_text(json.dumps({name: asdict(value) for name, value in found.items()}))
