"""Where a raster file says that it lies, read from an opened dataset and written into one.

`file` and `dataset` are opened rasterio datasets. What is read is what GDAL answers, sidecars included; whether a
sidecar may speak at all is decided before a file is opened.
"""

import functools
import html
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from pipeline.errors import UnreadableError
from pipeline.georef import Affine6, Georef
from pipeline.ground import ControlPoint, camera

FINEST_PRINT = 20e-6
"""Metres of a pixel up to which a TIFF's resolution is believed: 72 or 300 dots an inch are defaults of printing."""

_SAME_PLACE = 1e-6
"""Pixels up to which two corners are the same one."""
_UNITS = {"m": 1.0, "dm": 1e-1, "cm": 1e-2, "mm": 1e-3, "µm": 1e-6, "nm": 1e-9, "pm": 1e-12, "Å": 1e-10, "in": 0.0254}
"""Metres of OME's units of length."""
_IMAGEJ_UNITS = {"micron": 1e-6, "um": 1e-6, "\\u00B5m": 1e-6, "inch": 0.0254, **_UNITS}
"""Metres of the units that ImageJ writes."""
_DOTS_PER = {"2": 0.0254, "3": 0.01}
"""Metres of TIFF's units of resolution."""
_DESCRIPTION = "TIFFTAG_IMAGEDESCRIPTION"


def read_georef(file: Any, path: str) -> Georef:
    """The file's georeference; GDAL answers the identity where a file has no transform.

    Raises:
        UnreadableError: its transform, control points or RPCs are no map.
    """
    transform = _transform(file)
    points, points_crs = file.gcps
    try:
        gcps = () if transform else tuple(ControlPoint(p.row, p.col, p.x, p.y, p.z or 0.0) for p in points)
        crs = _wkt(points_crs if gcps else file.crs)
        tags = file.tags()
        rpcs = tuple(sorted((key, str(value)) for key, value in file.tags(ns="RPC").items()))
        size = None if crs or transform or gcps or rpcs else physical_size(tags)
        return Georef(crs, transform, tags.get("AREA_OR_POINT") == "Point", gcps, rpcs, size)
    except ValueError as error:
        raise UnreadableError(f"{path}: {error}") from error


def creation(georef: Georef) -> dict[str, Any]:
    """Keywords for `rasterio.open(..., "w", ...)`. `describe` adds what only an opened dataset takes."""
    place: dict[str, Any] = {}
    if georef.crs is not None and not georef.gcps:
        place["crs"] = CRS.from_wkt(georef.crs)
    if georef.transform is not None:
        place["transform"] = rasterio.Affine(*georef.transform)
    return place


def describe(dataset: Any, georef: Georef) -> None:
    """Completes the georeference of a dataset that was created with `creation(georef)`, in any order with its pixels.

    A pixel size becomes the TIFF's resolution in dots per centimetre, to about 7 digits.
    """
    if georef.pixel_is_point:
        dataset.update_tags(AREA_OR_POINT="Point")
    if georef.gcps:
        # GDAL's GeoTIFF writer shifts the points of such files the wrong way; other drivers leave them alone.
        shift = _point_shift() if georef.pixel_is_point and dataset.driver == "GTiff" else 0.0
        points = [GroundControlPoint(p.row - shift, p.col - shift, p.x, p.y, p.z) for p in georef.gcps]
        dataset.gcps = points, CRS() if georef.crs is None else CRS.from_wkt(georef.crs)
    if georef.rpcs:
        dataset.update_tags(ns="RPC", **dict(georef.rpcs))
    if georef.pixel_size is not None:
        rows, cols = (format(_DOTS_PER["3"] / size, ".9g") for size in georef.pixel_size)
        dataset.update_tags(TIFFTAG_XRESOLUTION=cols, TIFFTAG_YRESOLUTION=rows, TIFFTAG_RESOLUTIONUNIT="3")


def keep_crs(path: Path, georef: Georef) -> None:
    """Says the CRS in the sidecar of a finished file that by itself answers another one.

    GeoTIFF keeps a CRS that has a code by its code alone, whatever else the scene says about its ellipsoid. Beside a
    sidecar's CRS, GDAL overlooks that the file says pixel-is-point.
    """
    if georef.crs is None or georef.gcps:
        return
    with rasterio.Env(GDAL_PAM_ENABLED=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            if _same_crs(_wkt(file.crs), georef.crs):
                return
    sidecar = Path(f"{path}.aux.xml")
    root = ET.parse(sidecar).getroot() if sidecar.exists() else ET.Element("PAMDataset")  # noqa: S314 - GDAL wrote it
    for old in root.findall("SRS"):
        root.remove(old)
    ET.SubElement(root, "SRS").text = georef.crs
    if georef.pixel_is_point:
        ET.SubElement(ET.SubElement(root, "Metadata"), "MDI", key="AREA_OR_POINT").text = "Point"
    ET.ElementTree(root).write(sidecar, encoding="utf-8")


def differences(written: Georef, reference: Georef) -> Iterator[str]:
    """What a published file, read back, has otherwise than its scene, as far as a GeoTIFF can hold it."""
    if not _same_map(written, reference):
        yield f"transform {written.transform}, the scene {reference.transform}"
    if not _same_crs(written.crs, reference.crs):
        yield "another CRS than the scene"
    if written.pixel_is_point != reference.pixel_is_point:
        yield f"pixel-is-point {written.pixel_is_point}, the scene {reference.pixel_is_point}"
    if not _close([astuple(point) for point in written.gcps], [astuple(point) for point in reference.gcps]):
        yield "other ground control points than the scene"
    if not _close(_numbers(written), _numbers(reference)):
        yield "other RPCs than the scene"
    if not _close(_fine_size(written), _fine_size(reference), digits=6):
        yield f"pixels of {written.pixel_size} m, the scene {reference.pixel_size} m"


def _same_map(written: Georef, reference: Georef) -> bool:
    """A pixel-is-point file holds the middle of its first pixel: the last digit of the corner may be another."""
    one, other = written.transform, reference.transform
    if one is None or other is None or not written.pixel_is_point:
        return one == other
    pixel = max(map(abs, (other[0], other[1], other[3], other[4])))
    return np.allclose(one, other, rtol=0, atol=_SAME_PLACE * pixel)


def _close(one: Sequence[Any], other: Sequence[Any], digits: int = 12) -> bool:
    """Whether both have the same shape and the same numbers, as far as a file keeps them."""
    return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=10.0**-digits, atol=0)


def _numbers(georef: Georef) -> tuple[float, ...]:
    return camera(georef.rpcs).numbers if georef.rpcs else ()


def _fine_size(georef: Georef) -> tuple[float, ...]:
    """The pixel size, if a TIFF's resolution that says so is believed."""
    size = georef.pixel_size or ()
    return size if max(size, default=math.inf) <= FINEST_PRINT else ()


def _same_crs(a: str | None, b: str | None) -> bool:
    return a == b or (a is not None and b is not None and CRS.from_wkt(a) == CRS.from_wkt(b))


def _transform(file: Any) -> Affine6 | None:
    a, b, c, d, e, f = (float(value) for value in tuple(file.transform)[:6])
    return None if (a, b, c, d, e, f) == (1, 0, 0, 0, 1, 0) else (a, b, c, d, e, f)


def _wkt(crs: Any) -> str | None:
    """WKT 2, or the older one where GDAL takes that alone for the same CRS."""
    if not crs:
        return None
    wkt = str(crs.to_wkt(version="WKT2_2019"))
    return wkt if wkt and CRS.from_wkt(wkt) == crs else str(crs.to_wkt()) or None


@functools.cache
def _point_shift() -> float:
    """Pixels by which control points move when GDAL writes them into a pixel-is-point GeoTIFF and reads them again."""
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="GTiff", height=1, width=1, count=1, dtype="uint8") as dataset:
            dataset.update_tags(AREA_OR_POINT="Point")
            dataset.gcps = [GroundControlPoint(8.0, 8.0, 0.0, 0.0)], CRS.from_epsg(4326)
        with memory.open() as dataset:
            return float(dataset.gcps[0][0].row) - 8.0


def physical_size(tags: Mapping[str, str]) -> tuple[float, float] | None:
    """Metres per row and column of a slide, by its tags: OME-XML, ImageJ's unit, Aperio's `MPP`, or a fine TIFF
    resolution.
    """
    text = tags.get(_DESCRIPTION, "")
    found = _ome_size(text) or _imagej_size(text, tags) or _aperio_size(text) or _print_size(tags)
    return found if found and all(0 < size < math.inf for size in found) else None


def _ome_size(text: str) -> tuple[float, float] | None:
    # A pattern, not a parser: nothing in a stranger's XML is expanded or followed.
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text) if "OME" in text else None
    if pixels is None:
        return None
    values = dict(re.findall(r"\b(PhysicalSize\w+)\s*=\s*\"([^\"]*)\"", pixels[0]))
    rows, cols = (
        _number(values.get(f"PhysicalSize{axis}"))
        * _UNITS.get(html.unescape(values.get(f"PhysicalSize{axis}Unit", "µm")), math.nan)
        for axis in "YX"
    )
    return (rows, cols) if math.isfinite(rows + cols) else None


def _imagej_size(text: str, tags: Mapping[str, str]) -> tuple[float, float] | None:
    found = re.search(r"^unit=(.+?)\s*$", text, re.MULTILINE) if text.startswith("ImageJ=") else None
    unit = _IMAGEJ_UNITS.get(found[1], math.nan) if found else math.nan
    rows, cols = _dots(tags)
    return (unit / rows, unit / cols) if math.isfinite(unit) and min(rows, cols) > 0 else None


def _aperio_size(text: str) -> tuple[float, float] | None:
    found = re.search(r"\|\s*MPP\s*=\s*([^|\s]+)", text) if text.startswith("Aperio") else None
    size = _number(found[1]) * 1e-6 if found else math.nan
    return (size, size) if math.isfinite(size) else None


def _print_size(tags: Mapping[str, str]) -> tuple[float, float] | None:
    unit = _DOTS_PER.get(tags.get("TIFFTAG_RESOLUTIONUNIT", "")[:1], math.nan)
    rows, cols = _dots(tags)
    if not all(dots > 0 and unit / dots <= FINEST_PRINT for dots in (rows, cols)):
        return None
    return unit / rows, unit / cols


def _dots(tags: Mapping[str, str]) -> tuple[float, float]:
    """Rows and columns of a TIFF's unit of resolution."""
    return _number(tags.get("TIFFTAG_YRESOLUTION")), _number(tags.get("TIFFTAG_XRESOLUTION"))


def _number(text: str | None) -> float:
    """NaN where there is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
