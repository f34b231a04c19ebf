import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from affine import Affine
from drawn_scenes import UTM, noise, write_tiff
from rasterio.enums import ColorInterp

from pipeline.errors import SceneError, UnreadableError
from pipeline.grid import Window
from pipeline.scene import SceneAddress, fingerprint, open_scene
from pipeline.store import create_image, open_image

ALL = Window(0, 0, 40, 50)


def read(path, window=ALL, **address):
    with open_scene(SceneAddress(str(path), **address)) as scene:
        return scene.read(window)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}])
def test_pixels_are_read_as_they_are_stored(tmp_path, dtype, layout):
    pixels = noise(3, 40, 50, dtype=dtype)
    path = write_tiff(tmp_path / "a.tif", pixels, **layout)
    got, valid = read(path, Window(5, 7, 30, 20))
    assert got.dtype == pixels.dtype
    assert np.array_equal(got, pixels[:, 5:35, 7:27])
    assert valid.all()


def test_facts_come_from_the_file(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(2, 40, 50), descriptions=("B04", "B08"))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.0001, 0.0002), (-0.1, 0.0)
        file.update_tags(AREA_OR_POINT="Point")
    with open_scene(SceneAddress(str(path))) as scene:
        assert (scene.height, scene.width, scene.bands, scene.dtype) == (40, 50, ("B04", "B08"), "uint8")
        assert scene.radiometry.scale == (0.0001, 0.0002)
        assert scene.radiometry.offset == (-0.1, 0.0)
        assert scene.georef.pixel_is_point
        assert 'ID["EPSG",32633]' in scene.georef.crs


def test_bands_without_names_go_by_colour_or_number(tmp_path):
    colours = write_tiff(tmp_path / "rgb.tif", noise(3, 40, 50), photometric="rgb")
    numbers = write_tiff(tmp_path / "two.tif", noise(2, 40, 50))
    with open_scene(SceneAddress(str(colours))) as scene:
        assert scene.bands == ("red", "green", "blue")
    with open_scene(SceneAddress(str(numbers), bands=(2,))) as scene:
        assert scene.bands == ("2",)


def test_chosen_bands_come_in_the_order_asked_for(tmp_path):
    pixels = noise(4, 40, 50)
    path = write_tiff(tmp_path / "a.tif", pixels, photometric="minisblack", alpha="unspecified")
    assert np.array_equal(read(path, bands=(3, 1))[0], pixels[[2, 0]])
    with pytest.raises(SceneError, match=r"bands \[5\].*\[1, 2, 3, 4\]"):
        open_scene(SceneAddress(str(path), bands=(5,)))


def test_alpha_is_a_mask_and_never_a_band(tmp_path):
    pixels = noise(4, 40, 50)
    pixels[3] = 255
    pixels[3, :10] = 0
    path = write_tiff(tmp_path / "a.tif", pixels, photometric="rgb", alpha="yes")
    got, valid = read(path)
    assert got.shape == (3, 40, 50)
    assert np.array_equal(valid, pixels[3] != 0)
    with pytest.raises(SceneError, match="band 4 is alpha"):
        open_scene(SceneAddress(str(path), bands=(4,)))


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_inside_or_beside_the_file_counts(tmp_path, internal):
    mask = np.ones((40, 50), bool)
    mask[20:, 30:] = False
    path = write_tiff(tmp_path / "a.tif", noise(3, 40, 50), mask=mask if internal else None)
    if not internal:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
            file.write_mask(mask)
        assert (tmp_path / "a.tif.msk").exists()
    assert np.array_equal(read(path)[1], mask)


def test_nodata_needs_all_used_bands(tmp_path):
    pixels = noise(2, 40, 50, dtype="int16")
    pixels[0, 0, 0] = pixels[:, 1, 1] = -9999
    path = write_tiff(tmp_path / "a.tif", pixels, nodata=-9999)
    valid = read(path)[1]
    assert valid[0, 0]
    assert not valid[1, 1]
    assert not read(path, bands=(1,))[1][0, 0]


def test_a_mask_and_nodata_are_both_heeded(tmp_path):
    pixels, mask = noise(1, 40, 50), np.ones((40, 50), bool)
    pixels[0, 0, 0], mask[1, 1] = 0, False
    valid = read(write_tiff(tmp_path / "a.tif", pixels, mask=mask, nodata=0))[1]
    assert np.argwhere(~valid).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_band_that_is_no_number_is_enough(tmp_path, value):
    pixels = noise(3, 40, 50, dtype="float32")
    pixels[1, 4, 5] = value
    valid = read(write_tiff(tmp_path / "a.tif", pixels, nodata=math.nan))[1]
    assert np.argwhere(~valid).tolist() == [[4, 5]]


def test_nodata_of_the_address_replaces_that_of_the_file(tmp_path):
    pixels = noise(1, 40, 50)
    pixels[0, 0, 0], pixels[0, 1, 1] = 0, 7
    pixels[0, 2:] = 9
    path = write_tiff(tmp_path / "a.tif", pixels, nodata=0)
    valid = read(path, nodata=7)[1]
    assert valid[0, 0]
    assert not valid[1, 1]
    assert read(path, nodata=-1)[1].all()


def test_the_lowest_float_is_nodata_however_it_was_rounded(tmp_path):
    pixels = noise(1, 40, 50, dtype="float32")
    pixels[0, 4, 5] = np.finfo("float32").min
    path = write_tiff(tmp_path / "a.tif", pixels)
    assert np.argwhere(~read(path, nodata=-3.40282346638529e38)[1]).tolist() == [[4, 5]]
    assert read(path, nodata=-1e39)[1].all()


def test_a_window_of_the_address_is_a_scene_of_its_own(tmp_path):
    pixels = noise(2, 40, 50)
    path = write_tiff(tmp_path / "a.tif", pixels)
    with open_scene(SceneAddress(str(path), window=Window(10, 20, 15, 12))) as scene:
        assert (scene.height, scene.width) == (15, 12)
        assert np.array_equal(scene.read(Window(1, 2, 3, 4))[0], pixels[:, 11:14, 22:26])
        assert scene.georef.coordinates(0, 0) == UTM @ (20, 10)
    with pytest.raises(SceneError, match="40 x 50"):
        open_scene(SceneAddress(str(path), window=Window(10, 20, 31, 12)))


@pytest.mark.parametrize("transform", [Affine.identity(), Affine(2, 1, 5, 1, -3, 6), Affine(1, 0, 5, 0, 1, 6)])
def test_the_transform_is_carried_exactly(tmp_path, transform):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50), crs=None, transform=transform)
    with open_scene(SceneAddress(str(path))) as scene:
        expected = None if transform == Affine.identity() else tuple(transform)[:6]
        assert scene.georef.transform == expected
        assert scene.georef.crs is None


def test_threads_read_what_one_thread_reads(tmp_path):
    pixels = noise(3, 256, 256)
    path = write_tiff(tmp_path / "a.tif", pixels, tiled=True, blockxsize=32, blockysize=32, compress="deflate")
    windows = [Window(row, col, 50, 50) for row in range(0, 200, 20) for col in range(0, 200, 20)]
    with open_scene(SceneAddress(str(path))) as scene, ThreadPoolExecutor(4) as pool:
        for window, (got, _) in zip(windows, pool.map(scene.read, windows), strict=True):
            assert np.array_equal(got, pixels[:, *window.slices])


@pytest.mark.parametrize("dtype", ["float64", "int32", "int8", "complex64"])
def test_other_types_are_refused_with_those_allowed(tmp_path, dtype):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50).astype(dtype))
    with pytest.raises(UnreadableError, match=rf"{dtype}.*uint8, uint16, int16, float32"):
        open_scene(SceneAddress(str(path)))


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "stub.tif").write_bytes(b"II*\0\x08\0\0\0")
    (tmp_path / "xml.tif").write_text("<VRTDataset/>")
    reasons = {
        "none": "no such file",
        ".": "not a file",
        "empty": "0 bytes",
        "text": "not an image",
        "stub": "opened",
    }
    for name, reason in {**reasons, "xml": "rename it to .vrt"}.items():
        with pytest.raises(SceneError, match=reason):
            open_scene(SceneAddress(str(tmp_path / f"{name}.tif" if name != "." else tmp_path)))


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw", "zstd"])
def test_a_truncated_file_says_where_and_never_gives_zeros(tmp_path, compress):
    path = write_tiff(tmp_path / "a.tif", noise(1, 400, 400), blockysize=40, compress=compress)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableError, match=r"a\.tif (is truncated|cannot be (opened|read at rows 360-400))"):
        read(path, Window(360, 0, 40, 400))


def test_a_fingerprint_follows_the_file_and_its_sidecars(tmp_path):
    address = SceneAddress(str(write_tiff(tmp_path / "a.tif", noise(1, 40, 50))))
    first = fingerprint(address)
    assert fingerprint(address) == first
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    second = fingerprint(address)
    write_tiff(tmp_path / "a.tif", noise(1, 40, 50, seed=1))
    assert len({first, second, fingerprint(address)}) == 3


def test_looking_at_a_scene_does_not_make_it_another_one(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(2, 40, 50))
    pam, address = tmp_path / "a.tif.aux.xml", SceneAddress(str(path))
    first = fingerprint(address)
    with rasterio.open(path) as file:  # as QGIS does for its colours
        assert file.stats(indexes=[1, 2], approx=False)[0].max > 0
    assert b"STATISTICS_MEAN" in pam.read_bytes()
    assert fingerprint(address) == first
    said = "<NoDataValue>7.00000000000000E+00</NoDataValue>"
    pam.write_text(f'<PAMDataset><PAMRasterBand band="1">{said}</PAMRasterBand></PAMDataset>')
    second = fingerprint(address)
    with rasterio.open(path) as file:
        file.stats(indexes=[1, 2], approx=False)
    assert b"STATISTICS_MEAN" in pam.read_bytes()
    assert first != fingerprint(address) == second
    pam.write_text(pam.read_text().replace(">7.", ">8."))
    assert fingerprint(address) not in {first, second}


def test_an_address_travels_as_json_and_pickle():
    address = SceneAddress("a/b.tif", (3, 1), -9999.0, Window(1, 2, 3, 4))
    assert SceneAddress.from_json(json.loads(json.dumps(address.to_json()))) == address
    assert pickle.loads(pickle.dumps(address)) == address  # noqa: S301 - our own bytes
    assert len(pickle.dumps(address)) < 1000


def test_a_handle_is_opened_for_each_thread_and_all_are_closed(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50))
    scene = open_scene(SceneAddress(str(path)))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(scene.read, ALL).result()
    handles = list(scene._grid._handles)
    scene.close()
    assert [handle.closed for handle in handles] == [True, True]


def test_only_the_file_is_asked_what_is_invalid(tmp_path):
    plain = write_tiff(tmp_path / "plain.tif", noise(3, 40, 50))
    floats = write_tiff(tmp_path / "floats.tif", noise(3, 40, 50, dtype="float32"))
    zero = write_tiff(tmp_path / "zero.tif", noise(3, 40, 50), nodata=0)
    known = [open_scene(SceneAddress(str(path))).all_valid for path in (plain, floats, zero)]
    assert known == [True, False, False]


def test_real_scenes_open(data):
    satellite = data / "satellite"
    with open_scene(SceneAddress(str(satellite / "umbra_mount_yasur.tiff"))) as scene:
        assert scene.georef.transform[1] != 0
        assert not scene.tiled
    with open_scene(SceneAddress(str(satellite / "cog_world_36000x18000.tif"))) as scene:
        assert (scene.height, scene.width, scene.tiled) == (18000, 36000, True)
    with open_scene(SceneAddress(str(satellite / "naip_m_4709963_se_14_1_20170827.tif"))) as scene:
        assert len(scene.bands) == 4
        assert scene.nodata == (0.0,) * 4
        assert ColorInterp.alpha.name not in scene.bands


def test_the_rows_that_are_decoded_together_are_counted_from_the_part_that_is_read(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(3, 300, 300), tiled=True, blockxsize=64, blockysize=64)
    with open_scene(SceneAddress(str(path))) as scene:
        assert scene.lattice == (64, 0)
        create_image(tmp_path / "image.zarr", scene, chunk=128, shard=256)
    assert open_image(tmp_path / "image.zarr").lattice == (128, 0)
    with open_scene(SceneAddress(str(path), window=Window(150, 0, 100, 100))) as scene:
        assert scene.lattice == (64, 150 - 128)
