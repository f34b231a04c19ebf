"""Scenes that tests draw."""

import warnings

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

UTM = Affine(0.5, 0, 500000, 0, -0.5, 4600000)

RPCS = (
    ("HEIGHT_OFF", "100"),
    ("HEIGHT_SCALE", "500"),
    ("LAT_OFF", "50"),
    ("LAT_SCALE", "0.01"),
    ("LINE_DEN_COEFF", "1 " + "0.0003 " * 19),
    ("LINE_NUM_COEFF", "0.001 0.02 -1 0.01 " + "0.0002 " * 16),
    ("LINE_OFF", "40"),
    ("LINE_SCALE", "40"),
    ("LONG_OFF", "10"),
    ("LONG_SCALE", "0.01"),
    ("SAMP_DEN_COEFF", "1 " + "-0.0002 " * 19),
    ("SAMP_NUM_COEFF", "0.002 1 0.03 -0.01 " + "0.0001 " * 16),
    ("SAMP_OFF", "50"),
    ("SAMP_SCALE", "50"),
)
"""A camera of 80 x 100 pixels, as GDAL's metadata domain `RPC` tells it."""


def write_tiff(path, pixels, *, mask=None, descriptions=(), crs="EPSG:32633", transform=UTM, driver="GTiff", **profile):
    """`pixels` (C, H, W) as a GeoTIFF, or a file of another driver; `mask` (H, W) becomes an internal mask."""
    count, height, width = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
        place = {"crs": crs, "transform": transform}
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", driver=driver, **shape, **place, **profile) as file,
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
