"""Class rasters: on the scene's own grid as they are, from any other grid by the nearest pixel."""

import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pipeline.errors import LabelError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.labelforms.base import IGNORE, TIFF, Labels8
from pipeline.scene import DTYPES, Scene, SceneAddress, open_scene

GRID_TOLERANCE = 1e-2
"""Share of a pixel by which a label raster may lie off the scene's grid and still be read pixel for pixel."""
_EDGE_POINTS = 33
"""Points on each side of the net that tells where a scene lies in a raster."""
MOST_PIXELS = 2**24
"""Most pixels of a raster of another grid that are read at once."""
_WHOLE_NUMBERS = tuple(kind for kind in DTYPES if kind != "float32")
_NAMED = 5
"""Most unknown classes that an error names."""


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
        inside = wanted.intersect(_whole(self.raster))
        if inside is not None:
            pixels, valid = self.raster.read(inside)
            labels[inside.relative_to(wanted).slices] = known_classes(self.path, pixels[0], valid, self.classes)
        return labels

    def objects(self, _: Window) -> None:
        """A class raster knows no objects."""


@dataclass(frozen=True)
class WarpedLabels:
    """A class raster of another grid or CRS: a pixel has the class of the raster's pixel that holds its centre.

    Each centre is placed exactly, so that a window's labels do not depend on how the scene is cut.
    """

    path: Path
    raster: Scene
    scene: Georef
    classes: int
    to_raster: pyproj.Transformer | None
    """From the scene's CRS to the raster's; None where they are the same."""

    def read(self, window: Window) -> Labels8:
        """Class ids (H, W) of a window of the scene."""
        labels = np.full((window.height, window.width), IGNORE, np.uint8)
        rows, cols = np.meshgrid(
            np.arange(window.row, window.stop_row) + 0.5, np.arange(window.col, window.stop_col) + 0.5, indexing="ij"
        )
        self._fill(labels, np.floor(self.place(rows, cols)))
        return labels

    def _fill(self, labels: Labels8, at: NDArray[np.float64]) -> None:
        """Write the classes at the raster's pixels (2, H, W) into `labels` (H, W); in quarters, where the raster is so
        fine that they would not fit into memory at once.
        """
        inside = (at >= 0).all(0) & (at[0] < self.raster.height) & (at[1] < self.raster.width)  # False where NaN
        if not inside.any():
            return
        row, col = at[:, inside].astype(np.int64)
        top, left = int(row.min()), int(col.min())
        part = Window(top, left, int(row.max()) - top + 1, int(col.max()) - left + 1)
        if part.height * part.width > MOST_PIXELS and labels.size > 1:
            for quarter in _quarters(*labels.shape):
                self._fill(labels[quarter], at[:, *quarter])
            return
        pixels, valid = self.raster.read(part)
        values, known = pixels[0, row - top, col - left], valid[row - top, col - left]
        labels[inside] = known_classes(self.path, values, known, self.classes)

    def objects(self, _: Window) -> None:
        """A class raster knows no objects."""

    def place(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> NDArray[np.float64]:
        """(2, ...) fractional rows and columns of the raster for those of the scene; NaN where there are none."""
        x, y = self.scene.coordinates(rows, cols)
        if self.to_raster is not None:
            x, y = self.to_raster.transform(x, y)
        assert self.raster.georef.transform is not None  # noqa: S101 - checked when opened
        to_pixels = ~Affine(*self.raster.georef.transform)
        with np.errstate(invalid="ignore"):
            col, row = to_pixels @ (x, y)
        placed = np.stack([row, col])
        return np.where(np.isfinite(placed).all(0), placed, np.nan)


def known_classes(path: Path, values: NDArray[Any], valid: NDArray[np.bool_], classes: int) -> Labels8:
    """`values` as class ids, `IGNORE` where they are not valid.

    Raises:
        LabelError: some are no class.
    """
    known = valid & (values != IGNORE)
    strange = np.unique(values[known & ((values < 0) | (values >= classes))])
    if strange.size:
        what = f"the class{'es' * (strange.size > 1)} {', '.join(map(str, strange[:_NAMED]))}"
        more = f" and {strange.size - _NAMED} more" * (strange.size > _NAMED)
        raise LabelError(f"{path} has {what}{more}: allowed are 0 to {classes - 1}, and {IGNORE} for no label")
    return np.where(known, values, IGNORE).astype(np.uint8)


def open_raster(path: Path, scene: Scene, classes: int) -> RasterLabels | WarpedLabels:
    """The class raster at `path` on the grid of `scene`.

    Raises:
        LabelError: it has no whole numbers, no place while the scene has one, or lies elsewhere.
    """
    _check_type(path)
    raster = open_scene(SceneAddress(str(path), bands=(1,)))
    try:
        return _fitted(path, raster, scene, classes)
    except BaseException:
        raster.close()
        raise


def _check_type(path: Path) -> None:
    """Refuse pixels that are no scene's, or no whole numbers, with the way out for classes; what else is wrong with a
    file is for `open_scene` to say.
    """
    if path.suffix.lower() not in TIFF:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as file:
                kind = file.dtypes[0]
    except RasterioError:
        return
    if kind not in _WHOLE_NUMBERS:
        # gdalwarp and not gdal_translate, which would make class 0 of a nodata of -9999
        raise LabelError(
            f"{path} has pixels of {kind}, for classes {', '.join(_WHOLE_NUMBERS)} are allowed: "
            "convert it with gdalwarp -ot Byte -dstnodata 255"
        )


def _quarters(height: int, width: int) -> list[tuple[slice, slice]]:
    rows, cols = (
        (slice(None, height // 2), slice(height // 2, None)),
        (slice(None, width // 2), slice(width // 2, None)),
    )
    return list(itertools.product(rows, cols))


def _fitted(path: Path, raster: Scene, scene: Scene, classes: int) -> RasterLabels | WarpedLabels:
    if scene.georef.transform is None and raster.georef.transform is None:
        if (scene.height, scene.width) != (raster.height, raster.width):
            sizes = f"{raster.height} x {raster.width} pixels, the scene {scene.height} x {scene.width}"
            raise LabelError(f"{path} has {sizes}: without georeference they must agree")
        return RasterLabels(path, raster, (0, 0), classes)
    for one, other in ((raster, scene), (scene, raster)):
        if one.georef.transform is None or (one.georef.crs is None and other.georef.crs is not None):
            lacks = "affine georeference" if one.georef.transform is None else "CRS"
            raise LabelError(f"{one.address.path} has no {lacks}, {other.address.path} has one: give it one")
    warped = WarpedLabels(path, raster, scene.georef, classes, _transformer(path, scene, raster))
    placed = _net(scene, warped)
    last = np.array([raster.height, raster.width])
    if not np.isfinite(placed).any() or (np.nanmax(placed, (1, 2)) <= 0).any() or (_least(placed) >= last).any():
        raise LabelError(f"{path} lies elsewhere than {scene.address.path}: they share no pixel")
    if warped.to_raster is None and misalignment(warped, scene) <= GRID_TOLERANCE:
        return RasterLabels(path, raster, (round(placed[0, 0, 0]), round(placed[1, 0, 0])), classes)
    return warped


def misalignment(labels: WarpedLabels, scene: Scene) -> float:
    """How many pixels the two grids part at most, if they had one CRS: 0 where they coincide."""
    corners = np.array([[0, 0], [0, scene.width], [scene.height, 0]], np.float64)
    placed = labels.place(corners[:, 0], corners[:, 1]).T
    return float(np.abs(placed - corners - np.round(placed[0])).max())


def _net(scene: Scene, labels: WarpedLabels) -> NDArray[np.float64]:
    rows, cols = np.linspace(0, scene.height, _EDGE_POINTS), np.linspace(0, scene.width, _EDGE_POINTS)
    return labels.place(*np.meshgrid(rows, cols, indexing="ij"))


def _least(placed: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.nanmin(placed, (1, 2)))


def _transformer(path: Path, scene: Scene, raster: Scene) -> pyproj.Transformer | None:
    if _same_crs(scene.georef, raster.georef):
        return None
    try:
        return pyproj.Transformer.from_crs(scene.georef.crs, raster.georef.crs, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise LabelError(f"{path}: its CRS cannot be turned into that of {scene.address.path}: {error}") from error


def _same_crs(one: Georef, other: Georef) -> bool:
    if one.crs is None or other.crs is None:
        return one.crs == other.crs
    return one.crs == other.crs or pyproj.CRS(one.crs).equals(pyproj.CRS(other.crs), ignore_axis_order=True)


def _whole(scene: Scene) -> Window:
    return Window(0, 0, scene.height, scene.width)
