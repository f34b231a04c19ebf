"""The laws of stitching, through the production path, with a network small enough to be exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_bundle import drawn_spec
from drawn_scenes import noise, write_tiff
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from models.engines.base import EngineRecord
from pipeline import store, worker, workshop
from pipeline.grid import TileGrid, Window
from pipeline.plan import PlanOptions, make_plan
from pipeline.scene import SceneAddress, open_scene

STRIDE, HALO, TILE = 4, 16, 64
"""The network below sees at most 15 pixels in any direction."""

KERNELS = [
    torch.from_numpy(np.random.default_rng(i).integers(-2, 3, s)).double()
    for i, s in enumerate([(4, 3, 3, 3), (4, 4, 3, 3), (3, 4, 3, 3)])
]


def network(x):
    """(N, 3, H, W) to (N, 3, H, W), by way of a quarter; sums of small binary fractions, so that they are exact."""
    x = conv2d(x, KERNELS[0], padding=1).clamp(min=0)
    x = conv2d(avg_pool2d(x, 4), KERNELS[1], padding=1).clamp(min=0)
    return conv2d(interpolate(x, scale_factor=4.0), KERNELS[2], padding=1)


def predict(pixels, valid):
    """Labels and confidence (N, 2, H, W) of pixels (N, 3, H, W); invalid ones enter as zero."""
    x = torch.from_numpy(np.where(valid[:, None], pixels, 0)).double()
    logits = network(x).numpy()
    return np.stack([logits.argmax(1), logits.max(1) % 255], axis=1).astype(np.uint8)


class ExactEngine:
    def map(self, batches):
        for batch in batches:
            yield predict(batch.pixels, batch.valid)


def run(path, folder, monkeypatch, *, block, batch=1, window=None, nodata=None):
    """Segment a whole scene with the exact engine; labels (H, W)."""
    record = EngineRecord("e", "torch", "0", "fp32", "cpu", TILE, batch, "uint8", 1, "b", 10**8, 0.0, None)
    spec = drawn_spec(halo=HALO, stride=STRIDE, tiles=(TILE,))
    address = SceneAddress(str(path), nodata=nodata, window=window)
    with open_scene(address) as scene:
        plan = make_plan(scene, spec, folder, record, out=folder, options=PlanOptions(block=block, stage=False))
    workshop.open_run(plan, folder)
    monkeypatch.setattr(worker, "_engine", lambda run: (ExactEngine(), frozenset()))
    tasks = [worker.Task(str(folder), (block_,)) for block_ in plan.blocks]
    records = [record for task in tasks for record in worker.perform(task).records]
    return store.read_plane(folder / "mask.zarr", "labels", plan.grid.scene), records


def whole(pixels, valid=None):
    """The prediction over the whole scene, rounded up to the stride and to the tile by reflection."""
    height, width = pixels.shape[1:]
    extent = TileGrid(height, width, TILE, HALO, STRIDE).extent
    rim = ((0, extent.height - height), (0, extent.width - width))
    valid = np.ones((height, width), bool) if valid is None else valid
    labels = predict(np.pad(pixels, ((0, 0), *rim), "reflect")[None], np.pad(valid, rim, "reflect")[None])[0, 0]
    return np.where(valid, labels[:height, :width], 255)


@pytest.mark.parametrize("shape", [(150, 203), (64, 64), (65, 31), (1, 200), (33, 97)])
def test_tiled_prediction_equals_whole_image_prediction(tmp_path, monkeypatch, shape):
    pixels = noise(3, *shape, seed=shape[0])
    labels, _ = run(write_tiff(tmp_path / "scene.tif", pixels), tmp_path, monkeypatch, block=32)
    np.testing.assert_array_equal(labels, whole(pixels))


def test_with_a_halo_too_small_it_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr("test_worker.HALO", 4)
    pixels = noise(3, 150, 203)
    labels, _ = run(write_tiff(tmp_path / "scene.tif", pixels), tmp_path, monkeypatch, block=56)
    assert (labels != whole(pixels)).any()


@pytest.mark.parametrize(("block", "batch"), [(32, 1), (32, 3), (96, 2), (512, 5)])
def test_the_mask_depends_neither_on_the_block_nor_on_the_batch(tmp_path, monkeypatch, block, batch):
    pixels = noise(3, 130, 170)
    labels, _ = run(write_tiff(tmp_path / "s.tif", pixels), tmp_path, monkeypatch, block=block, batch=batch)
    np.testing.assert_array_equal(labels, whole(pixels))


def test_labels_of_valid_pixels_do_not_depend_on_the_value_of_nodata(tmp_path, monkeypatch):
    pixels, hole = noise(3, 100, 120), np.zeros((100, 120), bool)
    hole[20:60, 30:90] = True
    answers = []
    for value in (0, 255):
        folder = tmp_path / str(value)
        folder.mkdir()
        path = write_tiff(folder / "scene.tif", np.where(hole, np.uint8(value), pixels))
        answers.append(run(path, folder, monkeypatch, block=64, nodata=float(value))[0])
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], whole(pixels, ~hole))


def test_records_count_what_was_written(tmp_path, monkeypatch):
    pixels = noise(3, 100, 120)
    pixels[:, :40, :50] = 0
    path = write_tiff(tmp_path / "scene.tif", pixels, nodata=0)
    labels, records = run(path, tmp_path, monkeypatch, block=32)
    assert sum(record.window.pixels for record in records) == 100 * 120
    assert (
        sum(record.valid for record in records) == sum(record.classified for record in records) == 100 * 120 - 40 * 50
    )
    for value in range(3):
        assert sum(record.counts.get(value, 0) for record in records) == (labels == value).sum()
    areas = sum(sum(record.areas.values()) for record in records)
    assert areas == pytest.approx((labels != 255).sum() * 0.25, rel=2e-3)


def test_a_block_without_a_valid_pixel_needs_no_engine(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "scene.tif", np.zeros((3, 40, 90), np.uint8), nodata=0)
    labels, records = run(path, tmp_path, monkeypatch, block=32)
    assert (labels == 255).all()
    assert {record.tiles for record in records} == {0}


def test_a_part_of_a_scene_is_a_scene_of_its_own(tmp_path, monkeypatch):
    pixels = noise(3, 150, 160)
    path = write_tiff(tmp_path / "scene.tif", pixels)
    labels, _ = run(path, tmp_path, monkeypatch, block=32, window=Window(17, 30, 90, 101))
    np.testing.assert_array_equal(labels, whole(pixels[:, 17:107, 30:131]))


def test_a_task_carries_addresses_only():
    import pickle

    task = worker.Task(
        "/some/output/folder/.widefield/runs/name/0123456789abcdef", tuple(Window(i, 0, 9, 9) for i in range(9))
    )
    assert len(pickle.dumps(replace(task, windows=task.windows[:4]))) < 1000
