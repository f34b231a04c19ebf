"""Footprints as GeoJSON wants them: inside -180..180, counter-clockwise, cut at the antimeridian."""

from collections.abc import Sequence

import numpy as np
import shapely
from shapely.affinity import translate
from shapely.geometry import MultiPolygon, Polygon, box, mapping
from shapely.geometry.polygon import orient

_DIGITS = 7
"""Decimals of a degree: about a centimetre."""

Point = tuple[float, float]


def geojson(ring: Sequence[Point]) -> tuple[dict[str, object], list[float]] | None:
    """Geometry and `[west, south, east, north]` of a closed ring of `(longitude, latitude)`.

    Neighbours in the ring lie less than 180 degrees apart. Across the antimeridian west is greater than east
    (RFC 7946, section 5.2); around a pole the geometry is the band from the ring's farthest latitude to the pole. A
    ring that crosses itself counts with its hull; None of one that lies beyond the poles.
    """
    outline = _outline(ring)
    parts = [part.simplify(10**-_DIGITS) for part in _parts(outline)]
    if not parts:
        return None
    shape = _oriented(shapely.union_all(parts))
    _, south, _, north = shape.bounds
    # The westernmost part of a cut footprint is the one that ends at +180.
    west, east = max(part.bounds[0] for part in parts), min(part.bounds[2] for part in parts)
    if outline.bounds[2] - outline.bounds[0] >= 360 - 10**-_DIGITS:
        west, east = -180.0, 180.0
    rounded = shapely.transform(shape, lambda points: np.round(points, _DIGITS))
    return mapping(rounded), [round(value, _DIGITS) for value in (west, south, east, north)]


def _outline(ring: Sequence[Point]) -> Polygon:
    lon, lat = np.array(ring, np.float64).T
    lon = np.unwrap(lon, period=360)
    if abs(lon[-1] - lon[0]) > 180:
        pole = 90.0 if lat.mean() > 0 else -90.0
        far = float(lat.min() if pole > 0 else lat.max())
        return box(-180, min(far, pole), 180, max(far, pole))
    polygon = Polygon(np.column_stack([lon, lat]))
    return polygon if polygon.is_valid else polygon.convex_hull


def _parts(outline: Polygon) -> list[Polygon]:
    """The outline cut at every antimeridian that it crosses, each part moved into -180..180."""
    parts = []
    for turn in (-360, 0, 360):
        inside = outline.intersection(box(turn - 180, -90, turn + 180, 90))
        polygons = [part for part in getattr(inside, "geoms", [inside]) if isinstance(part, Polygon) and part.area > 0]
        parts += [translate(part, xoff=-turn) for part in polygons]
    return parts


def _oriented(shape: Polygon | MultiPolygon) -> Polygon | MultiPolygon:
    """With its outer rings counter-clockwise."""
    parts = [orient(part) for part in getattr(shape, "geoms", [shape])]
    return MultiPolygon(parts) if len(parts) > 1 else parts[0]


def union(boxes: Sequence[Sequence[float]]) -> list[float] | None:
    """The smallest `[west, south, east, north]` around all boxes; west is greater than east across the antimeridian.

    None of no boxes.
    """
    if not boxes:
        return None
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    spans = sorted((west, east if west <= east else east + 360) for west, _, east, _ in boxes)
    # What reaches across the antimeridian covers the beginning of the circle too.
    reach, gaps = max(spans[0][1], max(east for _, east in spans) - 360), []
    for west, east in spans[1:]:
        gaps.append((west - reach, reach, west))
        reach = max(reach, east)
    gaps.append((spans[0][0] + 360 - reach, reach, spans[0][0] + 360))
    # The box is what the widest gap leaves of the circle; without a gap, all of it.
    width, end, start = max(gaps)
    if width <= 0:
        return [-180.0, south, 180.0, north]
    return [_turned(start), south, _turned(end) if end > 180 else end, north]


def _turned(longitude: float) -> float:
    return round((longitude + 180) % 360 - 180, _DIGITS)
