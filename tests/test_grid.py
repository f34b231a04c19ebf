import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grid import TileGrid, Window, round_up

lengths = st.integers(1, 700)
shapes = st.tuples(lengths, lengths)
grids = st.builds(
    lambda shape, core, halo: TileGrid(*shape, tile=32 * (core + 2 * halo), halo=32 * halo),
    shapes,
    st.integers(1, 5),
    st.integers(0, 3),
)


def owners(grid, windows):
    count = np.zeros((grid.height, grid.width), int)
    for window in windows:
        for core in grid.cores(window):
            count[core.owned.slices] += 1
    return count


@given(grids)
def test_each_scene_pixel_is_owned_by_exactly_one_core(grid):
    assert (owners(grid, [grid.scene]) == 1).all()


@given(grids, st.integers(1, 4))
def test_blocks_partition_the_scene_and_hold_whole_cores(grid, k):
    assert (owners(grid, grid.blocks(k * grid.core)) == 1).all()


@given(grids, st.integers(1, 4))
def test_a_pixel_is_read_by_the_same_tile_whatever_the_block(grid, k):
    whole = {core.owned: core.tile for core in grid.cores(grid.scene)}
    cut = {core.owned: core.tile for block in grid.blocks(k * grid.core) for core in grid.cores(block)}
    assert cut == whole


@given(grids)
def test_tiles_stay_inside_the_extent_in_phase_with_the_stride(grid):
    for core in grid.cores(grid.scene):
        assert grid.extent.contains(core.tile)
        assert (core.tile.height, core.tile.width) == (grid.tile, grid.tile)
        assert core.tile.row % grid.stride == core.tile.col % grid.stride == 0


@given(grids)
def test_a_core_lies_a_halo_inside_its_tile_except_at_the_extents_edges(grid):
    for core in grid.cores(grid.scene):
        assert core.owned.row - core.tile.row >= grid.halo or core.tile.row == 0
        assert core.owned.col - core.tile.col >= grid.halo or core.tile.col == 0
        assert core.tile.stop_row - core.owned.stop_row >= grid.halo or core.tile.stop_row == grid.extent.height
        assert core.tile.stop_col - core.owned.stop_col >= grid.halo or core.tile.stop_col == grid.extent.width


@given(grids)
def test_the_extent_overhangs_by_less_than_a_stride_unless_the_scene_is_smaller_than_a_tile(grid):
    for length, extent in zip((grid.height, grid.width), (grid.extent.height, grid.extent.width), strict=True):
        assert extent == max(round_up(length, grid.stride), grid.tile)


@given(grids)
def test_the_source_of_a_block_holds_every_scene_pixel_that_its_tiles_read(grid):
    for block in grid.blocks(2 * grid.core):
        source = grid.source(block)
        for core in grid.cores(block):
            inside = core.tile.intersect(grid.scene)
            assert inside is not None
            assert source.contains(inside)


@given(grids, st.integers(1, 4))
def test_tiles_counts_the_distinct_tiles_of_each_block(grid, k):
    edge = k * grid.core
    distinct = [{core.tile for core in grid.cores(block)} for block in grid.blocks(edge)]
    assert grid.tiles(edge) == sum(map(len, distinct))
    assert grid.tiles() == len({core.tile for core in grid.cores(grid.scene)})


def test_the_overhead_of_tile_1152_and_halo_64_tends_to_1_27():
    assert TileGrid(102400, 102400, tile=1152, halo=64).overhead() == pytest.approx(1.27, abs=0.005)


def test_a_scene_of_one_tile_runs_one_tile():
    grid = TileGrid(256, 256, tile=256, halo=64)
    assert grid.shape == (2, 2)
    assert grid.tiles() == 1


def test_a_block_that_cuts_a_core_is_refused():
    grid = TileGrid(1000, 1000, tile=256, halo=64)
    with pytest.raises(ValueError, match="no whole number of cores of 128"):
        list(grid.blocks(200))
    with pytest.raises(ValueError, match="cuts a core"):
        list(grid.cores(Window(0, 64, 128, 128)))


def test_illegal_grids_cannot_be_built():
    with pytest.raises(ValueError, match="multiples of the stride 32"):
        TileGrid(100, 100, tile=250, halo=32)
    with pytest.raises(ValueError, match="leaves no core"):
        TileGrid(100, 100, tile=128, halo=64)
    with pytest.raises(ValueError, match="empty"):
        TileGrid(0, 100, tile=128, halo=32)


def test_windows_intersect_contain_and_shift():
    a, b = Window(0, 0, 10, 10), Window(5, 8, 10, 10)
    assert a.intersect(b) == Window(5, 8, 5, 2)
    assert a.intersect(Window(10, 0, 1, 1)) is None
    assert a.contains(Window(2, 2, 8, 8))
    assert not a.contains(b)
    assert b.relative_to(a.shift(5, 5)) == Window(0, 3, 10, 10)
