import contextlib
import struct

import numpy as np
import pytest
import rasterio
from drawn_scenes import UTM, noise, write_tiff

from pipeline.errors import RefusedError, UnreadableError
from pipeline.scene import SceneAddress, open_scene
from pipeline.sources.files import locate
from pipeline.sources.policy import SourcePolicy
from pipeline.sources.tiff import check_tiff

TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}


def check(path):
    return check_tiff(locate(str(path)), path.stat().st_size)


@pytest.mark.parametrize(
    "profile", [{}, TILED, {"BIGTIFF": "YES", **TILED}, {"ENDIANNESS": "BIG"}, {"interleave": "band"}]
)
def test_blocks_are_those_that_gdal_sees(tmp_path, profile):
    path = write_tiff(tmp_path / "a.tif", noise(3, 40, 50), **profile)
    with rasterio.open(path) as file:
        rows, cols = file.block_shapes[0]
        planes = 3 if profile.get("interleave") == "band" else 1
    blocks = check(path)
    assert (blocks.height, blocks.width, blocks.sparse) == (40, 50, 0)
    assert blocks.count == -(-40 // rows) * -(-50 // cols) * planes
    assert blocks.block_bytes == rows * cols * 3 // planes


@pytest.mark.parametrize("compress", ["none", "deflate"])
@pytest.mark.parametrize("profile", [{}, TILED])
def test_a_file_is_refused_wherever_it_is_cut(tmp_path, compress, profile):
    whole = write_tiff(tmp_path / "a.tif", noise(3, 100, 100), compress=compress, **profile).read_bytes()
    path = tmp_path / "cut.tif"
    for length in range(len(whole) // 2, len(whole) - 1, len(whole) // 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableError, match="truncated or corrupt"):
            check(path)


def test_a_tile_that_is_too_short_for_its_pixels_is_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50), **TILED)
    data = path.read_bytes()
    at = data.index(struct.pack("<H", 256) * 12)
    path.write_bytes(data[:at] + struct.pack("<H", 255) + data[at + 2 :])
    with pytest.raises(UnreadableError, match="block 1 of 12 has 255 bytes, its pixels need 256"):
        check(path)


def test_sparse_blocks_are_counted_and_told(tmp_path):
    path = tmp_path / "a.tif"
    place = {"driver": "GTiff", "count": 1, "height": 40, "width": 50, "dtype": "uint8", "transform": UTM}
    with rasterio.open(path, "w", **place, **TILED, SPARSE_OK=True, nodata=5) as file:
        file.write(noise(1, 16, 16), window=rasterio.windows.Window(0, 0, 16, 16))
    assert check(path).sparse == 11
    with open_scene(SceneAddress(str(path))) as scene:
        assert scene.notes == ("11 of 12 blocks of a.tif are not stored: they read as 5",)


def test_a_million_blocks_take_no_time(tmp_path):
    path = tmp_path / "a.tif"
    place = {"driver": "GTiff", "count": 1, "height": 16_000, "width": 16_000, "dtype": "uint8", "transform": UTM}
    with rasterio.open(path, "w", **place, **TILED, SPARSE_OK=True) as file:
        file.write(noise(1, 16, 16), window=rasterio.windows.Window(0, 0, 16, 16))
    assert check(path).count == 1_000_000
    assert check(path).sparse == 999_999


def bomb(path, height, width, rows):
    """A TIFF of one strip of `rows` rows whose header claims `height` x `width` pixels."""
    fields = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    fields += [(278, 4, rows), (279, 4, 100)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 108) + bytes(100) + struct.pack("<H", len(fields)) + entries + bytes(4)
    )
    return path


def test_bombs_are_refused_before_gdal_allocates(tmp_path):
    strip = bomb(tmp_path / "a.tif", 65_535, 65_535, 65_535)
    huge = bomb(tmp_path / "b.tif", 2**31 - 1, 2**31 - 1, 1)
    for path, says in ((strip, "blocks of 4.00 GiB"), (huge, r"4.61e\+18 pixels.*--max-pixels")):
        for policy in (SourcePolicy(), SourcePolicy("untrusted"), SourcePolicy("archive", (str(tmp_path),))):
            with pytest.raises(RefusedError, match=says):
                open_scene(SceneAddress(str(path), policy=policy))


def test_offsets_that_do_not_fit_the_file_are_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50), **TILED)
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as file:
        assert file.block_shapes == [(16, 16)]
    for tag in (324, 325):
        at = data.index(struct.pack("<H", tag))
        data[at + 4 : at + 8] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match="2147483648 block positions do not fit"):
        check(path)


def test_directories_that_make_no_sense_are_left_to_gdal(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.tif"
    whole = bytearray(write_tiff(path, noise(1, 40, 50)).read_bytes())
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(4, 300, 8):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(UnreadableError):  # and no other
            check(path)
