"""What every form of labels has in common."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import Window

IGNORE = 255
"""The label of a pixel that belongs to no class: outside the labels, at their nodata, or invalid in the scene."""

TIFF = (".tif", ".tiff")
RASTERS = (*TIFF, ".png")
PICTURES = (".png", ".jpg", ".jpeg", ".jp2")
PARQUET = (".parquet", ".geoparquet")
VECTORS = (".geojson", ".gpkg", ".json", ".fgb", ".shp", *PARQUET)

Labels8 = NDArray[np.uint8]
Objects = NDArray[np.int32]


class Labels(Protocol):
    """Labels of one scene. A window's labels are those of the whole, cut out."""

    def read(self, window: Window) -> Labels8:
        """Class ids (H, W) of a window of the scene, `IGNORE` where there is no label."""

    def objects(self, window: Window) -> Objects | None:
        """Which object each pixel (H, W) belongs to, 0: to none; None where labels know classes alone."""
