"""Where a scene's pixels lie on the ground. `x` and `y` exist in this module alone; everywhere else rows come first."""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyproj
from numpy.typing import NDArray

from pipeline.grid import Window

Affine6 = tuple[float, float, float, float, float, float]
Floats = NDArray[np.float64]

_EDGE_POINTS = 21
"""Points of the footprint on each of the four edges: a straight edge is curved in longitude and latitude."""

_CONVENTIONS = {
    "proj": ("f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information for geospatial data"),
    "spatial": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
}
"""GeoZarr's conventions by name: identifier and description."""


@dataclass(frozen=True)
class Georef:
    """The georeference of a scene: an affine map from pixels to the coordinates of a CRS, as far as it has one."""

    crs: str | None
    """The coordinate reference system as WKT 2; None: the scene has none."""
    transform: Affine6 | None
    """`x = a*col + b*row + c`, `y = d*col + e*row + f` of a pixel's upper left corner; None: not georeferenced."""
    pixel_is_point: bool = False
    """Whether the file says that its values belong to points; the transform speaks of corners in any case."""

    def __post_init__(self) -> None:
        if self.transform is None:
            return
        a, b, _, d, e, _ = self.transform
        if not all(math.isfinite(value) for value in self.transform) or a * e == b * d:
            raise ValueError(f"the affine transform {self.transform} is not finite or squeezes the scene to a line")

    def window(self, window: Window) -> Self:
        """The georeference of a part: its pixel (0, 0) is this one's (`window.row`, `window.col`)."""
        if self.transform is None:
            return self
        a, b, _, d, e, _ = self.transform
        x, y = self.coordinates(window.row, window.col)
        return replace(self, transform=(a, b, float(x), d, e, float(y)))

    def coordinates(self, rows: Any, cols: Any) -> tuple[Any, Any]:
        """`(x, y)` in the CRS at fractional pixel positions; (0, 0) is the upper left corner of the first pixel."""
        a, b, c, d, e, f = self.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
        return a * cols + b * rows + c, d * cols + e * rows + f

    def bounds(self, height: int, width: int) -> tuple[float, float, float, float] | None:
        """`(left, bottom, right, top)` of a scene of `height` x `width` pixels, in the CRS."""
        if self.transform is None:
            return None
        x, y = self.coordinates(np.array([0, 0, height, height]), np.array([0, width, 0, width]))
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())

    def footprint(self, height: int, width: int) -> list[tuple[float, float]] | None:
        """The scene's outline as a closed, counter-clockwise ring of `(longitude, latitude)` on WGS 84.

        None without affine and CRS, and where a corner has no longitude and latitude.
        """
        if self.transform is None or self.crs is None or (to_wgs84 := _transformer(self.crs, "EPSG:4326")) is None:
            return None
        step = np.arange(_EDGE_POINTS) / _EDGE_POINTS
        rows = np.concatenate([step, np.ones_like(step), 1 - step, np.zeros_like(step)]) * height
        cols = np.concatenate([np.zeros_like(step), step, np.ones_like(step), 1 - step]) * width
        lon, lat = to_wgs84.transform(*self.coordinates(rows, cols))
        if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
            return None
        clockwise = np.sum(lon * np.roll(lat, -1) - np.roll(lon, -1) * lat) < 0
        ring = [(float(x), float(y)) for x, y in zip(lon, lat, strict=True)][:: -1 if clockwise else 1]
        return [*ring, ring[0]]

    def pixel_area(self, rows: NDArray[Any], cols: NDArray[Any]) -> Floats | None:
        """Square metres on the ellipsoid of one pixel centred at each fractional pixel position.

        `M(lat) N(lat) cos(lat) |d(lon, lat)/d(row, col)|`, with M and N the ellipsoid's radii of curvature: true in
        any projection, equal-area or not. NaN where a pixel has no longitude and latitude; None without affine and
        CRS. The centre of pixel (0, 0) is (0.5, 0.5).
        """
        if self.transform is None or self.crs is None or (to_ground := _transformer(self.crs, None)) is None:
            return None
        rows, cols = np.broadcast_arrays(np.asarray(rows, np.float64), np.asarray(cols, np.float64))
        # One call for the four half-pixel neighbours and the centre; errcheck off, so that a far pixel is inf.
        shifts = np.array([(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5), (0, 0)]).reshape(5, 2, *[1] * rows.ndim)
        lon, lat = to_ground.transform(*self.coordinates(rows + shifts[:, 0], cols + shifts[:, 1]))
        with np.errstate(invalid="ignore"):
            target: Any = to_ground.target_crs
            unit = target.axis_info[0].unit_conversion_factor
            lon, lat = (np.where(np.isfinite(angle), angle, np.nan) * unit for angle in (lon, lat))
            d_lon = np.angle(np.exp(1j * (lon[[0, 2]] - lon[[1, 3]])))
            d_lat = lat[[0, 2]] - lat[[1, 3]]
            jacobian = np.abs(d_lon[0] * d_lat[1] - d_lon[1] * d_lat[0])
            area: Floats = _curvature(target.ellipsoid, lat[4]) * jacobian
            return area

    def resolution(self, height: int, width: int) -> float | None:
        """Metres on the ground: the square root of the area of the pixel in the middle of the scene."""
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
        return attributes

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """The georeference that `attributes` wrote: `from_attributes(g.attributes(h, w)) == g`."""
        crs = attributes.get("widefield:wkt2") or attributes.get("proj:wkt2") or attributes.get("proj:code")
        transform = attributes.get("spatial:transform")
        return cls(
            crs=None if crs is None else str(crs),
            transform=None if transform is None else _affine(transform),
            pixel_is_point=bool(attributes.get("widefield:pixel_is_point", False)),
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

    None where the CRS has none (a local engineering system, say) or is not understood.
    """
    try:
        source = pyproj.CRS.from_user_input(crs)
        geodetic = target or source.geodetic_crs
        return None if geodetic is None else pyproj.Transformer.from_crs(source, geodetic, always_xy=True)
    except pyproj.exceptions.ProjError:
        return None


def _curvature(ellipsoid: Any, lat: Floats) -> Floats:
    """`M N cos(lat)` in square metres, for `lat` in radians."""
    a, b = ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre
    e2 = 1 - (b / a) ** 2
    w2 = 1 - e2 * np.sin(lat) ** 2
    w2 = np.where(np.abs(lat) <= np.pi / 2, w2, np.nan)  # a broken transform leads beyond the pole
    area: Floats = a * a * (1 - e2) / w2**2 * np.cos(lat)
    return area
