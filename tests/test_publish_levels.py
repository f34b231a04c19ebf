import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.publish.levels import LARGEST_TILE, STRIP, level_shapes, walk, walk_bytes
from pipeline.publish.pyramid import mean_of_four, mode_of_four

TILE = 4
EDGES = st.integers(1, 70) | st.sampled_from([4, 8, 128, 129, 256, 300, 520])


def drawn(height, width, seed):
    """Patches of few values, so that some tiles have just one."""
    rng = np.random.default_rng(seed)
    small = rng.choice(np.array([0, 1, 254, 255], np.uint8), (height // 5 + 1, width // 5 + 1))
    plane = small.repeat(5, 0).repeat(5, 1)[:height, :width]
    return np.where(rng.random(plane.shape) < 0.1, rng.integers(0, 256, plane.shape, np.uint8), plane)


def walked(plane, halve, chunk):
    """All levels put together from their tiles, and how often each pixel was read and each tile came."""
    shapes = level_shapes(*plane.shape, TILE)
    levels = [np.full((-(-h // TILE) * TILE, -(-w // TILE) * TILE), 255, np.uint8) for h, w in shapes]
    read, came = (
        np.zeros(plane.shape, int),
        [np.zeros((len(level) // TILE, level.shape[1] // TILE)) for level in levels],
    )

    def window(part):
        read[part.slices] += 1
        return plane[part.slices]

    def put(level, row, col, tile, value):
        assert value is None or (tile == value).all()
        came[level][row, col] += 1
        levels[level][row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE] = tile

    walk(window, shapes, chunk=chunk, tile=TILE, halve=halve, put=put)
    return levels, shapes, read, came


@settings(max_examples=25, deadline=None)
@given(EDGES, EDGES, st.sampled_from([1, 3, 4, 7, 2000]), st.sampled_from([mode_of_four, mean_of_four]))
def test_every_level_is_the_half_of_the_one_before_and_nodata_overhangs(height, width, chunk, halve):
    plane = drawn(height, width, height * width)
    levels, shapes, *_ = walked(plane, halve, chunk)
    for level, (rows, cols) in zip(levels, shapes, strict=True):
        np.testing.assert_array_equal(level[:rows, :cols], plane)
        assert (level[rows:] == 255).all()
        assert (level[:, cols:] == 255).all()
        plane = halve(plane)
    assert max(shapes[-1]) <= TILE


def test_every_pixel_is_read_once_and_every_tile_made_once_across_strips():
    *_, shapes, read, came = walked(drawn(50, 3 * STRIP * TILE + 5, 0), mode_of_four, 7)
    assert len(shapes) == 8
    assert (read == 1).all()
    assert all((tiles == 1).all() for tiles in came)


def test_levels_end_with_the_first_that_fits_a_tile():
    assert level_shapes(1, 9, 4) == [(1, 9), (1, 5), (1, 3)]
    assert level_shapes(4, 4, 4) == [(4, 4)]


def test_walking_takes_no_more_memory_than_it_says():
    height, width, chunk = 3000, 20000, 1024
    shapes = level_shapes(height, width, LARGEST_TILE)
    tracemalloc.start()
    walk(
        lambda window: np.full((window.height, window.width), window.row % 3, np.uint8),
        shapes,
        chunk=chunk,
        tile=LARGEST_TILE,
        halve=mode_of_four,
        put=lambda *_: None,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.3 * walk_bytes(height, width, chunk) < peak < walk_bytes(height, width, chunk)
