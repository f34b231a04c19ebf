import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from drawn_scenes import noise, write_tiff

from pipeline.errors import UnreadableError
from pipeline.grid import Window
from pipeline.scene import SceneAddress, open_scene
from pipeline.staging import StageCache, stage_window, stage_windows, staged_windows
from pipeline.store import create_image, open_image

TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32}


def scene_of(tmp_path, pixels, name="a.tif", **profile):
    return open_scene(SceneAddress(str(write_tiff(tmp_path / name, pixels, **profile))))


def stage_all(scene, path):
    for window in stage_windows(scene, shard=64):
        stage_window(scene.address, path, window)


def stored(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def covered(scene, windows):
    count = np.zeros((scene.height, scene.width), int)
    for window in windows:
        count[window.slices] += 1
    return count


def test_strips_are_staged_in_full_width_bands(tmp_path):
    scene = scene_of(tmp_path, noise(1, 300, 250), blockysize=10)
    windows = stage_windows(scene, shard=64)
    assert windows[0] == Window(0, 0, 64, 250)
    assert (covered(scene, windows) == 1).all()


def test_tiles_are_staged_shard_by_shard_and_large_ones_whole(tmp_path):
    small = scene_of(tmp_path, noise(1, 300, 250), **TILED)
    assert stage_windows(small, shard=64)[1] == Window(0, 64, 64, 64)
    large = scene_of(tmp_path, noise(1, 300, 250), "b.tif", tiled=True, blockxsize=128, blockysize=128)
    assert stage_windows(large, shard=64)[1] == Window(0, 128, 128, 122)
    for scene in (small, large):
        assert (covered(scene, stage_windows(scene, shard=64)) == 1).all()


def test_no_window_holds_more_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.staging.STAGE_BYTES", 64 * 64 * 4 * 3)
    scene = scene_of(tmp_path, noise(3, 300, 700, dtype="uint8"), blockysize=100)
    windows = stage_windows(scene, shard=64)
    assert (covered(scene, windows) == 1).all()
    assert max(window.pixels * 4 for window in windows) <= 64 * 64 * 4 * 3


@pytest.mark.parametrize("profile", [TILED, {"blockysize": 7, "compress": "deflate"}, {"nodata": 3}])
def test_a_staged_scene_reads_as_the_scene(tmp_path, profile):
    scene = scene_of(tmp_path, noise(2, 200, 150, dtype="uint16"), **profile)
    create_image(tmp_path / "image.zarr", scene, chunk=32, shard=64)
    stage_all(scene, tmp_path / "image.zarr")
    for window in (Window(0, 0, 200, 150), Window(50, 60, 70, 80)):
        for got, expected in zip(open_image(tmp_path / "image.zarr").read(window), scene.read(window), strict=True):
            assert np.array_equal(got, expected)


def test_a_window_of_the_address_is_staged_alone(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 200, 150), **TILED)
    scene = open_scene(SceneAddress(str(path), window=Window(13, 17, 100, 90)))
    create_image(tmp_path / "image.zarr", scene, chunk=32, shard=64)
    stage_all(scene, tmp_path / "image.zarr")
    staged = open_image(tmp_path / "image.zarr")
    assert staged.georef == scene.georef
    assert np.array_equal(staged.read(Window(0, 0, 100, 90))[0], scene.read(Window(0, 0, 100, 90))[0])


def test_a_staged_window_is_marked_and_not_staged_again(tmp_path):
    scene, path = scene_of(tmp_path, noise(1, 100, 100), **TILED), tmp_path / "image.zarr"
    create_image(path, scene, chunk=32, shard=64)
    first = stage_windows(scene, shard=64)[0]
    assert staged_windows(path) == set()
    stage_window(scene.address, path, first)
    assert staged_windows(path) == {first}
    before = (path / "pixels/c/0/0/0").stat().st_ino
    stage_window(scene.address, path, first)
    assert (path / "pixels/c/0/0/0").stat().st_ino == before


def test_a_scene_that_changes_meanwhile_is_refused(tmp_path):
    scene, path = scene_of(tmp_path, noise(1, 100, 100), **TILED), tmp_path / "image.zarr"
    create_image(path, scene, chunk=32, shard=64)
    write_tiff(tmp_path / "a.tif", noise(1, 100, 100, seed=1), **TILED)
    with pytest.raises(UnreadableError, match="has changed while it was being staged"):
        stage_window(scene.address, path, Window(0, 0, 64, 64))


def test_threads_stage_the_same_bytes_as_one(tmp_path):
    scene = scene_of(tmp_path, noise(3, 150, 150), nodata=3, **TILED)
    for name in ("one.zarr", "four.zarr"):
        create_image(tmp_path / name, scene, chunk=32, shard=64)
    stage_all(scene, tmp_path / "one.zarr")
    threads = [threading.Thread(target=stage_all, args=(scene, tmp_path / "four.zarr")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(tmp_path / "one.zarr") == stored(tmp_path / "four.zarr")


def test_a_killed_stage_restarts_to_the_same_bytes(tmp_path):
    scene = scene_of(tmp_path, noise(3, 320, 320), **TILED)
    for name in ("whole.zarr", "killed.zarr"):
        create_image(tmp_path / name, scene, chunk=32, shard=64)
    code = f"""
from pipeline.staging import stage_window, stage_windows
from pipeline.scene import SceneAddress, open_scene
scene = open_scene(SceneAddress({scene.address.path!r}))
for window in stage_windows(scene, shard=64):
    stage_window(scene.address, {str(tmp_path / "killed.zarr")!r}, window)
    print(window, flush=True)
"""
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as process:
        for _ in range(5):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert 5 <= len(staged_windows(tmp_path / "killed.zarr")) < 25
    for name in ("whole.zarr", "killed.zarr"):
        stage_all(scene, tmp_path / name)
    killed = {k: v for k, v in stored(tmp_path / "killed.zarr").items() if not k.endswith(".partial")}
    assert killed == stored(tmp_path / "whole.zarr")


def test_the_cache_keeps_what_it_is_told_to(tmp_path):
    scene, cache = scene_of(tmp_path, noise(1, 100, 100)), StageCache(tmp_path / "cache")
    with cache.hold(scene, keep=True) as first:
        stage_window(scene.address, first, stage_windows(scene)[0])
    with cache.hold(scene, keep=False) as second:
        assert second == first
        assert staged_windows(second) == set(stage_windows(scene))
    assert cache.sizes() == {}


def test_a_failed_run_finds_what_it_staged(tmp_path):
    scene, cache = scene_of(tmp_path, noise(1, 100, 100)), StageCache(tmp_path / "cache")
    with pytest.raises(RuntimeError), cache.hold(scene, keep=False):
        raise RuntimeError
    assert len(cache.sizes()) == 1


def test_the_least_recently_used_goes_first_and_never_one_in_use(tmp_path):
    scenes = [scene_of(tmp_path, noise(1, 100, 100, seed=seed), f"{seed}.tif") for seed in range(4)]
    cache = StageCache(tmp_path / "cache", quota_bytes=60_000)
    held = cache.hold(scenes[0])
    places = [held.__enter__()]
    stage_window(scenes[0].address, places[0], stage_windows(scenes[0])[0])
    for scene in scenes[1:]:
        with cache.hold(scene) as place:
            stage_window(scene.address, place, stage_windows(scene)[0])
            places.append(place)
    assert [place.exists() for place in places] == [True, False, True, True]
    held.__exit__(None, None, None)


def test_bytes_that_a_living_run_holds_are_not_at_hand(tmp_path):
    scene, cache = scene_of(tmp_path, noise(1, 100, 100)), StageCache(tmp_path / "cache")
    assert cache.idle_bytes() == 0
    with cache.hold(scene):
        assert cache.idle_bytes() == 0
    assert cache.idle_bytes() == sum(cache.sizes().values()) > 0


def test_clearing_spares_what_is_held(tmp_path):
    scenes = [scene_of(tmp_path, noise(1, 100, 100, seed=seed), f"{seed}.tif") for seed in range(2)]
    cache = StageCache(tmp_path / "cache")
    with cache.hold(scenes[0]) as first:
        with cache.hold(scenes[1]) as second:
            pass
        assert cache.clear() > 0
        assert (first.exists(), second.exists()) == (True, False)
    assert cache.clear() > 0
    assert cache.sizes() == {}


def test_parts_and_bands_of_a_scene_are_cached_apart(tmp_path):
    path = str(write_tiff(tmp_path / "a.tif", noise(2, 100, 100)))
    addresses = [SceneAddress(path), SceneAddress(path, bands=(1,)), SceneAddress(path, nodata=1.0)]
    cache, places = StageCache(tmp_path / "cache"), []
    for address in addresses:
        with cache.hold(open_scene(address)) as place:
            places.append(place)
    assert len(set(places)) == 3


def test_a_removal_that_was_killed_leaves_no_entry_half_there(tmp_path, monkeypatch):
    with scene_of(tmp_path, noise(1, 50, 50)) as scene:
        cache = StageCache(tmp_path / "cache")
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.staging.shutil.rmtree", killed)
            with pytest.raises(KeyboardInterrupt), cache.hold(scene, keep=False) as path:
                stage_all(scene, path)
        with cache.hold(scene) as path:
            assert staged_windows(path) == set()
        assert len(cache.sizes()) == 1


def killed(_folder, **_):
    raise KeyboardInterrupt
