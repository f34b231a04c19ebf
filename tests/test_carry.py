from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from drawn_scenes import noise, write_tiff

from pipeline.carry import Carry, _columns, _steps
from pipeline.errors import UnreadableError
from pipeline.grid import TileGrid, Window
from pipeline.scene import Scene, SceneAddress, open_scene
from pipeline.staging import stage_window, stage_windows
from pipeline.store import create_image, open_image

GRID = TileGrid(300, 700, 128, 32, 32)
"""Cores of 64 pixels; blocks of two."""
WINDOWS = [GRID.source(block) for block in GRID.blocks(128)]


@pytest.fixture
def path(tmp_path):
    pixels = noise(3, 300, 700)
    pixels[:, 40:90, 100:333] = 0
    shape = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    return write_tiff(tmp_path / "scene.tif", pixels, nodata=0, **shape)


class Decodes(Scene):
    """Counts how often each chunk of the file is touched by a read, by row of blocks."""

    def __init__(self, address):
        super().__init__(address)
        self.touched = Counter()

    def read(self, window):
        for row in range(window.row // 64, -(-window.stop_row // 64)):
            for col in range(window.col // 64, -(-window.stop_col // 64)):
                self.touched[window.row, row, col] += 1
        return super().read(window)


def test_what_is_carried_over_is_what_would_have_been_read(path):
    with open_scene(SceneAddress(str(path))) as scene:
        carry = Carry(scene, WINDOWS)
        for index, window in enumerate(WINDOWS):
            for carried, read in zip(carry.read(index), scene.read(window), strict=True):
                np.testing.assert_array_equal(carried, read)


def test_each_chunk_is_decoded_once_for_the_blocks_of_a_row(path):
    with Decodes(SceneAddress(str(path))) as scene:
        carry = Carry(scene, WINDOWS)
        for index in range(len(WINDOWS)):
            carry.read(index)
        assert set(scene.touched.values()) == {1}
        rows = {window.row for window in WINDOWS}
        assert {(row, col) for row, _, col in scene.touched} == {(row, col) for row in rows for col in range(11)}


def test_chunks_lie_on_the_lattice_of_the_file_not_of_the_part(path):
    part = Window(10, 30, 260, 600)
    grid = TileGrid(260, 600, 128, 32, 32)
    windows = [grid.source(block) for block in grid.blocks(128)]
    with open_scene(SceneAddress(str(path), window=part)) as scene:
        steps = _steps(windows, *_columns(scene), scene.width)
        assert {(step.stop + 30) % 64 for step in steps if step.after is not None and step.stop < 600} == {0}
        carry = Carry(scene, windows)
        for index, window in enumerate(windows):
            np.testing.assert_array_equal(carry.read(index)[0], scene.read(window)[0])


def test_a_staged_scene_is_carried_over_by_its_own_chunks(path, tmp_path):
    with open_scene(SceneAddress(str(path))) as scene:
        create_image(tmp_path / "image.zarr", scene, chunk=32, shard=128)
        for window in stage_windows(scene, 128):
            stage_window(scene.address, tmp_path / "image.zarr", window)
        with open_image(tmp_path / "image.zarr") as staged:
            assert _columns(staged) == (32, 0)
            carry = Carry(staged, WINDOWS)
            for index, window in enumerate(WINDOWS):
                np.testing.assert_array_equal(carry.read(index)[0], scene.read(window)[0])


def test_chunks_that_are_too_wide_are_not_carried_over_whole():
    windows = [Window(0, 0, 100, 100), Window(0, 80, 100, 100)]
    assert [(step.start, step.stop) for step in _steps(windows, 1000, 0, 1000)] == [(0, 100), (100, 180)]
    assert [(step.start, step.stop) for step in _steps(windows, 50, 0, 1000)] == [(0, 100), (100, 180)]
    assert [(step.start, step.stop) for step in _steps(windows, 48, 0, 1000)] == [(0, 144), (144, 180)]


def test_another_row_begins_anew():
    windows = [Window(0, 0, 100, 100), Window(50, 80, 100, 100), Window(50, 10, 100, 100)]
    assert not any(step.takes_over for step in _steps(windows, 16, 0, 1000))


def test_threads_may_read_side_by_side(path):
    with open_scene(SceneAddress(str(path))) as scene, ThreadPoolExecutor(4) as pool:
        carry = Carry(scene, WINDOWS)
        for (carried, _), window in zip(pool.map(carry.read, range(len(WINDOWS))), WINDOWS, strict=True):
            np.testing.assert_array_equal(carried, scene.read(window)[0])


def test_a_window_that_cannot_be_read_fails_the_one_that_needs_it_and_no_other(path):
    class Torn(Scene):
        def read(self, window):
            if window.col == WINDOWS[1].col or window.contains(Window(0, 200, 1, 1)):
                raise UnreadableError("torn")
            return super().read(window)

    with Torn(SceneAddress(str(path))) as scene:
        carry, failed = Carry(scene, WINDOWS), []
        for index in range(len(WINDOWS)):
            try:
                carry.read(index)
            except UnreadableError:
                failed.append(index)
        assert failed
        assert set(failed) < set(range(6))  # the first row of six blocks; the others are whole
