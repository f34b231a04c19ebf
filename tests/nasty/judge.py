"""One file: segmented and compared with what rasterio reads, or refused with a `SceneError`."""

import re
import warnings
from dataclasses import replace

import numpy as np
import rasterio
import rasterio.windows
from filelock import FileLock
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import MemoryFile

from models.bundle import save_bundle
from models.spec import NODATA, Band
from pipeline.errors import SceneError
from pipeline.executors import SerialExecutor
from pipeline.grid import Window
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress, open_scene
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.sources.policy import SourcePolicy
from tests.drawn_bundle import drawn_network, drawn_spec

SMALL, LARGE = 64, 1024
"""Tiles for scenes of up to, and above, 1024 pixels along an edge."""
MOST = 1 << 25
"""Pixels of a scene that is segmented as a whole; of a larger one, its last corner is."""
CORNER = 1000
"""Edge of that corner, in pixels: on no lattice."""
ALONE = {"GDAL_PAM_ENABLED": False, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""The oracle's eyes are closed to sidecars too, where the policy's are."""
FOREIGN = re.compile(r": [A-Z][A-Za-z]*(Error|Exception|Warning): ")
"""An exception of somebody else's, passed on as the reason: it names no cause."""


def judge(file, name, work, *, engine="null", trust="named"):
    """(status, reason) of one file. Works below the folder `work`, where bundles are kept for the files to come."""
    address = SceneAddress(str(file), policy=SourcePolicy(trust=trust))
    try:
        with open_scene(address) as scene:
            shape = scene.height, scene.width
            tile = LARGE if max(shape) > LARGE else SMALL
            bundle = bundle_for(work / "bundles", scene.dtype, len(scene.bands), tile)
            window = corner(*shape) if shape[0] * shape[1] > MOST else None
        request = SegmentRequest(
            replace(address, window=window), bundle, work / "masks", name, PlanOptions(any_resolution=True), engine
        )
        facts = segment_scene(request, SerialExecutor())
    except SceneError as error:
        return ("fault" if FOREIGN.search(str(error)) else "refused"), str(error)
    with rasterio.Env(**(ALONE if trust == "untrusted" else {})):
        differences = "; ".join(compared(file, window, work / "masks" / name / "mask.tif", facts))
    return ("fault", differences) if differences else ("segmented" if window is None else "in part", "")


def corner(height, width):
    """The last window of a large scene."""
    rows, cols = min(height, CORNER), min(width, CORNER)
    return Window(height - rows, width - cols, rows, cols)


def bundle_for(folder, dtype, count, tile):
    """A small bundle with random weights for scenes of `count` bands of type `dtype`."""
    path = folder / f"{dtype}-{count}-{tile}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not (path / "bundle.json").exists():
            bands = tuple(Band(name=f"b{i}", low=0, high=255, mean=100, std=50) for i in range(count))
            spec = drawn_spec(bands=bands, dtypes=(dtype,), tiles=(tile,))
            crops = [np.random.default_rng(0).integers(0, 120, (count, 12, 12)).astype(dtype)]
            save_bundle(path, spec, drawn_network(spec), {}, "# Drawn\n", crops, storage="fp32")
    return path


def compared(file, window, mask, facts):
    """What differs between a scene, or a window of it, and its mask, in words; rasterio is the judge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(file) as source, rasterio.open(mask) as result:
            whole = rasterio.windows.Window(0, 0, source.width, source.height)
            place = (
                whole
                if window is None
                else rasterio.windows.Window(window.col, window.row, window.width, window.height)
            )
            yield from _placed(source, place, result)
            if result.shape == (place.height, place.width):
                yield from _covered(valid_pixels(source, place), result.read(1) != NODATA, facts["coverage"])


def _placed(source, place, result):
    if result.shape != (place.height, place.width):
        yield f"shape {result.shape} of a scene of {place.height} x {place.width}"
    if result.crs not in (source.crs, _in_geotiff(source.crs)):
        yield f"CRS {result.crs} of a scene in {source.crs}"
    placed = source.transform if source.transform.is_identity else source.window_transform(place)
    if not placed.almost_equals(result.transform, 1e-9):
        yield f"transform {result.transform[:6]} of a scene at {placed[:6]}"
    theirs = [(p.row - place.row_off, p.col - place.col_off, p.x, p.y) for p in source.gcps[0]]
    ours = [(p.row, p.col, p.x, p.y) for p in result.gcps[0]]
    if len(ours) != len(theirs) or not np.allclose(ours, theirs):
        yield f"{len(ours)} GCPs of a scene with {len(theirs)}, or elsewhere"
    if (source.rpcs is None) != (result.rpcs is None):
        yield f"RPCs {'invented' if source.rpcs is None else 'lost'}"
    kinds = [file.tags().get("AREA_OR_POINT", "Area") for file in (source, result)]
    if kinds[0] != kinds[1]:
        yield f"a pixel is {kinds[1]}, in the scene {kinds[0]}"


def _in_geotiff(crs):
    """What is left of a CRS once GDAL has written it into a GeoTIFF."""
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", width=1, height=1, count=1, dtype="uint8", crs=crs):
            pass
        with memory.open() as file:
            return file.crs


def _covered(valid, classified, coverage):
    if not np.array_equal(classified, valid):
        yield f"{classified.sum()} pixels have a class, {valid.sum()} are valid"
    if coverage["classified"] != valid.sum():
        yield f"run.json counts {coverage['classified']} classified pixels, {valid.sum()} are valid"


def valid_pixels(source, place):
    """(H, W): mask and alpha are not 0, not all bands are at their nodata, none is NaN or infinite."""
    alpha = [i for i, colour in zip(source.indexes, source.colorinterp, strict=True) if colour == ColorInterp.alpha]
    used = [i for i in source.indexes if i not in alpha[:1]]
    pixels = source.read(used, window=place)
    valid = np.isfinite(pixels).all(axis=0) if pixels.dtype.kind == "f" else np.ones(pixels.shape[1:], bool)
    for index in used:
        flags = set(source.mask_flag_enums[index - 1])
        if not flags & {MaskFlags.all_valid, MaskFlags.alpha, MaskFlags.nodata}:
            valid &= source.read_masks(index, window=place) != 0
    if alpha:
        valid &= source.read(alpha[0], window=place) != 0
    nodata = [source.nodatavals[i - 1] for i in used]
    if None not in nodata:
        held = np.array(nodata)
        with np.errstate(over="ignore"):
            held = held.astype(np.float32) if pixels.dtype == np.float32 else held
        valid &= ~(pixels == held[:, None, None]).all(axis=0)
    return valid
