import pytest
from drawn_scenes import noise, write_tiff
from filelock import FileLock

from models.engines.cache import Cache
from pipeline.errors import OutputError
from pipeline.housekeeping import clean, make_folder
from pipeline.scene import SceneAddress, open_scene
from pipeline.staging import StageCache


def draw_run(out, name, key="0123456789abcdef"):
    """What a run leaves when it is killed: 1000 bytes and a lock that nobody holds."""
    run = out / ".widefield" / "runs" / name / key
    run.mkdir(parents=True)
    (run / "shard").write_bytes(bytes(1000))
    (run.parent / "lock").touch()
    return run


def test_dead_runs_go_and_published_results_stay(tmp_path):
    run = draw_run(tmp_path, "a")
    (tmp_path / "a").mkdir()
    assert clean(tmp_path).freed == 1000
    assert not run.exists()
    assert (tmp_path / "a").exists()


def test_a_scene_may_be_named_like_a_lock(tmp_path):
    draw_run(tmp_path, "lock")
    assert clean(tmp_path).freed == 1000


def test_what_a_living_run_holds_stays(tmp_path):
    dead, living = draw_run(tmp_path, "a"), draw_run(tmp_path, "a/deep/b")
    with FileLock(living.parent / "lock"):
        done = clean(tmp_path)
    assert (done.freed, done.living) == (1000, 1)
    assert living.exists()
    assert not dead.exists()
    assert clean(tmp_path).freed == 1000


def test_staged_scenes_go_unless_they_are_in_use(tmp_path):
    cache = StageCache(tmp_path / ".widefield" / "staged")
    with open_scene(SceneAddress(str(write_tiff(tmp_path / "s.tif", noise(3, 60, 70))))) as scene:
        with cache.hold(scene) as place:
            assert clean(tmp_path).freed == 0
            assert place.exists()
        assert clean(tmp_path).freed > 0
        assert not place.exists()


def test_engines_go_when_it_is_said_and_nothing_else_in_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WIDEFIELD_CACHE", str(tmp_path / "cache"))
    entry = Cache().make("engine", {"a": 1}, lambda folder: (folder / "x").write_bytes(bytes(500)))
    (tmp_path / "cache" / "mine").mkdir()
    assert clean(tmp_path).freed == 0
    assert clean(tmp_path, engines=True).freed > 500
    assert not entry.path.exists()
    assert (tmp_path / "cache" / "mine").exists()


def test_an_output_folder_is_made_and_left_empty(tmp_path):
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another --out"):
        make_folder(tmp_path / "file" / "below")
