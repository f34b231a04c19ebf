import struct

import pytest
import rasterio
from drawn_scenes import UTM, noise

from pipeline.errors import UnreadableError
from pipeline.scene import SceneAddress, open_scene
from pipeline.sources.files import locate
from pipeline.sources.jp2 import check_jp2


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.jp2"
    shape = {"width": 64, "height": 48, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="JP2OpenJPEG", transform=UTM, **shape) as file:
        file.write(noise(3, 48, 64))
    return path


def check(path, content):
    path.write_bytes(content)
    check_jp2(locate(str(path)), len(content))


def box(kind, content=b"", length=None):
    return struct.pack(">I4s", len(content) + 8 if length is None else length, kind) + content


def test_what_gdal_writes_is_sound_and_so_is_a_bare_codestream(picture):
    content = picture.read_bytes()
    check(picture, content)
    check(picture, content[content.index(b"\xff\x4f\xff\x51") :])


def test_a_last_box_may_leave_out_its_length_and_a_long_one_has_eight_bytes(picture):
    check(picture, box(b"ftyp", b"jp2 ") + struct.pack(">I4sQ", 1, b"xml ", 20) + b"abcd" + box(b"jp2c", b"x" * 9, 0))


@pytest.mark.parametrize(
    "content",
    [
        box(b"jp2h", box(b"colr", b"abc", 0)),
        box(b"jp2h", box(b"colr", b"abc", 7)),
        box(b"jp2h", box(b"colr", b"abc", 12)),
        box(b"jp2h", box(b"res ", box(b"resc", b"", 9))),
        box(b"jp2c", b"abc", 5000),
        box(b"jp2c", b"abc") + b"abc",
        box(b"free") * 10_001,
    ],
    ids=["open", "short", "long", "deep", "cut", "rest", "many"],
)
def test_boxes_that_do_not_fit_are_refused(picture, content):
    with pytest.raises(UnreadableError, match="truncated or corrupt: at byte"):
        check(picture, content)


def test_a_box_without_an_end_does_not_hang_gdal(picture):
    content = picture.read_bytes()
    at = content.index(b"colr") - 4
    picture.write_bytes(content[:at] + bytes(4) + content[at + 4 :])
    with pytest.raises(UnreadableError, match="does not fit"):
        open_scene(SceneAddress(str(picture)))
