import hashlib
import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import shapely
from drawn_scenes import RPCS
from jsonschema import Draft7Validator
from pystac.validation.local_validator import get_local_schema_cache
from rasterio.crs import CRS
from referencing import Registry, Resource

from models.spec import Class
from pipeline.errors import OutputError
from pipeline.georef import Georef
from pipeline.ground import ControlPoint
from pipeline.publish.geometry import geojson
from pipeline.publish.stac import ASSETS, write_item

CLASSES = (
    Class(id=0, name="background", color="#101010"),
    Class(id=1, name="building", color="#E6550D", title="Buildings"),
)
FACTS = {
    "finished": "2026-03-04T07:06:07+02:00",
    "scene": {"path": "/data/area 1/a scene.tif", "fingerprint": "f00"},
    "bundle": {"name": "buildings", "digest": "ab" * 32, "attribution": "© contributors", "licence": "Apache-2.0"},
    "engine": {"digest": "e17e"},
    "versions": {"widefield": "0.1.0", "numpy": "2.1.0"},
}
WGS84 = CRS.from_epsg(4326).to_wkt(version="WKT2_2019")
UTM = Georef(CRS.from_epsg(32736).to_wkt(version="WKT2_2019"), (0.5, 0.0, 500000.0, 0.0, -0.5, 9000000.0))


def item(folder: Path, georef: Georef, names=tuple(ASSETS)) -> dict:
    for name in names:
        (folder / name).write_bytes(name.encode())
    path = write_item(
        folder, id="scene", georef=georef, height=400, width=300, classes=CLASSES, facts=FACTS, assets=names
    )
    assert path == folder / "item.json"
    return json.loads(path.read_text(encoding="utf-8"))


GEOREFS = {
    "affine": UTM,
    "nowhere": Georef(None, None),
    "no CRS": Georef(None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
    "no transform": Georef(WGS84, None),
    "control points": Georef(WGS84, None, gcps=tuple(ControlPoint(r, c, c, -r) for r in (0, 9) for c in (0, 9))),
    "control points on a line": Georef(WGS84, None, gcps=tuple(ControlPoint(i, i, i, i) for i in range(4))),
    "geocentric": Georef(CRS.from_epsg(4978).to_wkt(version="WKT2_2019"), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
    "RPCs": Georef(None, None, rpcs=RPCS),
    "a slide": Georef(None, None, pixel_size=(5e-7, 5e-7)),
    "antimeridian": Georef(WGS84, (0.01, 0.0, 179.0, 0.0, -0.01, -16.0)),
    "pole": Georef(CRS.from_epsg(3031).to_wkt(version="WKT2_2019"), (1000.0, 0.0, -1e5, 0.0, -1000.0, 1e5)),
}


@pytest.mark.parametrize("name", GEOREFS)
def test_items_fit_the_core_schema_with_and_without_a_place(tmp_path, name):
    written = item(tmp_path, GEOREFS[name])
    placed = {"affine", "control points", "RPCs", "antimeridian", "pole"}
    assert (written["geometry"] is not None) == ("bbox" in written) == (name in placed)
    schemas = {name: Resource.from_contents(schema) for name, schema in get_local_schema_cache().items()}
    core = schemas["https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"].contents
    Draft7Validator(core, registry=Registry().with_resources(schemas.items())).validate(written)
    assert pystac.Item.from_dict(written).id == "scene"


def test_the_projection_says_code_shape_transform_and_box(tmp_path):
    properties = item(tmp_path, UTM)["properties"]
    assert {key: value for key, value in properties.items() if key.startswith("proj:")} == {
        "proj:code": "EPSG:32736",
        "proj:shape": [400, 300],
        "proj:transform": [0.5, 0.0, 500000.0, 0.0, -0.5, 9000000.0],
        "proj:bbox": [500000.0, 8999800.0, 500150.0, 9000000.0],
    }


def test_a_crs_without_a_code_is_given_as_wkt(tmp_path):
    wkt = CRS.from_proj4("+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96").to_wkt(version="WKT2_2019")
    properties = item(tmp_path, Georef(wkt, (30.0, 0.0, 0.0, 0.0, -30.0, 0.0)))["properties"]
    assert properties["proj:wkt2"] == wkt
    assert "proj:code" not in properties


def test_a_scene_without_georeference_has_neither_geometry_nor_box(tmp_path):
    written = item(tmp_path, Georef(None, None))
    assert written["geometry"] is None
    assert "bbox" not in written
    place = {key: value for key, value in written["properties"].items() if key.startswith("proj:")}
    assert place == {"proj:code": None, "proj:shape": [400, 300]}


def test_every_asset_has_size_and_multihash_of_its_bytes(tmp_path):
    assets = item(tmp_path, UTM)["assets"]
    assert list(assets) == ["mask", "names", "confidence", "place", "preview", "style", "run"]
    for asset in assets.values():
        content = (tmp_path / asset["href"]).read_bytes()
        assert asset["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
        assert asset["file:size"] == len(content)


def test_the_mask_declares_its_classes_and_nodata(tmp_path):
    mask = item(tmp_path, UTM)["assets"]["mask"]
    assert mask["classification:classes"] == [
        {"value": 0, "name": "background", "title": "background", "color_hint": "101010"},
        {"value": 1, "name": "building", "title": "Buildings", "color_hint": "E6550D"},
        {"value": 255, "name": "nodata", "title": "No data", "nodata": True},
    ]
    assert (mask["data_type"], mask["nodata"], mask["raster:sampling"]) == ("uint8", 255, "area")
    assert mask["raster:spatial_resolution"] == pytest.approx(0.5, rel=1e-3)


def test_confidence_declares_its_scale(tmp_path):
    confidence = item(tmp_path, UTM)["assets"]["confidence"]
    assert confidence["raster:scale"] * 254 == pytest.approx(1)
    assert confidence["bands"] == [{"name": "confidence"}]


def test_each_probability_has_a_raster_and_its_sidecar_is_metadata_under_a_key_of_its_own(tmp_path):
    names = [f"{plane}.tif{suffix}" for plane in ("confidence", "probability-roof") for suffix in ("", ".aux.xml")]
    assets = item(tmp_path, UTM, names)["assets"]
    assert list(assets) == ["confidence", "place", "probability-roof", "place-probability-roof"]
    raster, sidecar = assets["probability-roof"], assets["place-probability-roof"]
    assert (raster["bands"], raster["roles"]) == ([{"name": "probability-roof"}], ["data"])
    assert (sidecar["type"], sidecar["roles"], sidecar.get("bands")) == ("application/xml", ["metadata"], None)


def test_the_item_says_when_by_what_and_from_what_it_was_made(tmp_path):
    written = item(tmp_path, UTM)
    properties = written["properties"]
    assert properties["datetime"] == properties["processing:datetime"] == "2026-03-04T05:06:07Z"
    assert (properties["processing:level"], properties["processing:version"]) == ("L4", "0.1.0")
    urn = "urn:sha256:" + "ab" * 32
    assert properties["processing:expression"] == {"format": "stac-mlm", "expression": urn}
    assert [(link["rel"], link["href"]) for link in written["links"]] == [
        ("derived_from", "a%20scene.tif"),
        ("derived_from", urn),
    ]
    assert (properties["license"], properties["attribution"]) == ("Apache-2.0", "© contributors")


def test_a_missing_asset_is_an_output_error_that_names_it(tmp_path):
    with pytest.raises(OutputError, match=r"mask\.tif is to be published but cannot be read"):
        write_item(tmp_path, id="x", georef=UTM, height=1, width=1, classes=CLASSES, facts=FACTS, assets=["mask.tif"])
    assert list(tmp_path.iterdir()) == []


def test_a_straight_footprint_has_no_superfluous_points():
    geometry, bbox = geojson([(0, 0), (1, 0), (2, 0), (2, 2), (1, 2), (0, 2), (0, 0)])
    assert len(geometry["coordinates"][0]) == 5
    assert bbox == [0, 0, 2, 2]


def test_a_footprint_across_the_antimeridian_is_cut_there():
    geometry, bbox = geojson([(179, -1), (-179, -1), (-179, 1), (179, 1), (179, -1)])
    assert geometry["type"] == "MultiPolygon"
    assert bbox == [179, -1, -179, 1]
    rings = [part[0] for part in geometry["coordinates"]]
    assert sorted((min(x for x, _ in ring), max(x for x, _ in ring)) for ring in rings) == [(-180, -179), (179, 180)]


def test_a_footprint_around_the_pole_reaches_it():
    geometry, bbox = geojson([(lon, 80) for lon in (0, 90, 180, -90, 0)])
    assert bbox == [-180, 80, 180, 90]
    assert geometry["type"] == "Polygon"


def test_the_whole_world_stays_one_polygon():
    ring = [(-180, -90), (-60, -90), (60, -90), (180, -90), (180, 90), (60, 90), (-60, 90), (-180, 90), (-180, -90)]
    geometry, bbox = geojson(ring)
    assert (geometry["type"], bbox) == ("Polygon", [-180, -90, 180, 90])


@pytest.mark.parametrize("west", [-180.25, -0.125, 0.0])
def test_a_world_whose_rim_lies_elsewhere_is_whole_too(west):
    lon = np.linspace(west, west + 360, 9)
    ring = [*((x, -60) for x in lon), *((x, 60) for x in lon[::-1]), (west, -60)]
    geometry, bbox = geojson(ring)
    assert bbox == [-180, -60, 180, 60]
    shape = shapely.geometry.shape(geometry)
    assert shape.area == pytest.approx(360 * 120)
    assert shape.exterior.is_ccw


def test_a_ring_that_crosses_itself_counts_with_its_hull():
    geometry, bbox = geojson([(0, 0), (2, 2), (2, 0), (0, 2), (0, 0)])
    assert (geometry["type"], bbox) == ("Polygon", [0, 0, 2, 2])


def test_what_lies_beyond_the_poles_has_no_footprint():
    assert geojson([(0, 95), (9, 95), (9, 99), (0, 99), (0, 95)]) is None
