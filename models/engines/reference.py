"""The answers that engines are held to: the network itself in fp32 on the probes, computed once and cached."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.bundle import Bundle, load_module
from models.engines.base import EngineRequest
from models.engines.cache import Cache, Entry
from models.engines.gate import CALIBRATION, REFERENCE, reference_planes
from models.engines.prepare import calibration_fields, reference_fields
from models.engines.torch import laid_out, predict, tensors
from models.imported import load_imported
from models.parity import Reference, difference
from models.probes import Probe, probes
from models.serve import Serve, serve_network


def ensure(bundle: Bundle, request: EngineRequest, cache: Cache) -> None:
    """Have the reference, and below fp32 the calibration, in the cache."""
    stored = cache.make("reference", reference_fields(bundle, request), lambda folder: _refer(bundle, request, folder))
    if request.precision != "fp32":
        fields = calibration_fields(bundle, request)
        cache.make("calibration", fields, lambda folder: _calibrate(bundle, request, stored, folder))


def references(serve: Serve, chosen: Iterable[Probe]) -> Iterator[tuple[str, Reference]]:
    """What the network says of each probe; margins relative to the spread of the first probe's logits."""
    spread = 0.0
    for probe in chosen:
        with torch.inference_mode():
            logits = serve.logits(*tensors(probe.batch))
            spread = spread or max(float(logits.std()), 1e-12)
            planes = dict(zip(serve.planes, serve.spread(serve.decide(logits))[0].numpy(), strict=True))
            margin = serve.spread(_margin(serve.handicapped(logits), spread)[None, None])[0, 0]
        yield probe.name, Reference(planes, margin.numpy())


def eager(bundle: Bundle, request: EngineRequest, precision: str, planes: Sequence[str]) -> Serve:
    """The bundle's network as PyTorch runs it, nothing folded; an imported one as ONNX Runtime runs its graph."""
    network = load_imported(bundle, precision, request.threads) if bundle.spec.imported else load_module(bundle)
    return laid_out(serve_network(network, bundle.spec, planes=planes, tta=request.tta), precision)


def _margin(logits: Tensor, spread: float) -> Tensor:
    first, second = logits[0].topk(2, 0).values
    return torch.clamp((first - second) / spread * 1000, 0, 255).to(torch.uint8)


def _refer(bundle: Bundle, request: EngineRequest, folder: Path) -> None:
    torch.set_num_threads(request.threads)
    serve = eager(bundle, request, "fp32", reference_planes(bundle, request))
    answers = references(serve, probes(bundle, request.tile, request.dtype))
    arrays = {name: np.stack([one.margin, *one.planes.values()]) for name, one in answers}
    np.savez_compressed(folder / REFERENCE, allow_pickle=False, **arrays)


def _calibrate(bundle: Bundle, request: EngineRequest, stored: Entry, folder: Path) -> None:
    torch.set_num_threads(request.threads)
    names, found = reference_planes(bundle, request), {}
    serve = eager(bundle, request, request.precision, names)
    with np.load(stored.path / REFERENCE, allow_pickle=False) as arrays:
        for probe in probes(bundle, request.tile, request.dtype):
            planes = dict(zip(names, predict(serve, probe.batch)[0], strict=True))
            known = Reference.from_array(arrays[probe.name], names)
            found[probe.name] = difference(probe, known, planes, request.precision)
    (folder / CALIBRATION).write_text(json.dumps({name: asdict(value) for name, value in found.items()}))
