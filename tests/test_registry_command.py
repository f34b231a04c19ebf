import getpass
import json

import pytest
from drawn_bundle import draw_bundle
from drawn_scenes import noise, write_tiff

from flows.parameters import Options
from models.outcomes import Attempt
from models.registry import open_registry

LABELS = "cd" * 32


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return [draw_bundle(folder / str(seed), seed, halo=32, tiles=(128, 256)) for seed in range(2)]


@pytest.fixture
def call(widefield, tmp_path):
    """Run `widefield registry COMMAND models ...`, which must succeed; what it prints, or the JSON of it."""

    def run(command, *more):
        code, out, err = widefield("registry", command, tmp_path / "models", *more)
        assert (code, err) == (0, "")
        return json.loads(out) if "--json" in more and command != "list" else out

    return run


@pytest.fixture
def two(call, bundles):
    """The digests of two bundles that are in the registry."""
    for bundle in bundles:
        call("add", bundle.path)
    return [bundle.digest for bundle in bundles]


def test_bundles_are_listed_with_what_is_known_of_them(call, two, tmp_path):
    call("promote", two[0])
    open_registry(tmp_path / "models").add(open_registry(tmp_path / "models").bundle(two[1]), gate={"accepted": False})
    lines = [json.loads(line) for line in call("list", "--json").splitlines()]
    told = {line["digest"]: (line["name"], line["champion"], line["accepted"], line["waiting"]) for line in lines}
    assert told == {two[0]: ("drawn", True, None, False), two[1]: ("drawn", False, False, False)}
    assert all(line["created"].endswith("Z") for line in lines)
    text = call("list")
    assert ("champion" in text, "refused" in text, two[0][:12] in text) == (True, True, True)


def test_adding_again_keeps_the_date(call, two, bundles):
    before = call("show", two[0], "--json")
    assert call("add", bundles[0].path, "--json") == {"bundle": two[0]}
    assert call("show", two[0], "--json") == before


def test_promotions_and_rollbacks_stand_in_the_history_with_who_and_why(call, two):
    assert call("promote", two[0][:8]) == f"{two[0][:12]} is champion\n"
    told = call("promote", two[1], "--why", "better", "--by", "ann", "--json")
    assert (told["digest"], told["replaced"], told["by"], told["why"]) == (two[1], two[0], "ann", "better")
    assert call("rollback", "--why", "clouds") == f"{two[0][:12]} is champion, in the place of {two[1][:12]}\n"
    shown = call("show", "--json")
    assert [(reign["digest"], reign["by"], reign["why"]) for reign in shown["history"]] == [
        (two[0], getpass.getuser(), "by hand"),
        (two[1], "ann", "better"),
        (two[0], getpass.getuser(), "clouds"),
    ]
    assert "rolled back: clouds" in call("show")


def test_a_challenger_that_waits_is_approved_or_declined(call, two, tmp_path):
    book = open_registry(tmp_path / "models")
    call("promote", two[0])
    book.record(LABELS, Attempt("waiting", "passed: mean IoU +0.1", two[1], two[0]))
    assert f"{two[1][:12]} waits for approval: passed: mean IoU +0.1" in call("show")
    assert call("approve", two[1][:8], "--json")["labels"] == LABELS
    assert (book.outcome(LABELS).state, book.champion().digest) == ("promoted", two[1])
    book.record("ef" * 32, Attempt("waiting", "", two[0], two[1]))
    assert call("decline", two[0], "--why", "a mistake", "--by", "eve") == f"{two[0][:12]} is declined\n"
    assert book.outcome("ef" * 32).attempts[-1].reason == "declined by eve: a mistake"


def test_labels_that_failed_too_often_are_shown_and_tried_again(call, two, tmp_path):
    book = open_registry(tmp_path / "models")
    for _ in range(3):
        book.record(LABELS, Attempt("failed", "no disk"))
    (told,) = call("show", "--json")["outcomes"]
    assert (told["fingerprint"], told["state"], told["settled"]) == (LABELS, "failed", True)
    shown = " ".join(call("show").split())
    assert (LABELS[:12] in shown, "no disk" in shown) == (True, True)
    assert call("retry", LABELS[:6]) == f"labels {LABELS[:12]} are learnt from again at the next look\n"
    assert not book.settled(LABELS)
    assert call("retry", LABELS, "--why", "mended", "--by", "ann", "--json") == {"labels": LABELS}
    assert book.outcome(LABELS).attempts[-1].reason == "another try wanted by ann: mended"


def test_promoting_by_hand_answers_for_a_challenger_that_waits(call, two, tmp_path):
    book = open_registry(tmp_path / "models")
    book.record(LABELS, Attempt("waiting", "", two[0]))
    assert call("promote", two[0], "--json")["labels"] == LABELS
    assert book.outcome(LABELS).state == "promoted"


def test_the_reasons_of_the_gate_are_shown(call, two, bundles, tmp_path):
    gate = {"accepted": False, "reasons": ["failed: mean IoU 0.5 against 0.6"]}
    open_registry(tmp_path / "models").add(bundles[0], gate=gate)
    assert "failed: mean IoU 0.5 against 0.6" in call("show", two[0])
    assert call("show", two[0], "--json")["gate"] == gate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "nowhere"], "is no registry: registry.json is missing; `widefield registry add` makes one"),
        (["promote", "models", "00ff00ff00ff"], "holds no bundle 00ff00ff00ff"),
        (["promote", "models", "../x"], "'../x' is no digest"),
        (["rollback", "models"], "has replaced nobody"),
        (["approve", "models", "BUNDLE"], "does not wait for approval"),
        (["retry", "models", "00ff"], "has no outcome of labels '00ff'"),
        (["list", "ftp://x"], "an address that begins with s3://"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_started(
    widefield, two, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = widefield("registry", *(two[0] if each == "BUNDLE" else each for each in arguments))
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_a_registry_stands_for_its_champion_wherever_a_bundle_is_wanted(widefield, call, two, tmp_path):
    scene, models = write_tiff(tmp_path / "scene.tif", noise(3, 300, 200)), tmp_path / "models"
    plan = ["plan", scene, "--bundle", models, "--engine", "null", "--json"]
    code, _, err = widefield(*plan)
    assert (code, "has no champion yet" in err) == (2, True)
    planned = []
    for digest in two:
        call("promote", digest)
        code, out, _ = widefield(*plan)
        assert code == 0
        planned.append(json.loads(out)["bundle"])
        request = Options().request(str(scene), "scene", str(models), str(tmp_path))
        assert request.bundle == models / "bundles" / digest
    assert planned == [str(models / "bundles" / digest) for digest in two]


def test_segmenting_with_a_registry_records_the_champions_digest(widefield, call, two, tmp_path):
    scene = write_tiff(tmp_path / "scene.tif", noise(3, 200, 200))
    call("promote", two[1])
    segment = ["segment", scene, "--bundle", tmp_path / "models", "--engine", "null", "--out", tmp_path / "o", "--json"]
    code, out, _ = widefield(*segment)
    assert (code, json.loads(out)["bundle"]["digest"]) == (0, two[1])
