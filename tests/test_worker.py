"""The laws of stitching, through the production path, with a network small enough to be exact."""

import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_bundle import drawn_spec
from drawn_scenes import noise, write_tiff
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from models.engines.base import EngineRecord
from models.engines.meter import Meter
from models.engines.slots import overlapped
from pipeline import outputs, report, store, worker, workshop
from pipeline.errors import OutputError
from pipeline.grid import TileGrid, Window
from pipeline.ledger import Ledger
from pipeline.pace import Pace
from pipeline.plan import PlanOptions, Room, make_plan
from pipeline.scene import SceneAddress, open_scene

IO = Path("/proc/self/io")
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
    def __init__(self):
        self.meter = Meter()

    def map(self, batches):
        for batch in batches:
            yield predict(batch.pixels, batch.valid)


def planned(path, folder, *, block, batch=1, window=None, nodata=None):
    """The plan of a whole scene, segmented by the exact engine."""
    record = EngineRecord("e", "torch", "0", "fp32", "cpu", TILE, batch, "uint8", 1, "b", 10**8, 0.0, None)
    spec = drawn_spec(halo=HALO, stride=STRIDE, tiles=(TILE,))
    address = SceneAddress(str(path), nodata=nodata, window=window)
    with open_scene(address) as scene:
        return make_plan(scene, spec, folder, record, out=folder, options=PlanOptions(block=block, stage=False))


def run(path, folder, monkeypatch, **wanted):
    """Segment a whole scene with the exact engine; labels (H, W)."""
    plan = planned(path, folder, **wanted)
    workshop.open_run(plan, folder)
    engine = ExactEngine()
    monkeypatch.setattr(worker, "_engine", lambda run: (engine, frozenset()))
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


def test_tiles_without_a_valid_pixel_of_their_own_never_reach_the_engine_and_are_counted(tmp_path, monkeypatch):
    seen = []

    def watch(engine, batches):
        for batch in batches:
            seen.append(len(batch.pixels))
            yield predict(batch.pixels, batch.valid)

    monkeypatch.setattr(ExactEngine, "map", watch)
    pixels = noise(3, 96, 160)
    pixels[:, :, 40:] = 0  # of five columns of cores, the second has a few valid pixels
    path = write_tiff(tmp_path / "scene.tif", pixels, nodata=0)
    labels, records = run(path, tmp_path, monkeypatch, block=64, batch=2)
    plan = worker._plan(str(tmp_path))
    coverage = report._coverage(plan, records)
    assert sum(seen) == coverage["tiles"] == 6
    assert coverage["tiles"] + coverage["empty_tiles"] == plan.costs.tiles == 15
    assert (labels[:, 40:] == 255).all()


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


class CountedSource:
    """A source that remembers what was read of it, and how many reads ran at the same time."""

    def __init__(self, source, pause=0.0):
        self._source, self._pause, self._lock = source, pause, threading.Lock()
        self.windows, self.reading, self.most = [], 0, 0

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, window):
        with self._lock:
            self.windows.append(window)
            self.reading += 1
            self.most = max(self.most, self.reading)
        time.sleep(self._pause)
        answer = self._source.read(window)
        with self._lock:
            self.reading -= 1
        return answer


def bytes_read():
    """By this process, from files."""
    return int(IO.read_text().split("rchar:")[1].split()[0])


def counted(monkeypatch, pause=0.0):
    """The sources that workers open from now on."""
    opened = []

    def open_counted(plan, run):
        opened.append(CountedSource(outputs.open_source(plan, run), pause))
        return opened[-1]

    monkeypatch.setattr(worker, "open_source", open_counted)
    return opened


def test_a_block_is_read_once_for_all_its_tiles(tmp_path, monkeypatch):
    opened = counted(monkeypatch)
    run(write_tiff(tmp_path / "s.tif", noise(3, 130, 170)), tmp_path, monkeypatch, block=64)
    grid = TileGrid(130, 170, TILE, HALO, STRIDE)
    read = sorted(window for source in opened for window in source.windows)
    assert read == sorted(grid.source(block) for block in grid.blocks(64))


class TimedEngine(ExactEngine):
    """Computes each batch for so many seconds, beside `map`."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds = seconds

    def map(self, batches):
        with ThreadPoolExecutor(1) as pool:
            yield from overlapped(batches, lambda batch: pool.submit(self.compute, batch).result, meter=self.meter)

    def compute(self, batch):
        with self.meter.running():
            time.sleep(self.seconds)
            return predict(batch.pixels, batch.valid)


@pytest.mark.skipif(not IO.exists(), reason="the system does not count what a process reads")
def test_each_chunk_of_a_file_is_decoded_once_for_the_blocks_of_a_row(tmp_path):
    """Neighbours share the chunks of their rims: what is decoded for one is still in GDAL's cache for the next."""
    path = write_tiff(tmp_path / "s.tif", noise(3, 512, 4096), tiled=True, blockxsize=256, blockysize=256)
    grid = TileGrid(512, 4096, 512, 64, 32)
    windows = [grid.source(block) for block in grid.blocks(2 * grid.core)]
    assert sum(window.width for window in windows) > 1.1 * 4096
    before = bytes_read()
    with open_scene(SceneAddress(str(path))) as scene:
        for window in windows:
            scene.read(window)
    assert bytes_read() - before < 1.05 * path.stat().st_size


@pytest.mark.parametrize("place", [(0, 40, 1, 0), (7, 30, 8, 3), (100, 57, 16, 15), (3, 5, 64, 0)])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_bands_are_a_blocks_rows_each_once_and_part_nothing_that_is_decoded_together(place, count):
    row, height, rows, first = place
    parts = worker.bands(Window(row, 5, height, 9), count, rows, first)
    assert len(parts) == count
    cut = [part for part in parts if part is not None]
    assert [r for part in cut for r in range(part.row, part.stop_row)] == list(range(row, row + height))
    assert all((part.row + first) % rows == 0 and (part.col, part.width) == (5, 9) for part in cut[1:])


@pytest.mark.skipif(not IO.exists(), reason="the system does not count what a process reads")
@pytest.mark.parametrize("readers", [1, 2, 4])
def test_several_readers_decode_no_chunk_twice_and_read_the_same(tmp_path, readers):
    pixels = noise(3, 1024, 4096)
    path = write_tiff(tmp_path / "s.tif", pixels, tiled=True, blockxsize=256, blockysize=256)
    plan = planned(path, tmp_path, block=1024)
    opened, pace = worker._Opened(plan, tmp_path, len(plan.blocks)), Pace("input", readers, readers)
    threads = [ThreadPoolExecutor(1) for _ in range(readers)]
    before = bytes_read()
    for block in worker._ahead(threads, (worker._Reading(opened, each) for each in plan.blocks), pace, Meter()):
        np.testing.assert_array_equal(block.pixels, pixels[:, *block.source.slices])
        assert block.valid.all()
    assert bytes_read() - before < 1.05 * path.stat().st_size


def run_in_one_task(path, folder, monkeypatch, readers, engine=None):
    """The mask (H, W) of a scene of several blocks that are one task; the report of it."""
    monkeypatch.setattr("pipeline.resources.cores", lambda: readers)
    plan = planned(path, folder, block=32)
    workshop.open_run(plan, folder)
    engine = engine or TimedEngine()
    monkeypatch.setattr(worker, "_engine", lambda run: (engine, frozenset()))
    report = worker.perform(worker.Task(str(folder), tuple(plan.blocks)))
    return store.read_plane(folder / "mask.zarr", "labels", plan.grid.scene), report


def test_readers_join_where_the_engine_waits_and_change_no_byte(tmp_path, monkeypatch):
    opened, pixels = counted(monkeypatch, pause=0.02), noise(3, 100, 130)
    path = write_tiff(tmp_path / "s.tif", pixels)
    labels, report = run_in_one_task(path, tmp_path, monkeypatch, readers=4)
    np.testing.assert_array_equal(labels, whole(pixels))
    assert 1 < opened[-1].most <= report.readers <= 4
    assert report.engine.input > 0


def test_an_engine_that_does_not_wait_has_one_reader(tmp_path, monkeypatch):
    opened = counted(monkeypatch)
    _, report = run_in_one_task(
        write_tiff(tmp_path / "s.tif", noise(3, 64, 96)), tmp_path, monkeypatch, readers=4, engine=TimedEngine(0.05)
    )
    assert opened[-1].most == report.readers == 1
    assert report.engine.busy >= 6 * 0.05


def test_writers_join_where_the_engine_waits_for_them(tmp_path, monkeypatch):
    write_block = store.write_block

    def slow(*args):
        time.sleep(0.03)
        return write_block(*args)

    monkeypatch.setattr(store, "write_block", slow)
    pixels = noise(3, 100, 130)
    path = write_tiff(tmp_path / "s.tif", pixels)
    labels, report = run_in_one_task(path, tmp_path, monkeypatch, readers=3)
    np.testing.assert_array_equal(labels, whole(pixels))
    assert report.writers == 3
    assert report.engine.output > 0
    assert len(Ledger(tmp_path / "ledger").records()) == len(report.records)


class WatchedEngine(TimedEngine):
    """Knows how many of its maps are under way."""

    open = 0

    def map(self, batches):
        self.open += 1
        try:
            yield from super().map(batches)
        finally:
            self.open -= 1


def test_after_a_failed_write_nothing_is_left_in_the_engine(tmp_path, monkeypatch):
    def full(*_):
        raise OutputError("the disk is full")

    monkeypatch.setattr(store, "write_block", full)
    path, engine = write_tiff(tmp_path / "s.tif", noise(3, 100, 130)), WatchedEngine()
    with pytest.raises(OutputError, match="full") as failure:
        run_in_one_task(path, tmp_path, monkeypatch, readers=1, engine=engine)
    assert failure.tb  # which holds every frame that the failure came through
    assert engine.open == 0


class DrawnBlock:
    """A block of so many tiles that are valid."""

    def __init__(self, tiles, room):
        self.tiles, self.waiting = dict.fromkeys(Window(0, at, 1, 1) for at in range(tiles)), tiles
        self.plan = SimpleNamespace(room=room, radiometry=SimpleNamespace(scale=(1,), offset=(0,)))

    def tile(self, _):
        return np.zeros((1, 1, 1), np.uint8), np.ones((1, 1), bool)


def through_an_engine(room, blocks):
    """Tiles in each batch, and the most blocks that were held at the same time."""
    flight, held, most = deque(), [0], []

    def read():
        for block in blocks:
            held[0] += 1
            most.append(held[0])
            yield block

    batches = worker._batches(read(), flight, lambda _: None)
    sizes = []
    for size in overlapped(batches, lambda batch: lambda: len(batch.pixels), slots=room.batches):
        sizes.append(size)
        for block, _ in flight.popleft():
            block.waiting -= 1
            held[0] -= not block.waiting
    return sizes, max(most)


@pytest.mark.parametrize(
    ("batch", "streams", "tiles"), [(1, 1, 4), (8, 1, 4), (6, 2, 4), (2, 8, 4), (32, 1, 1), (5, 3, 9)]
)
def test_blocks_with_little_that_is_valid_take_no_more_memory_than_planned(batch, streams, tiles):
    engine = EngineRecord("e", "torch", "0", "fp32", "cpu", TILE, batch, "uint8", 1, "b", 10**8, 0.0, None, streams)
    room = Room.of(engine, TileGrid(9600, 9600, TILE, HALO, STRIDE), round(tiles**0.5) * (TILE - 2 * HALO))
    sizes, most = through_an_engine(room, [DrawnBlock(1, room) for _ in range(90)])
    assert (sum(sizes), most) == (90, min(most, room.blocks))
    sizes, most = through_an_engine(room, [DrawnBlock(tiles, room) for _ in range(90)])
    assert (set(sizes[:-1]), most) == ({batch}, min(most, room.blocks))


def test_a_block_that_waits_to_be_written_holds_its_own_pixels_validity_alone(tmp_path):
    plan = planned(write_tiff(tmp_path / "s.tif", noise(3, 130, 170)), tmp_path, block=32)
    block = worker._Reading(worker._Opened(plan, tmp_path, 1), plan.blocks[6]).read()
    assert block.valid.shape > (32, 32)
    block.release()
    assert (block.pixels.nbytes, block.valid.nbytes, block.valid.base) == (0, 32 * 32, None)


def test_threads_are_as_many_as_all_plans_pay_for_now(tmp_path):
    path, tasks = write_tiff(tmp_path / "s.tif", noise(3, 64, 64)), []
    for name, readers in (("a", 5), ("b", 3), ("a", 2)):
        (tmp_path / name).mkdir(exist_ok=True)
        plan = planned(path, tmp_path / name, block=32)
        replace(plan, costs=replace(plan.costs, readers=readers)).save(tmp_path / name / "plan.json")
        tasks.append(worker.Task(str(tmp_path / name), (plan.blocks[0],)))
        assert {pace.most for pace in worker._paces(tasks)} == {(5, 3, 2)[len(tasks) - 1]}
    assert {pace.most for pace in worker._paces(tasks[:1])} == {2}


def test_a_report_tells_which_process_it_was_and_what_loading_took(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "s.tif", noise(3, 64, 64))
    _, report = run_in_one_task(path, tmp_path, monkeypatch, readers=1)
    assert report.kind == "segment"
    assert report.worker.endswith(f"-{os.getpid()}")
    assert 0 <= report.start < 1
    assert report.engine.total <= report.seconds
