"""Scenes that tests draw."""

import warnings

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

UTM = Affine(0.5, 0, 500000, 0, -0.5, 4600000)


def write_tiff(path, pixels, *, mask=None, descriptions=(), crs="EPSG:32633", transform=UTM, **profile):
    """`pixels` (C, H, W) as a GeoTIFF; `mask` (H, W) becomes an internal mask."""
    count, height, width = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
        place = {"crs": crs, "transform": transform}
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", driver="GTiff", **shape, **place, **profile) as file,
        ):
            file.write(pixels)
            if mask is not None:
                file.write_mask(mask)
            for band, name in enumerate(descriptions, start=1):
                file.set_band_description(band, name)
    return path


def noise(*shape, dtype="uint8", seed=0):
    """Random pixels from 1 to 200."""
    return np.random.default_rng(seed).integers(1, 200, shape).astype(dtype)
