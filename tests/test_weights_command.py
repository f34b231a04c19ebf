import hashlib
import json
from dataclasses import replace

import pytest
from local_server import serve

import models.published
from models.published import PUBLISHED

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def publish(monkeypatch):
    """Make `inception_v3.tv_in1k` lie at other addresses, with another checksum."""

    def published(*urls, sha256=DIGEST[:8]):
        entry = replace(PUBLISHED["inception_v3.tv_in1k"], urls=urls, sha256=sha256, file="w.pth")
        monkeypatch.setattr(models.published, "PUBLISHED", {entry.name: entry})

    return published


@pytest.fixture
def get(widefield, tmp_path):
    """Run `widefield weights get`."""
    return lambda *more: widefield("weights", "get", "inception_v3.tv_in1k", "--out", tmp_path / "w", *more)


@pytest.fixture
def remote(tmp_path):
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "w.pth").write_bytes(CONTENT)
    return tmp_path / "remote"


def test_the_list_names_every_file_and_what_is_known_of_it(widefield):
    code, out, err = widefield("weights", "--list")
    assert (code, err) == (0, "")
    assert all(name in out for name in PUBLISHED)
    code, out, _ = widefield("weights", "--list", "--json")
    first = json.loads(out.splitlines()[0])
    assert (first["network"], first["variant"], first["sha256"]) == ("inception_v1", {"kernel5": 3}, "1378be20")


def test_a_file_is_downloaded_once(get, publish, remote, tmp_path):
    with serve(remote) as (address, asked):
        publish(f"{address}/w.pth")
        code, out, err = get()
        assert (code, err) == (0, "")
        assert f"sha256 {DIGEST}, as published ({DIGEST[:8]}...)" in out
        before = len(asked)
        assert "(was there)" in get()[1]
        assert len(asked) == before
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["w.pth"]
    assert (tmp_path / "w" / "w.pth").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_no_file(get, publish, remote, tmp_path):
    publish(f"file://{remote}/w.pth", sha256="0123abcd")
    code, out, err = get()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"has the checksum {DIGEST[:16]}..., that of w.pth begins with 0123abcd" in err
    assert list((tmp_path / "w").iterdir()) == []


def test_a_damaged_file_that_is_there_is_not_taken(get, publish, remote, tmp_path):
    publish(f"file://{remote}/w.pth")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "w.pth").write_bytes(CONTENT[:100])
    code, _, err = get()
    assert code == 2
    assert "is there already and has the checksum" in err


def test_without_a_checksum_the_user_has_to_say_so(get, publish, remote):
    publish(f"file://{remote}/w.pth", sha256="")
    code, _, err = get()
    assert code == 2
    assert "give --unverified" in err
    code, out, _ = get("--unverified", "--json")
    facts = json.loads(out)
    assert (code, facts["sha256"], facts["verified"], facts["downloaded"]) == (0, DIGEST, False, True)


def test_offline_one_line_says_what_was_tried_and_where_to_put_the_file(get, publish, tmp_path):
    publish("http://127.0.0.1:9/w.pth", f"file://{tmp_path}/none.pth")
    code, out, err = get()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "tried http://127.0.0.1:9/w.pth (ClientConnectorError" in err
    assert "none.pth (FileNotFoundError" in err
    assert f"put it at {tmp_path / 'w' / 'w.pth'}" in err


def test_the_next_address_is_tried(get, publish, remote):
    with serve(remote, trouble=lambda path, _: 503 if "busy" in path else None) as (address, _):
        publish(f"{address}/busy.pth", f"{address}/none.pth", f"{address}/w.pth")
        assert get()[0] == 0


def test_a_folder_that_cannot_be_made_is_refused(get, publish, remote, tmp_path):
    publish(f"file://{remote}/w.pth")
    (tmp_path / "w").touch()
    code, _, err = get()
    assert code == 2
    assert "cannot be written" in err
    assert "choose another --out" in err
