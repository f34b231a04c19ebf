"""Small scenes in one task: the same bytes as alone, in batches that several of them share."""

import hashlib
import json
import os
import signal
import sys

import numpy as np
import pytest
import rasterio
from drawn_scenes import noise, write_tiff

from models.engines.null import NullEngine
from pipeline import together
from pipeline.executors import DaskExecutor, Outcome, SerialExecutor
from pipeline.many import ManyScenes, Wanted, _Groups
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, segment_scene
from pipeline.together import GroupTask, perform_group

SIZES = [(60, 70), (128, 128), (90, 200), (110, 120), (33, 40), (100, 64)]


def request(path, bundle, out, **changes):
    chosen = {"backend": "torch", "precision": "fp32", "tile": 128, "threads": 1, "batch": 4, **changes}
    return SegmentRequest(SceneAddress(str(path)), bundle, out, path.stem, PlanOptions(), **chosen)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six scenes of one to four tiles, of several sizes."""
    folder = tmp_path_factory.mktemp("small")
    return [write_tiff(folder / f"s{n}.tif", noise(3, *size, seed=n)) for n, size in enumerate(SIZES)]


def masks(out, scenes):
    digests = []
    for scene in scenes:
        with (
            rasterio.open(out / scene.stem / "mask.tif") as mask,
            rasterio.open(out / scene.stem / "confidence.tif") as c,
        ):
            digests.append(hashlib.sha256(mask.read(1).tobytes() + c.read(1).tobytes()).hexdigest())
    return digests


def test_together_or_alone_the_bytes_are_the_same(scenes, bundle, tmp_path):
    for scene in scenes:
        segment_scene(request(scene, bundle, tmp_path / "alone"), SerialExecutor())
    requests = tuple(request(scene, bundle, tmp_path / "together") for scene in scenes)
    report = perform_group(GroupTask(requests, str(tmp_path)))
    assert [result.status for result in report.results] == ["done"] * 6
    assert masks(tmp_path / "together", scenes) == masks(tmp_path / "alone", scenes)


def bottlenecks(out, names):
    return [json.loads((out / name / "run.json").read_text())["bottleneck"] for name in names]


def test_scenes_that_share_an_engine_tell_what_held_all_of_them_up(scenes, bundle, tmp_path):
    requests = tuple(request(scene, bundle, tmp_path, backend="null") for scene in scenes)
    effort = perform_group(GroupTask(requests, str(tmp_path))).effort
    found = bottlenecks(tmp_path, [scene.stem for scene in scenes])
    pixels = sum(height * width for height, width in SIZES)
    assert (effort.together, effort.pixels, {each["together"] for each in found}) == (6, pixels, {6})
    shared = [{**each["seconds"], "publish": 0, "idle": 0} for each in found]
    assert shared == shared[:1] * 6
    for each in found:
        segment = each["wall"] - each["seconds"]["publish"]
        assert each["megapixels_per_second"] == pytest.approx(pixels / 1e6 / segment, rel=0.05, abs=1e-3)
        share = each["engine_share"] * segment / each["wall"]
        assert share + sum(each["losses"].values()) == pytest.approx(1, abs=0.01)
    assert {kind for kind, _ in effort.others} == {"open", "prepare", "publish"}


def test_a_group_waits_for_a_gpu_unless_its_scenes_are_for_the_processor(scenes, bundle, tmp_path):
    for target, gpu in (("auto", True), ("cuda", True), ("cpu", False)):
        requests = tuple(request(scene, bundle, tmp_path, target=target) for scene in scenes[:2])
        assert GroupTask(requests, str(tmp_path)).gpu is gpu


def test_batches_hold_tiles_of_several_scenes(scenes, bundle, tmp_path, monkeypatch):
    batches = []

    def watched(engine, given):
        for batch in given:
            batches.append(batch.pixels.shape[0])
            yield np.zeros((batch.pixels.shape[0], 2, 128, 128), np.uint8)

    monkeypatch.setattr(NullEngine, "map", watched)
    requests = tuple(request(scene, bundle, tmp_path, backend="null") for scene in scenes)
    report = perform_group(GroupTask(requests, str(tmp_path)))
    assert len(report.results) == 6
    tiles = sum(batches)
    assert batches == [4] * (tiles // 4) + [tiles % 4] * bool(tiles % 4)


def test_a_failure_in_one_scene_is_its_own(scenes, bundle, tmp_path):
    torn = write_tiff(tmp_path / "torn.tif", noise(3, 120, 120), compress="deflate")
    torn.write_bytes(torn.read_bytes()[:20_000])
    requests = tuple(
        request(scene, bundle, tmp_path / "out", backend="null") for scene in [*scenes[:2], torn, scenes[2]]
    )
    report = perform_group(GroupTask(requests, str(tmp_path)))
    assert {result.name: result.status for result in report.results} == {
        "s0": "done", "s1": "done", "torn": "failed", "s2": "done"
    }  # fmt: skip
    assert report.effort.pixels == sum(height * width for height, width in SIZES[:3])  # no block counts twice
    for each in bottlenecks(tmp_path / "out", ["s0", "s1", "s2"]):
        told = sum(each["seconds"][part] for part in ("start", "engine", "waiting_for_input", "waiting_for_output"))
        assert 0 < told <= each["wall"] - each["seconds"]["publish"] + 0.01


def test_a_large_scene_is_handed_back_and_done_by_itself(scenes, bundle, tmp_path):
    large = write_tiff(tmp_path / "large.tif", noise(3, 400, 400), tiled=True, blockxsize=128, blockysize=128)
    requests = [request(path, bundle, tmp_path / "out", backend="null") for path in (scenes[0], large)]
    report = perform_group(GroupTask(tuple(requests), str(tmp_path)))
    assert report.large == ("large",)
    many = ManyScenes(SerialExecutor(), lambda _: None, 2)
    many.work([Wanted(each, None) for each in requests], tmp_path / "out")
    assert {result.name: result.status for result in many.results} == {"s0": "unchanged", "large": "done"}


def test_scenes_for_which_there_was_no_time_come_again(scenes, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "CHUNK", 2)
    monkeypatch.setattr(together, "TASK_SECONDS", 0.0)
    groups = _Groups([request(scene, bundle, tmp_path, backend="null") for scene in scenes], SerialExecutor(), "")
    first = next(groups)
    report = perform_group(first)
    events = groups.finish(Outcome(first, report))
    assert len(events) + len(report.left) == len(first.requests)
    while (task := next(groups)) is not None:
        events += groups.finish(Outcome(task, perform_group(task)))
    assert sorted(event.name for event in events) == [f"s{n}" for n in range(6)]


def deadly(task):
    if any(each.name == "s2" for each in task.requests):
        os.kill(os.getpid(), signal.SIGKILL)
    return perform_group(task)


@pytest.mark.xdist_group("dask")
def test_a_group_that_dies_is_done_again_scene_by_scene(scenes, bundle, tmp_path, monkeypatch):
    from distributed.protocol.pickle import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("pipeline.many.perform_group", deadly)
    with DaskExecutor(workers=2) as executor:
        many = ManyScenes(executor, lambda _: None, 6)
        many.work([Wanted(request(each, bundle, tmp_path, backend="null"), None) for each in scenes], tmp_path)
    assert {result.name for result in many.results if result.status == "failed"} == {"s2"}
    assert len(many.results) == 6
