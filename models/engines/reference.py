"""The answers that engines are held to: the network itself in fp32 on the probes, computed once and cached."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle, load_module
from models.engines.base import EngineRequest
from models.engines.cache import Cache, Entry
from models.engines.gate import CALIBRATION, REFERENCE, reference_planes
from models.engines.prepare import calibration_fields, reference_fields
from models.engines.torch import laid_out, tensors
from models.errors import EngineError
from models.imported import load_imported
from models.parity import Difference, Reference, difference
from models.probes import Probe, probes
from models.serve import Serve, serve_network


def ensure(bundle: Bundle, request: EngineRequest, cache: Cache) -> None:
    """Have the reference, and below fp32 the calibration, in the cache."""
    stored = cache.make("reference", reference_fields(bundle, request), lambda folder: _refer(bundle, request, folder))
    if request.precision != "fp32":
        fields = calibration_fields(bundle, request)
        cache.make("calibration", fields, lambda folder: _calibrate(bundle, request, stored, folder))


def references(serve: Serve, chosen: Iterable[Probe]) -> Iterator[tuple[str, Reference]]:
    """What the network says of each probe; margins relative to the spread of the first probe's logits.

    Raises:
        EngineError: logits that are not finite.
    """
    spread = 0.0
    for probe in chosen:
        with torch.inference_mode():
            logits = _logits(serve, probe, "fp32")
            spread = spread or max(float(logits.std()), 1e-12)
            margin = serve.spread(_margin(serve.handicapped(logits), spread)[None, None])[0, 0]
        yield probe.name, Reference(_planes(serve, logits), margin.numpy())


def strayed(
    serve: Serve, chosen: Iterable[Probe], reference: Callable[[str], Reference], precision: str
) -> Iterator[tuple[str, Difference]]:
    """How far the network itself strays from its `reference` at a lower precision, which `serve` is in.

    Raises:
        EngineError: logits that are not finite.
    """
    for probe in chosen:
        with torch.inference_mode():
            planes = _planes(serve, _logits(serve, probe, precision))
        yield probe.name, difference(probe, reference(probe.name), planes, precision)


def _logits(serve: Serve, probe: Probe, precision: str) -> Tensor:
    logits = serve.logits(*tensors(probe.batch))
    if not bool(torch.isfinite(logits).all()):
        cause = "its weights are damaged" if precision == "fp32" else f"its values leave what {precision} holds"
        raise EngineError(
            f"the network's own logits of probe {probe.name} are not finite in {precision}: {cause}"
            f"{'' if precision == 'fp32' else ', so no engine can be held to it: choose a precision of wider range'}"
        )
    return logits


def _planes(serve: Serve, logits: Tensor) -> dict[str, NDArray[np.uint8]]:
    return dict(zip(serve.planes, serve.spread(serve.decide(logits))[0].numpy(), strict=True))


def eager(bundle: Bundle, request: EngineRequest, precision: str, planes: Sequence[str]) -> Serve:
    """The bundle's network as PyTorch runs it, nothing folded; an imported one as ONNX Runtime runs its graph."""
    network = load_imported(bundle, precision, request.threads) if bundle.spec.imported else load_module(bundle)
    serve = serve_network(network, bundle.spec, planes=planes, tta=request.tta, stacked=False)
    return laid_out(serve, precision)


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
    names = reference_planes(bundle, request)
    serve = eager(bundle, request, request.precision, names)
    with np.load(stored.path / REFERENCE, allow_pickle=False) as arrays:

        def reference(name: str) -> Reference:
            return Reference.from_array(arrays[name], names)

        chosen = probes(bundle, request.tile, request.dtype)
        found = dict(strayed(serve, chosen, reference, request.precision))
    (folder / CALIBRATION).write_text(json.dumps({name: asdict(value) for name, value in found.items()}))
