"""STAC catalogues that the tests write, and what is found in them."""

import json
from datetime import UTC, datetime

import pystac
import pytest
from drawn_scenes import noise, write_tiff

from pipeline.archive import is_archive, list_archive
from pipeline.errors import UsageError
from pipeline.scene import open_scene


@pytest.fixture
def catalogue(tmp_path):
    """A catalogue with one scene of one asset, and a child with one of two single bands."""
    top, child = pystac.Catalog("top", "t"), pystac.Catalog("year", "c")
    top.add_child(child)
    write_tiff(tmp_path / "whole.tif", noise(3, 40, 50))
    for band in ("red", "nir"):
        write_tiff(tmp_path / f"{band}.tif", noise(1, 40, 50))
    item(top, "whole", {"image": tmp_path / "whole.tif", "thumb": tmp_path / "t.png"}, roles={"thumb": ["thumbnail"]})
    item(child, "parts", {band: tmp_path / f"{band}.tif" for band in ("red", "nir")})
    top.normalize_and_save(str(tmp_path / "stac"), pystac.CatalogType.SELF_CONTAINED)
    (tmp_path / "catalog.json").write_text(json.dumps(moved(tmp_path / "stac/catalog.json")))
    return tmp_path / "catalog.json"


def moved(path):
    """The top one folder higher, so that the rasters lie below it."""
    facts = json.loads(path.read_text())
    for link in facts["links"]:
        link["href"] = link["href"].replace("./", "./stac/", 1) if link["rel"] in {"child", "item"} else link["href"]
    return facts


def item(parent, name, assets, roles=None):
    made = pystac.Item(name, None, None, datetime(2026, 1, 1, tzinfo=UTC), {})
    for key, path in assets.items():
        made.add_asset(key, pystac.Asset(str(path), roles=(roles or {}).get(key)))
    parent.add_item(made)


def test_an_item_is_a_scene_of_one_file_or_of_a_file_for_each_band(catalogue):
    assert is_archive(str(catalogue))
    listing = list_archive(str(catalogue))
    assert [entry.name for entry in listing.scenes] == ["whole", "year/parts"]
    whole, parts = (entry.address for entry in listing.scenes)
    assert whole.path.endswith("whole.tif")
    assert [band for band, _ in parts.files] == ["red", "nir"]
    with open_scene(parts) as scene:
        assert (scene.bands, scene.height) == (("red", "nir"), 40)
    assert listing.problems == ()


def test_what_is_broken_or_leads_elsewhere_is_told_and_the_rest_goes_on(catalogue):
    found = catalogue.parent / "stac/whole/whole.json"
    facts = json.loads(found.read_text())
    facts["assets"]["image"]["href"] = "https://example.com/whole.tif"
    found.write_text(json.dumps(facts))
    (catalogue.parent / "stac/year/parts/parts.json").write_text("{")
    listing = list_archive(str(catalogue))
    assert listing.scenes == ()
    assert {name.rpartition("/")[2] for name, _ in listing.problems} == {"whole", "parts.json"}
    assert any("leads outside" in message for _, message in listing.problems)


def test_an_item_by_itself_is_an_archive_of_one(catalogue):
    item = catalogue.parent / "stac/year/parts/parts.json"
    listing = list_archive(str(item))
    assert (listing.scenes, len(listing.problems)) == ((), 1)  # its rasters lie outside its own folder


def test_a_json_that_is_no_catalogue_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"hello": 1}')
    with pytest.raises(UsageError, match="no STAC"):
        list_archive(str(tmp_path / "a.json"))
