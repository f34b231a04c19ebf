import errno
import json
import logging
import os
import subprocess
import sys
import time

import pytest

from models.engines.cache import MANIFEST, Cache, digest_of
from models.errors import EngineError

FIELDS = {"bundle": "b", "tile": 512}


def write(folder):
    (folder / "model.bin").write_bytes(bytes(range(100)))


def test_an_entry_is_made_once_and_found_again(tmp_path):
    made = Cache(tmp_path / "c").make("graph", FIELDS, write)
    again = Cache(tmp_path / "c").make("graph", dict(reversed(FIELDS.items())), pytest.fail)
    assert again == made == Cache(tmp_path / "c").get("graph", FIELDS)
    assert (made.path / "model.bin").read_bytes() == bytes(range(100))
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700


def test_every_field_makes_another_key(tmp_path):
    changed = [FIELDS | {"tile": 256}, FIELDS | {"bundle": "c"}, FIELDS | {"threads": 1}, {"tile": 512}]
    assert len({digest_of(fields) for fields in [FIELDS, *changed]}) == 5
    cache = Cache(tmp_path / "c")
    cache.make("graph", FIELDS, write)
    assert [cache.get("graph", fields) for fields in changed] == [None] * 4


@pytest.mark.parametrize("name", ["model.bin", MANIFEST])
def test_any_changed_byte_is_seen_and_made_anew_with_a_warning(tmp_path, caplog, name):
    cache = Cache(tmp_path / "c")
    file = cache.make("graph", FIELDS, write).path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert cache.get("graph", FIELDS) is None
    assert "has changed on disk" in caplog.text
    entry = cache.make("graph", FIELDS, write)
    assert (entry.path / "model.bin").read_bytes() == bytes(range(100))


def test_an_entry_that_no_longer_stands_is_made_anew(tmp_path):
    cache = Cache(tmp_path / "c")
    cache.make("graph", FIELDS, write)
    made = cache.make("graph", FIELDS, lambda folder: (folder / "other").touch(), lambda entry: "other" in entry.files)
    assert list(made.files) == ["other"]
    assert cache.make("graph", FIELDS, pytest.fail, lambda entry: "other" in entry.files) == made


def test_a_full_disk_is_told_with_the_way_out(tmp_path):
    def fill(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(EngineError, match=r"No space left on device: free space or set WIDEFIELD_CACHE"):
        Cache(tmp_path / "c").make("graph", FIELDS, fill)


def test_what_has_not_been_used_for_long_is_forgotten(tmp_path):
    cache = Cache(tmp_path / "c")
    old, used = (cache.make("graph", {"tile": tile}, write).path for tile in (1, 2))
    for entry in (old, used):
        os.utime(entry / MANIFEST, times=(time.time() - 40 * 86400,) * 2)
    cache.get("graph", {"tile": 2})
    assert cache.forget(30) > 100
    assert (old.exists(), used.exists()) == (False, True)
    assert cache.forget() > 100
    assert not used.exists()


def test_what_is_being_made_is_not_forgotten(tmp_path):
    cache = Cache(tmp_path / "c")

    def watched(folder):
        write(folder)
        assert cache.forget() == 0

    assert list(cache.make("graph", FIELDS, watched).files) == ["model.bin"]


def test_links_and_missing_files_are_not_followed(tmp_path):
    cache = Cache(tmp_path / "c")
    file = cache.make("graph", FIELDS, write).path / "model.bin"
    file.rename(tmp_path / "elsewhere")
    assert cache.get("graph", FIELDS) is None
    file.symlink_to(tmp_path / "elsewhere")
    assert cache.get("graph", FIELDS) is None


def test_a_manifest_may_not_name_files_outside_its_entry(tmp_path):
    cache = Cache(tmp_path / "c")
    manifest = cache.make("graph", FIELDS, write).path / MANIFEST
    told = json.loads(manifest.read_text())
    told["files"] = {f"../{manifest.parent.name}/model.bin": told["files"]["model.bin"]}
    manifest.write_text(json.dumps(told))
    assert cache.get("graph", FIELDS) is None


def test_a_failing_maker_leaves_nothing_and_a_killed_ones_leftovers_go(tmp_path):
    cache = Cache(tmp_path / "c")

    def fail(folder):
        write(folder)
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        cache.make("graph", FIELDS, fail)
    assert [file.suffix for file in (tmp_path / "c" / "graph").iterdir()] == [".lock"]
    leftover = tmp_path / "c" / "graph" / f".{digest_of(FIELDS)[:32]}.killed"
    leftover.mkdir()
    cache.make("graph", FIELDS, write)
    assert not leftover.exists()


def test_a_folder_that_others_can_write_is_refused(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv("WIDEFIELD_CACHE", str(tmp_path / "shared"))
    with pytest.raises(EngineError, match="chmod 700"):
        Cache()
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be made"):
        Cache(tmp_path / "file" / "c")


def test_of_two_processes_that_race_one_makes_the_entry(tmp_path):
    code = f"""
import os, time
from models.engines.cache import Cache
def slow(folder):
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("made\\n")
    time.sleep(0.5)
    (folder / "f").write_text("x")
print(Cache({str(tmp_path / "c")!r}).make("graph", {FIELDS!r}, slow).files)
"""
    racing = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in racing]
    assert answers[0] == answers[1] != ""
    assert (tmp_path / "log").read_text() == "made\n"
