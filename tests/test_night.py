"""What a night under Prefect says about its scenes, and when it has nothing to do; no server is asked."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.archive import PICTURES, ROWS, overtaken, page, rows, verdict
from flows.artifacts import TEXT_LIMIT, slug
from flows.parameters import Options, address
from models.engines.meter import Times
from pipeline.bottleneck import Spent
from pipeline.nightly import ArchiveRequest
from pipeline.together import SceneResult

TICK = datetime(2026, 5, 1, 2, 15, tzinfo=UTC)


def asked(out, **more):
    return ArchiveRequest(archive="/archive", pattern=Options().request("", "", "bundle", str(out)), **more)


def failed(count, text="no image"):
    return [SceneResult(f"s{number:04}", "p", "failed", text) for number in range(count)]


@pytest.fixture
def report(tmp_path):
    """A run that began a minute after the tick has left its report."""
    facts = {"archive": "/archive", "started": "2026-05-01T02:16:00+00:00"}
    (tmp_path / "archive.json").write_text(json.dumps(facts))
    return tmp_path


def test_a_tick_before_a_finished_run_began_has_nothing_to_find(report):
    assert overtaken(asked(report), TICK) == (
        "planned for 2026-05-01 02:15:00, and a run that began at 2026-05-01 02:16:00 has finished since"
    )


def test_who_asks_is_never_told_that_there_is_nothing_to_find(report):
    assert overtaken(asked(report), None) is None


@pytest.mark.parametrize("more", [{"backfill": True}, {"check": True}])
def test_a_run_that_does_more_is_not_overtaken(report, more):
    assert overtaken(asked(report, **more), TICK) is None


def test_a_later_tick_another_archive_and_more_of_it_are_not_overtaken(report, tmp_path):
    assert overtaken(asked(report), TICK.replace(minute=17)) is None
    part = json.loads((tmp_path / "archive.json").read_text()) | {"match": "north/*"}
    (tmp_path / "archive.json").write_text(json.dumps(part))
    assert overtaken(asked(report), TICK) is None
    assert overtaken(asked(report, match="north/*"), TICK) is not None
    (tmp_path / "archive.json").write_text('{"archive": "/other", "started": "2026-05-01T02:16:00+00:00"}')
    assert overtaken(asked(report), TICK) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"archive": "/archive", "started": 3}'])
def test_a_torn_report_overtakes_nobody(tmp_path, text):
    (tmp_path / "archive.json").write_text(text)
    assert overtaken(asked(tmp_path), TICK) is None


def test_the_message_names_the_first_reasons_and_counts_the_rest():
    state = verdict([*failed(5), SceneResult("good", "p", "done")])
    assert state.message == "5 of 6 scenes failed: s0000: no image; s0001: no image; s0002: no image; and 2 more"
    assert state.is_failed()
    assert len(verdict(failed(5, "x" * 10_000)).message) < 4 * TEXT_LIMIT


def test_a_reason_does_not_say_the_path_again():
    state = verdict([SceneResult("a", "/x/a.tif", "failed", "/x/a.tif is no image")])
    assert state.message == "1 of 1 scenes failed: a: is no image"


def test_a_night_without_failures_completes():
    state = verdict([SceneResult("a", "p", "done"), SceneResult("b", "p", "unchanged")])
    assert state.is_completed()
    assert state.message == "2 scenes: 0 failed, 1 done, 1 unchanged"


def test_the_table_is_bounded_and_shows_failures_first():
    table = rows([SceneResult(f"u{number}", "p", "unchanged") for number in range(10_000)] + failed(2))
    assert len(table) == ROWS
    assert [row["result"] for row in table[:3]] == ["failed", "failed", "unchanged"]


def test_the_page_is_bounded_and_its_names_are_no_markup(tmp_path):
    from PIL import Image

    for number in range(PICTURES + 2):
        (tmp_path / f"d{number}").mkdir()
        Image.new("RGB", (20, 10)).save(tmp_path / f"d{number}" / "preview.png")
    done = [SceneResult(f"d{number}", "p", "done") for number in range(PICTURES + 2)]
    text = page(asked(tmp_path), [*done, SceneResult("<script>", "p", "failed", "![x](http://h/i.png)")])
    assert text.count("![preview](data:") == PICTURES
    assert "<script>" not in text
    assert "![x]" not in text


def test_the_page_tells_what_held_the_run_up(tmp_path):
    spent = Spent(2.0, 0.0, 1, Times(busy=1.9), 0.0, 0.0, 0.5, 0.25, 10**6, 1, 1, staged=False, together=2)
    text = page(asked(tmp_path), [SceneResult("a", "p", "done")], spent.to_json())
    assert "- **limit: engine**: the engine was busy 95 % of the time: only a faster engine or more" in text
    assert "- **together**: 2 scenes in 2.0 s, 0.50 Mpx/s" in text


def test_each_address_has_a_short_name_of_its_own():
    assert slug("/a/Nord See/").startswith("nord-see-")
    assert slug("/a/x") != slug("/b/x")
    assert set(slug("s3://b/Ä<>|")) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_folder_is_made_absolute_and_an_address_is_left_alone():
    assert address("archive") == str(Path("archive").absolute())
    assert address("s3://bucket/scenes") == "s3://bucket/scenes"
