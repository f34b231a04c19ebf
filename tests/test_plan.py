import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import rasterio
from drawn_bundle import drawn_spec
from drawn_scenes import noise, write_tiff
from rasterio.control import GroundControlPoint

from models.engines.base import EngineRecord
from pipeline.errors import PlanError
from pipeline.fit import choose_bands, radiometry_for
from pipeline.grid import TileGrid
from pipeline.plan import Plan, PlanOptions, _task_blocks, cheapest_tile, make_plan, nearest_block
from pipeline.scene import SceneAddress, open_scene

SPEC = drawn_spec(halo=32, tiles=(128, 256))
ENGINE = EngineRecord(
    "d" * 64,
    "null",
    "0",
    "fp32",
    "cpu",
    128,
    1,
    "uint8",
    2,
    "b" * 64,
    peak_bytes=10**8,
    seconds_per_tile=0.1,
    parity=None,
)


def plan_of(path, tmp_path, spec=SPEC, **options):
    with open_scene(SceneAddress(str(path))) as scene:
        return make_plan(scene, spec, tmp_path, ENGINE, out=tmp_path, options=PlanOptions(**options))


@pytest.fixture
def scene(tmp_path):
    return write_tiff(tmp_path / "scene.tif", noise(3, 300, 420), tiled=True, blockxsize=128, blockysize=128)


def test_a_plan_survives_its_file(scene, tmp_path):
    plan = plan_of(scene, tmp_path)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_a_plan_of_another_schema_is_refused(scene, tmp_path):
    facts = plan_of(scene, tmp_path).to_json() | {"schema": 99}
    with pytest.raises(ValueError, match="schema 99 is not known"):
        Plan.from_json(facts)


def test_the_key_names_all_that_decides_the_bytes_and_nothing_else(scene, tmp_path):
    plan = plan_of(scene, tmp_path)
    changes = [
        {"fingerprint": "other"},
        {"engine": replace(ENGINE, digest="e" * 64)},
        {"engine": replace(ENGINE, bundle="c" * 64)},
        {"block": 192},
        {"grid": replace(plan.grid, halo=0)},
        {"radiometry": replace(plan.radiometry, offset=(1.0, 0.0, 0.0))},
        {"scene": replace(plan.scene, nodata=0.0)},
    ]
    keys = {replace(plan, **change).key for change in changes}
    assert len(keys | {plan.key}) == len(changes) + 1
    same = replace(plan, task_blocks=99, stage=True, scene=replace(plan.scene, path="/elsewhere/scene.tif"))
    assert same.key == plan.key


def test_costs_count_what_will_run(scene, tmp_path):
    plan = plan_of(scene, tmp_path, block=128)
    assert plan.costs.blocks == len(plan.blocks) == 12
    assert plan.costs.tiles == plan.grid.tiles(128)
    assert plan.costs.read_bytes == sum(plan.grid.source(block).pixels for block in plan.blocks) * 4
    assert plan.costs.peak_bytes > ENGINE.peak_bytes


def test_remaining_leaves_out_what_is_done(scene, tmp_path):
    plan = plan_of(scene, tmp_path, block=128)
    left = plan.remaining([(0, 0), (128, 256)])
    assert len(left) == 10
    assert (0, 0) not in {(window.row, window.col) for window in left}


def test_strips_are_staged_and_tiles_are_not(tmp_path):
    tiled = write_tiff(tmp_path / "tiled.tif", noise(3, 256, 256), tiled=True, blockxsize=128, blockysize=128)
    strips = write_tiff(tmp_path / "strips.tif", noise(3, 256, 256), tiled=False)
    assert [plan_of(path, tmp_path).stage for path in (tiled, strips)] == [False, True]
    assert plan_of(strips, tmp_path, stage=False).costs.staged_bytes == 0


def test_too_little_memory_is_refused_with_the_numbers(scene, tmp_path):
    with pytest.raises(PlanError, match=r"a worker may need .* MB .*, it can have 1\.0 MB: choose a smaller --block"):
        plan_of(scene, tmp_path, memory=10**6)


def test_too_little_disk_is_refused_unless_an_earlier_run_left_what_is_needed(scene, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(PlanError, match=r"may need .* of disk, 1\.0 kB are free"):
        plan_of(scene, tmp_path)
    assert plan_of(scene, tmp_path, stored=10**7).costs.free_bytes == 1000


def test_control_points_are_carried_over_and_the_plan_says_what_areas_rest_on(tmp_path):
    corners = [GroundControlPoint(row, col, 10 + col, 50 - row) for row in (0, 64) for col in (0, 64)]
    path = write_tiff(tmp_path / "scene.tif", noise(3, 64, 64), crs="EPSG:4326", transform=None, gcps=corners)
    plan = plan_of(path, tmp_path)
    assert len(plan.georef.gcps) == 4
    assert plan.key != replace(plan, georef=replace(plan.georef, gcps=plan.georef.gcps[1:])).key
    assert "by a polynomial through its 4 control points" in plan.notes[-1]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_another_pixel_type_is_refused(tmp_path):
    path = write_tiff(tmp_path / "scene.tif", noise(3, 64, 64, dtype="uint16"))
    with pytest.raises(PlanError, match="holds uint16, bundle 'drawn' takes uint8"):
        plan_of(path, tmp_path)


def test_a_resolution_outside_the_bundles_range_needs_a_word(scene, tmp_path):
    spec = drawn_spec(halo=32, tiles=(128,), resolution=(5, 20))
    with pytest.raises(PlanError, match=r"pixels of 0\.5 m, bundle 'drawn' is for 5-20 m: .*--any-resolution"):
        plan_of(scene, tmp_path, spec)
    assert plan_of(scene, tmp_path, spec, any_resolution=True).notes


def test_a_scene_without_a_place_is_allowed_and_said(tmp_path):
    path = write_tiff(tmp_path / "scene.tif", noise(3, 64, 64), crs=None, transform=None)
    spec = drawn_spec(halo=32, tiles=(128,), resolution=(5, 20))
    assert [note.split(":")[0] for note in plan_of(path, tmp_path, spec).notes] == [
        "resolution unknown",
        "the scene is not georeferenced",
    ]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_pixels_of_a_slide_are_held_against_the_bundles_range(tmp_path):
    path = write_tiff(tmp_path / "slide.tif", noise(3, 64, 64), crs=None, transform=None)
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_IMAGEDESCRIPTION="Aperio Image|AppMag = 20|MPP = 0.4990|Left = 2")
    fits, coarse = (drawn_spec(halo=32, tiles=(128,), resolution=(low, 1e-6)) for low in (2e-7, 6e-7))
    assert plan_of(path, tmp_path, fits).notes == (
        "the scene is not georeferenced: areas follow from its pixels of 0.499 x 0.499 um",
    )
    with pytest.raises(PlanError, match=r"pixels of 0\.499 um, bundle 'drawn' is for 0\.6-1 um"):
        plan_of(path, tmp_path, coarse)


def test_bands_are_matched_by_name(tmp_path):
    path = write_tiff(tmp_path / "scene.tif", noise(4, 64, 64), descriptions=("nir", "b", "g", "r"), alpha="no")
    with open_scene(SceneAddress(str(path))) as scene:
        assert choose_bands(scene, SPEC).bands == (4, 3, 2)


def test_bands_that_neither_names_nor_number_fit_are_refused(tmp_path):
    path = write_tiff(tmp_path / "scene.tif", noise(5, 64, 64), photometric="minisblack")
    with (
        open_scene(SceneAddress(str(path))) as scene,
        pytest.raises(PlanError, match=r"has 5 bands .* needs 3 .*--bands"),
    ):
        choose_bands(scene, SPEC)


def test_integers_need_a_scale_where_the_bundle_wants_reflectance(tmp_path):
    bands = tuple(band.model_copy(update={"unit": "reflectance"}) for band in SPEC.bands)
    spec = SPEC.model_copy(update={"bands": bands})
    path = write_tiff(tmp_path / "scene.tif", noise(3, 64, 64))
    with pytest.raises(PlanError, match="does not say how its uint8 numbers become reflectance"):
        plan_of(path, tmp_path, spec)


def test_a_bundle_in_dn_takes_stored_numbers_whatever_the_file_scales(tmp_path):
    path = write_tiff(tmp_path / "scene.tif", noise(3, 64, 64))
    with open_scene(SceneAddress(str(path))) as scene:
        assert radiometry_for(scene, SPEC).scale == (1.0, 1.0, 1.0)


def test_the_nearest_whole_number_of_cores_is_taken():
    grid = TileGrid(10_000, 10_000, tile=1024, halo=64)
    assert [nearest_block(grid, wanted) for wanted in (None, 1, 1024, 4096)] == [1792, 896, 896, 4480]


def test_small_scenes_are_cut_into_smaller_blocks_unless_that_repeats_tiles():
    assert nearest_block(TileGrid(2000, 2000, tile=1024, halo=64), None) == 1792
    assert nearest_block(TileGrid(200, 200, tile=256, halo=64), None) == 256


def test_a_block_does_not_end_just_before_cores_that_share_its_last_tile():
    grid = TileGrid(3904, 3904, tile=2048, halo=64)
    assert (grid.tiles(), grid.tiles(2 * grid.core)) == (4, 9)
    assert nearest_block(grid, None) == 3 * grid.core
    assert nearest_block(TileGrid(39040, 39040, tile=2048, halo=64), None) == 2 * grid.core


def test_the_tile_that_needs_the_fewest_network_pixels_is_chosen():
    spec = drawn_spec(halo=64, tiles=(256, 512, 1024))
    assert cheapest_tile(200, 150, spec, 1024) == 256
    assert cheapest_tile(30_000, 30_000, spec, 1024) == 1024
    assert cheapest_tile(30_000, 30_000, spec, 512) == 512


def test_a_block_is_never_larger_than_the_scene():
    assert nearest_block(TileGrid(2000, 3000, tile=1024, halo=64), 10**9) == 4 * 896


def test_a_worker_reads_as_many_blocks_at_once_as_its_memory_and_cores_pay_for(scene, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.resources.cores", lambda: 64)
    costs = plan_of(scene, tmp_path, block=128).costs
    assert costs.readers == 12
    assert plan_of(scene, tmp_path, block=128, workers=16).costs.readers == 4
    tight = plan_of(scene, tmp_path, block=128, memory=costs.peak_bytes - 1).costs
    assert 1 <= tight.readers < 12
    assert tight.peak_bytes < costs.peak_bytes


def test_one_more_reader_and_writer_pay_for_a_handle_and_for_all_that_two_blocks_hold(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "scene.tif", noise(3, 512, 512), tiled=True, blockxsize=256, blockysize=256)
    costs = []
    for cores in (2, 3):
        monkeypatch.setattr("pipeline.resources.cores", lambda cores=cores: cores)
        costs.append(plan_of(path, tmp_path, block=128).costs)
    assert [cost.readers for cost in costs] == [2, 3]
    read, handle = 256**2 * (3 + 1) + 128**2 * 2, 2 * 3 * 256**2
    written = 128**2 * (2 + 1 + 2)  # two planes, which pixels are valid, and one shard twice
    assert costs[1].peak_bytes - costs[0].peak_bytes == read + handle + written


@pytest.mark.parametrize(
    ("seconds", "alone", "of_two"), [(0.0, 16, 16), (8.0, 2, 2), (1.0, 15, 15), (0.1, 150, 32), (0.01, 256, 32)]
)
def test_a_task_takes_some_seconds_and_every_worker_gets_several(seconds, alone, of_two):
    grid = TileGrid(64 * 16, 64 * 16, 128, 32, 32)
    engine = replace(ENGINE, seconds_per_tile=seconds)
    assert _task_blocks(grid, 64, engine, workers=1) == alone
    assert _task_blocks(grid, 64, engine, workers=2) == of_two
    assert _task_blocks(grid, 64, engine, workers=64) == 1


@pytest.mark.parametrize(
    ("streams", "batch", "core", "seconds", "blocks"),
    [
        pytest.param(1, 1, 64, 20.0, 1, id="one stream"),
        pytest.param(2, 1, 64, 20.0, 2, id="two streams want two tiles"),
        pytest.param(2, 1, 32, 20.0, 1, id="a block holds four"),
        pytest.param(1, 8, 32, 20.0, 2, id="two blocks fill a batch"),
        pytest.param(2, 32, 32, 1.0, 4, id="each worker gets two tasks"),
        pytest.param(2, 32, 32, 20.0, 2, id="and none takes far longer than it should"),
    ],
)
def test_a_task_fills_the_engine_s_streams_evenly(streams, batch, core, seconds, blocks):
    engine = replace(ENGINE, seconds_per_tile=seconds * (core / 64) ** 2, streams=streams, batch=batch)
    grid = TileGrid(64 * 4, 64 * 4, core + 64, 32, 32)
    assert _task_blocks(grid, 64, engine, workers=2) == blocks


def test_one_worker_has_a_scene_of_few_blocks_in_one_task():
    engine = replace(ENGINE, seconds_per_tile=2.0, streams=2)
    assert _task_blocks(TileGrid(128, 128, 128, 32, 32), 64, engine, workers=1) == 4
