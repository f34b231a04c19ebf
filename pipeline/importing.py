"""Networks of other makers on their way into a bundle: the halo is measured on scenes, and crops of them are kept.

network + spec.yaml ──► tried on noise ──► candidate ──► halo, or far pixels ──► bundle with real crops
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import PROBE_BYTES, Bundle, save_imported
from models.spec import ModelSpec
from pipeline import probe
from pipeline.errors import ProbeError, UsageError
from pipeline.scene import SceneAddress

if TYPE_CHECKING:
    from models.importing import Form, Said

LARGEST = 256
"""Edge of a crop that is kept, in pixels."""
NOISE = 1024
"""Edge of the image on which a network of a stated halo must be local, in pixels, unless it takes another one alone."""
HEAD = 1 << 14
"""Bytes left for the names of the crops."""

Tell = Callable[[str], None]


def import_network(
    network: Path,
    said: "Said",
    out: Path,
    *,
    form: "Form" = "onnx",
    scenes: Sequence[SceneAddress] = (),
    within: float = probe.WITHIN,
    memory: int | None = None,
    tell: Tell = lambda _: None,
) -> Bundle:
    """Write the bundle of a network and of what its owner says of it; its halo is measured on `scenes` if not said.

    Args:
        network: an ONNX file, or one of `torch.export.save`.
        said: what its owner says of it.
        out: folder of the bundle.
        form: which of the two it is.
        scenes: what it is for: the halo is measured on them, and engines are compared on crops of them.
        within: share of pixels whose label a measured halo may change.
        memory: bytes that the prediction of a crop may take; what is free if not given.
        tell: hears what is being done.

    Raises:
        BundleError: the network and what is said of it do not fit.
        UsageError: there is neither a halo nor a scene to measure it on.
        ProbeError: the network is not local, or its halo does not converge.
        SceneError: a scene cannot be read, or does not fit.
    """
    from models.importing import read_network, spec_of

    tell(f"{network.name}: tried on noise")
    content, plan = read_network(network, form, said)
    spec = spec_of(said, plan, said.halo or 0)
    card = said.card or f"# {spec.name}\n\nAn imported network; what it was trained on is not known here.\n"
    with tempfile.TemporaryDirectory() as scratch:
        candidate = save_imported(scratch, spec, content, card, [])
        halo = _halo(candidate, said.halo, scenes, within=within, memory=memory, tell=tell)
    spec = spec_of(said, plan, halo)
    crops = [_kept(address, spec, len(scenes)) for address in scenes]
    return save_imported(out, spec, content, card, [pixels for pixels, _ in crops], valid=[valid for _, valid in crops])


def _halo(
    candidate: Bundle,
    said: int | None,
    scenes: Sequence[SceneAddress],
    *,
    within: float,
    memory: int | None,
    tell: Tell,
) -> int:
    edge = candidate.spec.imported.edge if candidate.spec.imported else None
    if edge is not None:
        if said is None:
            raise UsageError(
                f"the graph takes {edge} px alone, so that no tile can be compared with a whole image: say the halo in "
                "spec.yaml, or export the network with dynamic axes"
            )
    elif said is None:
        if not scenes:
            raise UsageError("spec.yaml says no halo: name scenes to measure it on (--probes SCENE), or say it")
        return probe.find_halo(candidate, scenes, within=within, memory=memory, tell=tell).chosen()
    _check_local(candidate, scenes, tell)
    return said


def _check_local(candidate: Bundle, scenes: Sequence[SceneAddress], tell: Tell) -> None:
    """What lies far away must not be felt: on a crop of the first scene, or on noise if that is too small to tell.

    Raises:
        ProbeError: it is.
    """
    from models.engines.whole import predictor
    from pipeline.resources import cores

    spec = candidate.spec
    fixed = spec.imported.edge if spec.imported else None
    edge = fixed or NOISE // spec.stride * spec.stride
    crops = [probe.crop_of(address, spec, edge) for address in scenes[:1]]
    crop = next((crop for crop in crops if crop.shape == (edge, edge)), _noise(spec, edge))
    tell(f"{crop.name}: is anything felt that is far away?")
    felt = probe.influence(predictor(candidate, cores()), crop, spec)
    if felt.verdict == "unknown" and fixed is not None:  # it takes nothing larger that would tell
        tell(f"the network sees across most of its {fixed} px, less of what is further away: is the halo enough?")
    elif felt.problem is not None:
        raise ProbeError(felt.problem)


def _noise(spec: ModelSpec, edge: int) -> probe.Crop:
    """Mostly dark, so that turning a part about changes its mean."""
    values = np.random.default_rng(0).random((len(spec.bands), edge, edge), np.float32) ** 2
    low, high = (np.array([getattr(band, end) for band in spec.bands], np.float32) for end in ("low", "high"))
    return probe.Crop("noise", values, np.ones((edge, edge), np.bool_), high - low, low)


def _kept(address: SceneAddress, spec: ModelSpec, count: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Pixels (C, T, T), valid (T, T) of a crop that takes its share of what a bundle's probes may take; in the bands'
    units, and in the scene's own type where that is the same.
    """
    crop = probe.crop_of(address, spec, LARGEST)
    pixels: NDArray[Any] = crop.pixels
    if not (np.all(crop.scale == 1) and np.all(crop.offset == 0)):
        pixels = (pixels * crop.scale[:, None, None] + crop.offset[:, None, None]).astype(np.float32)
    room = (PROBE_BYTES - HEAD) / count / (pixels.itemsize * len(pixels) + 1)
    edge = min(*crop.shape, int(room**0.5))
    return np.ascontiguousarray(pixels[:, :edge, :edge]), crop.valid[:edge, :edge].astype(np.uint8)
