"""Planes of a mask store as cloud-optimised GeoTIFFs that any GIS opens with the right colours, names and place."""

import errno
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rasterio
from isal import isal_zlib
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from models.spec import NODATA, Class
from pipeline.georef import Georef
from pipeline.publish.cells import PublishedPlane
from pipeline.publish.classes import Legend, legend_of, number, rgb
from pipeline.publish.files import SIDECAR, replacing
from pipeline.publish.levels import LARGEST_TILE, Put, level_shapes, walk
from pipeline.publish.pyramid import Halve, Plane, mean_of_four, mode_of_four
from pipeline.publish.spool import Spool
from pipeline.publish.tiff import Level, Tag, read_tags, write_tiff
from pipeline.sources.placement import creation, describe, keep_crs

CONFIDENCE_STEPS = 254
"""A stored confidence of 254 is a probability of 1, so that 255 stays nodata."""

_BLOCK, _OTHER_BLOCK = LARGEST_TILE, 384
"""Edges that the blocks of a COG may have, in pixels."""
_EFFORT = 1
"""Level of ISA-L's DEFLATE. Against zlib's level 6, a building mask takes 1.5 to 1.8 times the bytes and a 16th of the
time, its confidence 1.24 times the bytes and an 11th of the time."""

Colour = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Look:
    """What a GIS is told about one plane."""

    description: str
    halve: Halve
    """Half of it, for overviews."""
    scale: float = 1.0
    """Physical value of a stored 1."""
    palette: dict[int, Colour] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    """Class names by value."""
    legend: Legend | None = None
    """What is written in the place of the plane's numbers; None: they themselves."""


def _look(plane: str, classes: Sequence[Class], cell: int) -> _Look:
    if plane != "labels":
        return _Look(f"{plane}: probability, stored x {CONFIDENCE_STEPS}", mean_of_four, scale=1 / CONFIDENCE_STEPS)
    legend = legend_of(classes)
    palette: dict[int, Colour] = {number(entry): (*rgb(entry), 255) for entry in classes}
    palette[legend.nodata] = (0, 0, 0, 0)
    names = {number(entry): entry.name for entry in classes}
    each = "pixel" if cell == 1 else f"square of {cell} x {cell} pixels of the scene"
    return _Look(f"labels: class of each {each}", mode_of_four, palette=palette, names=names, legend=legend)


def write_cog(
    mask_store: Path,
    plane: str,
    out: Path,
    *,
    georef: Georef,
    classes: Sequence[Class],
    attribution: str,
    cell: int = 1,
) -> None:
    """Write `plane` of `mask_store`, pixel for pixel, as a COG with the georeference `georef` of its scene.

    With a `cell` above 1, one pixel stands for a square of `cell` pixels, and the georeference is so much coarser.
    Labels are written in the classes' codes, if they have some (see `Legend`), with palette and class names; other
    planes as they are, with their scale and nodata 255. The same store gives the same bytes on the same kind of
    processor. The store is read once; tiles of all levels are compressed as they come, kept in temporary files, and put
    together at the end.
    Memory: `levels.walk_bytes`. Disk: that of the result.

    Raises:
        OutputError: `out` cannot be written.
        VerifyError: a stored chunk is corrupt.
    """
    look, pixels = _look(plane, classes, cell), PublishedPlane(mask_store, plane, cell)
    height, width = pixels.shape
    tile = block_edge(height, width)
    shapes = level_shapes(height, width, tile)
    with replacing(out) as draft, ExitStack() as stack:
        tags = _template(draft, tile, look, georef.coarser(cell), attribution)
        spools = [stack.enter_context(Spool(draft.parent, _tiles(shape, tile))) for shape in shapes]
        walk(
            pixels.read,
            shapes,
            chunk=pixels.chunk,
            tile=tile,
            halve=look.halve,
            put=_compressing(spools, look.legend),
        )
        levels = [Level(*shape, spool) for shape, spool in zip(shapes, spools, strict=True)]
        with draft.open("wb") as file:
            write_tiff(file, tags, levels)


def _tiles(shape: tuple[int, int], tile: int) -> tuple[int, int]:
    height, width = shape
    return -(-height // tile), -(-width // tile)


def _compressing(spools: Sequence[Spool], legend: Legend | None) -> Put:
    """What puts tiles into the spools of their levels; those of one value, most of a mask, are compressed once."""
    known: dict[int, bytes] = {}
    table = None if legend is None or legend.is_plain else legend.table

    def put(level: int, row: int, col: int, tile: Plane, value: int | None) -> None:
        content = known.get(value) if value is not None else None
        if content is None:
            content = isal_zlib.compress(tile if table is None else table[tile], _EFFORT)
            if value is not None:
                known[value] = content
        spools[level].put(row, col, content)

    return put


def block_edge(height: int, width: int) -> int:
    """Edge of the COG's blocks, in pixels: 512, as is usual, unless that is just the width of a level.

    Validators take a level of one block's width for strips. The two edges never meet the same width, halved or not.
    """
    while max(height, width) > _BLOCK:
        if width == _BLOCK:
            return _OTHER_BLOCK
        height, width = -(-height // 2), -(-width // 2)
    return _BLOCK


def _template(draft: Path, tile: int, look: _Look, georef: Georef, attribution: str) -> tuple[Tag, ...]:
    """The tags of a raster of one empty tile that GDAL wrote: all that is to be said of a plane but its size.

    What GeoTIFF has no place for lies in a sidecar of the draft afterwards.
    """
    path = draft.with_name("template.tif")
    sidecar, wanted = Path(f"{path}{SIDECAR}"), Path(f"{draft}{SIDECAR}")
    try:
        # Sidecars on, whatever the reading side chose.
        with (
            rasterio.Env(GDAL_PAM_ENABLED=True),
            _create(path, tile, look.legend or Legend((), NODATA), georef) as dataset,
        ):
            _describe(dataset, look, georef, attribution)
        keep_crs(path, georef)
    except (RasterioError, rasterio._err.CPLE_BaseError) as error:  # noqa: SLF001 - rasterio raises these unwrapped
        raise OSError(errno.EIO, str(error)) from error
    if look.names:
        _write_names(sidecar, look.names)
    if sidecar.exists():
        sidecar.rename(wanted)
    tags = read_tags(path)
    path.unlink()
    return tags


def _create(path: Path, tile: int, legend: Legend, georef: Georef) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=tile,
            width=tile,
            count=1,
            dtype=legend.dtype,
            nodata=legend.nodata,
            tiled=True,
            blockxsize=tile,
            blockysize=tile,
            compress="DEFLATE",
            sparse_ok=True,
            bigtiff="NO",
            endianness="LITTLE",
            **creation(georef),
        )


def _describe(dataset: Any, look: _Look, georef: Georef, attribution: str) -> None:
    describe(dataset, georef)
    if attribution:
        dataset.update_tags(TIFFTAG_COPYRIGHT=attribution)
    dataset.set_band_description(1, look.description)
    if look.palette:
        dataset.write_colormap(1, look.palette)
        dataset.update_tags(1, **{f"CLASS_{value}": name for value, name in look.names.items()})
    else:
        dataset.scales = (look.scale,)


def _write_names(sidecar: Path, names: Mapping[int, str]) -> None:
    """Class names as GDAL keeps them, beside the file: GeoTIFF has no place for them, rasterio no call.

    GDAL counts them from 0: values between codes get empty ones.

    A sidecar that is there already holds a CRS that GeoTIFF has no place for either: it is added to.
    """
    root = ET.parse(sidecar).getroot() if sidecar.exists() else ET.Element("PAMDataset")  # noqa: S314 - GDAL wrote it
    band = root.find("PAMRasterBand[@band='1']")
    if band is None:
        band = ET.SubElement(root, "PAMRasterBand", band="1")
    categories = ET.SubElement(band, "CategoryNames")
    for value in range(max(names) + 1):
        ET.SubElement(categories, "Category").text = names.get(value, "")
    ET.ElementTree(root).write(sidecar, encoding="utf-8")
