"""Every kind of scene through the whole job; rasterio says what the scene is, and reads the mask back."""

from functools import cache

import numpy as np
import pytest
import rasterio
from affine import Affine
from drawn_bundle import draw_bundle
from drawn_scenes import RPCS, UTM, noise, write_tiff
from filelock import FileLock
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from models.spec import Band
from pipeline.executors import SerialExecutor
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SHAPE = (75, 90)
POLAR = Affine(1000, 0, -40_000, 0, -1000, 30_000)
ALBERS = "+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96 +datum=NAD83 +units=m"
ROTATED_POLE = "+proj=ob_tran +o_proj=longlat +lon_0=18 +o_lon_p=0 +o_lat_p=39.25 +R=6371229"
PLANT = 'LOCAL_CS["Plant",UNIT["metre",1],AXIS["X",EAST],AXIS["Y",NORTH]]'
OME = '<OME><Image ID="Image:0"><Pixels SizeX="90" PhysicalSizeX="0.25" PhysicalSizeY="0.5"/></Image></OME>'


def pixels(bands=1, dtype="uint8"):
    """Noise with a hole of zeros, which nodata or a mask makes invalid."""
    drawn = noise(bands, *SHAPE, dtype=dtype)
    drawn[:, 10:30, 40:70] = 0
    return drawn


def hole():
    mask = np.ones(SHAPE, np.bool_)
    mask[50:, :20] = False
    return mask


def tiff(*, bands=1, dtype="uint8", tags=(), rpcs=(), **profile):
    """A function that draws a GeoTIFF."""

    def draw(path):
        write_tiff(path, pixels(bands, dtype), **{"nodata": 0, **profile})
        with rasterio.open(path, "r+") as file:
            file.update_tags(**dict(tags))
            file.update_tags(ns="RPC", **dict(rpcs))
        return path

    return draw


def points(count):
    """Control points of a scene that lies askew."""
    spots = [(row, col) for row in (0, 40, 75) for col in (0, 45, 90)][:count]
    return [GroundControlPoint(r, c, 10 + 1e-3 * c + 1e-4 * r, 50 - 1e-3 * r + 1e-4 * c, 12.5) for r, c in spots]


def crs_beside(path):
    """The CRS is in a sidecar alone."""
    tiff(crs=None)(path)
    wkt = CRS.from_epsg(32633).to_wkt()
    path.with_name(f"{path.name}.aux.xml").write_text(
        f"<PAMDataset><SRS>{wkt.replace(chr(34), '&quot;')}</SRS></PAMDataset>"
    )
    return path


WGS84 = {"crs": "EPSG:4326", "transform": None}
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
    "RPCs": tiff(crs=None, transform=None, rpcs=RPCS),
    "RPCs and a transform": tiff(rpcs=RPCS),
    "nowhere": tiff(crs=None, transform=None),
    "transform without CRS": tiff(crs=None),
    "CRS without transform": tiff(transform=None),
    "local CRS": tiff(crs=CRS.from_wkt(PLANT)),
    "CRS without a code": tiff(crs=CRS.from_proj4(ALBERS)),
    "CRS that GeoTIFF cannot hold": tiff(crs=CRS.from_proj4(ROTATED_POLE), transform=Affine(0.5, 0, 10, 0, -0.5, 20)),
    "CRS beside the file": crs_beside,
    "compound CRS": tiff(crs="EPSG:32633+5773"),
    "geocentric CRS": tiff(crs="EPSG:4978"),
    "other Earth": tiff(crs="ESRI:104903", transform=Affine(0.01, 0, 10, 0, -0.01, 20)),
    "antimeridian": tiff(crs="EPSG:4326", transform=Affine(0.01, 0, 179.6, 0, -0.01, -16)),
    "antimeridian, projected": tiff(crs="EPSG:3832", transform=Affine(1000, 0, 3.3e6, 0, -1000, -1.7e6)),
    "north pole": tiff(crs="EPSG:3413", transform=POLAR),
    "south pole": tiff(crs="EPSG:3031", transform=POLAR),
    "slide by OME-XML": tiff(crs=None, transform=None, tags={"TIFFTAG_IMAGEDESCRIPTION": OME}),
    "slide by MPP": tiff(crs=None, transform=None, tags={"TIFFTAG_IMAGEDESCRIPTION": "Aperio|MPP = 0.4990|Left = 2"}),
}


@pytest.fixture(scope="session")
def bundles(shared_folder):
    """A small bundle for each number of bands; it takes every type."""

    @cache
    def draw(count):
        path = shared_folder / f"bundle-of-{count}"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                bands = tuple(Band(name=f"b{i}", low=0, high=255, mean=100, std=50) for i in range(count))
                draw_bundle(path, bands=bands, dtypes=("uint8", "uint16", "int16", "float32"), tiles=(64,))
        return path

    return draw


def placed(path):
    """What rasterio says about where a file lies."""
    with rasterio.open(path) as file:
        points, points_crs = file.gcps
        return {
            "shape": file.shape,
            "crs": file.crs or points_crs or None,
            "transform": file.transform,
            "points": [(p.row, p.col, p.x, p.y, p.z) for p in points],
            "rpcs": file.rpcs and file.rpcs.to_dict(),
            "meaning": file.tags().get("AREA_OR_POINT", "Area"),
        }


def valid(path, bands=None):
    """By rasterio's own masks, and numbers that are none."""
    with rasterio.open(path) as file:
        return (file.dataset_mask() != 0) & np.isfinite(file.read()).all(axis=0)


def segment(path, bundle, **address):
    request = SegmentRequest(
        scene=SceneAddress(str(path), **address),
        bundle=bundle,
        out=path.parent / "out",
        name="result",
        options=PlanOptions(),
        backend="null",
        threads=1,
    )
    return request.folder, segment_scene(request, SerialExecutor())


@pytest.mark.parametrize("name", PLACES)
def test_a_mask_lies_where_its_scene_lies(tmp_path, bundles, name):
    scene = PLACES[name](tmp_path / "scene.tif")
    folder, facts = segment(scene, bundles(1))
    assert placed(folder / "mask.tif") == placed(scene)
    assert placed(folder / "confidence.tif") == placed(scene)
    with rasterio.open(folder / "mask.tif") as mask:
        assert mask.nodata == 255
        np.testing.assert_array_equal(mask.read(1) != 255, valid(scene))
    assert facts["coverage"]["valid"] == facts["coverage"]["classified"] == valid(scene).sum()
    assert verify(folder).problems == ()
