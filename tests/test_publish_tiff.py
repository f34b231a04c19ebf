import struct
import zlib
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from drawn_scenes import write_tiff as draw_tiff
from rio_cogeo import cog_validate

from pipeline.publish import spool, tiff
from pipeline.publish.spool import Spool
from pipeline.publish.tiff import Level, read_tags, write_tiff

TILE = 256


def template(path, **profile):
    tiled = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "nodata": 255}
    return read_tags(draw_tiff(path, np.zeros((1, TILE, TILE), np.uint8), **(tiled | profile)))


def spooled(folder, plane, strip=99):
    """A level whose tiles arrive row by row, strip by strip."""
    height, width = plane.shape
    tiles = Spool(folder, (-(-height // TILE), -(-width // TILE)))
    places = [(row, col) for row in range(0, height, TILE) for col in range(0, width, TILE)]
    for row, col in sorted(places, key=lambda place: (place[1] // (strip * TILE), *place)):
        tile = np.full((TILE, TILE), 255, np.uint8)
        part = plane[row : row + TILE, col : col + TILE]
        tile[: part.shape[0], : part.shape[1]] = part
        tiles.put(row // TILE, col // TILE, zlib.compress(tile.tobytes()))
    return Level(height, width, tiles)


def written(tmp_path, plane, *, big=False, strip=99):
    return assembled(tmp_path, plane, template(tmp_path / "template.tif"), big=big, strip=strip)


def assembled(tmp_path, plane, tags, *, big=False, strip=99):
    with ExitStack() as stack, (tmp_path / "out.tif").open("wb") as file:
        levels = [spooled(tmp_path, plane[::step, ::step], strip) for step in (1, 2, 4)]
        for level in levels:
            stack.enter_context(level.spool)
        write_tiff(file, tags, levels, big=big)
    return tmp_path / "out.tif"


def drawn(height=800, width=900):
    return np.random.default_rng(0).integers(0, 9, (height, width)).astype(np.uint8)


@pytest.mark.parametrize("big", [False, True])
def test_gdal_reads_every_level_and_the_tags_of_the_template(tmp_path, big):
    path = written(tmp_path, drawn(), big=big)
    assert path.read_bytes()[2] == (43 if big else 42)
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as file, rasterio.open(tmp_path / "template.tif") as told:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (file.crs, file.transform, file.nodata) == (told.crs, told.transform, 255)
        assert file.overviews(1) == [2, 4]
        np.testing.assert_array_equal(file.read(1), drawn())
    for level in (0, 1):
        with rasterio.open(path, overview_level=level) as file:
            np.testing.assert_array_equal(file.read(1), drawn()[:: 2 << level, :: 2 << level])


@pytest.mark.parametrize("piece", [1 << 22, 1000])
def test_the_bytes_do_not_depend_on_the_strips_in_which_tiles_came(tmp_path, monkeypatch, piece):
    plain = written(tmp_path, drawn()).read_bytes()
    monkeypatch.setattr(spool, "_PIECE", piece)
    assert plain == written(tmp_path, drawn(), strip=1).read_bytes() == written(tmp_path, drawn(), strip=3).read_bytes()


def test_what_has_been_moved_is_on_the_disk_once(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_PIECE", 1000)
    with spooled(tmp_path, drawn(), strip=2).spool as tiles, (tmp_path / "x").open("wb") as out:
        whole, held = tiles.size, []
        out_write = out.write
        watched = SimpleNamespace(
            seek=out.seek,
            write=lambda piece: (
                held.append(sum(path.stat().st_size for path in tmp_path.glob("*.tiles"))),
                out_write(piece),
            ),
        )
        tiles.move_to(watched, 0)
    assert (held[0], held[-1] <= 1000, len(held) > whole / 1000) == (whole, True, True)
    assert held == sorted(held, reverse=True)


def test_a_file_of_four_gibibytes_is_a_bigtiff(tmp_path, monkeypatch):
    size = written(tmp_path, drawn()).stat().st_size
    for limit, magic in ((size + 1, b"II*\0"), (size, b"II+\0")):
        monkeypatch.setattr(tiff, "_CLASSIC_LIMIT", limit)
        assert written(tmp_path, drawn()).read_bytes()[:4] == magic


def test_each_tile_stands_between_its_length_and_its_last_bytes(tmp_path):
    data = written(tmp_path, drawn()).read_bytes()
    with rasterio.open(tmp_path / "out.tif") as file:
        places = [
            [int(file.get_tag_item(f"BLOCK_{what}_{x}_{y}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
            for x, y in np.ndindex(4, 4)
        ]
    for offset, size in places:
        assert struct.unpack("<I", data[offset - 4 : offset]) == (size,)
        assert data[offset + size : offset + size + 4] == data[offset + size - 4 : offset + size]


def test_overviews_share_the_palette_of_the_whole(tmp_path):
    tags = template(tmp_path / "t.tif", photometric="palette")
    colours = next(tag.content for tag in tags if tag.code == 320)
    assert assembled(tmp_path, drawn(), tags).read_bytes().count(colours) == 1


@pytest.mark.parametrize("length", [0, 6, 100])
def test_a_template_that_was_cut_off_is_an_error(tmp_path, length):
    template(tmp_path / "template.tif")
    path = tmp_path / "cut.tif"
    path.write_bytes((tmp_path / "template.tif").read_bytes()[:length])
    with pytest.raises(OSError, match="ends too early"):
        read_tags(path)
