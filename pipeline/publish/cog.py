"""Planes of a mask store as cloud-optimised GeoTIFFs that any GIS opens with the right colours, names and place."""

import errno
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import zarr
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from models.spec import NODATA, Class
from pipeline.errors import OutputError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.placement import creation, describe
from pipeline.publish.classes import rgb
from pipeline.publish.files import SIDECAR, replacing
from pipeline.publish.pyramid import Plane, mean_of_four, mode_of_four
from pipeline.store import read_plane

CONFIDENCE_STEPS = 254
"""A stored confidence of 254 is a probability of 1, so that 255 stays nodata."""

_BLOCK, _OTHER_BLOCK = 512, 384
"""Edges that the blocks of a COG may have, in pixels."""
_PART = 4096
"""Columns that are read at once."""
_THREADS = 1
"""Two make GDAL take 100 MB more; the planes of a scene are written side by side anyway."""

Colour = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Look:
    """What a GIS is told about one plane."""

    description: str
    halve: Callable[[Plane], Plane]
    """Half of it, for overviews."""
    scale: float = 1.0
    """Physical value of a stored 1."""
    palette: dict[int, Colour] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    """Class names, by value from 0."""


def _look(plane: str, classes: Sequence[Class]) -> _Look:
    if plane != "labels":
        return _Look(f"{plane}: probability, stored x {CONFIDENCE_STEPS}", mean_of_four, scale=1 / CONFIDENCE_STEPS)
    palette: dict[int, Colour] = {entry.id: (*rgb(entry), 255) for entry in classes}
    palette[NODATA] = (0, 0, 0, 0)
    names = tuple(entry.name for entry in classes)
    return _Look("labels: class of each pixel", mode_of_four, palette=palette, names=names)


def write_cog(
    mask_store: Path,
    plane: str,
    out: Path,
    *,
    georef: Georef,
    classes: Sequence[Class],
    attribution: str,
    cache_mb: int = 64,
) -> None:
    """Write `plane` of `mask_store`, pixel for pixel, as a COG with the georeference of its scene and nodata 255.

    Labels carry their palette and class names, probabilities their scale. The same store gives the same bytes. What
    was written is read back and compared before it is published.
    Memory: a row of chunks of one shard, GDAL's cache of `cache_mb` MiB, and what GDAL needs beside. Disk: about
    the result once more.

    Raises:
        OutputError: `out` cannot be written.
        VerifyError: a stored chunk is corrupt.
    """
    look = _look(plane, classes)
    with replacing(out) as draft, _gdal(out, cache_mb):
        flat = draft.with_name("flat.tif")
        _write_flat(mask_store, plane, flat, look=look, georef=georef, attribution=attribution)
        if look.names:
            _write_names(Path(f"{flat}{SIDECAR}"), look.names)
        block = block_edge(*_stored(mask_store, plane).shape)
        levels = [flat, *_write_levels(flat, look.halve, block)]
        rasterio.shutil.copy(
            str(_pyramid(levels)),
            str(draft),
            driver="COG",
            blocksize=block,
            compress="DEFLATE",
            bigtiff="IF_SAFER",
            num_threads=_THREADS,
        )
        for level in levels:
            level.unlink()
        _check(draft, mask_store, plane)


def block_edge(height: int, width: int) -> int:
    """Edge of the COG's blocks, in pixels: 512, as is usual, unless that is just the width of a level.

    Validators take a level of one block's width for strips. The two edges never meet the same width, halved or not.
    """
    while max(height, width) > _BLOCK:
        if width == _BLOCK:
            return _OTHER_BLOCK
        height, width = -(-height // 2), -(-width // 2)
    return _BLOCK


@contextmanager
def _gdal(out: Path, cache_mb: int) -> Iterator[None]:
    """GDAL with a capped cache and with sidecars, whatever the reading side chose; its errors become ours."""
    try:
        # In bytes: rasterio hands this number to GDAL's cache without GDAL's own rule for small numbers.
        with rasterio.Env(GDAL_CACHEMAX=cache_mb << 20, GDAL_PAM_ENABLED=True, GDAL_NUM_THREADS=_THREADS):
            yield
    except (RasterioError, rasterio._err.CPLE_BaseError) as error:  # noqa: SLF001 - rasterio raises these unwrapped
        raise OutputError(f"{out} cannot be written: {error}. Choose an output folder with rights and space") from error


def _write_flat(mask_store: Path, plane: str, flat: Path, *, look: _Look, georef: Georef, attribution: str) -> None:
    """A tiled GeoTIFF without overviews: the COG driver copies only from a finished file."""
    stored = _stored(mask_store, plane)
    height, width = stored.shape
    with _create(flat, height, width, _tile(stored.chunks[0]), georef) as dataset:
        _describe(dataset, look, georef, attribution)
        for window in _parts(height, width, stored.chunks[0]):
            dataset.write(read_plane(mask_store, plane, window), 1, window=_raster(window))


def _write_levels(flat: Path, halve: Callable[[Plane], Plane], block: int) -> Iterator[Path]:
    """The overviews of `flat`, each half of the one before, until one fits a block: GDAL's own take three times as
    long, and memory that grows with the width.
    """
    larger = flat
    for level in count(1):
        with _open(larger) as source:
            if max(source.shape) <= block:
                return
            smaller = flat.with_name(f"flat-{level}.tif")
            _write_half(source, smaller, halve)
        yield smaller
        larger = smaller


def _write_half(source: Any, smaller: Path, halve: Callable[[Plane], Plane]) -> None:
    height, width = (-(-length // 2) for length in source.shape)
    tile = source.block_shapes[0][0]
    with _create(smaller, height, width, tile, Georef(None, None)) as dataset:
        for window in _parts(source.height, source.width, 2 * tile):
            half = Window(window.row // 2, window.col // 2, -(-window.height // 2), -(-window.width // 2))
            dataset.write(halve(source.read(1, window=_raster(window))), 1, window=_raster(half))


def _pyramid(levels: Sequence[Path]) -> Path:
    """A virtual raster: the first of `levels`, with the others as its overviews."""
    path = levels[0].with_suffix(".vrt")
    with _open(levels[0]) as flat:
        rasterio.shutil.copy(flat, str(path), driver="VRT")
    root = ET.parse(path).getroot()  # noqa: S314 - GDAL wrote it
    band = root.find("VRTRasterBand")
    assert band is not None  # noqa: S101 - GDAL wrote one
    for level in levels[1:]:
        overview = ET.SubElement(band, "Overview")
        ET.SubElement(overview, "SourceFilename", relativeToVRT="1").text = level.name
        ET.SubElement(overview, "SourceBand").text = "1"
    ET.ElementTree(root).write(path, encoding="utf-8")
    return path


def _stored(mask_store: Path, plane: str) -> Any:
    return zarr.open_array(mask_store, path=plane, mode="r")


def _parts(height: int, width: int, chunk: int) -> Iterator[Window]:
    """Whole chunks, `chunk` rows and about `_PART` columns at once."""
    cols = chunk * max(1, _PART // chunk)
    for row in range(0, height, chunk):
        for col in range(0, width, cols):
            yield Window(row, col, min(chunk, height - row), min(cols, width - col))


def _raster(window: Window) -> RasterWindow:
    return RasterWindow(window.col, window.row, window.width, window.height)


def _check(draft: Path, mask_store: Path, plane: str) -> None:
    """Read all of a finished COG: GDAL does not report a disk that fills up while its last bytes are written."""
    chunk = _stored(mask_store, plane).chunks[0]
    with _open(draft) as cog:
        overviews = len(cog.overviews(1))
        for window in _parts(cog.height, cog.width, chunk):
            if not np.array_equal(cog.read(1, window=_raster(window)), read_plane(mask_store, plane, window)):
                raise OSError(errno.EIO, "what was written is not what is stored")
    for level in range(overviews):
        with _open(draft, overview_level=level) as cog:
            for window in _parts(cog.height, cog.width, _BLOCK):
                cog.read(1, window=_raster(window))


def _create(path: Path, height: int, width: int, tile: int, georef: Georef) -> Any:
    return _open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=1,
        dtype="uint8",
        nodata=NODATA,
        tiled=True,
        blockxsize=tile,
        blockysize=tile,
        compress="ZSTD",
        zstd_level=1,
        bigtiff="IF_SAFER",
        **creation(georef),
    )


def _open(path: Path, *mode: str, **profile: Any) -> Any:
    """A dataset that may well have no place on the Earth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, *mode, **profile)


def _tile(chunk: int) -> int:
    """The largest tile up to 1024 that divides a chunk: each tile is compressed once, not rewritten in part."""
    return max((tile for tile in range(16, 1025, 16) if chunk % tile == 0), default=_BLOCK)


def _describe(dataset: Any, look: _Look, georef: Georef, attribution: str) -> None:
    describe(dataset, georef)
    if attribution:
        dataset.update_tags(TIFFTAG_COPYRIGHT=attribution)
    dataset.set_band_description(1, look.description)
    if look.palette:
        dataset.write_colormap(1, look.palette)
        dataset.update_tags(1, **{f"CLASS_{value}": name for value, name in enumerate(look.names)})
    else:
        dataset.scales = (look.scale,)


def _write_names(sidecar: Path, names: Sequence[str]) -> None:
    """Class names as GDAL keeps them, beside the file: GeoTIFF has no place for them, rasterio no call.

    A sidecar that is there already holds a CRS that GeoTIFF has no place for either: it is added to.
    """
    root = ET.parse(sidecar).getroot() if sidecar.exists() else ET.Element("PAMDataset")  # noqa: S314 - GDAL wrote it
    band = root.find("PAMRasterBand[@band='1']")
    if band is None:
        band = ET.SubElement(root, "PAMRasterBand", band="1")
    categories = ET.SubElement(band, "CategoryNames")
    for name in names:
        ET.SubElement(categories, "Category").text = name
    ET.ElementTree(root).write(sidecar, encoding="utf-8")
