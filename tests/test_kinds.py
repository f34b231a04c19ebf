"""Every kind of scene through the whole job; rasterio says what the scene is, and reads the mask back."""

from functools import cache

import numpy as np
import pytest
import rasterio
from drawn_bundle import draw_bundle
from drawn_kinds import KINDS, SHAPE, WGS84, palette, points, tiff
from drawn_scenes import RPCS, noise, write_tiff
from filelock import FileLock
from rasterio.enums import ColorInterp

from models.spec import Band
from pipeline.executors import SerialExecutor
from pipeline.grid import Window
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


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


def valid(path):
    """By rasterio's own masks, and numbers that are none."""
    with rasterio.open(path) as file:
        return (file.dataset_mask() != 0) & np.isfinite(file.read()).all(axis=0)


def segment(path, bundle, **address):
    request = SegmentRequest(
        scene=SceneAddress(str(path), **address),
        bundle=bundle,
        out=path.parent / "out",
        name="result",
        backend="null",
        threads=1,
    )
    return request.folder, segment_scene(request, SerialExecutor())


def check(folder, facts, scene, known):
    """The result in `folder` against the scene: place, and what is `known` of each pixel."""
    assert placed(folder / "mask.tif") == placed(folder / "confidence.tif") == placed(scene)
    with rasterio.open(folder / "mask.tif") as file:
        assert file.nodata == 255
        np.testing.assert_array_equal(file.read(1) != 255, known)
    assert facts["coverage"]["valid"] == facts["coverage"]["classified"] == known.sum()
    assert verify(folder).problems == ()


@pytest.mark.parametrize("name", KINDS)
def test_a_mask_lies_where_its_scene_lies_and_is_nodata_where_it_is_invalid(tmp_path, bundles, name):
    scene = KINDS[name](tmp_path)
    with rasterio.open(scene) as file:
        bands = sum(colour != ColorInterp.alpha for colour in file.colorinterp)
    check(*segment(scene, bundles(bands)), scene, valid(scene))


def test_bands_in_files_of_their_own_are_one_scene_on_the_grid_of_the_first(tmp_path, bundles):
    drawn = noise(3, *SHAPE)
    drawn[0, :30], drawn[1, 10:50], drawn[2, 20:] = 0, 0, 0
    files = []
    for name, band in zip(("b0", "b1", "b2"), drawn, strict=True):
        files.append((name, str(write_tiff(tmp_path / f"{name}.tif", band[None], nodata=0, gcps=points(9), **WGS84))))
    found = segment(tmp_path / "scene", bundles(3), files=tuple(files))
    check(*found, files[0][1], drawn.any(axis=0))


def test_an_expanded_palette_lies_where_its_numbers_lie(tmp_path, bundles):
    scene = palette(tmp_path)
    check(*segment(scene, bundles(3), palette=True), scene, valid(scene))


def test_a_part_of_a_scene_keeps_its_control_points_and_rpcs(tmp_path, bundles):
    scene = tiff(gcps=points(9), rpcs=RPCS, **WGS84)(tmp_path)
    folder, _ = segment(scene, bundles(1), window=Window(20, 30, 40, 50))
    there, here = placed(scene), placed(folder / "mask.tif")
    assert here["shape"] == (40, 50)
    assert here["points"] == [(row - 20, col - 30, *ground) for row, col, *ground in there["points"]]
    moved = {"line_off": there["rpcs"]["line_off"] - 20, "samp_off": there["rpcs"]["samp_off"] - 30}
    assert here["rpcs"] == there["rpcs"] | moved


def test_a_crs_that_geotiff_cannot_hold_is_listed_and_missed(tmp_path, bundles):
    folder, _ = segment(KINDS["CRS that GeoTIFF cannot hold"](tmp_path), bundles(1))
    (folder / "confidence.tif.aux.xml").unlink()
    assert verify(folder).problems == ("confidence.tif.aux.xml: missing",)
