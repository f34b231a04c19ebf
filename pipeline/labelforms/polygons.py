"""Polygons of any CRS, placed on the scene and rasterised window by window; each is an object."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyproj
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray

from pipeline.errors import LabelError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.labelforms.base import IGNORE, Labels, Labels8, Objects
from pipeline.labelforms.vectors import VectorFile
from pipeline.scene import Scene

_BEND = 0.1
"""Pixels by which an edge that is straight in the polygons' CRS may be off in the scene's."""
_STRAIGHT = 1e-6
"""Pieces of an edge that is straight in both."""
_MOST_VERTICES = 100_000
"""Most vertices that one shape is cut into."""


@dataclass(frozen=True)
class PolygonLabels:
    """Polygons in the scene's CRS; later ones lie on top."""

    georef: Georef
    tree: shapely.STRtree
    table: NDArray[np.uint8]
    """Class by object id: 0 for 0, the object of no polygon; then of each polygon of the tree."""

    def read(self, window: Window) -> Labels8:
        """Class ids (H, W): of the last polygon that holds a pixel's centre, else 0."""
        labels: Labels8 = self.table[self._burnt(window)]
        return labels

    def objects(self, window: Window) -> Objects:
        """(H, W): 1 + the number of that polygon; 0 where it is background or ignored."""
        burnt = self._burnt(window)
        return np.where(np.isin(self.table, (0, IGNORE))[burnt], 0, burnt).astype(np.int32)

    def _burnt(self, window: Window) -> Objects:
        part = self.georef.window(window)
        assert part.transform is not None  # noqa: S101 - checked when opened
        xs, ys = part.coordinates(np.array([0, 0, window.height, window.height]), np.array([0, window.width] * 2))
        near = sorted(self.tree.query(shapely.MultiPoint(np.column_stack([xs, ys])).envelope))
        if not near:
            return np.zeros((window.height, window.width), np.int32)
        burnt: Objects = rasterio.features.rasterize(
            ((self.tree.geometries[i], i + 1) for i in near),
            out_shape=(window.height, window.width),
            transform=Affine(*part.transform),
            dtype="int32",
        )
        return burnt


@dataclass(frozen=True)
class WithinArea:
    """Labels that hold inside an area of interest alone: outside nobody has looked."""

    labels: Labels
    area: PolygonLabels

    def read(self, window: Window) -> Labels8:
        """Class ids (H, W), `IGNORE` outside the area."""
        return np.where(self.area.read(window) == 0, np.uint8(IGNORE), self.labels.read(window))

    def objects(self, window: Window) -> Objects | None:
        """Objects (H, W), 0 outside the area."""
        objects = self.labels.objects(window)
        return None if objects is None else np.where(self.area.read(window) == 0, np.int32(0), objects)


def open_polygons(
    vectors: VectorFile, scene: Scene, classes: Sequence[str] | None, boundary: int | None = None
) -> PolygonLabels:
    """Polygons on the grid of `scene`, with their classes; without `classes` all are 1.

    `boundary` is the class that parts objects.

    Raises:
        LabelError: the scene has no place, the polygons have no class or one that is not known, or lie elsewhere.
    """
    shapes = placed(vectors, scene)
    bounds = scene.georef.bounds(scene.height, scene.width)
    assert bounds is not None  # noqa: S101 - else they could not be placed
    if len(vectors.shapes) and not _near(shapes, bounds):
        raise LabelError(f"{vectors.path} lies elsewhere than {scene.address.path}: no polygon is near it")
    ids = np.ones(len(shapes), np.uint8) if classes is None else vectors.ids(classes, boundary)
    return PolygonLabels(scene.georef, shapely.STRtree(shapes), np.concatenate([np.zeros(1, np.uint8), ids]))


def placed(vectors: VectorFile, scene: Scene) -> NDArray[np.object_]:
    """The shapes in the scene's CRS; what has no place there is empty.

    Raises:
        LabelError: the scene has no affine georeference, or there is no way between the two CRS.
    """
    name = scene.address.path
    if scene.georef.crs is None or scene.georef.transform is None:
        raise LabelError(f"{name} has no affine georeference: polygons need one, give a class raster instead")
    try:
        to_scene = pyproj.Transformer.from_crs(vectors.crs or scene.georef.crs, scene.georef.crs, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise LabelError(f"{vectors.path}: its CRS cannot be turned into that of {name}: {error}") from error
    shapes = bent(vectors.shapes, to_scene, _BEND * _pixel(scene.georef))
    lost = ~np.isfinite(shapely.bounds(shapes)).all(-1) if len(shapes) else np.zeros(0, bool)
    shapes[lost] = shapely.Polygon()
    return np.asarray(shapes)


def bent(shapes: NDArray[np.object_], to_scene: pyproj.Transformer, most: float) -> NDArray[np.object_]:
    """Shapes in the other CRS, in which straight edges are curves: cut so short that none is off by more than `most`,
    in units of that CRS, as long as no shape gets more than about `_MOST_VERTICES` of them.
    """
    points, index = shapely.get_coordinates(shapes, return_index=True)
    starts, ends = points[:-1], points[1:]
    lengths = np.hypot(*(ends - starts).T)
    real = (index[1:] == index[:-1]) & (lengths > 0)
    pieces = np.sqrt(_sagitta(starts, ends, to_scene) / most)  # the sagitta of an edge falls with its length squared
    wanted = np.full(len(shapes), np.inf)
    np.minimum.at(wanted, index[1:][real], lengths[real] / np.maximum(pieces[real], _STRAIGHT))
    least = shapely.length(shapes) / _MOST_VERTICES
    cut = np.flatnonzero(wanted < shapely.length(shapes))
    shapes = shapes.copy()
    shapes[cut] = shapely.segmentize(shapes[cut], np.maximum(wanted, least)[cut])
    return np.asarray(shapely.transform(shapes, to_scene.transform, interleaved=False))


def _sagitta(
    starts: NDArray[np.float64], ends: NDArray[np.float64], to_scene: pyproj.Transformer
) -> NDArray[np.float64]:
    """How far (N,) each edge, straight in its own CRS, leaves the straight line in the other; 0 where it has no place.

    Looked at in three places: an edge may cross its chord in the middle.
    """
    a, b = (np.stack(to_scene.transform(*ends_.T), 1) for ends_ in (starts, ends))
    with np.errstate(invalid="ignore", divide="ignore"):
        across = np.stack([a[:, 1] - b[:, 1], b[:, 0] - a[:, 0]], 1)
        across /= np.hypot(*across.T)[:, None]
        off = np.zeros(len(starts))
        for share in (0.25, 0.5, 0.75):
            at = np.stack(to_scene.transform(*(starts + share * (ends - starts)).T), 1)
            off = np.fmax(off, np.abs(((at - a) * across).sum(1)))
    return np.where(np.isfinite(off), off, 0)


def _pixel(georef: Georef) -> float:
    """Shorter edge of a pixel, in units of the CRS."""
    assert georef.transform is not None  # noqa: S101 - checked before
    a, b, _, d, e, _ = georef.transform
    return min(float(np.hypot(a, d)), float(np.hypot(b, e)))


def _near(shapes: NDArray[np.object_], bounds: tuple[float, float, float, float]) -> bool:
    around = shapely.total_bounds(shapes)
    return bool(np.isfinite(around).all() and shapely.intersects(shapely.box(*bounds), shapely.box(*around)))
