import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle
from drawn_chips import draw_chips
from test_review import BANDS, CLASSES

from models.bundle import load_module
from models.dataset import open_chips
from models.findings import Tiling
from models.sampling import normalised
from models.stitching import OVERLAP, SIGMA, blend_windows, blended, by_cores, gaussian, stitching
from pipeline.grid import TileGrid, Window, near_borders


def tiling_of(edge, tile, halo, reach=16):
    grid = TileGrid(edge, edge, tile, halo)
    cores = [(core.owned.slices, core.tile.slices) for core in grid.cores(grid.scene)]
    return Tiling(tile, halo, cores, near_borders(grid.scene, grid.core, reach, grid.scene), reach)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("stitching") / "bundle"
    return draw_bundle(path, seed=8, bands=BANDS, classes=CLASSES, halo=32, tiles=(96,))


@pytest.fixture
def chips(tmp_path):
    return open_chips(draw_chips(tmp_path / "chips.zarr", edge=160))


def local(x):
    """A network whose answer depends on nothing but the pixel."""
    return torch.stack([x[0], x[1] - x[2]])


def test_a_network_without_context_is_the_same_all_three_ways():
    x = torch.randn(3, 160, 160)
    tiling = tiling_of(160, 96, 32)
    assert torch.equal(by_cores(local, x, tiling), local(x))
    torch.testing.assert_close(blended(local, x, 96, blend_windows(160, 96, OVERLAP)), local(x))


def test_cores_keep_the_answer_of_the_tile_that_owns_them():
    x = torch.zeros(1, 160, 160)
    calls = []

    def numbered(part):
        calls.append(part.shape)
        return torch.full((1, *part.shape[1:]), float(len(calls)))

    out = by_cores(numbered, x, tiling_of(160, 96, 32))
    assert set(calls) == {(1, 96, 96)}
    assert len(calls) == 9  # tiles begin at 0, 0, 32, 64 and 64: three places along each axis
    assert out[0, 0, [0, 32, 64, 96, 128]].tolist() == [1, 1, 2, 3, 3]


def test_blended_windows_end_at_the_edge():
    assert blend_windows(512, 256, 0.25) == (0, 192, 256)
    assert blend_windows(448, 256, 0.25) == (0, 192)
    assert blend_windows(256, 256, 0.25) == (0,)


def test_blending_is_that_of_monai():
    """Made by hand: `pip install --no-deps monai` is enough for this test."""
    inferers = pytest.importorskip("monai.inferers", exc_type=ImportError)
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 2, 31, padding=15)  # zero padding: what it says near an edge depends on the window

    def predict(x):
        return network(x[None])[0]

    x = torch.randn(3, 160, 160)
    with torch.inference_mode():
        ours = blended(predict, x, 64, blend_windows(160, 64, OVERLAP))
        theirs = inferers.sliding_window_inference(
            x[None], (64, 64), 1, network, overlap=OVERLAP, mode="gaussian", sigma_scale=SIGMA
        )[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_weights_fall_from_the_centre_and_vanish_nowhere():
    weights = gaussian(64)
    assert weights.max() == pytest.approx(1, abs=0.01)
    assert weights.min() == pytest.approx(1e-3)
    assert weights[31, 31 + 8] / weights[31, 31] == pytest.approx(np.exp(-0.5), rel=0.1)


def test_three_ways_are_judged_on_the_same_pixels(bundle, chips):
    found = stitching(bundle, chips, tiling_of(160, 96, 32))
    assert [way.name for way in found.ways] == ["whole chip", "cores", "blended"]
    assert found.chips == 2
    assert len({way.near.sum() for way in found.ways}) == len({way.inside.sum() for way in found.ways}) == 1
    assert found.ways[0].near.sum() + found.ways[0].inside.sum() == 2 * 160 * 160
    assert [way.compute for way in found.ways] == [1, 9 * 96**2 / 160**2, 4 * 96**2 / 160**2]
    assert found.ways[0].differ == 0


def test_what_differs_is_counted_against_the_whole_chip(bundle, chips):
    tiling = tiling_of(160, 96, 32)
    found = stitching(bundle, chips, tiling)
    module = load_module(bundle)

    @torch.inference_mode()
    def predict(x):
        return module(x[None])[0]

    inputs = [normalised(chips, index, bundle.spec.bands)[0] for index in chips.indices("val")]
    pairs = [(predict(x).argmax(0), by_cores(predict, x, tiling).argmax(0)) for x in inputs]
    expected = np.mean([(whole != tiled).float().mean() for whole, tiled in pairs])
    assert found.ways[1].differ == pytest.approx(expected)
    assert 0 < found.ways[1].differ < 0.2


def test_a_halo_that_covers_the_network_changes_nothing(tmp_path, chips):
    """Tiles moved inward to the chip's edges, with a halo above all that the network sees."""
    tiling = tiling_of(160, 128, 32)

    def smooth(x):
        return torch.nn.functional.avg_pool2d(x, 31, 1, 15)

    x = torch.randn(3, 160, 160)
    torch.testing.assert_close(by_cores(smooth, x, tiling), smooth(x))


def test_at_most_a_budget_of_pixels_is_looked_at(bundle, tmp_path):
    chips = open_chips(draw_chips(tmp_path / "chips.zarr", edge=160, count=12))
    assert stitching(bundle, chips, tiling_of(160, 96, 32), budget=2 * 160**2).chips == 2


def test_pixels_near_borders_are_those_within_reach_of_another_core():
    window = Window(0, 0, 8, 12)
    cores = np.add.outer(np.arange(8) // 4 * 100, np.arange(12) // 4)
    near = near_borders(window, 4, 1, window)
    changed = np.zeros((8, 12), bool)
    changed[:-1] |= cores[:-1] != cores[1:]
    changed[1:] |= cores[:-1] != cores[1:]
    changed[:, :-1] |= cores[:, :-1] != cores[:, 1:]
    changed[:, 1:] |= cores[:, :-1] != cores[:, 1:]
    assert np.array_equal(near, changed)


def test_a_part_of_a_scene_has_the_borders_of_the_scene():
    scene = Window(0, 0, 40, 64)
    part = Window(8, 20, 30, 40)
    assert np.array_equal(near_borders(part, 16, 3, scene), near_borders(scene, 16, 3, scene)[part.slices])
    assert near_borders(Window(0, 0, 16, 16), 16, 3)[:, -3:].all()  # there, the lattice goes on
