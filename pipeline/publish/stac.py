"""A STAC item beside the published files: what they are, where, from what and by what they were made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from models.spec import PROBABILITY, Class
from pipeline.errors import OutputError
from pipeline.georef import Georef
from pipeline.grid import in_cells
from pipeline.publish.classes import Legend, label, legend_of, number
from pipeline.publish.cog import CONFIDENCE_STEPS
from pipeline.publish.files import SIDECAR, write_text
from pipeline.publish.geometry import geojson

SCHEMA = 1
"""Version of our own fields, `widefield:*`."""

ITEM = "item.json"

_EXTENSIONS = ("projection/v2.0.0", "classification/v2.0.0", "raster/v2.0.0", "processing/v1.2.0", "file/v2.1.0")
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_SHA256 = "1220"
"""Multihash prefix: sha2-256, 32 bytes."""

Json = dict[str, object]


@dataclass(frozen=True)
class Asset:
    """What readers are told about a published file."""

    key: str
    """Name in the item."""
    title: str
    media_type: str
    role: str
    plane: str | None = None
    """Plane of the mask store that the file shows, for rasters."""
    squares: str = ""
    """Title where one pixel stands for a square of `{0}` pixels."""


ASSETS: Mapping[str, Asset] = {
    "mask.tif": Asset(
        "mask", "Class of each pixel", _COG, "data", "labels", "Class of each square of {0} x {0} pixels of the scene"
    ),
    "mask.tif" + SIDECAR: Asset("names", "Class names as GDAL reads them", "application/xml", "metadata"),
    "confidence.tif": Asset(
        "confidence",
        "Probability of each pixel's class",
        _COG,
        "data",
        "confidence",
        "Probability of the class of each square of {0} x {0} pixels of the scene",
    ),
    "confidence.tif" + SIDECAR: Asset("place", "CRS that GeoTIFF cannot hold", "application/xml", "metadata"),
    "preview.png": Asset("preview", "Scene, mask and legend", "image/png", "overview"),
    "mask.qml": Asset("style", "QGIS style of the mask", "application/xml", "metadata"),
    "run.json": Asset("run", "Provenance, coverage and figures of the run", "application/json", "metadata"),
}
"""The files that may lie beside an item, by name; those of single classes' probabilities come besides."""


def asset_of(name: str) -> Asset:
    """What is told about a published file; `probability-<class>.tif` is the raster of that plane, and may have a
    sidecar as confidence's has.

    Raises:
        KeyError: nothing of that name is published.
    """
    raster = name.removesuffix(SIDECAR)
    plane = raster.removesuffix(".tif")
    if name in ASSETS or not plane.startswith(PROBABILITY):
        return ASSETS[name]
    if name != raster:
        return replace(ASSETS["confidence.tif" + SIDECAR], key=f"place-{plane}")
    title = f"Probability of {plane.removeprefix(PROBABILITY)}"
    return Asset(plane, f"{title} at each pixel", _COG, "data", plane, title + " in each square of {0} x {0} pixels")


def write_item(
    folder: Path,
    *,
    id: str,  # noqa: A002 - the name of the field in STAC
    georef: Georef,
    height: int,
    width: int,
    classes: Sequence[Class],
    facts: Mapping[str, Any],
    assets: Sequence[str],
    cell: int = 1,
) -> Path:
    """Write `folder/item.json` over the `assets` (names that `asset_of` knows), with each one's size and checksum now.

    `facts` is the content of `run.json`: `finished`, `scene`, `bundle`, `engine` and `versions` are used.
    `georef`, `height` and `width` are the scene's, whose outline is the item's geometry. One pixel of the rasters
    stands for a square of `cell` pixels: shape, transform, box and resolution are those of the rasters.
    A scene without a place on the Earth gets a null geometry and no bounding box, as STAC asks.

    Raises:
        OutputError: an asset is missing, or the item cannot be written.
    """
    ring, raster, shape = georef.footprint(height, width), georef.coarser(cell), in_cells(height, width, cell)
    geometry, bbox = (geojson(ring) if ring else None) or (None, None)
    told = _Told(raster, raster.resolution(*shape), classes, cell)
    item: Json = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in _EXTENSIONS],
        "id": id,
        "geometry": geometry,
        **({"bbox": bbox} if bbox else {}),
        "properties": _properties(facts) | ({} if cell == 1 else {"widefield:cell": cell}) | _place(raster, *shape),
        "links": _links(facts),
        "assets": {asset_of(name).key: _asset(folder / name, asset_of(name), told) for name in assets},
    }
    write_text(folder / ITEM, json.dumps(item, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return folder / ITEM


def _properties(facts: Mapping[str, Any]) -> Json:
    made = f"{datetime.fromisoformat(facts['finished']).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    bundle = facts["bundle"]
    return {
        "datetime": facts["scene"].get("acquired") or made,
        "created": made,
        "license": bundle.get("licence", "other"),
        "attribution": bundle["attribution"],
        "processing:level": "L4",
        "processing:datetime": made,
        "processing:version": facts["versions"]["widefield"],
        "processing:software": dict(facts["versions"]),
        "processing:expression": {"format": "stac-mlm", "expression": _urn(bundle["digest"])},
        "widefield:schema": SCHEMA,
        "widefield:scene_fingerprint": facts["scene"]["fingerprint"],
        "widefield:engine": facts["engine"]["digest"],
    }


def _place(georef: Georef, height: int, width: int) -> Json:
    """Fields of the projection extension; a code of null says that there is no CRS."""
    known = georef.attributes(height, width)
    crs: Json = {key: known[key] for key in ("proj:code", "proj:wkt2") if key in known} or {"proj:code": None}
    if crs.get("proj:code"):
        crs.pop("proj:wkt2", None)
    place: Json = {**crs, "proj:shape": [height, width]}
    if georef.transform is not None:
        place["proj:transform"] = list(georef.transform)
        place["proj:bbox"] = list(georef.bounds(height, width) or ())
    return place


def _links(facts: Mapping[str, Any]) -> list[Json]:
    scene, bundle = Path(facts["scene"]["path"]).name, facts["bundle"]
    return [
        {"rel": "derived_from", "href": quote(scene), "title": f"scene {scene}"},
        {"rel": "derived_from", "href": _urn(bundle["digest"]), "title": f"model bundle {bundle['name']}"},
    ]


def _urn(digest: str) -> str:
    return f"urn:sha256:{digest}"


@dataclass(frozen=True)
class _Told:
    """What is said of rasters."""

    georef: Georef
    """Of the rasters."""
    resolution: float | None
    """Metres of a pixel of the rasters."""
    classes: Sequence[Class]
    cell: int
    """Edge of what one pixel stands for, in pixels of the scene."""


def _asset(path: Path, asset: Asset, told: _Told) -> Json:
    fields: Json = {
        "href": f"./{path.name}",
        "title": asset.title if told.cell == 1 else asset.squares.format(told.cell) or asset.title,
        "type": asset.media_type,
        "roles": [asset.role],
        **_checksum(path),
    }
    if asset.plane is not None:
        legend = legend_of(told.classes if asset.plane == "labels" else ())
        fields |= _raster(asset.plane, legend, told)
    if asset.plane == "labels":
        fields["classification:classes"] = _classes(told.classes)
    return fields


def _checksum(path: Path) -> Json:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file:checksum": _SHA256 + digest, "file:size": path.stat().st_size}
    except OSError as error:
        raise OutputError(f"{path} is to be published but cannot be read: {error}. Run again to write it") from error


def _raster(plane: str, legend: Legend, told: _Told) -> Json:
    scale: Json = {} if plane == "labels" else {"raster:scale": 1 / CONFIDENCE_STEPS, "raster:offset": 0}
    ground: Json = {} if told.resolution is None else {"raster:spatial_resolution": told.resolution}
    return {
        "data_type": legend.dtype,
        "nodata": legend.nodata,
        "bands": [{"name": plane}],
        "raster:sampling": "point" if told.georef.pixel_is_point else "area",
        **scale,
        **ground,
    }


def _classes(classes: Sequence[Class]) -> list[Json]:
    known: list[Json] = [
        {"value": number(entry), "name": entry.name, "title": label(entry), "color_hint": entry.color.removeprefix("#")}
        for entry in classes
    ]
    return [*known, {"value": legend_of(classes).nodata, "name": "nodata", "title": "No data", "nodata": True}]
