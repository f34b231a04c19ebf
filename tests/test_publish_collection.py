import json
import time
from pathlib import Path

import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from pystac.validation.local_validator import get_local_schema_cache
from rasterio.crs import CRS
from referencing import Registry, Resource

from models.spec import Class
from pipeline.georef import Georef
from pipeline.publish.collection import COLLECTION, write_collection
from pipeline.publish.geometry import union
from pipeline.publish.stac import write_item

WGS84 = CRS.from_epsg(4326).to_wkt(version="WKT2_2019")
CLASSES = (Class(id=0, name="background", color="#101010"), Class(id=1, name="building", color="#E6550D"))


def at(lon, lat=10.0):
    return Georef(WGS84, (0.01, 0.0, lon, 0.0, -0.01, lat))


def result(out: Path, name: str, georef: Georef, *, digest="ab", classes=CLASSES, finished="2026-03-04T05:06:07Z"):
    folder = out / name
    folder.mkdir(parents=True)
    (folder / "mask.tif").write_bytes(name.encode())
    bundle = {"name": "b", "digest": digest * 32, "attribution": "© contributors", "licence": "ODbL-1.0"}
    facts = {
        "finished": finished,
        "scene": {"path": f"/data/{name}.tif", "fingerprint": "f00"},
        "bundle": bundle,
        "engine": {"digest": "e17e"},
        "versions": {"widefield": "0.1.0"},
    }
    id_ = Path(name).name
    write_item(folder, id=id_, georef=georef, height=100, width=100, classes=classes, facts=facts, assets=["mask.tif"])
    return folder


def collected(out: Path, results, **options) -> dict:
    assert write_collection(out, results, id="archive", description="Masks.", **options) == []
    return json.loads((out / COLLECTION).read_text(encoding="utf-8"))


def test_a_collection_of_nested_results_fits_its_schema_and_leads_to_every_item_and_back(tmp_path):
    results = [result(tmp_path, name, at(lon)) for name, lon in (("b", 20), ("a/ünder", 30), ("a/z/b", 40))]
    written = collected(tmp_path, results, title="Night", providers=[{"name": "We", "roles": ["processor"]}])
    schemas = {name: Resource.from_contents(schema) for name, schema in get_local_schema_cache().items()}
    core = schemas["https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/collection.json"].contents
    Draft7Validator(core, registry=Registry().with_resources(schemas.items())).validate(written)
    collection = pystac.Collection.from_file(str(tmp_path / COLLECTION))
    items = list(collection.get_items())
    assert [item.id for item in items] == ["a--z--b", "a--ünder", "b"]
    assert all(item.get_collection().id == item.get_root().id == item.get_parent().id == "archive" for item in items)
    assert all(Path(item.assets["mask"].get_absolute_href()).is_file() for item in items)


def test_the_collection_sums_up_its_items(tmp_path):
    water = (*CLASSES, Class(id=2, name="water", color="#3182BD"))
    first = result(tmp_path, "first", at(20))
    second = result(tmp_path, "second", at(30), digest="cd", classes=water, finished="2026-01-01T00:00:00Z")
    written = collected(tmp_path, [first, second])
    assert written["extent"]["spatial"] == {"bbox": [[20, 9, 31, 10]]}
    assert written["extent"]["temporal"] == {"interval": [["2026-01-01T00:00:00Z", "2026-03-04T05:06:07Z"]]}
    assert (written["license"], written["providers"]) == (
        "ODbL-1.0",
        [{"name": "© contributors", "roles": ["licensor"]}],
    )
    summaries = written["summaries"]
    assert [value["name"] for value in summaries["classification:classes"]] == [
        "background",
        "building",
        "nodata",
        "water",
    ]
    urns = [value["expression"] for value in summaries["processing:expression"]]
    assert urns == ["urn:sha256:" + "ab" * 32, "urn:sha256:" + "cd" * 32]
    assert set(written["item_assets"]["mask"]) >= {"title", "type", "roles", "nodata"}
    assert not {"href", "file:size", "classification:classes"} & set(written["item_assets"]["mask"])


def test_scenes_without_a_place_belong_to_it_and_are_told(tmp_path):
    results = [result(tmp_path, "a", Georef(None, None)), result(tmp_path, "b", at(20))]
    written = collected(tmp_path, results)
    assert written["extent"]["spatial"]["bbox"] == [[20, 9, 21, 10]]
    assert written["description"].endswith("1 of 2 scenes have no place on the Earth; the extent leaves them out.")
    assert len([link for link in written["links"] if link["rel"] == "item"]) == 2
    assert collected(tmp_path, results[:1])["extent"]["spatial"]["bbox"] == [[-180, -90, 180, 90]]


def test_a_removed_scene_drops_out_and_nothing_is_written_where_nothing_changed(tmp_path):
    results = [result(tmp_path, name, at(20)) for name in "ab"]
    collected(tmp_path, results)
    files = [tmp_path / COLLECTION, tmp_path / "a" / "item.json"]
    before = [file.stat().st_mtime_ns for file in files]
    collected(tmp_path, results)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert [link["href"] for link in collected(tmp_path, results[1:])["links"]] == [
        "./collection.json",
        "./b/item.json",
    ]


def test_links_are_escaped_where_a_name_would_mean_something_else(tmp_path):
    written = collected(tmp_path, [result(tmp_path, "a b#1?/100%", at(20))])
    assert written["links"][-1]["href"] == "./a%20b%231%3F/100%25/item.json"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"id": "x"}'])
def test_a_damaged_item_is_left_out_and_told(tmp_path, damage):
    results = [result(tmp_path, name, at(20)) for name in "ab"]
    (tmp_path / "a" / "item.json").write_text(damage)
    (problem,) = write_collection(tmp_path, results, id="archive", description="Masks.")
    assert problem.startswith("a: item.json cannot be read")
    links = json.loads((tmp_path / COLLECTION).read_text())["links"]
    assert [link["href"] for link in links if link["rel"] == "item"] == ["./b/item.json"]


def test_ten_thousand_items_would_take_seconds(tmp_path):
    folder = result(tmp_path, "a", at(20))
    results = [folder, *(tmp_path / f"s{i}" for i in range(200))]
    collected(tmp_path, [folder])
    item = (folder / "item.json").read_text()
    for other in results[1:]:
        other.mkdir()
        (other / "item.json").write_text(item.replace('"id": "a"', f'"id": "{other.name}"'))
    start = time.process_time()
    collected(tmp_path, results)
    assert (time.process_time() - start) / len(results) < 2e-3


@given(st.lists(st.tuples(st.integers(-180, 179), st.integers(1, 359)), min_size=1, max_size=5))
def test_the_box_around_boxes_is_the_smallest_whichever_way_around_the_earth(spans):
    covered = {degree % 360 for west, width in spans for degree in range(west, west + width)}
    boxes = [(west, -1, west + width - (360 if west + width > 180 else 0), 1) for west, width in spans]
    west, south, east, north = union(boxes)
    assert (south, north) == (-1, 1)
    around = {degree % 360 for degree in range(int(west), int(east if west < east else east + 360))}
    assert covered <= around
    starts = [degree for degree in covered if (degree - 1) % 360 not in covered]
    gaps = [next(n for n in range(1, 360) if (degree - 1 - n) % 360 in covered) for degree in starts]
    assert len(around) == 360 - max(gaps, default=0)


def test_boxes_all_around_the_earth_make_its_whole_width():
    assert union([(-180, -1, 180, 1)]) == [-180, -1, 180, 1]
    assert union([(-180, -1, 0, 1), (0, 0, 180, 2)]) == [-180, -1, 180, 2]
    assert union([]) is None
