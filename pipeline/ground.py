"""Maps from pixels to the ground where no affine one is known: through ground control points, and by RPCs.

Positions are fractional pixels, rows first; (0, 0) is the upper left corner of the first pixel.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
GroundMap = Callable[[Any, Any], tuple[Floats, Floats]]
"""(rows, cols) to (x, y), of equal shape; NaN where there is no answer."""

QUADRATIC_POINTS = 6
"""Points from which a polynomial is of order 2, as in GDAL; fewer make it affine."""
_STEPS = 20
_CONVERGED = 1e-6
"""Largest distance of an inverted RPC from the wanted pixel, in pixels, relative to the scale of the image."""

Rpcs = tuple[tuple[str, str], ...]
"""GDAL's metadata domain `RPC`: names and values, sorted by name."""

_NUMBERS = tuple(f"{name}_{kind}" for kind in ("OFF", "SCALE") for name in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT"))
_AXES = ("LINE", "SAMP")
_TWENTY = tuple(f"{axis}_{part}_COEFF" for axis in _AXES for part in ("NUM", "DEN"))
_WITHOUT_HEIGHT = [0, 1, 2, 4, 7, 8, 11, 12, 14, 15]
"""Those of the twenty terms 1, L, P, H, LP, LH, PH, LL, PP, HH, PLH, LLL, LPP, LHH, LLP, PPP, PHH, LLH, PPH, HHH in
which no height stands.
"""


@dataclass(frozen=True)
class ControlPoint:
    """A pixel position whose place on the ground is known."""

    row: float
    col: float
    x: float
    y: float
    z: float = 0.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (self.row, self.col, self.x, self.y, self.z)):
            raise ValueError(f"the ground control point {self} is not finite")

    def shift(self, rows: float, cols: float) -> Self:
        """The same place, `rows` and `cols` further in the image."""
        return replace(self, row=self.row + rows, col=self.col + cols)

    def coarser(self, cell: int) -> Self:
        """The same place in an image of pixels `cell` times larger."""
        return replace(self, row=self.row / cell, col=self.col / cell)


@functools.lru_cache(maxsize=16)
def fitted(points: tuple[ControlPoint, ...], period: float | None) -> GroundMap | None:
    """The polynomial of least squares through `points`: of order 2 from six points on, else affine.

    `period`: what a turn around the Earth adds to x; points on both sides of the antimeridian are brought together.
    None where fewer than three points, or points on a line, leave it open.
    """
    row, col, x, y = (np.array([getattr(point, name) for point in points]) for name in ("row", "col", "x", "y"))
    if period is not None:
        x = x[0] + (x - x[0] + period / 2) % period - period / 2
    centre, spread = (row.mean(), col.mean()), (np.ptp(row) or 1.0, np.ptp(col) or 1.0)
    ground = np.array([x.mean(), y.mean()])
    for order in (2, 1):
        terms = _terms((row - centre[0]) / spread[0], (col - centre[1]) / spread[1], order)
        needed = QUADRATIC_POINTS if order == 2 else 3
        if len(points) < needed or np.linalg.matrix_rank(terms, tol=1e-8) < terms.shape[-1]:
            continue
        weights = np.linalg.lstsq(terms, np.column_stack([x, y]) - ground, rcond=None)[0]
        return functools.partial(_evaluate, weights=weights, order=order, centre=centre, spread=spread, ground=ground)
    return None


def _terms(u: Floats, v: Floats, order: int) -> Floats:
    """(..., 3) or (..., 6): the monomials of `u` and `v` up to `order`."""
    monomials = [np.ones_like(u), u, v] if order == 1 else [np.ones_like(u), u, v, u * u, u * v, v * v]
    return np.stack(monomials, axis=-1)


def _evaluate(
    rows: Any,
    cols: Any,
    *,
    weights: Floats,
    order: int,
    centre: tuple[float, float],
    spread: tuple[float, float],
    ground: Floats,
) -> tuple[Floats, Floats]:
    rows, cols = np.broadcast_arrays(np.asarray(rows, np.float64), np.asarray(cols, np.float64))
    found = _terms((rows - centre[0]) / spread[0], (cols - centre[1]) / spread[1], order) @ weights + ground
    return found[..., 0], found[..., 1]


class RationalCamera:
    """RPC00B: longitude, latitude and height to pixels, and back at one height."""

    def __init__(self, rpcs: Sequence[tuple[str, str]]) -> None:
        """Parses and checks GDAL's metadata domain `RPC`."""
        values = dict(rpcs)
        self._number = {name: _floats(values, name)[0] for name in _NUMBERS}
        self._twenty = {name: np.array(_floats(values, name)) for name in _TWENTY}
        self.numbers = (*self._number.values(), *(float(value) for part in self._twenty.values() for value in part))
        """All of them in a fixed order."""
        if not np.isfinite(self.numbers).all() or any(len(part) != 20 for part in self._twenty.values()):
            raise ValueError("the RPCs are not four times 20 finite coefficients with finite offsets and scales")

    def ground(self, rows: Any, cols: Any) -> tuple[Floats, Floats]:
        """(longitude, latitude) in degrees on WGS 84 at the height `HEIGHT_OFF`, by Newton's method.

        NaN where it does not converge, as with a scale of 0.
        """
        number = self._number
        rows, cols = np.broadcast_arrays(np.asarray(rows, np.float64), np.asarray(cols, np.float64))
        with np.errstate(all="ignore"):
            # RPCs count from the middle of the first pixel.
            wanted = np.stack(
                [
                    (rows - 0.5 - number["LINE_OFF"]) / number["LINE_SCALE"],
                    (cols - 0.5 - number["SAMP_OFF"]) / number["SAMP_SCALE"],
                ]
            )
            found, step = np.zeros_like(wanted), 1e-6
            for _ in range(_STEPS):
                here = self._image(*found)
                by_lon = (self._image(found[0] + step, found[1]) - here) / step
                by_lat = (self._image(found[0], found[1] + step) - here) / step
                miss, det = wanted - here, by_lon[0] * by_lat[1] - by_lon[1] * by_lat[0]
                found = found + np.stack(
                    [
                        (miss[0] * by_lat[1] - miss[1] * by_lat[0]) / det,
                        (miss[1] * by_lon[0] - miss[0] * by_lon[1]) / det,
                    ]
                )
            lost = ~(np.abs(self._image(*found) - wanted).max(axis=0) < _CONVERGED)
        lon = number["LONG_OFF"] + found[0] * number["LONG_SCALE"]
        lat = number["LAT_OFF"] + found[1] * number["LAT_SCALE"]
        return np.where(lost, np.nan, lon), np.where(lost, np.nan, lat)

    def _image(self, lon: Floats, lat: Floats) -> Floats:
        """(2, ...): line and sample at height 0; all of it in the RPCs' own units, about -1 to 1."""
        squares = [lon * lon, lat * lat]
        cubes = [lon * squares[0], lon * squares[1], squares[0] * lat, lat * squares[1]]
        terms = np.stack([np.ones_like(lon), lon, lat, lon * lat, *squares, *cubes], axis=-1)
        flat = {name: values[_WITHOUT_HEIGHT] for name, values in self._twenty.items()}
        return np.stack([terms @ flat[f"{axis}_NUM_COEFF"] / (terms @ flat[f"{axis}_DEN_COEFF"]) for axis in _AXES])


def _floats(values: Mapping[str, str], name: str) -> list[float]:
    """The numbers of an entry; a single one may have its unit behind it."""
    words = values.get(name, "").split()
    try:
        return [float(word) for word in (words if name in _TWENTY else words[:1] or [""])]
    except ValueError as error:
        raise ValueError(f"the RPCs have no usable {name}") from error


@functools.lru_cache(maxsize=16)
def camera(rpcs: Rpcs) -> RationalCamera:
    """The camera of these RPCs.

    Raises:
        ValueError: they are incomplete.
    """
    return RationalCamera(rpcs)


def shift_rpcs(rpcs: Rpcs, rows: float, cols: float) -> Rpcs:
    """RPCs of the part of an image that starts `rows` and `cols` further; unchanged text where nothing moves."""
    moves = {"LINE_OFF": rows, "SAMP_OFF": cols}
    return tuple(
        (name, repr(float(value.split()[0]) - moves[name]) if moves.get(name) else value) for name, value in rpcs
    )


def coarser_rpcs(rpcs: Rpcs, cell: int) -> Rpcs:
    """RPCs of an image of pixels `cell` times larger. They count from the middle of the first pixel, which moves."""
    corners = {"LINE_OFF": 0.5, "SAMP_OFF": 0.5, "LINE_SCALE": 0.0, "SAMP_SCALE": 0.0}

    def scaled(name: str, value: str) -> str:
        corner = corners[name]
        return repr((float(value.split(maxsplit=1)[0]) + corner) / cell - corner)

    return tuple((name, scaled(name, value) if name in corners else value) for name, value in rpcs)
