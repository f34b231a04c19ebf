"""When labels are told, and when not. The registry and the labels are real, Prefect's answers are drawn."""

from types import SimpleNamespace

import pytest
from drawn_archive import NAMES, draw_scene

from flows import watch_labels as module
from models.outcomes import Attempt
from models.registry import open_registry
from pipeline.labelset import survey
from pipeline.workshop import alone


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An archive with one labelled scene, and the events that looks emit."""
    for name in ("images", "labels", "work"):
        (tmp_path / name).mkdir()
    draw_scene(tmp_path / "images", tmp_path / "labels", NAMES[0])
    told, planned = [], []
    monkeypatch.setattr(module, "emit_event", lambda **event: told.append(event))
    monkeypatch.setattr(module, "runs", lambda *_: planned)
    book = open_registry(tmp_path / "registry", create=True)

    def look(settle=0.0):
        return module._look(book, str(tmp_path / "images"), str(tmp_path / "labels"), tmp_path / "work", settle)

    found = survey(tmp_path / "images", tmp_path / "labels")
    return SimpleNamespace(look=look, told=told, planned=planned, book=book, found=found, folder=tmp_path)


def test_labels_without_an_outcome_are_told_under_the_same_identifier_until_an_attempt(place):
    assert place.look() == "1 scenes added, 0 changed, 0 removed"
    place.look()
    assert place.told[0]["id"] == place.told[1]["id"]
    assert place.told[0]["event"] == "widefield.labels.changed"
    assert place.told[0]["payload"]["added"] == [NAMES[0]]
    place.book.record(place.found.fingerprint, Attempt("failed", "x"))
    place.look()
    assert place.told[2]["id"] != place.told[0]["id"]


@pytest.mark.parametrize("state", ["promoted", "refused"])
def test_settled_labels_are_not_told(place, state):
    place.book.record(place.found.fingerprint, Attempt(state))
    assert place.look() == "nothing new in the labels of 1 scenes"
    assert place.told == []


def test_three_failures_are_enough(place):
    for count in range(3):
        place.look()
        assert len(place.told) == count + 1
        place.book.record(place.found.fingerprint, Attempt("failed", "x"))
    place.look()
    assert len(place.told) == 3


def test_files_that_may_grow_are_left_for_the_next_look(place):
    assert place.look(settle=1e6) == "files may still grow: left for the next look"
    assert place.told == []


def test_a_training_under_way_is_not_told_of_more(place):
    with alone(place.folder / "work"):
        assert "under way" in place.look()
    assert place.told == []


def test_a_training_that_is_planned_will_see_the_labels(place):
    place.planned.append(SimpleNamespace(parameters={"labels": str(place.folder / "labels")}))
    assert "planned" in place.look()
    place.planned[0].parameters["labels"] = "others"
    assert "1 scenes added" in place.look()


def test_a_folder_that_is_not_there_yet_is_no_error(place):
    for file in (place.folder / "labels").iterdir():
        file.unlink()
    assert place.look() == "no scene has labels"
    (place.folder / "labels").rmdir()
    assert place.look() == "no such folder yet, so nothing to learn from"
