import json

import numpy as np
import pytest
from affine import Affine
from drawn_scenes import UTM, noise, write_tiff

from pipeline.errors import SceneError
from pipeline.grid import Window
from pipeline.scene import SceneAddress, fingerprint, open_scene, read_scene_file
from pipeline.sources.policy import SourcePolicy

COARSE = UTM @ Affine.scale(2)


def scene_file(folder, **bands):
    path = folder / "a.scene.json"
    path.write_text(json.dumps({"schema": 1, "bands": bands}))
    return path


@pytest.fixture
def bands(tmp_path):
    """Red and green of 41 x 50 pixels, and infrared of half the resolution."""
    pixels = noise(2, 41, 50), noise(1, 21, 25, seed=1)
    write_tiff(tmp_path / "r.tif", pixels[0][:1], nodata=7)
    write_tiff(tmp_path / "g.tif", pixels[0][1:], tiled=True, blockxsize=16, blockysize=16)
    write_tiff(tmp_path / "n.tif", pixels[1], transform=COARSE)
    whole = pixels[1].repeat(2, 1).repeat(2, 2)[:, :41]
    return scene_file(tmp_path, red="r.tif", green="g.tif", nir="n.tif"), np.concatenate([*pixels[:1], whole])


def test_bands_of_several_files_are_one_scene_on_the_grid_of_the_first(bands):
    path, pixels = bands
    with open_scene(SceneAddress(str(path))) as scene:
        assert (scene.height, scene.width, scene.bands) == (41, 50, ("red", "green", "nir"))
        assert scene.georef.transform == tuple(UTM)[:6]
        for window in (Window(0, 0, 41, 50), Window(3, 5, 7, 9), Window(40, 49, 1, 1)):
            assert np.array_equal(scene.read(window)[0], pixels[:, *window.slices])


def test_bands_and_a_part_can_be_chosen_and_the_grid_stays_that_of_the_first(bands):
    path, pixels = bands
    with open_scene(SceneAddress(str(path), bands=(3, 2), window=Window(5, 7, 20, 30))) as scene:
        assert scene.bands == ("nir", "green")
        assert np.array_equal(scene.read(Window(1, 2, 10, 11))[0], pixels[[2, 1], 6:16, 9:20])
    with pytest.raises(SceneError, match=r"bands \[4\] are not all among its 3 files"):
        open_scene(SceneAddress(str(path), bands=(4,)))


def test_nodata_masks_and_radiometry_are_those_of_each_file(tmp_path):
    one, two = noise(1, 40, 50), noise(1, 40, 50, seed=1)
    one[0, 0, :2], two[0, 0, 1:3] = 7, 9
    mask = np.ones((40, 50), bool)
    mask[5, 5] = False
    write_tiff(tmp_path / "1.tif", one, nodata=7)
    write_tiff(tmp_path / "2.tif", two, nodata=9, mask=mask)
    with open_scene(SceneAddress(str(scene_file(tmp_path, a="1.tif", b="2.tif")))) as scene:
        assert scene.nodata == (7, 9)
        assert np.argwhere(~scene.read(Window(0, 0, 40, 50))[1]).tolist() == [[0, 1], [5, 5]]


def test_a_fingerprint_follows_every_file_and_no_place(bands, tmp_path):
    path, _ = bands
    first = fingerprint(SceneAddress(str(path)))
    assert fingerprint(read_scene_file(str(path), SourcePolicy())) == first
    write_tiff(tmp_path / "n.tif", noise(1, 21, 25, seed=2), transform=COARSE)
    assert fingerprint(SceneAddress(str(path))) != first


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"transform": UTM @ Affine.translation(1, 0)}, "b.tif does not lie on the grid of"),
        ({"transform": COARSE}, "b.tif does not lie on the grid of"),
        ({"crs": "EPSG:32632"}, "b.tif has another CRS than"),
        ({"transform": None, "crs": None}, "CRS|georeferenced"),
        ({"shape": (1, 39, 50)}, "b.tif has 39 x 50 pixels"),
        ({"shape": (2, 40, 50)}, "b.tif has 2 bands, the file of band 'b' may hold one"),
        ({"dtype": "uint16"}, "b.tif holds uint16"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, changes, says):
    changes = dict(changes)
    write_tiff(tmp_path / "a.tif", noise(1, 40, 50))
    pixels = noise(*changes.pop("shape", (1, 40, 50)), dtype=changes.pop("dtype", "uint8"))
    write_tiff(tmp_path / "b.tif", pixels, **changes)
    with pytest.raises(SceneError, match=says):
        open_scene(SceneAddress(str(scene_file(tmp_path, a="a.tif", b="b.tif"))))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 2, "bands": {"a": "a.tif"}}',
        '{"schema": 1, "bands": {}}',
        '{"schema": 1, "bands": {"a": 1}}',
        '{"schema": 1, "bands": {"a": "a.tif"}, "more": 1}',
        '{"schema": 1, "bands": {"a": ["a.tif"]}}',
    ],
)
def test_what_is_no_scene_file_is_refused(tmp_path, text):
    (tmp_path / "a.scene.json").write_text(text)
    with pytest.raises(SceneError, match="is no scene file"):
        open_scene(SceneAddress(str(tmp_path / "a.scene.json")))


def test_a_scene_file_leads_nowhere_else(bands, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("../r.tif", str(tmp_path / "r.tif"), "/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif"):
        path = scene_file(folder, red=name)
        with pytest.raises(SceneError, match=r"leads outside|not a plain file"):
            read_scene_file(str(path), SourcePolicy("archive", (str(folder),)))
    assert read_scene_file(str(bands[0]), SourcePolicy("archive", (str(tmp_path),))).files[0][0] == "red"


def test_a_missing_file_of_a_scene_is_named(tmp_path):
    with pytest.raises(SceneError, match=r"none\.tif: no such file"):
        open_scene(SceneAddress(str(scene_file(tmp_path, a="none.tif"))))
    with pytest.raises(SceneError, match="no such file"):
        open_scene(SceneAddress(str(tmp_path / "none.scene.json")))
