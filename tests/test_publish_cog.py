import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo import cog_validate

from models.spec import Class
from pipeline.errors import OutputError, VerifyError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.publish.cog import write_cog
from pipeline.publish.pyramid import mean_of_four, mode_of_four
from pipeline.store import create_mask, write_block

NOWHERE = Georef(crs=None, transform=None)
UTM = CRS.from_epsg(32736).to_wkt(version="WKT2_2019")
NORTH_UP = Georef(UTM, (0.5, 0.0, 500000.0, 0.0, -0.5, 9000000.0))
GEOREFS = {
    "north-up": NORTH_UP,
    "south-up": Georef(UTM, (0.5, 0.0, 500000.0, 0.0, 0.5, 9000000.0)),
    "rotated": Georef(UTM, (0.4, 0.1, 500000.25, 0.1, -0.4, 9000000.0)),
    "points": Georef(UTM, (0.5, 0.0, 500000.0, 0.0, -0.5, 9000000.0), pixel_is_point=True),
    "geographic": Georef(CRS.from_epsg(4326).to_wkt(version="WKT2_2019"), (1e-5, 0.0, 39.2, 0.0, -1e-5, -6.0)),
    "no CRS": Georef(None, (2.0, 0.0, 10.0, 0.0, -2.0, 20.0)),
}
CLASSES = (
    Class(id=0, name="background", color="#101010"),
    Class(id=1, name="building", color="#E6550D", title="Buildings"),
    Class(id=2, name="water", color="#3182BD"),
)


def drawn(height: int = 700, width: int = 900) -> np.ndarray:
    labels = np.zeros((height, width), np.uint8)
    labels[100:300, 200:500] = 1
    labels[400:, 600:] = 2
    labels[:64] = 255
    return labels


def stored(path: Path, labels: np.ndarray, georef: Georef, block: int = 512) -> Path:
    height, width = labels.shape
    planes = ("labels", "confidence")
    create_mask(path, height=height, width=width, core=64, block=block, planes=planes, georef=georef, attributes={})
    for row in range(0, height, block):
        for col in range(0, width, block):
            window = Window(row, col, min(block, height - row), min(block, width - col))
            part = labels[window.slices]
            write_block(path, window, {"labels": part, "confidence": np.where(part == 255, 255, 127).astype(np.uint8)})
    return path


def written(folder: Path, labels: np.ndarray, georef: Georef, plane: str = "labels", block: int = 512) -> Path:
    store = stored(folder / f"{block}.zarr", labels, georef, block)
    out = folder / f"{plane}-{block}.tif"
    write_cog(store, plane, out, georef=georef, classes=CLASSES, attribution="© somebody")
    return out


def test_a_mask_is_a_valid_cog_with_the_pixels_of_the_store(tmp_path):
    out = written(tmp_path, drawn(), NORTH_UP)
    assert cog_validate(out, strict=True) == (True, [], [])
    with rasterio.open(out) as mask:
        np.testing.assert_array_equal(mask.read(1), drawn())
        assert (mask.nodata, mask.dtypes, mask.compression.name) == (255, ("uint8",), "deflate")
        assert mask.block_shapes == [(512, 512)]
        assert mask.tags()["TIFFTAG_COPYRIGHT"] == "© somebody"


@pytest.mark.parametrize(
    "shape", [(2048, 1024), (1500, 512), (700, 1023), (600, 384), (512, 512), (100, 90), (1, 3000)]
)
def test_a_cog_is_valid_whatever_its_shape(tmp_path, shape):
    labels = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
    assert cog_validate(written(tmp_path, labels, NORTH_UP), strict=True) == (True, [], [])


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 1400), st.integers(1, 1400), st.sampled_from(["labels", "confidence"]))
def test_all_levels_have_the_pixels_that_halving_gives(tmp_path_factory, height, width, plane):
    noise = np.random.default_rng(height).choice(np.array([0, 1, 255], np.uint8), (height, width))
    out = written(tmp_path_factory.mktemp("cog"), noise, NORTH_UP, plane)
    expected = noise if plane == "labels" else np.where(noise == 255, 255, 127).astype(np.uint8)
    with rasterio.open(out) as file:
        levels = [None, *range(len(file.overviews(1)))]
    for level in levels:
        with rasterio.open(out, **({} if level is None else {"overview_level": level})) as file:
            np.testing.assert_array_equal(file.read(1), expected)
        expected = (mode_of_four if plane == "labels" else mean_of_four)(expected)


@pytest.mark.parametrize("kind", GEOREFS)
def test_crs_transform_and_pixel_meaning_are_those_of_the_scene(tmp_path, kind):
    georef = GEOREFS[kind]
    with rasterio.open(written(tmp_path, drawn(), georef)) as mask:
        assert mask.crs == (None if georef.crs is None else CRS.from_wkt(georef.crs))
        assert tuple(mask.transform)[:6] == georef.transform
        assert (mask.tags().get("AREA_OR_POINT") == "Point") == georef.pixel_is_point


@pytest.mark.parametrize("plane", ["labels", "confidence"])
def test_a_crs_that_geotiff_cannot_hold_is_kept_beside_the_names(tmp_path, plane):
    rotated_pole = CRS.from_proj4("+proj=ob_tran +o_proj=longlat +lon_0=18 +o_lon_p=0 +o_lat_p=39.25 +R=6371229")
    georef = Georef(rotated_pole.to_wkt(version="WKT2_2019"), (0.5, 0.0, 10.0, 0.0, -0.5, 20.0))
    out = written(tmp_path, drawn(), georef, plane)
    with rasterio.open(out) as mask:
        assert mask.crs == rotated_pole
    assert ("<Category>building</Category>" in Path(f"{out}.aux.xml").read_text()) == (plane == "labels")


def test_a_scene_without_georeference_gets_none(tmp_path):
    out = written(tmp_path, drawn(), NOWHERE)
    with pytest.warns(NotGeoreferencedWarning):
        mask = rasterio.open(out)
    with mask:
        assert (mask.crs, mask.transform) == (None, rasterio.Affine.identity())


def test_gdal_lists_palette_and_class_names(tmp_path):
    rasterio.shutil.copy(str(written(tmp_path, drawn(), NORTH_UP)), str(tmp_path / "x.vrt"), driver="VRT")
    band = ET.parse(tmp_path / "x.vrt").getroot().find("VRTRasterBand")  # noqa: S314 - our own file
    assert [entry.text for entry in band.find("CategoryNames")] == ["background", "building", "water"]
    entries = [tuple(int(entry.get(f"c{i}")) for i in (1, 2, 3, 4)) for entry in band.find("ColorTable")]
    assert entries[:3] == [(16, 16, 16, 255), (230, 85, 13, 255), (49, 130, 189, 255)]
    assert entries[255] == (0, 0, 0, 0)
    names = {item.get("key"): item.text for item in band.find("Metadata")}
    assert names == {"CLASS_0": "background", "CLASS_1": "building", "CLASS_2": "water"}


def test_overviews_of_labels_hold_the_most_frequent_class_and_never_a_new_one(tmp_path):
    with rasterio.open(written(tmp_path, drawn(), NORTH_UP)) as mask:
        assert mask.overviews(1) == [2]
        small = mask.read(1, out_shape=(350, 450))
    np.testing.assert_array_equal(small, drawn()[::2, ::2])


def test_confidence_is_a_probability_with_averaged_overviews(tmp_path):
    with rasterio.open(written(tmp_path, drawn(), NORTH_UP, plane="confidence")) as confidence:
        assert confidence.scales == (1 / 254,)
        assert confidence.descriptions[0].startswith("confidence")
        assert confidence.nodata == 255
        assert set(np.unique(confidence.read(1, out_shape=(350, 450)))) == {127, 255}
    assert not Path(f"{tmp_path}/confidence-512.tif.aux.xml").exists()


def test_the_bytes_depend_on_the_labels_alone_whatever_the_block(tmp_path):
    files = [written(tmp_path, drawn(), NORTH_UP, block=block).read_bytes() for block in (128, 320, 1024)]
    assert files[0] == files[1] == files[2]


def test_writing_again_replaces_the_file_and_leaves_nothing_else(tmp_path):
    store = stored(tmp_path / "mask.zarr", drawn(), NORTH_UP)
    for _ in range(2):
        write_cog(store, "labels", tmp_path / "mask.tif", georef=NORTH_UP, classes=CLASSES, attribution="")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.tif", "mask.tif.aux.xml", "mask.zarr"]


def test_a_corrupt_store_leaves_the_old_file_and_no_draft(tmp_path):
    store = stored(tmp_path / "mask.zarr", drawn(), NORTH_UP)
    shard = store / "labels" / "c" / "1" / "1"
    shard.write_bytes(shard.read_bytes()[:-9] + bytes(9))
    (tmp_path / "mask.tif").write_bytes(b"old")
    with pytest.raises(VerifyError):
        write_cog(store, "labels", tmp_path / "mask.tif", georef=NORTH_UP, classes=CLASSES, attribution="")
    assert (tmp_path / "mask.tif").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.tif", "mask.zarr"]


def test_a_folder_that_is_a_file_is_an_output_error_with_the_way_out(tmp_path):
    store = stored(tmp_path / "mask.zarr", drawn(), NORTH_UP)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="Choose an output folder"):
        write_cog(store, "labels", tmp_path / "out" / "m.tif", georef=NORTH_UP, classes=CLASSES, attribution="")


FULL_DISK = """
import resource, sys
from pathlib import Path
from pipeline.errors import OutputError
from pipeline.georef import Georef
from pipeline.publish.cog import write_cog
out, hard = Path(sys.argv[1]) / "m.tif", resource.getrlimit(resource.RLIMIT_FSIZE)[1]
def write():
    write_cog(out.with_name("mask.zarr"), "labels", out, georef=Georef(None, None), classes=(), attribution="")
write()
size = out.stat().st_size
out.unlink()
for limit in (4096, size // 3, size - 5000, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        write()
    except OutputError:
        print("refused,", *[path.name for path in out.parent.iterdir()])
"""


def test_a_disk_that_fills_up_at_any_byte_publishes_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 3, (1100, 1100), np.uint8)
    stored(tmp_path / "mask.zarr", noise, NOWHERE, block=1152)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused, mask.zarr"] * 4
