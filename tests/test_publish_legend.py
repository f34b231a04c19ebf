"""Masks in the codes of a customer's legend; CORINE land cover is the example."""

import hashlib
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from drawn_bundle import draw_bundle, drawn_spec
from drawn_scenes import noise, write_tiff
from pydantic import ValidationError
from rasterio.crs import CRS
from rio_cogeo import cog_validate

from flows.training import TrainOptions
from models.spec import Class
from pipeline.executors import SerialExecutor
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.publish.classes import legend_of
from pipeline.publish.cog import write_cog
from pipeline.publish.style import write_qml
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.store import create_mask, write_block
from pipeline.verify import verify

PLACE = Georef(CRS.from_epsg(3035).to_wkt(version="WKT2_2019"), (10.0, 0.0, 4e6, 0.0, -10.0, 3e6))


def classes(*codes):
    names = ("urban", "forest", "sea")
    return tuple(
        Class(id=i, name=names[i], color=f"#{i + 1}0{i + 1}0{i + 1}0", code=code) for i, code in enumerate(codes)
    )


CORINE = classes(111, 311, 523)


def written(folder, labels, legend):
    height, width = labels.shape
    store = folder / "mask.zarr"
    create_mask(store, height=height, width=width, core=64, block=1024, planes=("labels",), georef=PLACE, attributes={})
    write_block(store, Window(0, 0, height, width), {"labels": labels})
    write_cog(store, "labels", folder / "mask.tif", georef=PLACE, classes=legend, attribution="")
    return folder / "mask.tif"


@pytest.mark.parametrize(
    ("codes", "dtype", "nodata"),
    [
        ((None, None, None), "uint8", 255),
        ((7, 254, 0), "uint8", 255),
        ((7, 255, 0), "uint16", 65535),
        ((111, 311, 523), "uint16", 65535),
        ((0, 1, 65534), "uint16", 65535),
    ],
)
def test_a_mask_holds_codes_in_the_smallest_type_that_leaves_room_for_nodata(tmp_path, codes, dtype, nodata):
    labels = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (600, 900))
    values = np.full(256, nodata, dtype)
    values[:3] = [i if code is None else code for i, code in enumerate(codes)]
    path = written(tmp_path, labels, classes(*codes))
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as mask:
        assert (mask.dtypes, mask.nodata) == ((dtype,), nodata)
        np.testing.assert_array_equal(mask.read(1), values[labels])
        np.testing.assert_array_equal(mask.read_masks(1) > 0, labels != 255)
    with rasterio.open(path, overview_level=0) as half:
        assert set(np.unique(half.read(1))) <= set(values[[0, 1, 2, 255]].tolist())


def test_gdal_finds_colours_and_names_at_the_codes(tmp_path):
    path = written(tmp_path, np.zeros((70, 70), np.uint8), CORINE)
    rasterio.shutil.copy(str(path), str(tmp_path / "x.vrt"), driver="VRT")
    band = ET.parse(tmp_path / "x.vrt").getroot().find("VRTRasterBand")  # noqa: S314 - our own file
    names = [entry.text or "" for entry in band.find("CategoryNames")]
    assert {value: name for value, name in enumerate(names) if name} == {111: "urban", 311: "forest", 523: "sea"}
    entries = [tuple(int(entry.get(f"c{i}")) for i in (1, 2, 3)) for entry in band.find("ColorTable")]
    assert [entries[value] for value in (111, 311, 523)] == [(16, 16, 16), (32, 32, 32), (48, 48, 48)]
    tags = {item.get("key"): item.text for item in band.find("Metadata")}
    assert tags == {"CLASS_111": "urban", "CLASS_311": "forest", "CLASS_523": "sea"}


def test_the_style_has_codes_and_says_them(tmp_path):
    write_qml(tmp_path / "mask.qml", CORINE)
    entries = ET.parse(tmp_path / "mask.qml").getroot().find("pipe/rasterrenderer/colorPalette")  # noqa: S314 - ours
    assert [(entry.get("value"), entry.get("label")) for entry in entries] == [
        ("111", "111 urban"),
        ("311", "311 forest"),
        ("523", "523 sea"),
    ]


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ((111, None, 523), "class forest has no code, others have"),
        ((111, 311, 111), "codes of classes repeat: \\[111, 311, 111\\]"),
    ],
)
def test_a_legend_is_whole_and_without_doubles(codes, reason):
    with pytest.raises(ValidationError, match=reason):
        drawn_spec(classes=classes(*codes))


@pytest.mark.parametrize("code", [-1, 65535])
def test_a_code_is_never_the_nodata(code):
    with pytest.raises(ValidationError, match="code"):
        classes(111, code)


def test_training_takes_codes_with_the_colours():
    options = TrainOptions(classes=["urban=#e6004d:111", "forest=#80FF00:311"])
    assert options.legend() == (("urban", "forest"), ("#E6004D", "#80FF00"), (111, 311))
    assert TrainOptions(classes=["urban", "forest"]).legend() == (("urban", "forest"), (), ())


def test_a_legend_without_codes_is_plain():
    assert legend_of(classes(None, None)).is_plain
    assert not legend_of(classes(1, 0)).is_plain


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A published result in codes; the null engine finds class 0 everywhere."""
    folder = tmp_path_factory.mktemp("corine")
    bundle = draw_bundle(folder / "bundle", halo=32, tiles=(128,), classes=CORINE).path
    scene = SceneAddress(str(write_tiff(folder / "scene.tif", noise(3, 70, 80))))
    request = SegmentRequest(scene, bundle, folder / "o", "scene", backend="null")
    segment_scene(request, SerialExecutor())
    return request.folder


def test_every_file_of_a_result_speaks_in_codes(made):
    with rasterio.open(made / "mask.tif") as mask, rasterio.open(made / "confidence.tif") as confidence:
        assert (mask.read(1) == 111).all()
        assert (mask.nodata, confidence.nodata, confidence.dtypes) == (65535, 255, ("uint8",))
    mask = json.loads((made / "item.json").read_text())["assets"]["mask"]
    assert (mask["data_type"], mask["nodata"]) == ("uint16", 65535)
    assert [entry["value"] for entry in mask["classification:classes"]] == [111, 311, 523, 65535]
    run = json.loads((made / "run.json").read_text())
    assert [(entry["id"], entry["value"]) for entry in run["classes"]] == [(0, 111), (1, 311), (2, 523)]
    assert verify(made).problems == ()


@pytest.mark.parametrize(("name", "value"), [("mask.tif", 311), ("confidence.tif", 7)])
def test_a_pixel_that_is_not_the_stores_is_found_though_every_checksum_fits(made, name, value):
    path, item = made / name, made / "item.json"
    before, facts = path.read_bytes(), item.read_bytes()
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
        stored = int(raster.read(1)[60, 7])
        raster.write(np.full((1, 1), value, raster.dtypes[0]), 1, window=((60, 61), (7, 8)))
    was, now = (hashlib.sha256(content).hexdigest() for content in (before, path.read_bytes()))
    item.write_text(facts.decode().replace(was, now))
    (problem,) = verify(made).problems
    path.write_bytes(before)
    item.write_bytes(facts)
    assert problem.startswith(f"{name}: {value} at row 60, column 7, where mask.zarr has {stored}")
