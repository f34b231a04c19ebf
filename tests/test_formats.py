"""Every kind of raster, read as rasterio reads it."""

import warnings

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from drawn_scenes import UTM, noise, write_tiff
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from pipeline.errors import SceneError, UnreadableError
from pipeline.grid import Window
from pipeline.scene import SceneAddress, open_scene
from pipeline.sources.formats import SUFFIXES, sniff, suffix_of

ALL = Window(0, 0, 40, 50)
PART = Window(7, 11, 20, 30)


def read(path, window=PART, **address):
    with open_scene(SceneAddress(str(path), **address)) as scene:
        return scene.read(window)


def plainly_opened(path):
    """By rasterio, which warns of pictures that lie nowhere."""
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
        return rasterio.open(path)


def agrees(path):
    """Whether a part of the scene is what rasterio reads there."""
    with plainly_opened(path) as file:
        whole = file.read()
    return np.array_equal(read(path)[0], whole[:, *PART.slices])


_SMALL = {"count": 3, "height": 16, "width": 16, "dtype": "uint8", "transform": UTM}


def writes(**profile):
    """Whether this build of GDAL can write such a TIFF, and read it."""
    try:
        with MemoryFile() as memory:
            with memory.open(driver="GTiff", **_SMALL, **profile) as file:
                file.write(noise(3, 16, 16))
            with memory.open() as file:
                file.read()
    except rasterio.errors.RasterioError:
        return False
    return True


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_few_bits_are_whole_numbers(tmp_path, bits, interleave):
    dtype = "uint16" if bits > 8 else "uint8"
    pixels = (noise(3, 40, 50, dtype=dtype) * 19) % (1 << bits)
    path = write_tiff(tmp_path / "a.tif", pixels.astype(dtype), nbits=bits, interleave=interleave)
    with open_scene(SceneAddress(str(path))) as scene:
        assert scene.dtype == dtype
        assert np.array_equal(scene.read(ALL)[0], pixels)


CODECS = ["deflate", "lzw", "zstd", "lerc", "lerc_zstd", "packbits", "lzma", "jpeg", "webp", "jxl"]


@pytest.mark.parametrize("compress", CODECS)
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_codecs_that_the_build_has_are_read(tmp_path, compress, interleave):
    profile = {"compress": compress, "interleave": interleave, "tiled": True, "blockxsize": 16, "blockysize": 16}
    if not writes(**profile):
        pytest.skip(f"this build of GDAL cannot write {compress}, {interleave}")
    path = write_tiff(tmp_path / "a.tif", noise(3, 40, 50), **profile)
    assert agrees(path)
    assert read(path)[1].all()


@pytest.mark.parametrize("predictor", [2, 3])
def test_big_tiffs_with_predictors_are_read(tmp_path, predictor):
    dtype = "float32" if predictor == 3 else "uint16"
    pixels = noise(2, 40, 50, dtype=dtype)
    path = write_tiff(tmp_path / "a.tif", pixels, BIGTIFF="YES", compress="deflate", predictor=predictor)
    assert agrees(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jp2", "a.webp"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_pictures_are_scenes(tmp_path, name, dtype):
    if dtype == "uint16" and name in {"a.jpg", "a.webp"}:
        pytest.skip("of 8 bits only")
    driver = {"a.png": "PNG", "a.jpg": "JPEG", "a.jp2": "JP2OpenJPEG", "a.webp": "WEBP"}[name]
    path = write_tiff(tmp_path / name, noise(3, 40, 50, dtype=dtype), driver=driver, crs=None, transform=None)
    with open_scene(SceneAddress(str(path))) as scene:
        assert (len(scene.bands), scene.dtype, scene.georef.transform) == (3, dtype, None)
        assert scene.origin["driver"] == driver
        assert scene.slow
    assert agrees(path)


def test_alpha_of_a_png_is_its_mask(tmp_path):
    pixels = noise(4, 40, 50)
    pixels[3, :10] = 0
    path = write_tiff(tmp_path / "a.png", pixels, driver="PNG", crs=None, transform=None)
    got, valid = read(path, ALL)
    assert np.array_equal(got, pixels[:3])
    assert np.array_equal(valid, pixels[3] != 0)


@pytest.fixture(params=["a.tif", "a.png"])
def palette(request, tmp_path):
    """A scene of 8 colours, of which number 3 is transparent: (path, numbers)."""
    numbers = noise(1, 40, 50) % 8
    colours = {number: (10 * number, 20, 200 - number, 0 if number == 3 else 255) for number in range(8)}
    path = write_tiff(tmp_path / "a.tif", numbers, photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, colours)
    if request.param == "a.png":
        rasterio.shutil.copy(path, tmp_path / "a.png", driver="PNG")
    return tmp_path / request.param, numbers


def test_a_colour_table_becomes_bands_on_request(palette):
    path, numbers = palette
    with plainly_opened(path) as file:
        table = file.colormap(1)
        assert file.colorinterp == (ColorInterp.palette,)
    expected = np.array([table[number] for number in range(8)], "uint8")[numbers[0]].transpose(2, 0, 1)
    with open_scene(SceneAddress(str(path), palette=True)) as scene:
        assert (scene.bands, scene.dtype, scene.colours) == (("red", "green", "blue"), "uint8", True)
        pixels, valid = scene.read(ALL)
        assert np.array_equal(pixels, expected[:3])
        assert np.array_equal(valid, expected[3] != 0)
    assert np.array_equal(read(path, ALL)[0], numbers)
    assert np.array_equal(read(path, ALL, palette=True, bands=(3, 1))[0], expected[[2, 0]])


def test_nodata_of_a_palette_is_a_number_and_no_colour(tmp_path):
    numbers = noise(1, 40, 50) % 4
    path = write_tiff(tmp_path / "a.tif", numbers, photometric="palette", nodata=2)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, dict.fromkeys(range(4), (2, 2, 2, 255)))
    assert np.array_equal(read(path, ALL, palette=True)[1], numbers[0] != 2)


def test_a_file_without_a_colour_table_has_no_colours(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50))
    with pytest.raises(SceneError, match="has no colour table"):
        open_scene(SceneAddress(str(path), palette=True))


def test_nodata_can_differ_from_band_to_band(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(2, 40, 50))
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="50" rasterYSize="40">'
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>{value}</NoDataValue><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource>'
            "</VRTRasterBand>"
            for band, value in ((1, 7), (2, 9))
        )
        + "</VRTDataset>"
    )
    with rasterio.open(path) as file:
        first, second = file.read()
    with open_scene(SceneAddress(str(tmp_path / "a.vrt"))) as scene:
        assert scene.nodata == (7, 9)
        assert np.array_equal(scene.read(ALL)[1], ~((first == 7) & (second == 9)))


def test_a_subdataset_is_opened_as_it_is_named(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50))
    with open_scene(SceneAddress(f"GTIFF_DIR:1:{path}")) as scene:
        first = scene.fingerprint
        assert scene.read(ALL)[1].all()
        assert "opened by GDAL alone" in scene.notes[0]
    write_tiff(tmp_path / "a.tif", noise(1, 40, 50, seed=1))
    with open_scene(SceneAddress(f"GTIFF_DIR:1:{path}")) as scene:
        assert scene.fingerprint != first


@pytest.mark.parametrize(("dtype", "way_out"), [("float64", "gdal_translate -ot"), ("int32", "gdal_translate -ot")])
def test_types_that_are_not_supported_say_the_way_out(tmp_path, dtype, way_out):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50).astype(dtype))
    with pytest.raises(UnreadableError, match=f"{dtype}; allowed are uint8, uint16, int16, float32: .*{way_out}"):
        open_scene(SceneAddress(str(path)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jp2"])
def test_pictures_that_are_cut_off_are_errors(tmp_path, name):
    driver = {"a.png": "PNG", "a.jpg": "JPEG", "a.jp2": "JP2OpenJPEG"}[name]
    path = write_tiff(tmp_path / name, noise(3, 400, 400), driver=driver, crs=None, transform=None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableError):
        read(path, Window(0, 0, 400, 400))


@pytest.mark.parametrize(("name", "driver"), [("a.png", "PNG"), ("a.jpg", "JPEG")])
def test_pictures_that_are_damaged_in_the_middle_are_errors(tmp_path, name, driver):
    path = write_tiff(tmp_path / name, noise(3, 400, 400), driver=driver)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :])
    with pytest.raises(UnreadableError, match="truncated or corrupt"):
        read(path, Window(0, 0, 400, 400))


def test_a_picture_that_cannot_hold_its_pixels_is_refused_unread(tmp_path):
    path = write_tiff(tmp_path / "a.png", noise(1, 40, 50), driver="PNG", crs=None, transform=None)
    data = bytearray(path.read_bytes())
    data[16:24] = b"\0\0\xff\xff\0\0\xff\xff"
    path.write_bytes(data)
    with pytest.raises(SceneError):
        open_scene(SceneAddress(str(path)))


def test_formats_are_told_by_their_first_bytes():
    heads = {"GTiff": b"II+\0", "PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff\xe0"}
    heads |= {"JP2OpenJPEG": b"\xff\x4f\xff\x51", "WEBP": b"RIFF\1\2\n\4WEBP"}
    assert {sniff(head + bytes(40)).driver for head in heads.values()} == set(heads)
    assert sniff(b'\xef\xbb\xbf <?xml version="1.0"?>\n<VRTDataset>').driver == "VRT"
    assert sniff(b"<html><VRT/></html>") is sniff(b"hello") is sniff(b"") is None


def test_suffixes_are_those_of_names_and_addresses():
    assert suffix_of("https://a.b/c.TIF?key=d.png") == ".tif"
    assert suffix_of("/a.b/c") == ""
    assert {".tif", ".png", ".jp2", ".svs"} < set(SUFFIXES)
