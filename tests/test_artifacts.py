from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from flows import artifacts
from flows.artifacts import PREVIEW_LIMIT, TEXT_LIMIT, ProgressBar, escape, picture, plain, table


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("north/roof_1 (2).tif", "north/roof_1 (2).tif"),
        ("_a_ __b__", r"\_a\_ \_\_b\_\_"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("![x](http://h/x.png)", r"!\[x\](http\://h/x.png)"),
        ("[click](javascript:alert(1))", r"\[click\](javascript:alert(1))"),
        ("a | b\n# c", r"a \| b \# c"),
        ("www.example.org a@b.org", r"www\.example.org a\@b.org"),
        ("- 1. x", r"\- 1\. x"),
        ("&amp;", "&amp;amp;"),
    ],
)
def test_a_name_is_shown_as_it_is(name, shown):
    assert escape(name) == shown


def test_text_is_one_line_of_bounded_length():
    assert plain("a\x1b[31m\u202eb\nc") == "a\ufffd[31m\ufffdb c"
    assert len(plain("x" * 10_000)) == TEXT_LIMIT


def test_a_row_of_a_table_keeps_its_cells():
    assert table(("a", "b"), [("1|2", 3)]) == ["| a | b |", "|---|---|", r"| 1\|2 | 3 |"]


def test_a_picture_of_noise_still_fits(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)).save(tmp_path / "p.png")
    shown = picture(tmp_path / "p.png")
    assert len(shown) <= PREVIEW_LIMIT
    assert b64decode(shown.partition(",")[2][:-1]).startswith(b"\xff\xd8")


def test_progress_is_written_at_most_once_a_second(monkeypatch):
    written = []
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda **given: written.append(given["progress"]) or 1)
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda _, progress: written.append(progress))
    bar = ProgressBar("key", "")
    for share in (0.1, 0.2, 0.3):
        bar(share)
    bar(1.0, last=True)
    assert written == [10.0, 100.0]


def test_a_server_that_does_not_answer_stops_nothing(monkeypatch):
    def fail(**_):
        raise ConnectionError

    monkeypatch.setattr(artifacts, "create_progress_artifact", fail)
    ProgressBar("key", "")(0.5)
