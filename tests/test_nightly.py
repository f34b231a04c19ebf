"""An archive, night after night, on real files."""

import json
import shutil
from dataclasses import replace

import pytest
from drawn_bundle import draw_bundle
from drawn_scenes import noise, write_tiff

from pipeline.executors import SerialExecutor
from pipeline.nightly import ArchiveRequest, SceneResult, pending, segment_archive
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.verify import verify

TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}


@pytest.fixture
def night(bundle, tmp_path):
    """Two good scenes and one that is none, and the request to segment them."""
    folder = tmp_path / "archive"
    (folder / "deep").mkdir(parents=True)
    write_tiff(folder / "a.tif", noise(3, 60, 70), **TILED)
    (folder / "b.tif").write_bytes(b"no image at all")
    write_tiff(folder / "deep" / "c.tif", noise(3, 150, 200), **TILED)
    return ask(folder, bundle, tmp_path / "out")


def ask(folder, bundle, out, **changes):
    pattern = SegmentRequest(SceneAddress(""), bundle, out, "", PlanOptions(), "null", tile=128, threads=1)
    return ArchiveRequest(str(folder), pattern, **changes)


def states(report):
    return {result.name: result.status for result in report.results}


def test_a_bad_scene_is_one_line_and_the_others_go_on(night, tmp_path):
    heard = []
    report = segment_archive(night, SerialExecutor(), heard.append)
    assert states(report) == {"a": "done", "b": "failed", "deep/c": "done"}
    (bad,) = report.failed
    assert bad.error.startswith(f"{tmp_path}/archive/b.tif is no raster of a known format")
    assert (tmp_path / "out/deep/c/mask.tif").exists()
    assert {event.name for event in heard if isinstance(event, SceneResult)} == {"a", "b", "deep/c"}
    assert [event.done for event in heard if getattr(event, "phase", None) == "archive"] == [0, 1, 2, 3]


def test_the_report_tells_what_held_the_run_up_over_all_its_scenes(night, tmp_path):
    segment_archive(replace(night, match="a*"), SerialExecutor())
    write_tiff(tmp_path / "archive/e.tif", noise(3, 60, 70), **TILED)
    report = segment_archive(replace(night, pattern=replace(night.pattern, keep_staged=True)), SerialExecutor())
    assert report.counts == {"done": 2, "unchanged": 1, "failed": 1}  # one after the other, each with its own tasks
    found, seconds = report.bottleneck, report.bottleneck["seconds"]
    assert (found["together"], found["workers"]) == (2, 1)
    speed = (150 * 200 + 60 * 70) / 1e6 / found["wall"]
    assert found["megapixels_per_second"] == pytest.approx(speed, rel=0.05, abs=1e-3)  # told to three places
    assert min(seconds["engine"] + seconds["waiting_for_input"], seconds["publish"]) > 0
    assert found["engine_share"] + sum(found["losses"].values()) == pytest.approx(1, abs=0.01)


def test_small_scenes_count_into_the_report_and_a_night_without_news_has_none(night):
    found = segment_archive(night, SerialExecutor()).bottleneck
    assert (found["together"], found["workers"]) == (2, 1)
    assert min(found["seconds"]["open"], found["seconds"]["publish"], found["megapixels_per_second"]) > 0
    assert segment_archive(night, SerialExecutor()).bottleneck is None


def test_the_report_lies_in_the_folder_of_outputs(night, tmp_path):
    report = segment_archive(night, SerialExecutor())
    told = json.loads((tmp_path / "out/archive.json").read_text())
    assert told == json.loads(json.dumps(report.to_json()))
    assert (told["schema"], told["counts"]) == (2, {"done": 2, "unchanged": 0, "failed": 1})
    links = json.loads((tmp_path / "out/collection.json").read_text())["links"]
    assert [link["href"] for link in links if link["rel"] == "item"] == ["./a/item.json", "./deep/c/item.json"]


def test_a_collection_leads_to_all_results_and_forgets_removed_scenes(night, tmp_path):
    def linked():
        links = json.loads((tmp_path / "out/collection.json").read_text())["links"]
        return [link["href"] for link in links if link["rel"] == "item"]

    segment_archive(night, SerialExecutor())
    assert linked() == ["./a/item.json", "./deep/c/item.json"]
    (tmp_path / "archive/a.tif").unlink()
    segment_archive(replace(night, match="deep/*"), SerialExecutor())
    assert linked() == ["./a/item.json", "./deep/c/item.json"]
    segment_archive(night, SerialExecutor())
    assert linked() == ["./deep/c/item.json"]


def test_the_second_night_does_only_what_is_new_or_has_changed(night, tmp_path):
    segment_archive(night, SerialExecutor())
    folder = tmp_path / "archive"
    write_tiff(folder / "a.tif", noise(3, 60, 70, seed=1), **TILED)
    write_tiff(folder / "d.tif", noise(3, 60, 70), **TILED)
    assert [entry.name for entry in pending(night)] == ["a", "b", "d"]
    report = segment_archive(night, SerialExecutor())
    assert states(report) == {"a": "done", "b": "failed", "d": "done", "deep/c": "unchanged"}


def test_other_bands_are_another_question(night, bundle, tmp_path):
    segment_archive(night, SerialExecutor())
    pattern = SegmentRequest(
        SceneAddress("", (3, 2, 1)), bundle, tmp_path / "out", "", PlanOptions(), "null", tile=128, threads=1
    )
    assert len(pending(ArchiveRequest(night.archive, pattern))) == 3


def test_a_result_that_answers_another_question_too_is_looked_at_once(night, tmp_path):
    scene = SceneAddress(str(tmp_path / "archive/a.tif"))
    segment_scene(replace(night.pattern, scene=scene, name="a"), SerialExecutor())
    assert "a" in {entry.name for entry in pending(night)}
    assert states(segment_archive(night, SerialExecutor()))["a"] == "unchanged"
    assert [entry.name for entry in pending(night)] == ["b"]
    assert verify(tmp_path / "out/a").problems == ()


@pytest.mark.parametrize("name", ["mask.tif", "item.json"])
def test_a_result_without_its_mask_or_its_item_is_made_anew(night, tmp_path, name):
    segment_archive(night, SerialExecutor())
    (tmp_path / "out/deep/c" / name).unlink()
    assert [entry.name for entry in pending(night)] == ["b", "deep/c"]
    assert states(segment_archive(night, SerialExecutor()))["deep/c"] == "done"
    assert (tmp_path / "out/deep/c" / name).is_file()


def test_an_archive_may_be_named_by_another_path(night, bundle, tmp_path):
    segment_archive(night, SerialExecutor())
    (tmp_path / "link").symlink_to("archive")
    write_tiff(tmp_path / "archive/a.tif", noise(3, 60, 70, seed=1), **TILED)
    report = segment_archive(ask(tmp_path / "link", bundle, tmp_path / "out"), SerialExecutor())
    assert states(report) == {"a": "done", "b": "failed", "deep/c": "unchanged"}


def test_another_bundle_is_for_new_scenes_unless_a_backfill_is_asked_for(night, tmp_path):
    segment_archive(night, SerialExecutor())
    draw_bundle(tmp_path / "other", seed=1, halo=32, tiles=(128, 256))
    folder, out = tmp_path / "archive", tmp_path / "out"
    assert [entry.name for entry in pending(ask(folder, tmp_path / "other", out))] == ["b"]
    report = segment_archive(ask(folder, tmp_path / "other", out, backfill=True), SerialExecutor())
    assert states(report) == {"a": "done", "b": "failed", "deep/c": "done"}


def test_a_check_finds_a_damaged_result_and_mends_it(night, bundle, tmp_path):
    segment_archive(night, SerialExecutor())
    (tmp_path / "out/a/mask.tif").write_bytes(b"torn")
    shutil.rmtree(tmp_path / "archive/deep")
    assert [entry.name for entry in pending(night)] == ["b"]
    report = segment_archive(ask(tmp_path / "archive", bundle, tmp_path / "out", check=True), SerialExecutor())
    assert states(report) == {"a": "done", "b": "failed"}
    assert pending(night)[0].name == "b"
