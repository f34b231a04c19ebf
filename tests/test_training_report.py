import base64
import html.parser
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from drawn_bundle import draw_bundle
from drawn_chips import draw_chips
from drawn_classifier import draw_classifier
from PIL import Image
from test_review import BANDS, CLASSES

from flows.report import report, to_markdown
from models.calibration import Reliability
from models.findings import Review, Reviewed, Split, Stitching, Tiling, Way
from models.scoring import Scorer
from models.spec import Class
from pipeline.publish.chip_pictures import CONFUSED, INVENTED, MISSED, draw_panels, encode, ground_class
from pipeline.publish.render import INVALID
from pipeline.publish.training_facts import ReportFacts, read_log
from pipeline.publish.training_report import write_report
from pipeline.publish.training_tables import data_table, headlines, score_tables, settings, stitching_tables

VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Text, addresses and tags of a page; every tag that is opened has to be closed."""

    def __init__(self, path):
        super().__init__()
        self.words, self.addresses, self.tags, self.open = [], [], [], []
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def scored():
    """Two blocks of ground; of one of two squares, half is missed: 8 of 128 pixels."""
    scorer = Scorer(["ground", "square"], objects=(1,))
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[:, 2:6, 2:6] = 1
    predictions = labels.copy()
    predictions[0, 2:4, 2:6] = 0
    for block, (true, predicted) in enumerate(zip(labels, predictions, strict=True)):
        scorer.add(true, predicted, block=f"b{block}", confidence=np.full((8, 8), 0.8005))
    return scorer.result()


def reviewed(scene="scene", **changes):
    labels = np.zeros((64, 64), np.uint8)
    labels[16:32, 16:32] = 1
    prediction = np.roll(labels, 8, axis=1)
    pixels = np.full((3, 64, 64), 90, np.uint8) + 100 * labels
    facts = {"scene": scene, "row": 1024, "col": 0, "pixels": pixels, "valid": np.ones((64, 64), bool)}
    facts |= {"labels": labels, "prediction": prediction, "score": 0.345, "loss": 1.25}
    return Reviewed(**{**facts, **changes})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return draw_bundle(tmp_path_factory.mktemp("report") / "bundle", bands=BANDS, classes=CLASSES)


@pytest.fixture(scope="module")
def facts(bundle):
    log = [{"step": step, "lr": 1e-3, "loss": 1 / step, "waiting": 0.01, "seconds": step} for step in range(1, 9)]
    val = scored()
    return ReportFacts(
        bundle=bundle,
        metrics={"val": val, "chip_edge": 64, "training": {"steps": 8, "seed": 7, "card": None, "aux": False}},
        log=[*log, {"step": 4, "val": val, "seconds": 5}],
        splits=(Split("train", 40, 3, (300, 100)), Split("sealed", 5, 1, None)),
        review=Review((reviewed(),), (reviewed("other"),), 12, 1, Reliability.of(np.full(4, 0.8), np.ones(4, bool))),
        stitching="Not measured.",
    )


@pytest.fixture(scope="module")
def written(facts, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "report.html"
    write_report(path, facts)
    return path


def test_the_report_is_one_file_that_needs_nothing_else(written):
    page = Page(written)
    assert {address.partition(",")[0] for address in page.addresses if not address.startswith("#")} == {
        "data:image/svg+xml;base64",
        "data:image/png;base64",
    }
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert [path.name for path in written.parent.iterdir()] == ["report.html"]


def test_it_tells_the_digest_the_scores_and_where_chips_lie(facts, written):
    text = Page(written).text
    for told in (facts.bundle.digest, "mean IoU 0.837", "row 1,024, column 0 IoU 0.345", "Of 12 validation chips"):
        assert told in text


def test_the_same_facts_give_the_same_bytes(facts, written, tmp_path):
    write_report(tmp_path / "again.html", facts)
    assert (tmp_path / "again.html").read_bytes() == written.read_bytes()


def test_names_of_scenes_are_shown_and_never_obeyed(facts, tmp_path):
    name = "<script>alert(1)</script>\"onerror='x'&amp;"
    review = replace(facts.review, worst=(reviewed(name),))
    write_report(tmp_path / "report.html", replace(facts, review=review))
    page = Page(tmp_path / "report.html")
    assert "script" not in page.tags
    assert name in page.text
    assert name.partition("alert")[0] not in to_markdown(replace(facts, review=review))


def test_classes_of_any_name_can_be_drawn(tmp_path, facts):
    """A leading underscore hides a line from matplotlib's legend; a dollar begins a formula; `mean` is taken."""
    classes = (Class(id=0, name="_", color="#FFFFFF"), Class(id=1, name="mean", title="$x_$ 水", color="#000000"))
    bundle = draw_bundle(tmp_path / "bundle", bands=BANDS, classes=classes)
    renamed = json.loads(json.dumps(facts.metrics["val"]).replace('"ground"', '"_"').replace('"square"', '"mean"'))
    log = [{"step": 4, "val": renamed}]
    write_report(
        tmp_path / "report.html", replace(facts, bundle=bundle, metrics={**facts.metrics, "val": renamed}, log=log)
    )
    assert "$x_$ 水" in Page(tmp_path / "report.html").text


def test_an_old_bundle_has_a_report_too(facts, tmp_path):
    val = {name: facts.val[name] for name in ("iou", "f1", "precision", "recall", "mean_iou", "accuracy", "pixels")}
    old = replace(facts, metrics={"val": val, "chip_edge": 64}, log=[], splits=())
    write_report(tmp_path / "report.html", old)
    assert score_tables(old)[0].header == ("class", "IoU", "F1", "precision", "recall")
    assert [table.title for table in score_tables(old)] == ["By class"]
    assert "![" in to_markdown(old)


def test_scores_stand_with_their_intervals(facts):
    by_class, objects = score_tables(facts)
    assert by_class.header[:3] == ("class", "IoU", "95 % interval")
    ground, square, mean = by_class.rows
    assert (ground[0], ground[1]) == ("ground", f"{96 / 104:.3f}")
    assert (square[0], square[1], square[2]) == ("square", f"{24 / 32:.3f}", "0.500 to 1.000")
    assert mean[1] == f"{(96 / 104 + 24 / 32) / 2:.3f}"
    assert objects.rows[0][:2] == ("square", "0.500")  # half of one object is an IoU of 0.5, and not above it
    assert ("calibration error", "0.137", "expected, 15 bins") in headlines(facts)


def test_the_settings_leave_out_what_is_not_set(facts):
    told = dict(settings(facts))
    assert told["seed"] == "7"
    assert told["aux"] == "no"
    assert told["decoder channels"] == "8, 8, 8, 8, 8"
    assert "card" not in told


def test_class_shares_are_of_the_split(facts):
    train, sealed = data_table(facts).rows
    assert train == ("train", "40", "3", "400", "75.0%", "25.0%")
    assert sealed == ("sealed", "5", "1", "-", "-", "-")


def test_stitching_is_told_against_the_whole_chip():
    tiling = Tiling(96, 32, (), np.zeros((160, 160), bool), 16)
    counts = np.array([[80, 10], [10, 80]])
    worse = np.array([[70, 20], [20, 70]])
    ways = Way("whole chip", counts, counts, 0.0, 1.0), Way("cores", worse, counts, 0.0125, 3.24)
    found = Stitching(chips=2, edge=160, tiling=tiling, overlap=0.25, sigma=0.125, ways=ways)
    together, by_class = stitching_tables(found, {"ground": "Ground", "square": "Square"})
    assert together.rows[0] == ("whole chip", "0.8000", "+0.0000", "0.8000", "+0.0000", "0.000%", "1.00")
    assert together.rows[1] == ("cores", "0.6364", "-0.1636", "0.8000", "+0.0000", "1.250%", "3.24")
    assert by_class.rows[-1] == ("Square, cores", "0.6364", "-0.1636", "0.8000", "+0.0000")


def test_the_pictures_of_a_chip_show_what_differs():
    panels = draw_panels(reviewed(), CLASSES, BANDS)
    assert tuple(panels.truth[20, 20]) == (0xE4, 0x57, 0x2E)
    assert tuple(panels.prediction[20, 20]) == (0x3B, 0x42, 0x52)
    assert tuple(panels.errors[20, 20]) == MISSED
    assert tuple(panels.errors[20, 36]) == INVENTED
    assert tuple(panels.scene[20, 20]) == (190, 190, 190)


def test_without_a_background_every_error_is_a_confusion():
    classes = tuple(Class(id=i, name=f"c{i}", color="#123456") for i in range(3))
    assert ground_class(classes) is None
    assert tuple(draw_panels(reviewed(), classes, BANDS).errors[20, 20]) == CONFUSED
    assert ground_class((*classes[:2], Class(id=2, name="background", color="#000000"))) == 2


def test_invalid_and_unlabelled_pixels_are_no_errors():
    chip = reviewed()
    valid, labels = chip.valid.copy(), chip.labels.copy()
    valid[:20], labels[:24] = False, 255
    pixels = chip.pixels.astype(np.float32)
    pixels[:, :20] = np.nan
    panels = draw_panels(reviewed(valid=valid, labels=labels, pixels=pixels), CLASSES, BANDS)
    assert tuple(panels.errors[10, 20]) == tuple(panels.scene[10, 20]) == INVALID
    assert tuple(panels.errors[22, 20]) not in {MISSED, INVENTED}
    assert tuple(panels.errors[28, 20]) == MISSED


@pytest.mark.parametrize("bands", [1, 2, 8])
def test_any_number_of_bands_is_shown(bands):
    pixels = np.random.default_rng(0).integers(0, 4000, (bands, 64, 64)).astype(np.uint16)
    names = [BANDS[0].model_copy(update={"name": f"b{i}"}) for i in range(bands)]
    assert draw_panels(reviewed(pixels=pixels), CLASSES, names).scene.shape == (64, 64, 3)


def test_bands_called_red_green_and_blue_are_shown_so():
    pixels = np.stack([np.full((64, 64), value, np.uint8) for value in (1, 2, 3, 4)])
    names = [BANDS[0].model_copy(update={"name": name}) for name in ("blue", "green", "red", "nir")]
    assert tuple(draw_panels(reviewed(pixels=pixels), CLASSES, names).scene[0, 0]) == (3, 2, 1)


def test_large_chips_become_small_pictures():
    noise = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024), np.uint8)
    plane = np.zeros((1024, 1024), np.uint8)
    chip = reviewed(pixels=noise, valid=plane == 0, labels=plane, prediction=plane)
    panels = draw_panels(chip, CLASSES, BANDS)
    assert panels.scene.shape == panels.errors.shape == (512, 512, 3)
    media, data = encode(panels.scene, 40_000)
    assert media == "image/jpeg"
    assert len(data) <= 40_000


def test_few_colours_are_encoded_exactly():
    panel = draw_panels(reviewed(), CLASSES, BANDS).errors
    media, data = encode(panel, 40_000)
    assert media == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), panel)


def test_a_log_of_a_training_that_was_killed_tells_each_step_once(tmp_path):
    before = [{"step": 10, "loss": 3}, {"step": 15, "val": {"n": 1}}, {"step": 20, "loss": 2}, {"step": 30, "loss": 1}]
    after = [{"step": 20, "loss": 5}]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in [*before, *after]) + '{"step": 30, "lo')
    assert read_log(tmp_path / "log") == [before[0], before[1], after[0]]
    assert read_log(tmp_path / "none") == []


def test_a_log_with_a_start_line_for_each_try_keeps_the_curve_before_the_kill(tmp_path):
    start = {"step": 0, "start": {"encoder": 5}}
    steps = [{"step": 10, "loss": 3}, {"step": 15, "val": {"n": 1}}, {"step": 20, "loss": 2}]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in [start, *steps[:2], start, steps[2]]))
    assert read_log(tmp_path / "log") == [start, *steps]


def test_a_shorter_training_in_the_same_folder_keeps_no_score_of_the_older_one(tmp_path):
    older = [{"step": 10, "loss": 3}, {"step": 15, "val": {"n": 1}}, {"step": 20, "loss": 2}, {"step": 20, "val": {}}]
    newer = [{"step": 10, "loss": 4}, {"step": 14, "val": {"n": 2}}]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in [*older, *newer]))
    assert read_log(tmp_path / "log") == newer


def test_the_short_form_fits_an_artifact(facts):
    from flows.artifacts import PREVIEW_LIMIT

    text = to_markdown(facts)
    pictures = re.findall(r"\(data:image/[a-z]+;base64,([^)]*)\)", text)
    assert len(pictures) == 4  # loss, validation, worst, best
    assert max(map(len, pictures)) < PREVIEW_LIMIT
    for data in pictures:
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert "| square | 0.750 | 0.500 to 1.000 |" in text


def test_a_training_has_its_report(tmp_path):
    """From a bundle, chips and a log on disk, stitching included."""
    bundle = draw_bundle(tmp_path / "bundle", bands=BANDS, classes=CLASSES, halo=32, tiles=(96,))
    chips = draw_chips(tmp_path / "chips.zarr", edge=160, count=4)
    bundle = rewritten(bundle, {"val": scored(), "chip_edge": 160})
    (bundle.path / "train.jsonl").write_text('{"step": 1, "loss": 1.0, "lr": 0.1, "seconds": 1}\n')
    path = report(bundle, chips, tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    text = Page(path).text
    assert "2 validation chips of 160 px, tiles of 96 px with a halo of 32, cores of 32" in text
    assert "Worst chips" in text


def rewritten(bundle, metrics):
    """The same bundle with scores."""
    from models.bundle import load_module, load_probes, save_bundle

    probes = [pixels for pixels, _ in load_probes(bundle)]
    return save_bundle(bundle.path, bundle.spec, load_module(bundle), metrics, "# Drawn\n", probes)


def test_a_classifier_has_a_report_too(tmp_path):
    bundle = draw_classifier(tmp_path / "bundle", bands=BANDS, classes=CLASSES)
    chips = draw_chips(tmp_path / "chips.zarr", count=6, edge=32, task="classify")
    scorer = Scorer(["ground", "square"])
    scorer.add(np.array([0, 1, 1], np.uint8), np.array([0, 1, 0], np.uint8), block="all")
    bundle = rewritten(bundle, {"val": scorer.result(), "chip_edge": 32})
    text = Page(report(bundle, chips, tmp_path)).text
    assert "accuracy 0.667 images" in text
    assert "there is nothing to stitch" in text


def test_the_command_writes_it_again(widefield, tmp_path):
    chips = draw_chips(tmp_path / "chips.zarr", edge=64, count=4)
    drawn = draw_bundle(tmp_path / "bundle", bands=BANDS, classes=CLASSES)
    rewritten(drawn, {"val": scored(), "chip_edge": 64})
    arguments = ("report", "--bundle", drawn.path, "--out", tmp_path / "out")
    code, said, err = widefield(*arguments, "--chips", chips)
    assert (code, err) == (0, "")
    assert said.strip() == f"report {tmp_path / 'out' / 'report.html'}"
    code, _, err = widefield(*arguments, "--chips", tmp_path / "none")
    assert code == 2
    assert err.strip() == f"widefield: --chips {tmp_path / 'none'}: no such file or folder"
