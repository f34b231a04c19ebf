"""Halo and tile by measurement, with networks whose reach is known, and one bundle as a whole."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle, drawn_spec
from drawn_scenes import noise, write_tiff
from test_worker import network as exact
from torch.nn.functional import pad

from models.bundle import load_module, open_bundle
from models.engines.base import Batch, EngineRequest
from models.engines.torch import predict
from models.engines.whole import predictor
from models.errors import BundleError
from models.serve import EAGER, served
from pipeline import probe as under_test
from pipeline.errors import PlanError, ProbeError
from pipeline.grid import TileGrid
from pipeline.probe import (
    Crop,
    Felt,
    HaloRow,
    Halos,
    Probed,
    SpeedRow,
    crop_of,
    growth,
    halos_of,
    influence,
    judged,
    tiled,
)
from pipeline.scene import SceneAddress
from pipeline.seams import Counted

LOCAL = Felt(0.0, 0.0, 1024)
SPEC = drawn_spec(halo=0, stride=4, tiles=(64,))


class Network:
    """A function (N, 3, H, W) -> (N, 3, H, W) as a network over images of any size."""

    def __init__(self, function):
        self.function = function

    def logits(self, batch):
        pixels = np.where(batch.valid[:, None], batch.pixels, 0)
        return self.function(torch.from_numpy(pixels).double()).numpy()

    def __call__(self, batch):
        logits = self.logits(batch)
        return np.stack([logits.argmax(1), logits.max(1) % 255], axis=1).astype(np.uint8)


def row(halo, labels):
    """Of tiles of 512 px: `labels` differ, all of them near borders, where a tenth of the pixels lie."""
    return HaloRow(512, halo, Counted(100_000, labels), Counted(1_000_000, labels), 7)


def crop(height=128, width=144, seed=0):
    one = np.float32([1, 1, 1])
    return Crop("drawn", noise(3, height, width, seed=seed), np.ones((height, width), bool), one, 0 * one)


def with_pooling(x):
    """What looks at the whole image: every pixel feels its mean."""
    return exact(x) * (1 + x.mean((2, 3), keepdim=True) / 1000)


def far_sighted(x):
    """The image itself, moved by 24 pixels: local, but no halo that this crop leaves room for is large enough."""
    return pad(x, (24, -24))


def test_the_halo_is_the_smallest_that_covers_what_the_network_sees():
    found = halos_of(Network(exact), [crop(), crop(seed=1)], SPEC, within=1e-3)
    assert [row.halo for row in found.rows] == [0, 4, 8, 12, 16][: len(found.rows)]
    assert found.rows[0].share > 0.01
    assert found.rows[-1].near.differ == 0
    assert found.rows[0].everywhere.pixels == 2 * 128 * 144
    assert found.rows[0].near.pixels == 2 * (128 * 144 - 96 * 80)  # within 16 px of row 64 and of columns 64 and 128
    assert (found.felt, found.problem) == (Felt(0, 0, 144), None)
    assert found.chosen() == next(row.halo for row in found.rows if row.share <= 1e-3)


def test_tiles_with_a_halo_beyond_the_reach_are_the_whole_image():
    one = crop()
    np.testing.assert_array_equal(
        tiled(Network(exact), one, TileGrid(128, 144, 64, 16, 4)), Network(exact)(one.batch(one.window))[0]
    )


def test_a_network_that_pools_over_the_image_is_refused():
    found = halos_of(Network(with_pooling), [crop()], SPEC)
    assert found.felt.far > under_test.HUSH
    with pytest.raises(ProbeError, match="looks at the whole image"):
        found.chosen()


def test_a_halo_that_does_not_converge_is_refused():
    found = halos_of(Network(far_sighted), [crop()], SPEC, within=1e-3)
    with pytest.raises(ProbeError, match="does not converge: with 16 px"):
        found.chosen()


def test_halos_of_too_few_pixels_are_never_chosen():
    few = HaloRow(512, 0, Counted(9, 0), Counted(99, 0), 0)
    assert Halos((few, row(32, 30), row(64, 0)), 1e-4, LOCAL).halo == 64
    assert Halos((row(32, 30), few), 1e-4, LOCAL).halo is None
    assert Halos((few,), 1.0, LOCAL).halo is None
    assert under_test.needed_for(0) == under_test.needed_for(1e-4) == 100_000


def test_a_share_of_too_few_pixels_says_nothing():
    found = halos_of(Network(exact), [crop()], SPEC)
    with pytest.raises(ProbeError, match=r"[0-9]+,[0-9]+ valid pixels lie within 16 px .* shows on 100,000 at least"):
        found.chosen()
    one = crop()
    nothing = Crop("nothing", one.pixels, np.zeros((128, 144), bool), one.scale, one.offset)
    with pytest.raises(ProbeError, match="no class: no pixel is valid"):
        halos_of(Network(exact), [nothing], SPEC)


def test_a_network_that_answers_one_class_alone_says_nothing_of_a_halo():
    with pytest.raises(ProbeError, match="answers c1 on all crops"):
        halos_of(Network(lambda x: torch.eye(3, dtype=x.dtype)[1, None, :, None, None] + 0 * x), [crop()], SPEC)


def test_smaller_tiles_are_taken_where_the_largest_has_too_few_borders():
    spec = drawn_spec(halo=0, stride=4, tiles=(64, 128))
    tiles = [halos_of(Network(exact), [crop(256, 256)], spec, within=within).rows[0].tile for within in (1e-2, 2.5e-4)]
    assert tiles == [128, 64]


def test_a_far_pixel_changes_nothing_in_a_local_network_whatever_is_invalid():
    one = crop()
    holes = Crop("holes", one.pixels, np.random.default_rng(0).random((128, 144)) > 0.5, one.scale, one.offset)
    assert influence(Network(exact), holes, SPEC).far == 0
    nothing = Crop("nothing", one.pixels, np.zeros((128, 144), bool), one.scale, one.offset)
    assert influence(Network(exact), nothing, SPEC).far == 0


@pytest.mark.parametrize(
    ("half", "far", "edge", "verdict"),
    [
        (3e-3, 2e-7, 384, "local"),  # it is felt half-way, and not at the end
        (3e-3, 4e-5, 192, "unknown"),
        (3e-3, 2.9e-3, 192, "whole"),
        (3e-3, 4e-5, 768, "whole"),
        (0, 0, 64, "local"),
    ],
)
def test_what_is_felt_less_with_distance_is_no_look_at_the_whole_image(half, far, edge, verdict):
    felt = Felt(half, far, edge)
    assert felt.verdict == verdict
    assert (felt.problem is None) is (verdict == "local")
    assert verdict != "unknown" or "give a larger scene, of 768 px at least" in str(felt.problem)


def test_the_image_that_tells_decides():
    local, unknown, whole = Felt(1, 0, 384), Felt(1, 0.1, 192), Felt(1, 1, 192)
    assert judged([unknown, local]) == local
    assert judged([local, whole, unknown]) == whole


def test_networks_of_our_own_feel_no_far_pixel(bundle):
    opened = open_bundle(bundle)
    assert influence(predictor(opened, 1), crop(256, 256), opened.spec).verdict == "local"


def test_a_crop_too_small_for_a_halo_is_refused_with_what_is_needed():
    with pytest.raises(PlanError, match="the smallest crop is 64 px wide, tile 64 with its halos needs 80"):
        halos_of(Network(exact), [crop(64, 200)], SPEC)


def test_the_largest_tile_that_leaves_room_is_taken():
    spec = drawn_spec(halo=0, stride=4, tiles=(32, 64, 128))
    found = halos_of(Network(exact), [crop()], spec, within=1.0)
    assert {row.tile for row in found.rows} == {64}


def test_a_larger_halo_that_fails_again_counts():
    shares = {0: 500, 32: 9, 64: 20, 96: 8, 128: 0}
    rows = tuple(row(halo, labels) for halo, labels in shares.items())
    assert Halos(rows, 1e-4, LOCAL).halo == 96
    assert Halos(rows, 2e-4, LOCAL).halo == 32
    assert Halos(rows[:3], 1e-4, LOCAL).halo is None


def probed(*speeds, memory=10**9, halo=64):
    halos = Halos((row(halo, 0),), 1e-4, LOCAL)
    return Probed(halos, tuple(SpeedRow(*speed) for speed in speeds), memory, "drawn")


def test_the_tile_is_the_cheapest_scene_pixel_that_fits():
    speeds = [(256, 1, 0.10, 10**8), (512, 1, 0.38, 3 * 10**8), (1024, 1, 1.6, 9 * 10**8), (2048, 1, 6.3, 3 * 10**9)]
    assert probed(*speeds).best.tile == 1024
    assert probed(*speeds, memory=10**10).best.tile == 2048
    assert probed(*speeds, memory=5 * 10**8).best.tile == 512
    with pytest.raises(ProbeError, match=r"no tile fits: with halo 64, .* 0.0 GB are allowed"):
        probed(*speeds, memory=10**6).best  # noqa: B018 - it raises
    facts = json.loads(json.dumps(probed(*speeds).to_json()))
    assert (facts["halo"], facts["tile"], facts["batch"]) == (64, 1024, 1)


def test_the_choice_makes_a_new_bundle_of_the_same_weights(tmp_path):
    old = draw_bundle(tmp_path / "old", halo=0, tiles=(64, 128, 256, 512))
    new = probed((128, 1, 0.1, 10), (256, 1, 0.2, 10), halo=32).write(old, tmp_path / "new")
    assert (new.spec.halo, new.spec.tiles, new.spec.derived_from) == (32, (128, 256), old.digest)
    ours, theirs = (load_module(each).state_dict() for each in (old, new))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(BundleError, match="the bundle itself, which never changes"):
        probed((128, 1, 0.1, 10), halo=32).write(old, tmp_path / "old")


def test_a_crop_is_taken_where_pixels_are_valid(tmp_path):
    pixels = noise(3, 600, 700)
    pixels[:, :, :400] = 0
    path = write_tiff(tmp_path / "half.tif", pixels, nodata=0)
    found = crop_of(SceneAddress(str(path)), drawn_spec(), 250)
    assert found.shape == (224, 224)
    assert found.valid.all()
    assert found.name == "half"


def test_the_whole_image_is_predicted_as_the_network_does_it(bundle):
    opened, pixels = open_bundle(bundle), noise(1, 3, 96, 160)
    batch = Batch(pixels, np.ones((1, 96, 160), bool), np.ones(3, np.float32), np.zeros(3, np.float32))
    whole = predictor(opened, 1)
    np.testing.assert_array_equal(whole(batch), predict(served(opened, EAGER), batch))
    assert whole.logits(batch).shape == (1, 3, 96, 160)


def test_growth_is_what_work_takes():
    assert 60e6 < growth(lambda: np.ones(64 * 2**20, np.uint8).sum()) < 90e6


def test_speeds_stop_at_what_takes_too_much(tmp_path, monkeypatch):
    measured = []

    def measure(_bundle, request, _cache):
        measured.append((request.tile, request.batch))
        return SimpleNamespace(seconds_per_tile=request.tile**2 / 1e6, peak_bytes=request.tile * request.batch)

    record = SimpleNamespace(request=EngineRequest("torch", "fp32", 64, "uint8"), backend="t", precision="f", threads=1)
    monkeypatch.setattr(under_test, "prepare", lambda *_: record)
    monkeypatch.setattr(under_test, "measure", measure)
    monkeypatch.setattr(under_test, "find_halo", lambda *_, **__: Halos((row(8, 0),), 1e-4, LOCAL))
    opened = draw_bundle(tmp_path / "b", halo=0, tiles=(64, 128, 256))
    scene = SceneAddress(str(write_tiff(tmp_path / "s.tif", noise(3, 40, 40))))
    found = under_test.probe(opened, [scene], request=record.request, memory=200, batches=(1, 2))
    assert measured == [(64, 1), (128, 1), (256, 1), (64, 2), (128, 2)]
    assert (found.best.tile, found.best.batch) == (128, 1)


@pytest.mark.slow
def test_the_command_measures_and_writes_a_bundle(bundle, tmp_path, widefield):
    path = write_tiff(tmp_path / "s.tif", noise(3, 75, 80, seed=2).repeat(4, 1).repeat(4, 2))
    ask = ["probe", path, "--bundle", bundle, "--memory", 2, "--engine", "torch", "--precision", "fp32", "--threads", 1]
    status, text, _ = widefield(*ask, "--out", tmp_path / "new", "--within", 0.5, "--json")
    facts = json.loads(text)
    assert status == 0
    assert facts["halos"][0]["share"] > 0
    assert {row["tile"] for row in facts["speeds"]} == {128, 256}
    made = open_bundle(tmp_path / "new")
    assert (made.spec.halo, made.spec.tiles[-1]) == (facts["halo"], facts["tile"])


def test_the_command_shows_a_halo_that_does_not_converge_and_writes_nothing(bundle, tmp_path, widefield, monkeypatch):
    rows = tuple(row(halo, 30) for halo in (0, 32))
    monkeypatch.setattr(under_test, "find_halo", lambda *_, **__: Halos(rows, 1e-4, LOCAL))
    path = write_tiff(tmp_path / "s.tif", noise(3, 40, 40))
    status, text, error = widefield("probe", path, "--bundle", bundle, "--out", tmp_path / "new")
    assert status == 1
    assert "the halo does not converge: with 32 px, 0.0300 % of labels within 16 px of borders between cores" in error
    assert all(share in text for share in ("0.0300 %", "0.0030 %", "0.0007 %"))
    assert not (tmp_path / "new").exists()


def test_the_command_refuses_a_folder_that_holds_something(bundle, tmp_path, widefield):
    path = write_tiff(tmp_path / "s.tif", noise(3, 40, 40))
    status, _, error = widefield("probe", path, "--bundle", bundle, "--out", tmp_path)
    assert status == 2
    assert "exists already, and bundles never change" in error
    assert "Example" in widefield("probe", "--help")[1]
