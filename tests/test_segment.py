"""The whole job on real files with a real engine and real workers; killed where it hurts."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
from drawn_scenes import noise, write_tiff
from filelock import FileLock

from pipeline.errors import IncompleteError, OutputError, PlanError, SceneError
from pipeline.executors import DaskExecutor, SerialExecutor
from pipeline.ledger import Ledger
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest, plan_request, segment_scene
from pipeline.verify import verify

SHAPE = (420, 500)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    pixels = noise(3, *SHAPE)
    pixels[:, 100:180, 300:] = 0
    folder = tmp_path_factory.mktemp("scenes")
    return write_tiff(folder / "scene.tif", pixels, nodata=0, tiled=True, blockxsize=128, blockysize=128)


def request(scene, bundle, out, **changes):
    options = {key: changes.pop(key) for key in ("block", "stage", "workers") if key in changes}
    return SegmentRequest(
        scene=SceneAddress(str(scene)),
        bundle=bundle,
        out=out,
        name=scene.stem,
        options=PlanOptions(**{"stage": False, **options}),
        **{"backend": "torch", "precision": "fp32", "tile": 128, "threads": 1, **changes},
    )


def digest(result):
    """Of the mask's pixels."""
    with rasterio.open(result / "mask.tif") as mask, rasterio.open(result / "confidence.tif") as confidence:
        return hashlib.sha256(mask.read(1).tobytes() + confidence.read(1).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def reference(scene, bundle, tmp_path_factory):
    """A plain run: one process, one block size, the scene read where it lies."""
    out = tmp_path_factory.mktemp("reference")
    facts = segment_scene(request(scene, bundle, out), SerialExecutor())
    return out / "scene", facts


def test_the_outputs_are_all_there_and_tell_the_same(reference):
    folder, facts = reference
    names = {"mask.tif", "mask.tif.aux.xml", "confidence.tif", "item.json", "preview.png", "mask.qml", "run.json"}
    assert names <= {path.name for path in folder.iterdir()}
    assert facts["coverage"]["valid"] == facts["coverage"]["classified"] == SHAPE[0] * SHAPE[1] - 80 * 200
    with rasterio.open(folder / "mask.tif") as mask:
        labels = mask.read(1)
    assert [entry["pixels"] for entry in facts["classes"]] == [int((labels == k).sum()) for k in range(3)]
    assert json.loads((folder / "run.json").read_text())["key"] == facts["key"]


def test_a_run_tells_where_its_time_went_and_what_held_it_up(reference):
    _, facts = reference
    found, speed = facts["bottleneck"], facts["speed"]["seconds"]
    assert found["limit"] in {"engine", "input", "output", "start", "publish"}
    assert found["advice"]
    engine = sum(found["seconds"][key] for key in ("engine", "waiting_for_input", "waiting_for_output", "handling"))
    assert 0 < engine <= speed["segment"] * found["workers"] + 0.01
    assert found["seconds"]["publish"] == speed["publish"]
    share = found["engine_share"] * speed["segment"] / (speed["segment"] + speed["publish"])
    assert share + sum(found["losses"].values()) == pytest.approx(1, abs=0.01)


def test_the_mask_lies_where_the_scene_lies_and_is_nodata_where_it_is_invalid(reference, scene):
    folder, _ = reference
    with rasterio.open(folder / "mask.tif") as mask, rasterio.open(scene) as source:
        assert (mask.crs, mask.transform, mask.shape) == (source.crs, source.transform, source.shape)
        np.testing.assert_array_equal(mask.read(1) == 255, source.read().max(0) == 0)


@pytest.mark.parametrize("changes", [{"block": 64}, {"block": 192}, {"stage": True}, {"block": 999, "stage": True}])
def test_the_mask_depends_neither_on_the_block_nor_on_staging(reference, scene, bundle, tmp_path, changes):
    segment_scene(request(scene, bundle, tmp_path, **changes), SerialExecutor())
    assert digest(tmp_path / "scene") == digest(reference[0])


@pytest.fixture(scope="module")
def cluster():
    with DaskExecutor(workers=2) as executor:
        yield executor


@pytest.mark.xdist_group("dask")
@pytest.mark.parametrize("stage", [False, True])
def test_the_mask_does_not_depend_on_the_number_of_workers(reference, bundle, tmp_path, cluster, stage):
    folder, plain = reference
    scene = Path(plain["scene"]["path"])
    facts = segment_scene(request(scene, bundle, tmp_path, block=64, stage=stage), cluster)
    assert digest(tmp_path / "scene") == digest(folder)
    assert facts["blocks"]["done"] == facts["blocks"]["total"] == 56


def test_with_nothing_left_to_do_nothing_is_done(reference, scene, bundle):
    folder, facts = reference
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = segment_scene(request(scene, bundle, folder.parent), SerialExecutor())
    assert again == {**facts, "unchanged": True}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_damaged_block_of_a_published_result_is_the_only_one_done_again(scene, bundle, tmp_path):
    facts = segment_scene(request(scene, bundle, tmp_path, block=128), SerialExecutor())
    shard = next(path for path in (tmp_path / "scene/mask.zarr/labels/c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-9] + b"corrupted")
    again = segment_scene(request(scene, bundle, tmp_path, block=128), SerialExecutor())
    assert again["blocks"] == {"total": facts["blocks"]["total"], "resumed": facts["blocks"]["total"] - 1, "done": 1}


def test_a_new_result_replaces_the_old_one_and_nothing_is_left_beside(scene, bundle, tmp_path):
    segment_scene(request(scene, bundle, tmp_path, backend="null"), SerialExecutor())
    facts = segment_scene(request(scene, bundle, tmp_path), SerialExecutor())
    assert json.loads((tmp_path / "scene/run.json").read_text())["key"] == facts["key"]
    assert [path.name for path in (tmp_path / ".widefield/runs/scene").iterdir()] == ["lock"]


def test_a_folder_that_is_no_result_is_never_replaced(scene, bundle, tmp_path):
    own = tmp_path / "scene" / "scene.tif"
    own.parent.mkdir()
    own.write_bytes(scene.read_bytes())
    with pytest.raises(OutputError, match=r"holds scene.tif, which is no part of a result"):
        segment_scene(request(own, bundle, tmp_path, backend="null"), SerialExecutor())
    assert own.read_bytes() == scene.read_bytes()


def test_a_lost_or_damaged_file_of_a_published_result_is_made_again(scene, bundle, tmp_path):
    one = request(scene, bundle, tmp_path, backend="null")
    facts = segment_scene(one, SerialExecutor())
    (tmp_path / "scene/mask.tif").write_bytes(b"damaged")
    shutil.rmtree(tmp_path / "scene/mask.zarr/confidence")
    again = segment_scene(one, SerialExecutor())
    assert again["blocks"]["done"] == facts["blocks"]["total"]
    assert verify(tmp_path / "scene").problems == ()


def test_a_replaced_result_that_was_not_swept_is_not_taken_for_a_run(reference, scene, bundle, tmp_path):
    segment_scene(request(scene, bundle, tmp_path, backend="null", block=128), SerialExecutor())
    one = request(scene, bundle, tmp_path, block=128)
    left = one.workshop / plan_request(one).key[:16]
    shutil.move(tmp_path / "scene", left)  # as after an exchange whose sweep was killed halfway
    next(path for path in (left / "mask.zarr/labels/c").rglob("*") if path.is_file()).unlink()
    facts = segment_scene(one, SerialExecutor())
    assert facts["blocks"]["resumed"] == 0
    assert digest(tmp_path / "scene") == digest(reference[0])


def test_tasks_name_their_run_whatever_the_working_folder_of_a_worker(scene, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    class Noting(SerialExecutor):
        def run(self, function, tasks, run):
            return super().run(lambda task: seen.append(task.run) or function(task), tasks, run)

    segment_scene(request(scene, bundle, Path("out"), backend="null"), Noting())
    assert all(Path(run).is_absolute() for run in seen)


def test_a_scene_that_changes_during_a_run_is_not_mixed_into_its_result(scene, bundle, tmp_path):
    changing = tmp_path / "scene.tif"
    changing.write_bytes(scene.read_bytes())

    class Changing(SerialExecutor):
        def run(self, function, tasks, run):
            for outcome in super().run(function, tasks, run):
                changing.touch()
                yield outcome

    with pytest.raises(IncompleteError, match="has changed since this run was planned"):
        segment_scene(request(changing, bundle, tmp_path / "out", backend="null", block=64), Changing())
    assert not (tmp_path / "out/scene").exists()


def test_two_runs_cannot_write_one_output(scene, bundle, tmp_path):
    one = request(scene, bundle, tmp_path, backend="null")
    one.workshop.mkdir(parents=True)
    with FileLock(one.workshop / "lock"), pytest.raises(OutputError, match=r"another run holds .*: wait for it"):
        segment_scene(one, SerialExecutor())


def test_a_result_is_not_replaced_by_that_of_another_scene_of_the_same_name(scene, bundle, tmp_path):
    out = tmp_path / "out"
    segment_scene(request(scene, bundle, out, backend="null"), SerialExecutor())
    other = write_tiff(tmp_path / "scene.tif", noise(3, 64, 64))
    with pytest.raises(OutputError, match=r"is the result of .*: choose another --out"):
        segment_scene(request(other, bundle, out, backend="null"), SerialExecutor())


def test_a_part_that_cannot_be_read_fails_alone_and_a_rerun_tries_only_that(bundle, tmp_path):
    layout = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    broken = write_tiff(tmp_path / "scene.tif", noise(3, *SHAPE), **layout)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) * 7 // 10] + bytes(len(whole) - len(whole) * 7 // 10))
    one = request(broken, bundle, tmp_path / "out", backend="null", block=64)
    with pytest.raises(
        IncompleteError, match=r"(\d+) of 56 blocks failed, nothing was published.*truncated or corrupt"
    ):
        segment_scene(one, SerialExecutor())
    assert not (tmp_path / "out/scene").exists()
    run = one.workshop / plan_request(one).key[:16]
    done = Ledger(run / "ledger").records()
    assert 10 < len(done) < 56
    written = {path: path.stat().st_mtime_ns for path in (run / "mask.zarr/labels/c").rglob("*")}
    with pytest.raises(IncompleteError):
        segment_scene(one, SerialExecutor())
    assert Ledger(run / "ledger").records() == done
    assert {path: path.stat().st_mtime_ns for path in (run / "mask.zarr/labels/c").rglob("*")} == written


class FailingOnce(SerialExecutor):
    """The first try of one output fails, as if a neighbour had taken its worker down."""

    tried = ()

    def run(self, function, tasks, run):
        def once(task):
            self.tried = (*self.tried, (task.name, task.alone))
            if task.name == "publish-labels" and not task.alone:
                raise SceneError("it killed the worker that ran it")
            return function(task)

        yield from super().run(once, tasks, run)


def test_an_output_that_fails_is_tried_once_more_by_itself(scene, bundle, tmp_path):
    executor = FailingOnce()
    segment_scene(request(scene, bundle, tmp_path, backend="null"), executor)
    tries = [alone for name, alone in executor.tried if name.startswith("publish-labels")]
    assert tries == [False, True]
    assert not verify(tmp_path / "scene").problems


def test_a_bundle_for_other_bands_is_refused_before_anything_runs(bundle, tmp_path):
    path = write_tiff(tmp_path / "scene.tif", noise(1, 64, 64))
    with pytest.raises(PlanError, match=r"has 1 bands .*, bundle 'drawn' needs 3"):
        segment_scene(request(path, bundle, tmp_path / "out"), SerialExecutor())
    assert not (tmp_path / "out").exists()


COMMAND = [sys.executable, "-c", "from flows.cli import main; main()", "segment"]


def start(scene, bundle, out, workers):
    arguments = ["--bundle", bundle, "--out", out, "--engine", "torch", "--precision", "fp32", "--tile", "128"]
    more = ["--threads", "1", "--block", "64", "--workers", str(workers), "--stage", "always", "--json"]
    return subprocess.Popen([*COMMAND, scene, *arguments, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_records(out, count, process):
    """Until at least `count` blocks are recorded; returns the ledger."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for folder in (out / ".widefield/runs").rglob("ledger"):
            ledger = Ledger(folder)
            if len(ledger.records()) >= count:
                return ledger
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=10)[1].decode())


@pytest.fixture(scope="module")
def large(bundle, tmp_path_factory):
    """A scene that takes some seconds, and the digest of its undisturbed mask."""
    folder = tmp_path_factory.mktemp("large")
    path = write_tiff(folder / "large.tif", noise(3, 900, 1000), tiled=True, blockxsize=256, blockysize=256)
    segment_scene(request(path, bundle, folder, block=256), SerialExecutor())
    return path, digest(folder / "large")


@pytest.mark.xdist_group("dask")
def test_a_killed_worker_changes_nothing(large, bundle, tmp_path):
    path, expected = large
    process = start(path, bundle, tmp_path, workers=2)
    wait_for_records(tmp_path, 5, process)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    workers[-1].kill()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert json.loads(output)["coverage"]["written"] == 900 * 1000
    assert digest(tmp_path / "large") == expected


@pytest.mark.xdist_group("dask")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_client_loses_nothing_that_is_recorded(large, bundle, tmp_path, workers):
    path, expected = large
    process = start(path, bundle, tmp_path, workers)
    ledger = wait_for_records(tmp_path, 20, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    time.sleep(1)  # workers notice within a fraction of a second
    recorded = len(ledger.records())
    again = start(path, bundle, tmp_path, workers)
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors.decode()
    blocks = json.loads(output)["blocks"]
    assert blocks["resumed"] == recorded >= 20
    assert blocks["done"] == blocks["total"] - recorded
    assert digest(tmp_path / "large") == expected
