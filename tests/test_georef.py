import json
import math

import numpy as np
import pyproj
import pytest
from affine import Affine

from pipeline.georef import Georef
from pipeline.grid import Window

ALBERS = "+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96 +datum=NAD83 +units=m"
PLACES = {
    "web mercator": ("EPSG:3857", Affine(0.0746, 0, 4370000, 0, -0.0746, -680000)),
    "utm": ("EPSG:32633", Affine(10, 0, 300000, 0, -10, 5900000)),
    "geographic": ("EPSG:4326", Affine(0.0025, 0, 12, 0, -0.0025, 61)),
    "albers": (ALBERS, Affine(30, 0, -500000, 0, -30, 1900000)),
    "rotated": ("EPSG:32633", Affine(10, 0, 300000, 0, -10, 5900000) @ Affine.rotation(30)),
    "south-up": ("EPSG:32633", Affine(10, 0, 300000, 0, 10, 5900000)),
    "us survey feet": ("EPSG:2263", Affine(3, 0, 980000, 0, -3, 200000)),
}


def place(crs, transform):
    return Georef(pyproj.CRS(crs).to_wkt(), tuple(transform)[:6])


def geod_area(georef, row, col, edge):
    """Independent oracle: the ellipsoidal area of a square of `edge` pixels as a densified polygon."""
    step = np.linspace(0, edge, 50)
    rows = row + np.concatenate([step * 0, step, step * 0 + edge, step[::-1]])
    cols = col + np.concatenate([step, step * 0 + edge, step[::-1], step * 0])
    x, y = Affine(*georef.transform) @ (cols, rows)
    source = pyproj.CRS(georef.crs)
    lon, lat = pyproj.Transformer.from_crs(source, source.geodetic_crs, always_xy=True).transform(x, y)
    return abs(source.get_geod().polygon_area_perimeter(lon, lat)[0])


@pytest.mark.parametrize("name", PLACES)
def test_the_area_of_pixels_is_that_of_their_polygon_on_the_ellipsoid(name):
    georef = place(*PLACES[name])
    rows, cols = np.mgrid[100:108, 300:308] + 0.5
    expected = geod_area(georef, 100, 300, 8)
    assert georef.pixel_area(rows, cols).sum() == pytest.approx(expected, rel=1e-5)


def test_web_mercator_overstates_the_ground_and_the_resolution_does_not():
    georef = place("EPSG:3857", Affine(1, 0, 0, 0, -1, 8399737.889))  # 60 degrees north
    assert georef.resolution(2, 2) == pytest.approx(0.5, rel=5e-3)


def test_areas_do_not_jump_at_the_antimeridian():
    georef = place("EPSG:4326", Affine(0.1, 0, 179.95, 0, -0.1, 10))
    areas = georef.pixel_area(np.full(4, 0.5), np.arange(4) - 1.5)
    assert np.ptp(areas) / areas.mean() < 1e-9


def test_without_crs_or_transform_nothing_is_claimed():
    crs = pyproj.CRS(4326).to_wkt()
    for georef in (Georef(None, (1, 0, 0, 0, -1, 0)), Georef(crs, None), Georef(None, None)):
        assert georef.pixel_area(np.zeros(1), np.zeros(1)) is None
        assert georef.resolution(4, 4) is None
        assert georef.footprint(4, 4) is None
    assert Georef(crs, None).bounds(4, 4) is None


def test_a_window_keeps_pixels_where_they_are():
    georef = place(*PLACES["rotated"])
    part = georef.window(Window(7, 11, 3, 3))
    assert part.coordinates(1, 2) == pytest.approx(georef.coordinates(8, 13))
    assert part.crs == georef.crs


def test_bounds_are_those_of_the_corners():
    assert place(*PLACES["utm"]).bounds(20, 10) == (300000, 5899800, 300100, 5900000)
    assert place(*PLACES["south-up"]).bounds(20, 10) == (300000, 5900000, 300100, 5900200)


@pytest.mark.parametrize("name", ["utm", "south-up", "rotated", "web mercator"])
def test_the_footprint_is_a_closed_counter_clockwise_ring(name):
    georef = place(*PLACES[name])
    ring = georef.footprint(200, 300)
    assert ring[0] == ring[-1]
    area, _ = pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*zip(*ring, strict=True))
    assert area == pytest.approx(geod_area(georef, 0, 0, 1) * 60000, rel=1e-2)


@pytest.mark.parametrize("name", PLACES)
def test_attributes_and_back_is_the_same_georeference(name):
    georef = place(*PLACES[name])
    assert Georef.from_attributes(json.loads(json.dumps(georef.attributes(30, 40)))) == georef
    assert Georef.from_attributes(Georef(None, None, True).attributes(1, 1)) == Georef(None, None, True)


def test_attributes_follow_the_conventions():
    attributes = place(*PLACES["utm"]).attributes(20, 10)
    assert attributes["proj:code"] == "EPSG:32633"
    assert "proj:wkt2" not in attributes
    assert "proj:code" not in place(*PLACES["albers"]).attributes(20, 10)
    assert attributes["spatial:dimensions"] == ["y", "x"]
    assert attributes["spatial:shape"] == [20, 10]
    assert attributes["spatial:bbox"] == [300000, 5899800, 300100, 5900000]
    assert attributes["spatial:transform"] == [10, 0, 300000, 0, -10, 5900000]
    assert [c["name"] for c in attributes["zarr_conventions"]] == ["proj", "spatial"]


@pytest.mark.parametrize("transform", [(math.nan, 0, 0, 0, 1, 0), (1, 0, math.inf, 0, 1, 0), (1, 1, 0, 1, 1, 0)])
def test_a_transform_that_is_no_map_is_refused(transform):
    with pytest.raises(ValueError, match="not finite or squeezes"):
        Georef(None, transform)


@pytest.mark.parametrize("turn", [(0.5, 0, 0, -0.5), (10, 0, 0, 10), (3, 4, 4, -3)])
def test_scenes_of_one_lattice_agree_about_the_place_of_a_pixel(turn):
    """A scene that begins 700 rows down and 300 columns left of another one's first pixel."""
    a, b, d, e = turn
    one = Georef("EPSG:32633", (a, b, 500000, d, e, 4600000))
    other = Georef("EPSG:32633", (a, b, 500000 - 300 * a + 700 * b, d, e, 4600000 - 300 * d + 700 * e))
    assert one.place(710, 20) == other.place(10, 320)
    lattice, row, col = one.place(0, 0).rsplit("/", 2)
    assert one.place(5, 9) == f"{lattice}/{int(row) + 5}/{int(col) + 9}"


def test_a_place_is_of_one_crs_and_one_size_of_pixels():
    transforms = [(0.5, 0, 5, 0, -0.5, 5), (0.5, 0, 5, -0.0, -0.5, 5), (0.6, 0, 5, 0, -0.5, 5)]
    one, same, larger = (Georef("EPSG:32633", transform).place(0, 0) for transform in transforms)
    assert one == same
    assert one.split("/")[0] != larger.split("/")[0]
    assert one != Georef("EPSG:32634", transforms[0]).place(0, 0)
    assert Georef(None, transforms[0]).place(0, 0) is Georef("EPSG:32633", None).place(0, 0) is None
