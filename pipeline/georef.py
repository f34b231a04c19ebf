"""Where a scene's pixels lie on the ground. `x` and `y` exist in this module alone; everywhere else rows come first."""

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyproj
from numpy.typing import NDArray

from pipeline.grid import Window
from pipeline.ground import ControlPoint, Floats, GroundMap, Rpcs, camera, coarser_rpcs, fitted, shift_rpcs

Affine6 = tuple[float, float, float, float, float, float]

_EDGE_POINTS = 21
"""Points of the footprint on each of the four edges: a straight edge is curved in longitude and latitude."""

_CONVENTIONS = {
    "proj": ("f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information for geospatial data"),
    "spatial": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
}
"""GeoZarr's conventions by name: identifier and description."""


@dataclass(frozen=True)
class Georef:
    """The georeference of a scene, as far as it has one.

    What places a pixel on the Earth is, as in GDAL, the first of: the affine map and the CRS; a polynomial fitted to
    the ground control points (of order 2 from six points on, else affine) and the CRS; the RPCs, at their own height
    offset. A scene without any of these may still know how large its pixels are.
    """

    crs: str | None
    """The coordinate reference system of transform and control points as WKT 2; None: the scene has none."""
    transform: Affine6 | None
    """`x = a*col + b*row + c`, `y = d*col + e*row + f` of a pixel's upper left corner; None: no affine map."""
    pixel_is_point: bool = False
    """Whether the file says that its values belong to points; the transform speaks of corners in any case."""
    gcps: tuple[ControlPoint, ...] = ()
    """Ground control points, where there is no affine map."""
    rpcs: Rpcs = ()
    """Rational polynomial coefficients as in GDAL's metadata domain `RPC`; they may stand beside the others."""
    pixel_size: tuple[float, float] | None = None
    """Metres per row and per column on the object, where there is no CRS: slides."""

    def __post_init__(self) -> None:
        if self.transform is not None:
            a, b, _, d, e, _ = self.transform
            if not all(math.isfinite(value) for value in self.transform) or a * e == b * d:
                raise ValueError(f"the affine transform {self.transform} is not finite or squeezes the scene to a line")
            if self.gcps:
                raise ValueError("a scene lies by its transform or by its ground control points, not by both")
        if self.rpcs:
            camera(self.rpcs)
        if self.pixel_size is not None:
            if self.crs is not None:
                raise ValueError("a scene with a CRS has no pixel size of its own")
            if not all(0 < value < math.inf for value in self.pixel_size):
                raise ValueError(f"a pixel size of {self.pixel_size} m is not positive and finite")

    @property
    def placed(self) -> bool:
        """Whether the scene has a place in some plane: an affine map, control points or RPCs."""
        return self.transform is not None or bool(self.gcps or self.rpcs)

    def window(self, window: Window) -> Self:
        """The georeference of a part: its pixel (0, 0) is this one's (`window.row`, `window.col`)."""
        part = replace(
            self,
            gcps=tuple(point.shift(-window.row, -window.col) for point in self.gcps),
            rpcs=shift_rpcs(self.rpcs, window.row, window.col),
        )
        if self.transform is None:
            return part
        a, b, _, d, e, _ = self.transform
        x, y = self.coordinates(window.row, window.col)
        return replace(part, transform=(a, b, float(x), d, e, float(y)))

    def coarser(self, cell: int) -> Self:
        """The georeference of an image of the same ground whose pixels are `cell` times larger, from the same corner.

        What lies at (`row`, `col`) of this one lies at (`row / cell`, `col / cell`) of the coarser one.
        """
        if cell == 1:
            return self
        size = self.pixel_size and (self.pixel_size[0] * cell, self.pixel_size[1] * cell)
        gcps = tuple(point.coarser(cell) for point in self.gcps)
        part = replace(self, gcps=gcps, rpcs=coarser_rpcs(self.rpcs, cell), pixel_size=size)
        if self.transform is None:
            return part
        a, b, c, d, e, f = self.transform
        return replace(part, transform=(a * cell, b * cell, c, d * cell, e * cell, f))

    def coordinates(self, rows: Any, cols: Any) -> tuple[Any, Any]:
        """`(x, y)` by the affine map at fractional pixel positions; (0, 0) is the upper left corner of the first
        pixel.
        """
        a, b, c, d, e, f = self.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
        return a * cols + b * rows + c, d * cols + e * rows + f

    def place(self, row: int, col: int) -> str | None:
        """`LATTICE/ROW/COL` of a pixel on the lattice of all pixels of this size and turn in this CRS; None without an
        affine map in a CRS.

        Scenes of one lattice agree about the same ground, to the pixel.
        """
        if self.crs is None or self.transform is None:
            return None
        a, b, _, d, e, _ = self.transform
        x, y = self.coordinates(row, col)
        down, across = round((a * y - d * x) / (a * e - b * d)), round((e * x - b * y) / (a * e - b * d))
        lattice = " ".join([self.crs, *(f"{value + 0.0:.6g}" for value in (a, b, d, e))])  # no -0
        return f"{hashlib.sha256(lattice.encode()).hexdigest()[:12]}/{down}/{across}"

    def bounds(self, height: int, width: int) -> tuple[float, float, float, float] | None:
        """`(left, bottom, right, top)` by the affine map of a scene of `height` x `width` pixels, in the CRS."""
        if self.transform is None:
            return None
        x, y = self.coordinates(np.array([0, 0, height, height]), np.array([0, width, 0, width]))
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())

    def on_ground(self, rows: Any, cols: Any) -> tuple[Any, Any] | None:
        """`(x, y)` at fractional pixel positions, by the map that the class describes: in the CRS, for RPCs
        `(longitude, latitude)` on WGS 84. None where there is none.
        """
        mapping = self._mapping()
        return mapping and mapping[1](rows, cols)

    def _mapping(self) -> tuple[str, GroundMap] | None:
        """A CRS, and the map from pixels to its coordinates."""
        if self.crs is not None and self.transform is not None:
            return self.crs, self.coordinates
        if self.crs is not None and self.gcps:
            through = fitted(self.gcps, _turn(self.crs))
            return None if through is None else (self.crs, through)
        return ("OGC:CRS84", camera(self.rpcs).ground) if self.rpcs else None

    def footprint(self, height: int, width: int) -> list[tuple[float, float]] | None:
        """The scene's outline as a closed, counter-clockwise ring of `(longitude, latitude)` on WGS 84.

        Through the map that the class describes; None where nothing places the scene on the Earth, where a part of its
        outline has no longitude and latitude, or where it encloses nothing.
        """
        placed = self._mapping()
        if placed is None or (to_wgs84 := _transformer(placed[0], "EPSG:4326")) is None:
            return None
        step = np.arange(_EDGE_POINTS) / _EDGE_POINTS
        rows = np.concatenate([step, np.ones_like(step), 1 - step, np.zeros_like(step)]) * height
        cols = np.concatenate([np.zeros_like(step), step, np.ones_like(step), 1 - step]) * width
        lon, lat = to_wgs84.transform(*placed[1](rows, cols))
        if not (np.isfinite(lon).all() and np.isfinite(lat).all()) or 0 in {np.ptp(lon), np.ptp(lat)}:
            return None
        clockwise = np.sum(lon * np.roll(lat, -1) - np.roll(lon, -1) * lat) < 0
        ring = [(float(x), float(y)) for x, y in zip(lon, lat, strict=True)][:: -1 if clockwise else 1]
        return [*ring, ring[0]]

    def pixel_area(self, rows: NDArray[Any], cols: NDArray[Any]) -> Floats | None:
        """Square metres of one pixel centred at each fractional pixel position.

        On the ellipsoid `M(lat) N(lat) cos(lat) |d(lon, lat)/d(row, col)|`, with M and N its radii of curvature: true
        in any projection, equal-area or not. In the plane of a local CRS, or on a slide, the product of the pixel's
        sides. NaN where a pixel has no longitude and latitude; None where nothing tells. The centre of pixel (0, 0) is
        (0.5, 0.5).
        """
        rows, cols = np.broadcast_arrays(np.asarray(rows, np.float64), np.asarray(cols, np.float64))
        if (flat := self._flat_area()) is not None:
            return np.full(rows.shape, flat)
        placed = self._mapping()
        if placed is None or (to_ground := _transformer(placed[0], None)) is None:
            return None
        # One call for the four half-pixel neighbours and the centre; errcheck off, so that a far pixel is inf.
        shifts = np.array([(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5), (0, 0)]).reshape(5, 2, *[1] * rows.ndim)
        lon, lat = to_ground.transform(*placed[1](rows + shifts[:, 0], cols + shifts[:, 1]))
        with np.errstate(invalid="ignore"):
            target: Any = to_ground.target_crs
            unit = target.axis_info[0].unit_conversion_factor
            lon, lat = (np.where(np.isfinite(angle), angle, np.nan) * unit for angle in (lon, lat))
            d_lon = np.angle(np.exp(1j * (lon[[0, 2]] - lon[[1, 3]])))
            d_lat = lat[[0, 2]] - lat[[1, 3]]
            jacobian = np.abs(d_lon[0] * d_lat[1] - d_lon[1] * d_lat[0])
            area: Floats = _curvature(target.ellipsoid, lat[4]) * jacobian
            return area

    def _flat_area(self) -> float | None:
        """Square metres of every pixel, where they are all of one known size without an Earth below."""
        if self.pixel_size is not None:
            return self.pixel_size[0] * self.pixel_size[1]
        if self.crs is None or self.transform is None or (unit := _local_unit(self.crs)) is None:
            return None
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d) * unit**2

    def resolution(self, height: int, width: int) -> float | None:
        """Metres on the ground or on the slide: the square root of the area of the pixel in the middle of the scene."""
        area = self.pixel_area(np.array(height / 2), np.array(width / 2))
        return math.sqrt(float(area)) if area is not None and 0 < area < math.inf else None

    def attributes(self, height: int, width: int) -> dict[str, object]:
        """Attributes of a zarr group of arrays (..., `height`, `width`), after GeoZarr's `proj:` and `spatial:`.

        `proj:` allows either a code or WKT; the code does not give the very same WKT back, so that stands beside it.
        """
        names = ["spatial"] if self.crs is None else ["proj", "spatial"]
        attributes: dict[str, object] = {
            "zarr_conventions": [_convention(name) for name in names],
            "spatial:dimensions": ["y", "x"],
            "spatial:shape": [height, width],
            "spatial:registration": "pixel",
            "widefield:pixel_is_point": self.pixel_is_point,
        }
        if self.crs is not None:
            code = _authority_code(self.crs)
            attributes |= {"proj:code": code, "widefield:wkt2": self.crs} if code else {"proj:wkt2": self.crs}
        if self.transform is not None:
            attributes |= {
                "spatial:transform": list(self.transform),
                "spatial:bbox": list(self.bounds(height, width) or ()),
            }
        if self.gcps:
            attributes["widefield:gcps"] = [[p.row, p.col, p.x, p.y, p.z] for p in self.gcps]
        if self.rpcs:
            attributes["widefield:rpcs"] = dict(self.rpcs)
        if self.pixel_size is not None:
            attributes["widefield:pixel_size"] = list(self.pixel_size)
        return attributes

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """The georeference that `attributes` wrote: `from_attributes(g.attributes(h, w)) == g`."""
        crs = attributes.get("widefield:wkt2") or attributes.get("proj:wkt2") or attributes.get("proj:code")
        transform, size = attributes.get("spatial:transform"), attributes.get("widefield:pixel_size")
        return cls(
            crs=None if crs is None else str(crs),
            transform=None if transform is None else _affine(transform),
            pixel_is_point=bool(attributes.get("widefield:pixel_is_point", False)),
            gcps=tuple(ControlPoint(*map(float, point)) for point in attributes.get("widefield:gcps", ())),
            rpcs=tuple(sorted((str(k), str(v)) for k, v in attributes.get("widefield:rpcs", {}).items())),
            pixel_size=None if size is None else (float(size[0]), float(size[1])),
        )


def _convention(name: str) -> dict[str, str]:
    identifier, description = _CONVENTIONS[name]
    home = f"https://github.com/zarr-conventions/{name}/blob/v0.1/README.md"
    return {"name": name, "uuid": identifier, "spec_url": home, "description": description}


def _affine(values: Iterable[Any]) -> Affine6:
    a, b, c, d, e, f = (float(value) for value in values)
    return a, b, c, d, e, f


@functools.lru_cache(maxsize=64)
def _authority_code(crs: str) -> str | None:
    """`EPSG:32636` for a CRS that is exactly a registered one, else None."""
    try:
        authority = pyproj.CRS.from_user_input(crs).to_authority(min_confidence=100)
    except pyproj.exceptions.CRSError:
        return None
    return ":".join(authority) if authority else None


@functools.lru_cache(maxsize=64)
def _transformer(crs: str, target: str | None) -> pyproj.Transformer | None:
    """From `crs` to (longitude, latitude) in degrees: of `target`, or of the CRS's own datum.

    None where the CRS has none (a local engineering system, say), is geocentric (a picture is no plane in it), or is
    not understood.
    """
    try:
        source = pyproj.CRS.from_user_input(crs)
        geodetic = None if source.is_geocentric else target or source.geodetic_crs
        return None if geodetic is None else pyproj.Transformer.from_crs(source, geodetic, always_xy=True)
    except pyproj.exceptions.ProjError:
        return None


@functools.lru_cache(maxsize=64)
def _turn(crs: str) -> float | None:
    """What a turn around the Earth adds to x in a geographic CRS, in its unit."""
    try:
        source = pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.ProjError:
        return None
    return 2 * math.pi / source.axis_info[0].unit_conversion_factor if source.is_geographic else None


@functools.lru_cache(maxsize=64)
def _local_unit(crs: str) -> float | None:
    """Metres of a unit of a plane CRS that is tied to no Earth (an engineering one); None where it is, or unknown."""
    try:
        source = pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.ProjError:
        return None
    units = {(axis.unit_name, axis.unit_conversion_factor) for axis in source.axis_info[:2]}
    if source.geodetic_crs is not None or len(units) != 1:
        return None
    name, factor = units.pop()
    return float(factor) if factor > 0 and "unknown" not in name.lower() else None


def _curvature(ellipsoid: Any, lat: Floats) -> Floats:
    """`M N cos(lat)` in square metres, for `lat` in radians."""
    a, b = ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre
    e2 = 1 - (b / a) ** 2
    w2 = 1 - e2 * np.sin(lat) ** 2
    w2 = np.where(np.abs(lat) <= np.pi / 2, w2, np.nan)  # a broken transform leads beyond the pole
    area: Floats = a * a * (1 - e2) / w2**2 * np.cos(lat)
    return area
