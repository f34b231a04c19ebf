import json
import random
import shutil

import pytest
import rasterio
from affine import Affine
from drawn_scenes import noise, write_tiff

from pipeline.errors import UsageError
from pipeline.executors import SerialExecutor
from pipeline.ledger import Ledger
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.verify import results, verify

PUBLISHED = ("mask.tif", "mask.tif.aux.xml", "confidence.tif", "preview.png", "mask.qml", "run.json")


@pytest.fixture(scope="module")
def made(bundle, tmp_path_factory):
    """A published result of four blocks."""
    folder = tmp_path_factory.mktemp("made")
    scene = SceneAddress(str(write_tiff(folder / "scene.tif", noise(3, 300, 310))))
    request = SegmentRequest(scene, bundle, folder / "o", "scene", PlanOptions(block=192), backend="null")
    segment_scene(request, SerialExecutor())
    return request.folder


@pytest.fixture
def result(made, tmp_path):
    return shutil.copytree(made, tmp_path / "result")


def flip(path, at):
    """Change one bit of the byte at the share `at` of a file."""
    content = bytearray(path.read_bytes())
    content[round(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def test_a_result_as_it_was_made_is_well(result):
    verdict = verify(result)
    assert (verdict.blocks, verdict.problems, verdict.notes) == (4, (), ())


@pytest.mark.parametrize("at", [0.0, 0.13, 0.5, 0.86, 1.0])
@pytest.mark.parametrize("plane", ["labels", "confidence"])
@pytest.mark.parametrize(("row", "col"), [(0, 0), (1, 1)])
def test_a_flipped_bit_in_a_stored_shard_is_found_with_its_block(result, plane, row, col, at):
    flip(result / "mask.zarr" / plane / "c" / str(row) / str(col), at)
    where = f"block at row {192 * row}, column {192 * col}"
    assert verify(result).problems == (
        f"{where}: its bytes in mask.zarr have changed or are missing: segment again to mend it",
    )


def test_sixty_random_flipped_bits_are_all_found_and_mended_bits_are_well_again(result):
    rng = random.Random(60)
    shards = sorted(path for path in (result / "mask.zarr").rglob("c/*/*"))
    for _ in range(60):
        shard, at = rng.choice(shards), rng.random()
        flip(shard, at)
        row, col = (192 * int(part) for part in shard.parts[-2:])
        assert [problem.split(":")[0] for problem in verify(result).problems] == [f"block at row {row}, column {col}"]
        flip(shard, at)
    assert verify(result).problems == ()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_flipped_bit_in_a_published_file_is_found(result, name):
    flip(result / name, 0.6)
    assert f"{name}: its bytes have changed" in verify(result).problems


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_file_is_found(result, name):
    (result / name).unlink()
    assert f"{name}: missing" in verify(result).problems


def test_a_missing_shard_is_found_with_its_block(result):
    (result / "mask.zarr" / "labels" / "c" / "1" / "0").unlink()
    (problem,) = verify(result).problems
    assert problem.startswith("block at row 192, column 0: ")


def test_a_block_without_a_record_is_found(result):
    ledger = Ledger(result / "ledger")
    records = list(ledger.records().values())
    ledger.compact(records[1:])
    assert f"block at row {records[0].row}, column {records[0].col}: no record" in verify(result).problems


def test_a_changed_georeference_is_found(result):
    with rasterio.open(result / "mask.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        mask.transform = Affine(0.5, 0, 500001, 0, -0.5, 4600000)
        mask.crs = "EPSG:32634"
    problems = verify(result).problems
    assert any(problem.startswith("mask.tif has transform (0.5, 0.0, 500001.0") for problem in problems)
    assert "mask.tif has another CRS than the scene" in problems


def test_a_changed_georeference_of_the_store_is_found(result):
    path = result / "mask.zarr" / "zarr.json"
    path.write_text(path.read_text().replace("500000.0", "500007.0"))
    assert verify(result).problems == ("mask.zarr: its georeference is not that of plan.json",)


@pytest.mark.parametrize("name", ["plan.json", "item.json", "mask.zarr/zarr.json", "mask.zarr/labels/zarr.json"])
def test_records_that_cannot_be_read_are_a_problem_and_not_a_crash(result, name):
    (result / name).write_text('{"torn": ')
    problems = verify(result).problems
    assert problems
    assert all("\n" not in problem for problem in problems)


def test_a_plan_that_was_changed_by_hand_is_found(result):
    facts = json.loads((result / "plan.json").read_text())
    facts["radiometry"]["scale"] = [2.0, 2.0, 2.0]
    (result / "plan.json").write_text(json.dumps(facts))
    assert "plan.json: it has changed, its key does not fit what it says" in verify(result).problems


def test_a_scene_that_is_gone_is_a_note(result, made):
    facts = json.loads((result / "plan.json").read_text())
    facts["scene"]["path"] = str(made / "gone.tif")
    (result / "plan.json").write_text(json.dumps(facts))
    verdict = verify(result)
    assert verdict.problems == ()
    assert "gone.tif: no such file" in verdict.notes[0]


def test_results_are_found_below_a_folder_and_hidden_ones_are_not(made):
    shutil.copytree(made, made.parent / ".widefield" / "runs" / "scene" / "killed", dirs_exist_ok=True)
    assert results(made.parent) == [made]
    with pytest.raises(UsageError, match="no result at or below"):
        results(made / "ledger")
