"""One scene of every kind: each entry of `KINDS` draws one into a folder and returns its path."""

import contextlib
import math
from functools import partial

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from drawn_scenes import RPCS, UTM, noise, write_tiff
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.io import MemoryFile

SHAPE = (75, 90)
POLAR = Affine(1000, 0, -40_000, 0, -1000, 30_000)
ALBERS = "+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96 +datum=NAD83 +units=m"
ROTATED_POLE = "+proj=ob_tran +o_proj=longlat +lon_0=18 +o_lon_p=0 +o_lat_p=39.25 +R=6371229"
PLANT = 'LOCAL_CS["Plant",UNIT["metre",1],AXIS["X",EAST],AXIS["Y",NORTH]]'
OME = '<OME><Image ID="Image:0"><Pixels SizeX="90" PhysicalSizeX="0.25" PhysicalSizeY="0.5"/></Image></OME>'
NOWHERE = {"crs": None, "transform": None}
WGS84 = {"crs": "EPSG:4326", "transform": None}


def pixels(bands=1, dtype="uint8", most=200):
    """Noise from 1 to `most` with a hole of zeros."""
    drawn = (noise(bands, *SHAPE) % most + 1).astype(dtype)
    drawn[:, 10:30, 40:70] = 0
    return drawn


def tiff(drawn=None, *, tags=(), rpcs=(), **profile):
    """What draws a GeoTIFF: the hole is nodata, unless told otherwise."""

    def draw(folder):
        path = write_tiff(folder / "scene.tif", pixels() if drawn is None else drawn, **{"nodata": 0, **profile})
        if tags or rpcs:
            with rasterio.open(path, "r+") as file:
                file.update_tags(**dict(tags))
                file.update_tags(ns="RPC", **dict(rpcs))
        return path

    return draw


def points(count):
    """Control points of a scene that lies askew."""
    spots = [(row, col) for row in (0, 40, 75) for col in (0, 45, 90)][:count]
    return [GroundControlPoint(r, c, 10 + 1e-3 * c + 1e-4 * r, 50 - 1e-3 * r + 1e-4 * c, 12.5) for r, c in spots]


def crs_beside(folder):
    """The CRS is in a sidecar alone."""
    wkt = CRS.from_epsg(32633).to_wkt().replace('"', "&quot;")
    return beside(tiff(crs=None)(folder), f"<SRS>{wkt}</SRS>")


def other_ellipsoid(folder):
    """A CRS by its code, on another ellipsoid than the code's: GeoTIFF keeps it in a sidecar alone."""
    wkt = CRS.from_epsg(2193).to_wkt().replace("298.257222101", "298.25").replace('"', "&quot;")
    point = '<Metadata><MDI key="AREA_OR_POINT">Point</MDI></Metadata>'
    return beside(tiff()(folder), f"<SRS>{wkt}</SRS>{point}")


def beside(path, content):
    """Says in a sidecar what GDAL is to believe."""
    path.with_name(f"{path.name}.aux.xml").write_text(f"<PAMDataset>{content}</PAMDataset>")
    return path


PLACES = {
    "north-up": tiff(),
    "rotated": tiff(transform=UTM @ Affine.rotation(30)),
    "sheared": tiff(transform=Affine(0.4, 0.1, 5e5, 0.2, -0.4, 4.6e6)),
    "south-up": tiff(transform=Affine(0.5, 0, 5e5, 0, 0.5, 4.6e6)),
    "pixel is point": tiff(tags={"AREA_OR_POINT": "Point"}),
    "9 control points": tiff(gcps=points(9), **WGS84),
    "4 control points": tiff(gcps=points(4), **WGS84),
    "1 control point": tiff(gcps=points(1), **WGS84),
    "control points, pixel is point": tiff(gcps=points(4), tags={"AREA_OR_POINT": "Point"}, **WGS84),
    "control points without CRS": tiff(gcps=points(4), crs=CRS(), transform=None),
    "RPCs": tiff(rpcs=RPCS, **NOWHERE),
    "RPCs and a transform": tiff(rpcs=RPCS),
    "nowhere": tiff(**NOWHERE),
    "transform without CRS": tiff(crs=None),
    "CRS without transform": tiff(transform=None),
    "local CRS": tiff(crs=CRS.from_wkt(PLANT)),
    "CRS without a code": tiff(crs=CRS.from_proj4(ALBERS)),
    "CRS that GeoTIFF cannot hold": tiff(crs=CRS.from_proj4(ROTATED_POLE), transform=Affine(0.5, 0, 10, 0, -0.5, 20)),
    "CRS beside the file": crs_beside,
    "CRS unlike its code": other_ellipsoid,
    "CRS that WKT 2 loses": tiff(crs="ESRI:102113"),
    "compound CRS": tiff(crs="EPSG:32633+5773"),
    "geocentric CRS": tiff(crs="EPSG:4978"),
    "other world": tiff(crs="ESRI:104903", transform=Affine(0.01, 0, 10, 0, -0.01, 20)),
    "antimeridian": tiff(crs="EPSG:4326", transform=Affine(0.01, 0, 179.6, 0, -0.01, -16)),
    "antimeridian, projected": tiff(crs="EPSG:3832", transform=Affine(1000, 0, 3.3e6, 0, -1000, -1.7e6)),
    "north pole": tiff(crs="EPSG:3413", transform=POLAR),
    "south pole": tiff(crs="EPSG:3031", transform=POLAR),
    "slide by OME-XML": tiff(tags={"TIFFTAG_IMAGEDESCRIPTION": OME}, **NOWHERE),
    "slide by MPP": tiff(tags={"TIFFTAG_IMAGEDESCRIPTION": "Aperio|MPP = 0.4990|Left = 2"}, **NOWHERE),
}


def mask(folder, *, internal):
    """A mask of the file's own."""
    valid = pixels()[0] != 0
    path = tiff(nodata=None, mask=valid if internal else None)(folder)
    if not internal:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
            file.write_mask(valid)
    return path


def alpha(folder):
    return tiff(see_through(), nodata=None, photometric="rgb", alpha="yes")(folder)


def nodata_of_bands(folder):
    """Only where each band is at its own nodata is nothing known."""
    drawn = pixels(3)
    drawn[1, 10:25] = 7
    path = tiff(drawn, nodata=None)(folder)
    values = "".join(
        f'<PAMRasterBand band="{i}"><NoDataValue>{v}</NoDataValue></PAMRasterBand>' for i, v in ((1, 0), (2, 7), (3, 0))
    )
    return beside(path, values)


def no_numbers(folder, nodata=None):
    """NaN in one band, infinity in another."""
    drawn = pixels(3, "float32")
    drawn[0, :5, :7], drawn[1, 40:50, 3:9], drawn[2, 60:, 80:] = np.nan, np.inf, -np.inf
    return tiff(drawn, nodata=nodata)(folder)


def palette(folder):
    path = tiff(pixels(most=3))(folder)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (80 * i, 255 - 80 * i, 9, 255) for i in range(4)})
    return path


def scaled(folder):
    path = tiff(pixels(dtype="uint16"))(folder)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4,), (-0.1,)
    return path


TILES = {"tiled": True, "blockxsize": 32, "blockysize": 32}
CODECS = {
    "JPEG": {"nodata": None, "mask": pixels()[0] != 0, "photometric": "YCBCR"},
    "WEBP": {"webp_lossless": "YES"},
    "JXL": {"jxl_lossless": "YES"},
    **{codec: {} for codec in ("LZW", "DEFLATE", "PACKBITS", "ZSTD", "LZMA", "LERC", "LERC_ZSTD", "LERC_DEFLATE")},
}
"""How TIFF may be compressed, with the options of each."""


def is_built(codec):
    """Whether this GDAL has it."""
    with MemoryFile() as memory, contextlib.suppress(rasterio.errors.RasterioIOError):
        memory.open(driver="GTiff", height=8, width=8, count=3, dtype="uint8", compress=codec, transform=UTM).close()
        return True
    return False


PIXELS = {
    "bands apart": tiff(pixels(3), interleave="band"),
    "bands together": tiff(pixels(3), interleave="pixel", **TILES),
    **{f"{bits} bits": tiff(pixels(most=2**bits - 1), nbits=bits) for bits in (1, 2, 4)},
    "12 bits": tiff(pixels(dtype="uint16") * 20, nbits=12),
    "1 bit as a fax": tiff(pixels(most=1), nbits=1, compress="CCITTFAX4"),
    "16 bits, signed": tiff(pixels(dtype="int16") * -50, nodata=0),
    "BigTIFF": tiff(bigtiff="YES"),
    "big-endian": tiff(pixels(dtype="uint16"), endianness="BIG"),
    "palette": palette,
    "internal mask": partial(mask, internal=True),
    "external mask": partial(mask, internal=False),
    "alpha": alpha,
    "nodata of each band": nodata_of_bands,
    "NaN and infinity": no_numbers,
    "NaN as nodata": partial(no_numbers, nodata=math.nan),
    "lowest number as nodata": tiff(
        np.where(pixels(3) > 0, 1.5, np.finfo("f4").min).astype("f4"), nodata=-3.4028234663852886e38
    ),
    "no nodata": tiff(nodata=None),
    "all nodata": tiff(np.zeros((1, *SHAPE), np.uint8)),
    "scale and offset": scaled,
    "sparse blocks": tiff(pixels() * 0 + pixels(most=1), sparse_ok=True, **TILES),
    "predicted floats": tiff(pixels(3, "float32"), compress="DEFLATE", predictor=3, **TILES),
    "LERC of floats": tiff(pixels(3, "float32"), compress="LERC", max_z_error=0.1),
    **{
        f"TIFF by {codec}": tiff(pixels(3), compress=codec, **TILES, **how)
        for codec, how in CODECS.items()
        if is_built(codec)
    },
}


def image(name, drawn, *, world="", **profile):
    """What draws a file of another format, with a world file if `world` says how it ends."""

    def draw(folder):
        path = folder / name
        count, height, width = drawn.shape
        shape = {"count": count, "height": height, "width": width, "dtype": drawn.dtype}
        with rasterio.open(path, "w", **shape, **profile) as file:
            file.write(drawn)
        if world:
            path.with_suffix(world).write_text("0.5\n0.1\n0.2\n-0.5\n500000.25\n4600000.75\n")
        return path

    return draw


def virtual(folder):
    """A VRT of a scene that lies by control points."""
    with rasterio.open(tiff(gcps=points(9), **WGS84)(folder)) as file:
        rasterio.shutil.copy(file, folder / "scene.vrt", driver="VRT")
    return folder / "scene.vrt"


def see_through(bands=3):
    return np.concatenate([noise(bands, *SHAPE), np.where(pixels() > 0, 255, 0).astype(np.uint8)])


UTM33 = {"crs": "EPSG:32633", "transform": UTM}
FILES = {
    "PNG": image("scene.png", pixels(3)),
    "PNG with world file": image("scene.png", pixels(3), world=".pgw"),
    "PNG with sidecar": image("scene.png", pixels(3), **UTM33),
    "PNG with alpha": image("scene.png", see_through()),
    "PNG of 16 bits with nodata": image("scene.png", pixels(dtype="uint16") * 200, nodata=0),
    "JPEG": image("scene.jpg", pixels(3)),
    "grey JPEG with world file": image("scene.jpg", pixels(), world=".jgw"),
    "JPEG with world file and sidecar": image("scene.jpeg", pixels(3), worldfile="YES", **UTM33),
    "JPEG 2000": image("scene.jp2", pixels(3), **UTM33),
    "JPEG 2000 with control points": image("scene.jp2", pixels(), gcps=points(9), crs="EPSG:4326"),
    "JPEG 2000 with world file": image("scene.jp2", pixels(), world=".j2w"),
    "WEBP": image("scene.webp", pixels(3), driver="WEBP"),
    "VRT": virtual,
}


KINDS = PLACES | PIXELS | FILES
