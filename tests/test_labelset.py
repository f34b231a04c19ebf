import hashlib
import os
import time
from pathlib import Path

import pytest
from drawn_archive import NAMES, draw_scene

from pipeline.errors import LabelError
from pipeline.labelset import survey


@pytest.fixture
def folders(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for name in NAMES[:2]:
        draw_scene(images, labels, name)
    return images, labels


def test_the_same_labels_have_the_same_fingerprint(folders):
    one = survey(*folders)
    for file in folders[1].iterdir():
        os.utime(file, (0, 0))
    assert survey(*folders).fingerprint == one.fingerprint
    assert [pair.name for pair in one.pairs] == ["a-train", "b-train"]


def test_labels_that_come_change_or_go_are_told(folders):
    one = survey(*folders)
    draw_scene(*folders, NAMES[2])
    draw_scene(*folders, NAMES[0], shift=5)
    (folders[1] / f"{NAMES[1]}-labels.tif").unlink()
    two = survey(*folders)
    changes = two.since(one.digests)
    assert (changes.added, changes.changed, changes.removed) == (("c-val",), ("a-train",), ("b-train",))
    assert two.fingerprint != one.fingerprint
    assert [scene.stem for scene in two.unlabelled] == ["b-train"]


def test_who_made_labels_is_part_of_them(folders):
    one = survey(*folders)
    (folders[1] / "origins.csv").write_text("scene,origin\na-train,model\n")
    assert survey(*folders).fingerprint != one.fingerprint


def test_the_age_is_that_of_the_youngest_file(folders):
    for folder in folders:
        for file in folder.iterdir():
            os.utime(file, (time.time() - 1000,) * 2)
    assert 999 < survey(*folders).age < 1100
    (folders[1] / "a-train-labels.tif").touch()
    assert survey(*folders).age < 100


def test_a_missing_folder_is_an_error_that_names_it(folders, tmp_path):
    with pytest.raises(LabelError, match="nowhere: no such"):
        survey(folders[0], tmp_path / "nowhere")


def test_a_file_that_goes_away_meanwhile_is_an_error_that_names_it(folders, monkeypatch):
    monkeypatch.setattr("pipeline.labelset.label_files", lambda *_: [folders[1] / "gone.tif"])
    with pytest.raises(LabelError, match=r"gone\.tif cannot be read: No such file"):
        survey(*folders)


def test_one_file_of_all_scenes_is_read_once_and_then_when_it_has_changed(folders, tmp_path, monkeypatch):
    read, hashed = hashlib.file_digest, []

    def counted(stream, kind):
        hashed.append(Path(stream.name).name)
        return read(stream, kind)

    monkeypatch.setattr("hashlib.file_digest", counted)
    labels = tmp_path / "all.tif"
    labels.write_bytes(b"one")
    one = survey(folders[0], labels)
    assert (survey(folders[0], labels).fingerprint, hashed.count("all.tif")) == (one.fingerprint, 1)
    before = labels.stat()
    labels.write_bytes(b"two")
    os.utime(labels, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert survey(folders[0], labels).fingerprint != one.fingerprint
    assert hashed.count("all.tif") == 2
