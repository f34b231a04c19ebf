from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import rasterio
from drawn_scenes import noise, write_tiff
from PIL import Image
from rasterio.enums import Resampling

from models.spec import Class
from pipeline.errors import OutputError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.publish import thumbnail
from pipeline.publish.preview import length, round_length, write_preview
from pipeline.publish.render import INVALID, display, overlay
from pipeline.publish.thumbnail import shrink_image, shrink_mask
from pipeline.scene import Radiometry, SceneAddress, open_scene, sampled
from pipeline.store import create_image, create_mask, open_image, write_block, write_image

CLASSES = (
    Class(id=0, name="background", color="#000000"),
    Class(id=1, name="building", color="#FF0000", title="Buildings"),
)
NOWHERE = Georef(None, None)


@dataclass
class Memory:
    """A source whose pixels (C, H, W) and valid mask (H, W) are at hand."""

    pixels: np.ndarray
    valid: np.ndarray
    georef: Georef = NOWHERE
    largest: int = field(default=0, init=False)

    @property
    def height(self):
        return self.pixels.shape[1]

    @property
    def width(self):
        return self.pixels.shape[2]

    @property
    def bands(self):
        return tuple(f"band {number}" for number in range(len(self.pixels)))

    @property
    def dtype(self):
        return str(self.pixels.dtype)

    @property
    def radiometry(self):
        return Radiometry.identity(len(self.pixels))

    def read(self, window: Window):
        assert Window(0, 0, self.height, self.width).contains(window)
        self.largest = max(self.largest, window.pixels)
        return self.pixels[:, *window.slices], self.valid[window.slices]

    def sample(self, window: Window, shape):
        return sampled(*self.read(window), shape)


def source(height=90, width=130, bands=3, dtype="uint8"):
    pixels = np.random.default_rng(1).integers(0, 200, (bands, height, width)).astype(dtype)
    return Memory(pixels, np.ones((height, width), np.bool_))


def stored(path: Path, labels: np.ndarray) -> Path:
    height, width = labels.shape
    create_mask(path, height=height, width=width, core=64, block=128, planes=("labels",), georef=NOWHERE, attributes={})
    for row in range(0, height, 128):
        for col in range(0, width, 128):
            window = Window(row, col, min(128, height - row), min(128, width - col))
            write_block(path, window, {"labels": labels[window.slices]})
    return path


def pictured(folder: Path, scene: Memory, labels: np.ndarray, **options) -> np.ndarray:
    store, out = stored(folder / "mask.zarr", labels), folder / "preview.png"
    write_preview(scene, store, out, classes=CLASSES, georef=scene.georef, title="a scene", **options)
    return np.asarray(Image.open(out))


def test_a_cell_is_the_mean_of_its_valid_pixels():
    scene = source(8, 8)
    scene.valid[:4, 0] = False
    image, seen = shrink_image(scene, 4)
    assert image.shape == (3, 2, 2)
    np.testing.assert_allclose(image[:, 0, 0], scene.pixels[:, :4, 1:4].mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(image[:, 1, 1], scene.pixels[:, 4:, 4:].mean(axis=(1, 2)), rtol=1e-6)
    assert seen.all()


def test_cells_without_valid_pixels_are_unseen_and_nan_does_not_leak():
    scene = source(8, 8, bands=1, dtype="float32")
    scene.pixels[0, :4, :4] = np.nan
    scene.valid[:4, :4] = False
    image, seen = shrink_image(scene, 4)
    assert np.isfinite(image).all()
    assert seen.tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("factor", [1, 3, 8, 50])
def test_views_do_not_depend_on_the_window_and_windows_stay_small(tmp_path, monkeypatch, factor):
    scene = source(310, 170)
    labels = np.repeat(np.repeat(scene.pixels[0, ::10, ::10] // 100, 10, 0), 10, 1).astype(np.uint8)
    store = stored(tmp_path / "mask.zarr", labels)
    whole = shrink_image(scene, factor)[0], shrink_mask(store, 310, 170, factor)
    monkeypatch.setattr(thumbnail, "_WINDOW", 64)
    scene.largest = 0
    np.testing.assert_array_equal(shrink_image(scene, factor)[0], whole[0])
    np.testing.assert_array_equal(shrink_mask(store, 310, 170, factor), whole[1])
    assert scene.largest <= 64 * 64
    assert whole[1].shape == (-(-310 // factor), -(-170 // factor))


def test_a_view_comes_from_overviews_and_knows_nodata(tmp_path):
    pixels = noise(1, 640, 512)
    pixels[:, :320] = 0
    path = write_tiff(tmp_path / "s.tif", pixels, nodata=0, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8], Resampling.nearest)
    with rasterio.open(path, "r+", overview_level=2) as overview:
        overview.write(np.where(np.arange(80)[:, None] < 40, 0, np.full((80, 64), 250)).astype(np.uint8), 1)
    with open_scene(SceneAddress(str(path))) as scene:
        image, seen = shrink_image(scene, 40)
        pixels, valid = scene.sample(Window(300, 7, 40, 80), (40, 80))
        np.testing.assert_array_equal(pixels, scene.read(Window(300, 7, 40, 80))[0])
    assert seen.shape == (16, 13)
    assert not seen[:8].any()
    assert (image[0, 8:] == 250).all()
    assert valid.any(axis=1).tolist() == [False] * 20 + [True] * 20


def test_a_staged_scene_is_sampled_as_it_was_read(tmp_path):
    with open_scene(SceneAddress(str(write_tiff(tmp_path / "s.tif", noise(2, 200, 300))))) as scene:
        create_image(tmp_path / "image.zarr", scene)
        whole = Window(0, 0, 200, 300)
        write_image(tmp_path / "image.zarr", whole, *scene.read(whole))
        pixels, valid = scene.sample(Window(10, 20, 180, 250), (18, 25))
    staged, known = open_image(tmp_path / "image.zarr").sample(Window(10, 20, 180, 250), (18, 25))
    np.testing.assert_array_equal(staged, pixels)
    np.testing.assert_array_equal(known, valid)


def test_a_cell_takes_its_most_frequent_label(tmp_path):
    labels = np.zeros((8, 8), np.uint8)
    labels[:3, :3] = 1
    labels[4:, 4:7] = 255
    assert shrink_mask(stored(tmp_path / "mask.zarr", labels), 8, 8, 4).tolist() == [[1, 0], [0, 255]]


def test_other_types_are_stretched_between_percentiles_of_valid_pixels():
    pixels = np.broadcast_to(np.linspace(1000, 2000, 101, dtype=np.float32), (3, 1, 101)).copy()
    pixels[:, 0, 100] = 60000
    valid = np.ones((1, 101), np.bool_)
    valid[0, 100] = False
    grey = display(pixels, valid, stretch=True)[0]
    assert grey[0].tolist() == [0, 0, 0]
    assert grey[99].tolist() == [255, 255, 255]
    assert grey[100].tolist() == list(INVALID)
    assert abs(int(grey[50, 0]) - 128) <= 2


def test_an_undeclared_collar_of_zeros_does_not_wash_out_the_scene():
    pixels = np.concatenate([np.zeros(50), np.linspace(9000, 9100, 50)]).astype(np.float32).reshape(1, 1, 100)
    grey = display(pixels, np.ones((1, 100), np.bool_), stretch=True)[0, :, 0]
    assert grey[:51].tolist() == [0] * 51
    assert grey[-1] == 255


def test_bytes_are_shown_as_they_are_and_one_band_as_grey():
    pixels = np.array([[[7.0, 200.0]], [[0.0, 0.0]]], np.float32)
    assert display(pixels, np.ones((1, 2), np.bool_), stretch=False).tolist() == [[[7, 7, 7], [200, 200, 200]]]


def test_classes_are_tinted_and_outlined_and_background_is_clear():
    scene = np.full((5, 7, 3), 100, np.uint8)
    labels = np.zeros((5, 7), np.uint8)
    labels[:, 3:] = 1
    labels[:, 6] = 255
    row = overlay(scene, labels, CLASSES)[2].tolist()
    assert row[0] == row[2] == [100, 100, 100]
    assert row[3] == row[5] == [255, 0, 0]
    assert row[4] == [170, 55, 55]
    assert row[6] == list(INVALID)


def test_the_picture_shows_the_scene_and_the_mask_side_by_side(tmp_path):
    labels = np.zeros((300, 200), np.uint8)
    labels[100:200, 50:150] = 1
    picture = pictured(tmp_path, source(300, 200), labels, max_edge=900)
    assert max(picture.shape) <= 900
    red = (picture == [255, 0, 0]).all(axis=-1)
    assert red.any()
    below_header = red[90:600]
    assert not below_header[:, : picture.shape[1] // 2].any()
    assert below_header[:, picture.shape[1] // 2 :].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (2500, 3), (700, 700)])
def test_scenes_of_any_shape_have_a_picture_of_bounded_size(tmp_path, shape):
    picture = pictured(tmp_path, source(*shape), np.zeros(shape, np.uint8), max_edge=800, attribution="© somebody")
    assert 100 < picture.shape[0] <= 800
    assert 500 < picture.shape[1] <= 800


def test_scenes_without_a_valid_pixel_have_a_picture(tmp_path):
    scene = source(60, 60, bands=4, dtype="uint16")
    scene.valid[:] = False
    picture = pictured(tmp_path, scene, np.full((60, 60), 255, np.uint8))
    assert (picture == INVALID).all(axis=-1).mean() > 0.3


def test_the_picture_repeats_and_leaves_nothing_beside_it(tmp_path):
    labels = np.zeros((90, 130), np.uint8)
    georef = Georef("EPSG:32736", (0.5, 0.0, 500000.0, 0.0, -0.5, 9000000.0))
    scene = Memory(source().pixels, source().valid, georef)
    first = pictured(tmp_path, scene, labels, counts=[90 * 130, 0], confidence=0.9)
    write_preview(
        scene,
        tmp_path / "mask.zarr",
        tmp_path / "preview.png",
        classes=CLASSES,
        georef=georef,
        title="a scene",
        counts=[90 * 130, 0],
        confidence=0.9,
    )
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "preview.png")), first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.zarr", "preview.png"]


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    store = stored(tmp_path / "mask.zarr", np.zeros((90, 130), np.uint8))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose an output folder"):
        write_preview(source(), store, tmp_path / "file" / "p.png", classes=CLASSES, georef=NOWHERE, title="")


@pytest.mark.parametrize(
    ("metres", "text"),
    [(0.0746, "7.46 cm"), (1, "1 m"), (999.99, "1 km"), (30, "30 m"), (12345, "12.3 km"), (2.5e-7, "0.25 um")],
)
def test_lengths_take_the_unit_that_suits_them(metres, text):
    assert length(metres) == text


@pytest.mark.parametrize(("limit", "bar"), [(1, 1), (1.99, 1), (4.9, 2), (7, 5), (0.03, 0.02), (1234, 1000)])
def test_scale_bars_have_round_lengths(limit, bar):
    assert round_length(limit) == pytest.approx(bar)
