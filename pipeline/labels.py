"""Class labels of a scene, read by window like its pixels: class rasters on its grid, or polygons of any CRS."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyogrio
import pyogrio.errors
import pyproj
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray

from pipeline.errors import LabelError, SceneError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.scene import Scene, SceneAddress, open_scene

IGNORE = 255
"""The label of a pixel that belongs to no class: outside the labels, at their nodata, or invalid in the scene."""

_TIFF = (".tif", ".tiff")
_RASTERS = (*_TIFF, ".png")
_PICTURES = (".png", ".jpg", ".jpeg", ".jp2")
_VECTORS = (".geojson", ".gpkg", ".json", ".fgb", ".shp")
_GRID_TOLERANCE = 1e-2
"""Share of a pixel by which a label raster may lie off the scene's grid."""

Labels8 = NDArray[np.uint8]


class Labels(Protocol):
    """Labels of one scene."""

    def read(self, window: Window) -> Labels8:
        """Class ids (H, W) of a window of the scene, `IGNORE` where there is no label."""


def list_images(path: Path) -> list[Path]:
    """The images of a folder that are not labels, by name; or the one file that is given.

    Pictures are images only where there is no TIFF: beside one they are its quicklooks.
    """
    if not path.is_dir():
        return [path]
    files = sorted(path.iterdir())
    for kinds in (_TIFF, _PICTURES):
        images = [file for file in files if file.suffix.lower() in kinds and not file.stem.endswith("-labels")]
        if images:
            return images
    raise SceneError(f"{path} holds no image: looked for {', '.join((*_TIFF, *_PICTURES))}")


def find_labels(image: Path, labels: Path) -> Path:
    """The labels of an image: `labels` itself if it is a file, else the file of that folder named after the image."""
    if labels.is_file():
        return labels
    if not labels.is_dir():
        raise LabelError(f"{labels}: no such file or folder of labels")
    names = [f"{image.stem}-labels{suffix}" for suffix in (*_VECTORS, *_RASTERS)]
    names += [f"{image.stem}{suffix}" for suffix in (*_VECTORS, *_TIFF)]
    for name in names:
        candidate = labels / name
        if candidate.is_file() and not (image.exists() and candidate.samefile(image)):
            return candidate
    raise LabelError(f"{labels} holds no labels of {image.name}: name them {names[0]} or {image.stem}-labels.tif")


def open_labels(path: Path, scene: Scene, classes: Sequence[str], attribute: str | None = None) -> Labels:
    """Labels of `scene` from a class raster or from polygons.

    `classes` are names in the order of their ids. `attribute` names the polygons' field that holds a class name or
    id; without it every polygon is class 1, and in any case class 0 is where no polygon is.

    Raises:
        LabelError: labels of another place or grid, an unknown class, or a file that cannot be read.
    """
    if not path.is_file():
        raise LabelError(f"{path}: no such labels")
    if path.suffix.lower() in _RASTERS:
        return _raster(path, scene, len(classes))
    return _polygons(path, scene, classes, attribute)


@dataclass(frozen=True)
class RasterLabels:
    """A class raster whose pixels coincide with the scene's."""

    path: Path
    raster: Scene
    offset: tuple[int, int]
    """Row and column of the scene's first pixel in the raster."""
    classes: int

    def read(self, window: Window) -> Labels8:
        """Class ids (H, W) of a window of the scene."""
        labels = np.full((window.height, window.width), IGNORE, np.uint8)
        wanted = window.shift(*self.offset)
        inside = wanted.intersect(Window(0, 0, self.raster.height, self.raster.width))
        if inside is not None:
            pixels, valid = self.raster.read(inside)
            labels[inside.relative_to(wanted).slices] = self._classes(pixels[0], valid)
        return labels

    def _classes(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> Labels8:
        known = valid & (values != IGNORE)
        strange = np.unique(values[known & ((values < 0) | (values >= self.classes))])
        if strange.size:
            allowed = f"0 to {self.classes - 1}, and {IGNORE} for no label"
            raise LabelError(f"{self.path} has the class {strange[0]}: allowed are {allowed}")
        return np.where(known, values, IGNORE).astype(np.uint8)


def _raster(path: Path, scene: Scene, classes: int) -> RasterLabels:
    raster = open_scene(SceneAddress(str(path), bands=(1,)))
    if raster.dtype == "float32":
        raise LabelError(f"{path} has pixels of float32: class ids are whole numbers")
    offset = _offset(path, scene, raster)
    shown = Window(*offset, scene.height, scene.width)
    if shown.intersect(Window(0, 0, raster.height, raster.width)) is None:
        raise LabelError(f"{path} lies elsewhere than {scene.address.path}: they share no pixel")
    return RasterLabels(path, raster, offset, classes)


def _offset(path: Path, scene: Scene, raster: Scene) -> tuple[int, int]:
    """Where the scene's first pixel is in the raster; an error if the two grids differ."""
    if scene.georef.transform is None and raster.georef.transform is None:
        if (scene.height, scene.width) != (raster.height, raster.width):
            sizes = f"{raster.height} x {raster.width} pixels, the scene {scene.height} x {scene.width}"
            raise LabelError(f"{path} has {sizes}: without georeference they must agree")
        return 0, 0
    if scene.georef.transform is None or raster.georef.transform is None:
        raise LabelError(
            f"only one of {path} and {scene.address.path} has an affine georeference: their grids cannot agree"
        )
    if not _same_crs(scene.georef, raster.georef):
        raise LabelError(f"{path} has another CRS than {scene.address.path}: warp it to the scene's grid")
    to_raster = ~Affine(*raster.georef.transform) @ Affine(*scene.georef.transform)
    row, col = round(to_raster.f), round(to_raster.c)
    corners = [(0.0, 0.0), (0.0, float(scene.height)), (float(scene.width), 0.0)]
    off = max(max(abs(c + col - x), abs(r + row - y)) for c, r in corners for x, y in [to_raster @ (c, r)])
    if off > _GRID_TOLERANCE:
        raise LabelError(f"{path} lies {off:.2g} pixels off the grid of {scene.address.path}: warp it to that grid")
    return row, col


def _same_crs(one: Georef, other: Georef) -> bool:
    if one.crs is None or other.crs is None:
        return one.crs == other.crs
    return one.crs == other.crs or pyproj.CRS(one.crs).equals(pyproj.CRS(other.crs), ignore_axis_order=True)


@dataclass(frozen=True)
class PolygonLabels:
    """Polygons in the scene's CRS; later ones lie on top."""

    georef: Georef
    tree: shapely.STRtree
    ids: tuple[int, ...]
    """Class of each polygon of the tree."""

    def read(self, window: Window) -> Labels8:
        """Class ids (H, W): of the last polygon that holds a pixel's centre, else 0."""
        part = self.georef.window(window)
        assert part.transform is not None  # noqa: S101 - checked when opened
        xs, ys = part.coordinates(np.array([0, 0, window.height, window.height]), np.array([0, window.width] * 2))
        near = sorted(self.tree.query(shapely.MultiPoint(np.column_stack([xs, ys])).envelope))
        if not near:
            return np.zeros((window.height, window.width), np.uint8)
        burnt: Labels8 = rasterio.features.rasterize(
            ((self.tree.geometries[i], self.ids[i]) for i in near),
            out_shape=(window.height, window.width),
            transform=Affine(*part.transform),
            dtype="uint8",
        )
        return burnt


def _polygons(path: Path, scene: Scene, classes: Sequence[str], attribute: str | None) -> PolygonLabels:
    if scene.georef.crs is None or (bounds := scene.georef.bounds(scene.height, scene.width)) is None:
        raise LabelError(
            f"{scene.address.path} has no affine georeference: polygons need one, give a class raster instead"
        )
    crs, shapes, values = _read_vector(path, attribute)
    try:
        to_scene = pyproj.Transformer.from_crs(crs or scene.georef.crs, scene.georef.crs, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise LabelError(f"{path}: its CRS cannot be turned into that of {scene.address.path}: {error}") from error
    placed = shapely.transform(shapes, to_scene.transform, interleaved=False)
    if len(placed) and not shapely.intersects(shapely.box(*bounds), shapely.box(*shapely.total_bounds(placed))):
        raise LabelError(f"{path} lies elsewhere than {scene.address.path}: no polygon is near it")
    ids = (1,) * len(placed) if values is None else tuple(_class_id(path, value, classes) for value in values)
    return PolygonLabels(scene.georef, shapely.STRtree(placed), ids)


def _read_vector(path: Path, attribute: str | None) -> tuple[str | None, NDArray[Any], NDArray[Any] | None]:
    """CRS, polygons and their values of `attribute`, from any format that OGR reads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            meta, _, wkb, fields = pyogrio.raw.read(path, columns=[attribute] if attribute else [])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise LabelError(f"{path} cannot be read as polygons: {error}") from error
    if attribute and attribute not in meta["fields"]:
        raise LabelError(f"{path} has no field {attribute!r}: its fields are {_field_names(path)}")
    shapes = shapely.from_wkb(wkb)
    areal = np.isin(shapely.get_type_id(shapes), (3, 6)) & ~shapely.is_empty(shapes)
    return meta["crs"], shapely.force_2d(shapes[areal]), fields[0][areal] if attribute else None


def _field_names(path: Path) -> str:
    return ", ".join(map(str, pyogrio.read_info(path)["fields"])) or "none"


def _class_id(path: Path, value: Any, classes: Sequence[str]) -> int:
    """A class by its name or by its id."""
    text = str(value)
    if text in classes:
        return list(classes).index(text)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number in range(len(classes)):
        return int(number)
    known = ", ".join(f"{index} {name}" for index, name in enumerate(classes))
    raise LabelError(f"{path} has the class {text!r}: known are {known}")
