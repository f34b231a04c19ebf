import json
import math
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from drawn_scenes import RPCS, noise, write_tiff
from pydantic import TypeAdapter
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import GCPTransformer, RPCTransformer

from pipeline.errors import UnreadableError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.ground import ControlPoint
from pipeline.scene import SceneAddress, open_scene
from pipeline.sources.placement import creation, describe, differences, physical_size, read_georef

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

WGS84 = CRS.from_epsg(4326).to_wkt(version="WKT2_2019")
POINTS = tuple(
    ControlPoint(r, c, 10 + 0.001 * c + 1e-7 * r * c, 50 - 0.002 * r + 2e-7 * c * c, 7)
    for r in (0, 40, 80)
    for c in (0, 50, 99)
)
BY_POINTS = Georef(WGS84, None, gcps=POINTS)
BY_RPCS = Georef(None, None, rpcs=RPCS)
PLACES = {
    "points": BY_POINTS,
    "points in their middle": replace(BY_POINTS, pixel_is_point=True),
    "one point": Georef(WGS84, None, gcps=POINTS[:1]),
    "points without CRS": Georef(None, None, gcps=POINTS),
    "RPCs": BY_RPCS,
    "RPCs beside a transform": replace(BY_RPCS, crs=WGS84, transform=(0.1, 0, 3, 0, -0.1, 4)),
    "a slide": Georef(None, None, pixel_size=(4.99e-7, 2.5e-7)),
}


def written(path, georef, driver="GTiff"):
    shape = {"height": 80, "width": 100, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver=driver, **shape, **creation(georef)) as dataset:
        dataset.write(np.ones((1, 80, 100), np.uint8))
        describe(dataset, georef)
    return path


@pytest.mark.parametrize("name", PLACES)
def test_what_is_written_into_a_file_is_read_back(tmp_path, name):
    georef = PLACES[name]
    with rasterio.open(written(tmp_path / "a.tif", georef)) as file:
        got = read_georef(file, "a.tif")
    assert list(differences(got, georef)) == []
    assert (got.gcps, got.pixel_is_point) == (georef.gcps, georef.pixel_is_point)


@pytest.mark.parametrize("name", PLACES)
def test_every_georeference_goes_through_attributes_and_plans(name):
    georef, adapter = PLACES[name], TypeAdapter(Georef)
    assert Georef.from_attributes(json.loads(json.dumps(georef.attributes(80, 100)))) == georef
    assert adapter.validate_python(json.loads(adapter.dump_json(georef))) == georef


def test_a_difference_of_every_kind_is_named():
    plain = Georef(None, None)
    for name, other in PLACES.items():
        assert list(differences(plain, other)), name
    moved = replace(BY_POINTS, gcps=tuple(point.shift(1e-6, 0) for point in POINTS))
    assert list(differences(BY_POINTS, moved)) == ["other ground control points than the scene"]


def test_control_points_lead_where_gdal_leads_them():
    rows, cols = np.array([0.0, 80, 10]), np.array([0.0, 100, 70])
    points = [GroundControlPoint(p.row, p.col, p.x, p.y) for p in POINTS]
    with GCPTransformer(points) as gdal:
        expected = gdal.xy(rows, cols, offset="ul")
    np.testing.assert_allclose(BY_POINTS.on_ground(rows, cols), expected, rtol=1e-9)
    assert BY_POINTS.footprint(80, 100)[0] == pytest.approx((10, 50), abs=1e-6)
    assert BY_POINTS.resolution(80, 100) == pytest.approx(math.sqrt(0.001 * 71_695 * 0.002 * 111_229), rel=1e-2)


def test_rpcs_lead_where_gdal_leads_them(tmp_path):
    rows, cols = np.array([0.0, 80, 10.5]), np.array([0.0, 100, 70.5])
    with rasterio.open(written(tmp_path / "a.tif", BY_RPCS)) as file, RPCTransformer(file.rpcs) as gdal:
        expected = gdal.xy(rows, cols, zs=np.full(3, 100.0), offset="ul")
    # GDAL stops at a tenth of a pixel: 2e-5 degrees here.
    np.testing.assert_allclose(BY_RPCS.on_ground(rows, cols), expected, atol=2e-5)
    assert len(BY_RPCS.footprint(80, 100)) == 85


@pytest.mark.parametrize("georef", [BY_POINTS, BY_RPCS], ids=["points", "RPCs"])
def test_a_window_keeps_pixels_where_they_are(georef):
    part = georef.window(Window(7, 11, 30, 30))
    np.testing.assert_allclose(part.on_ground(1.5, 2), georef.on_ground(8.5, 13), rtol=1e-12)
    assert georef.window(Window(0, 0, 9, 9)) == georef


def test_control_points_on_both_sides_of_the_antimeridian_stay_together():
    points = tuple(replace(point, x=(point.x + 169.95 + 180) % 360 - 180) for point in POINTS)
    assert {point.x > 0 for point in points} == {True, False}
    georef = Georef(WGS84, None, gcps=points)
    assert georef.pixel_area(40, 50) == pytest.approx(BY_POINTS.pixel_area(40, 50), rel=1e-2)


def test_a_slide_has_square_metres_and_no_place():
    slide = PLACES["a slide"]
    assert slide.resolution(80, 100) == pytest.approx(math.sqrt(4.99e-7 * 2.5e-7))
    assert slide.pixel_area(np.zeros(3), np.zeros(3)).tolist() == [pytest.approx(4.99e-7 * 2.5e-7)] * 3
    assert slide.footprint(80, 100) is None


def test_a_local_plane_has_areas_and_no_place():
    plane = CRS.from_wkt('LOCAL_CS["Plant",UNIT["foot",0.3048]]').to_wkt(version="WKT2_2019")
    georef = Georef(plane, (2, 0, 0, 0, -2, 0))
    assert georef.resolution(9, 9) == pytest.approx(0.6096)
    assert georef.footprint(9, 9) is None


OME = '<OME xmlns="x"><Image ID="1"><Pixels SizeX="9" PhysicalSizeX="{}" PhysicalSizeY="{}"{}/></Image></OME>'
TAGS = {
    "OME in micrometres": ({"IMAGEDESCRIPTION": OME.format(0.25, 0.5, "")}, (5e-7, 2.5e-7)),
    "OME in units": (
        {"IMAGEDESCRIPTION": OME.format(250, 2, ' PhysicalSizeXUnit="nm" PhysicalSizeYUnit="&#181;m"')},
        (2e-6, 2.5e-7),
    ),
    "OME in pixels": ({"IMAGEDESCRIPTION": OME.format(1, 1, ' PhysicalSizeXUnit="pixel"')}, None),
    "OME of nothing": ({"IMAGEDESCRIPTION": OME.format(0, -1, "")}, None),
    "Aperio": ({"IMAGEDESCRIPTION": "Aperio Image|AppMag = 20|MPP = 0.4990|Left = 2"}, (4.99e-7, 4.99e-7)),
    "ImageJ": (
        {"IMAGEDESCRIPTION": "ImageJ=1.53\nunit=micron\n", "XRESOLUTION": "4", "YRESOLUTION": "2"},
        (5e-7, 2.5e-7),
    ),
    "ImageJ without a unit": ({"IMAGEDESCRIPTION": "ImageJ=1.53\n", "XRESOLUTION": "4", "YRESOLUTION": "2"}, None),
    "a scanner": ({"XRESOLUTION": "40000", "YRESOLUTION": "20000", "RESOLUTIONUNIT": "3 (pixels/cm)"}, (5e-7, 2.5e-7)),
    "a print": ({"XRESOLUTION": "300", "YRESOLUTION": "300", "RESOLUTIONUNIT": "2 (pixels/inch)"}, None),
    "no unit": ({"XRESOLUTION": "40000", "YRESOLUTION": "40000", "RESOLUTIONUNIT": "1 (unitless)"}, None),
    "no number": ({"XRESOLUTION": "many", "YRESOLUTION": "0", "RESOLUTIONUNIT": "3"}, None),
}


@pytest.mark.parametrize("name", TAGS)
def test_the_size_of_a_slides_pixels_is_read_from_its_tags(name):
    tags, size = TAGS[name]
    got = physical_size({f"TIFFTAG_{key}": value for key, value in tags.items()})
    assert got == (None if size is None else pytest.approx(size))


def test_a_file_with_a_crs_has_no_pixel_size_of_its_own(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 8, 8))
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_XRESOLUTION="40000", TIFFTAG_YRESOLUTION="40000", TIFFTAG_RESOLUTIONUNIT="3")
    with rasterio.open(path) as file:
        assert read_georef(file, "a.tif").pixel_size is None


def test_what_is_no_map_is_refused():
    broken = [{"LINE_OFF": "x"}, {"LINE_NUM_COEFF": "1 2"}, {"SAMP_OFF": "nan"}]
    for changes in broken:
        with pytest.raises(ValueError, match="RPCs"):
            Georef(None, None, rpcs=tuple((dict(RPCS) | changes).items()))
    with pytest.raises(ValueError, match="not by both"):
        Georef(WGS84, (1, 0, 0, 0, -1, 5), gcps=POINTS)
    with pytest.raises(ValueError, match="not finite"):
        ControlPoint(0, 0, math.nan, 0)
    with pytest.raises(ValueError, match="not positive"):
        Georef(None, None, pixel_size=(0.0, 1.0))


def test_rpcs_of_which_a_part_is_missing_are_named(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 80, 100), crs=None, transform=None)
    entries = "".join(f'<MDI key="{key}">{value}</MDI>' for key, value in RPCS if key != "LAT_OFF")
    path.with_name("a.tif.aux.xml").write_text(f'<PAMDataset><Metadata domain="RPC">{entries}</Metadata></PAMDataset>')
    with pytest.raises(UnreadableError, match=r"a\.tif: the RPCs have no usable LAT_OFF"):
        open_scene(SceneAddress(str(path)))


def test_rpcs_that_lead_nowhere_are_carried_and_tell_nothing(tmp_path):
    for name in ("LINE_SCALE", "LAT_SCALE"):
        georef = Georef(None, None, rpcs=tuple(sorted((dict(RPCS) | {name: "0"}).items())))
        with rasterio.open(written(tmp_path / f"{name}.tif", georef)) as file:
            assert list(differences(read_georef(file, name), georef)) == []
        assert georef.footprint(80, 100) is georef.resolution(80, 100) is None


def test_points_on_a_line_tell_no_areas():
    georef = Georef(WGS84, None, gcps=tuple(ControlPoint(i, i, 10 + i, 50 + i) for i in range(7)))
    assert georef.footprint(8, 8) is None
    assert georef.resolution(8, 8) is None
