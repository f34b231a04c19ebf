"""Scenes from stores, with sidecars, of colour tables and in several files through the whole job."""

import json

import fsspec
import numpy as np
import pytest
import rasterio
from drawn_bundle import draw_bundle
from drawn_scenes import noise, write_tiff
from filelock import FileLock

from models.bundle import open_bundle
from models.spec import Band
from pipeline.executors import SerialExecutor
from pipeline.fit import choose_bands
from pipeline.scene import SceneAddress, open_scene
from pipeline.segment import SegmentRequest, plan_request, segment_scene
from pipeline.sources.policy import SourcePolicy

TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32}


@pytest.fixture(scope="session")
def colours(shared_folder):
    """A small bundle for red, green and blue."""
    path = shared_folder / "bundle-of-colours"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            bands = tuple(Band(name=name, low=0, high=255, mean=100, std=50) for name in ("red", "green", "blue"))
            draw_bundle(path, bands=bands, tiles=(64,))
    return path


def request(path, bundle, out, **address):
    scene = SceneAddress(str(path), **address)
    return SegmentRequest(scene=scene, bundle=bundle, out=out, name="result", backend="null", threads=1)


def test_a_scene_in_a_store_is_staged_and_segmented(colours, tmp_path):
    pixels = noise(3, 90, 120)
    pixels[:, :20] = 0
    path = write_tiff(tmp_path / "a.tif", pixels, nodata=0, **TILED)
    fsspec.filesystem("memory").pipe("/sources/a.tif", path.read_bytes())
    one = request("memory://sources/a.tif", colours, tmp_path / "out")
    assert plan_request(one).stage
    facts = segment_scene(one, SerialExecutor())
    assert facts["coverage"]["valid"] == facts["coverage"]["classified"] == 70 * 120
    assert facts["scene"]["origin"]["driver"] == "GTiff"
    with rasterio.open(tmp_path / "out/result/mask.tif") as mask:
        assert np.array_equal(mask.read(1) != 255, pixels[0] != 0)


def test_what_sidecars_changed_stands_in_the_report(colours, tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(3, 90, 120), crs=None, transform=None, **TILED)
    (tmp_path / "a.tfw").write_text("2\n0\n0\n-3\n101\n198.5\n")
    segment_scene(request(path, colours, tmp_path / "out"), SerialExecutor())
    facts = json.loads((tmp_path / "out/result/run.json").read_text())
    assert facts["scene"]["origin"]["sidecars"] == [{"file": "a.tfw", "changes": ["transform"]}]
    assert "a.tfw changes the scene's transform" in facts["notes"]
    with rasterio.open(tmp_path / "out/result/mask.tif") as mask:
        assert tuple(mask.transform)[:6] == (2, 0, 100, 0, -3, 200)


def test_a_colour_table_serves_a_bundle_that_wants_colours(colours, tmp_path):
    numbers = noise(1, 90, 120) % 8
    path = write_tiff(tmp_path / "a.tif", numbers, photometric="palette", **TILED)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {number: (number, 9, 99, 0 if number == 3 else 255) for number in range(8)})
    with open_scene(SceneAddress(str(path))) as scene:
        address = choose_bands(scene, open_bundle(colours).spec)
    assert (address.palette, address.bands) == (True, (1, 2, 3))
    segment_scene(request(path, colours, tmp_path / "out"), SerialExecutor())
    with rasterio.open(path) as file, rasterio.open(tmp_path / "out/result/mask.tif") as mask:
        shown = np.array([file.colormap(1)[number][3] for number in range(8)])[numbers[0]] != 0
        assert np.array_equal(mask.read(1) != 255, shown)


def test_bands_of_several_files_are_matched_by_name(colours, tmp_path):
    for number, name in enumerate(("b.tif", "r.tif", "g.tif")):
        write_tiff(tmp_path / name, noise(1, 90, 120, seed=number), nodata=7, **TILED)
    files = {"blue": "b.tif", "red": "r.tif", "green": "g.tif"}
    (tmp_path / "a.scene.json").write_text(json.dumps({"schema": 1, "bands": files}))
    plan = plan_request(request(tmp_path / "a.scene.json", colours, tmp_path / "out"))
    assert (plan.bands, plan.scene.bands) == (("red", "green", "blue"), (2, 3, 1))
    segment_scene(request(tmp_path / "a.scene.json", colours, tmp_path / "out"), SerialExecutor())
    with open_scene(plan.scene) as scene, rasterio.open(tmp_path / "out/result/mask.tif") as mask:
        assert np.array_equal(mask.read(1) != 255, scene.read(plan.grid.scene)[1])


def test_trust_and_place_are_not_in_the_key_but_whether_sidecars_count_is(colours, tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(3, 90, 120), **TILED)

    def key(trust, *roots):
        policy = SourcePolicy(trust, tuple(map(str, roots)))
        return plan_request(request(path, colours, tmp_path / "out", policy=policy)).key

    assert key("named") == key("archive", tmp_path) == key("untrusted") == key("archive", tmp_path.parent)
    (tmp_path / "a.tfw").write_text("2\n0\n0\n-3\n101\n198.5\n")
    assert key("named") == key("archive", tmp_path) != key("untrusted")


def test_a_source_block_that_does_not_fit_the_memory_is_refused_with_the_numbers(colours, tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.zeros((3, 2000, 6000), "uint8"), compress="deflate", blockysize=2000)
    with open_scene(SceneAddress(str(path))) as scene:
        assert scene.block_bytes == 36_000_000
    plan = plan_request(request(path, colours, tmp_path / "out"))
    assert plan.costs.peak_bytes > plan.costs.engine_bytes + 72_000_000
