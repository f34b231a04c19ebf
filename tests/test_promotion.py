import json
from dataclasses import replace

import numpy as np
import pytest
import zarr
from drawn_bundle import draw_bundle

from models.dataset import open_chips
from models.errors import TrainingError
from models.promotion import compare, difference, labelled_iou
from models.sealed import counted, fingerprint, leaked, open_sealed, seal, unseen
from models.spec import Class
from models.verdict import Rules

NAMES = ("ground", "square")
CELLS = 6
EDGE = 64


def truth(cell):
    """(S, S): a square somewhere in a chip."""
    labels = np.zeros((EDGE, EDGE), np.uint8)
    row, col = np.random.default_rng(cell).integers(2, EDGE // 2, 2)
    labels[row : row + 24, col : col + 24] = 1
    return labels


def draw(path, cells=range(CELLS), *, labels=truth, names=NAMES, origin="drawn", split="sealed", edge=EDGE, **header):
    """A chip in each of some cells of ground; the pixels say what is really there."""
    group, cells = zarr.create_group(path, overwrite=True), list(cells)
    real = np.stack([np.kron(truth(cell), np.ones((edge // EDGE,) * 2, np.uint8)) for cell in cells])
    marked = np.stack([np.kron(labels(cell), np.ones((edge // EDGE,) * 2, np.uint8)) for cell in cells])
    arrays = {"pixels": np.stack([100 * real] * 3, 1), "valid": np.ones_like(real), "labels": marked}
    arrays |= {"scale": np.ones((len(cells), 3), np.float32), "offset": np.zeros((len(cells), 3), np.float32)}
    for name, array in arrays.items():
        group.create_array(name, data=array)
    chips = [
        {"scene": "a", "row": 0, "col": 512 * cell, "split": split, "slot": slot} for slot, cell in enumerate(cells)
    ]
    fixed = {"schema": 2, "task": "segment", "bands": list("rgb"), "dtype": "uint8", "seed": 0, "resolution": None}
    classes = [{"id": index, "name": name} for index, name in enumerate(names)]
    scenes = {"a": {"fingerprint": "f", "labels": "l", "origin": origin}}
    group.attrs.update(fixed | {"classes": classes, "chips": chips, "scenes": scenes} | header)
    return open_chips(path)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Three of the same classes, and one with a class more; what they predict is made up."""
    folder, colors = tmp_path_factory.mktemp("bundles"), ("#000000", "#FFFFFF", "#FF0000")
    made = {}
    for seed, (name, classes) in enumerate(
        {"a": NAMES, "b": NAMES, "c": NAMES, "more": (*NAMES, "circle"), "turned": NAMES[::-1]}.items()
    ):
        table = tuple(Class(id=i, name=each, color=colors[i]) for i, each in enumerate(classes))
        made[name] = draw_bundle(folder / name, seed, classes=table)
    return made


def sure(labels):
    return labels, np.full(labels.shape, 0.9, np.float32)


def predicting(rules):
    """A predictor: what is really there, changed by a function for each bundle."""
    by_digest = {bundle.digest: change for bundle, change in rules}

    def make(bundle):
        return lambda chips, index: sure(by_digest[bundle.digest]((chips.pixels[index][0] >= 50).astype(np.uint8)))

    return make


def right(labels):
    return labels


def shifted(labels, by=8):
    return np.roll(labels, by, 1)


def blind(labels):
    return np.zeros_like(labels)


def gate(bundles, mine, theirs, old, new, **rules):
    """Compare bundle b, which predicts `mine`, with a, which predicts `theirs`."""
    make = predicting([(bundles["b"], mine), (bundles["a"], theirs)])
    return compare(bundles["b"], bundles["a"], old, new, Rules(**rules), predictor=make)


def test_a_bundle_never_beats_itself(bundles, tmp_path):
    chips = draw(tmp_path / "c")
    found = gate(bundles, shifted, shifted, None, chips)
    assert (found.accepted, found.together.value, found.together.low, found.together.high) == (False, 0, 0, 0)
    assert found.cells == {"old": 0, "new": CELLS, "together": CELLS}


def test_a_better_one_is_accepted_with_its_numbers(bundles, tmp_path):
    old, new = draw(tmp_path / "o", range(3)), draw(tmp_path / "n")
    found = gate(bundles, right, shifted, old, new)
    assert found.accepted
    assert found.cells == {"old": 3, "new": 3, "together": 6}
    assert found.classes["square"]["challenger"] == 1
    assert found.classes["square"]["champion"] == pytest.approx(16 / 32)
    assert 0 < found.together.low <= found.together.value <= found.together.high
    assert all(reason.startswith("passed: ") for reason in found.reasons)
    assert found.scores["challenger"]["ece"] == pytest.approx(0.1)


def test_a_worse_one_is_refused(bundles, tmp_path):
    found = gate(bundles, shifted, right, None, draw(tmp_path / "c"))
    assert (found.accepted, found.together.high < 0) == (False, True)
    assert found.reasons[0].startswith("failed: mean IoU ")


def test_shifted_labels_are_refused_on_old_ground(bundles, tmp_path):
    """The new labels are shifted, and so is the challenger: it wins on the new ground, which is larger."""
    old = draw(tmp_path / "o", range(4))
    new = draw(tmp_path / "n", range(16), labels=lambda cell: shifted(truth(cell)))
    found = gate(bundles, shifted, right, old, new)
    assert found.together.low > 0
    assert [reason.partition(":")[0] for reason in found.reasons[:2]] == ["passed", "failed"]
    assert (found.accepted, found.old.high < 0) == (False, True)


def test_labels_that_changed_on_the_same_ground_are_new_and_count_in_the_same_cell(bundles, tmp_path):
    old = draw(tmp_path / "o", range(4))
    new = draw(tmp_path / "n", range(4), labels=lambda cell: shifted(truth(cell)) if cell < 2 else truth(cell))
    found = gate(bundles, right, shifted, old, new)
    assert found.cells == {"old": 4, "new": 2, "together": 4}


def test_labels_made_by_a_model_and_other_splits_do_not_count(bundles, tmp_path):
    for name, more in {"m": {"origin": "model"}, "t": {"split": "train"}, "v": {"split": "val"}}.items():
        found = gate(bundles, right, shifted, None, draw(tmp_path / name, **more))
        assert (found.accepted, found.cells["together"]) == (False, 0)
        assert "it cannot be shown that the challenger is better" in found.reasons[0]
    assert gate(bundles, right, shifted, None, draw(tmp_path / "c", origin="corrected")).accepted


def test_three_cells_show_nothing(bundles, tmp_path):
    found = gate(bundles, right, shifted, None, draw(tmp_path / "c", range(3)))
    assert (found.accepted, len(found.reasons)) == (False, 1)
    assert found.reasons[0].startswith("failed: 3 cells of sealed ground")
    assert gate(bundles, right, shifted, None, draw(tmp_path / "d", range(4))).accepted
    assert gate(bundles, right, shifted, None, None).cells["together"] == 0


def test_a_pixel_of_a_new_class_on_old_ground_costs_no_more_than_the_pixel(bundles, tmp_path):
    """No old label is of the new class: it is no class of the mean there, whoever predicts it."""

    def knowing(real):
        answer = real.copy()
        answer[0, 0] = 2
        return answer

    old, new = draw(tmp_path / "o"), draw(tmp_path / "n", range(CELLS, 2 * CELLS))
    make = predicting([(bundles["more"], knowing), (bundles["a"], shifted)])
    found = compare(bundles["more"], bundles["a"], old, new, predictor=make)
    assert found.accepted
    assert found.old.value == pytest.approx(found.together.value, abs=0.05)
    assert (found.classes["circle"]["challenger"], found.classes["circle"]["champion"]) == (None, None)
    same = predicting([(bundles["more"], knowing), (bundles["a"], right)])
    assert -0.001 < compare(bundles["more"], bundles["a"], old, new, predictor=same).old.low < 0


def test_a_blind_model_does_not_win_where_there_is_nothing_to_see(bundles, tmp_path):
    """The champion has a few false pixels of a square; no square is there."""

    def careless(real):
        answer = np.zeros_like(real)
        answer[0, :3] = 1
        return answer

    chips = draw(tmp_path / "c", labels=lambda cell: 0 * truth(cell))
    found = gate(bundles, blind, careless, None, chips)
    assert not found.accepted
    assert found.reasons[0].startswith("failed: the only class on sealed ground is ground: it cannot be shown")


def test_a_class_of_the_champions_without_a_sealed_pixel_is_named(bundles, tmp_path):
    make = predicting([(bundles["b"], right), (bundles["more"], shifted)])
    found = compare(bundles["b"], bundles["more"], None, draw(tmp_path / "c"), predictor=make)
    assert found.accepted
    assert found.reasons[3] == "unknown: no sealed pixel is of circle: that it does not fall cannot be shown"


def matrices(rng, sizes, beta):
    """(B, 2, 2): cells of which a model finds a share of the squares, and as many false pixels, at random."""
    found, false = rng.beta(*beta, len(sizes)) * sizes, rng.beta(*beta, len(sizes)) * 800
    return np.stack([8000 - sizes - false, false, sizes - found, found], -1).reshape(-1, 2, 2)


@pytest.mark.parametrize("cells", [4, 6, 12])
def test_of_two_equally_good_models_the_challenger_seldom_wins(cells):
    rng, rules, won = np.random.default_rng(cells), Rules(draws=150), 0
    for _ in range(500):
        sizes = rng.integers(200, 4000, cells).astype(float)
        won += difference(matrices(rng, sizes, (3, 1)), matrices(rng, sizes, (3, 1)), labelled_iou, rules).low > 0
    assert won / 500 < 0.05


def test_one_old_cell_is_judged_by_the_difference_itself(bundles, tmp_path):
    old, new = draw(tmp_path / "o", range(1)), draw(tmp_path / "n")
    assert gate(bundles, right, shifted, old, new).accepted
    worse = gate(bundles, shifted, right, old, new)
    assert "too few cells for an interval" in worse.reasons[1]
    assert worse.reasons[1].startswith("failed")


def test_a_class_that_falls_too_far_refuses(bundles, tmp_path):
    """Much better at squares and circles together, but worse at squares than allowed."""

    def labels(cell):
        marked = truth(cell)
        marked[:, :2] = 2
        return marked

    chips = draw(tmp_path / "c", range(12), labels=labels, names=(*NAMES, "circle"))

    def both(real):
        answer = shifted(real, 1)
        answer[:, :2] = 2
        return answer

    make = predicting([(bundles["more"], both), (bundles["a"], right)])
    for bound, accepted in ((0.02, False), (0.2, True)):
        found = compare(bundles["more"], bundles["a"], None, chips, Rules(class_bound=bound), predictor=make)
        assert found.together.low > 0
        assert found.accepted is accepted
        assert "square loses most: 1.0000 to 0.92" in found.reasons[2]


def test_one_with_a_class_more_can_win_and_the_champion_never_predicts_it(bundles, tmp_path):
    def labels(cell):
        marked = truth(cell)
        marked[:, :2] = 2
        return marked

    def knowing(real):
        answer = real.copy()
        answer[:, :2] = 2
        return answer

    chips = draw(tmp_path / "c", labels=labels, names=(*NAMES, "circle"))
    make = predicting([(bundles["more"], knowing), (bundles["a"], right)])
    found = compare(bundles["more"], bundles["a"], None, chips, predictor=make)
    assert found.accepted
    assert (found.classes["circle"]["challenger"], found.classes["circle"]["champion"]) == (1, 0)
    lost = compare(bundles["a"], bundles["more"], None, chips, predictor=make)
    assert "circle loses most: 1.0000 to 0.0000" in lost.reasons[2]


def test_classes_are_matched_by_name(bundles, tmp_path):
    chips = draw(tmp_path / "c")
    make = predicting([(bundles["turned"], lambda real: 1 - real), (bundles["a"], shifted)])
    found = compare(bundles["turned"], bundles["a"], None, chips, predictor=make)
    assert (found.accepted, found.classes["square"]["challenger"]) == (True, 1)


def test_the_first_must_be_better_than_the_commonest_class_everywhere(bundles, tmp_path):
    chips = draw(tmp_path / "c")
    for mine, accepted in ((shifted, True), (blind, False)):
        found = compare(bundles["b"], None, None, chips, predictor=predicting([(bundles["b"], mine)]))
        assert found.accepted is accepted
        assert "the first: there is no champion" in found.reasons[0]
        assert "for ground everywhere; needed: lower end above 0" in found.reasons[0]
    assert not compare(bundles["b"], None, None, None, predictor=predicting([(bundles["b"], right)])).accepted


def test_the_first_of_few_cells_is_judged_by_the_difference_itself(bundles, tmp_path):
    chips = draw(tmp_path / "c", range(2))
    found = compare(bundles["b"], None, None, chips, predictor=predicting([(bundles["b"], right)]))
    assert found.accepted
    assert "needed: difference (with fewer than 4 cells the interval tells nothing) above 0" in found.reasons[0]


def test_the_first_must_surely_be_better(bundles, tmp_path):
    """In one cell it finds nearly all of the square, in the others it says square beside it: on the whole, better."""

    def lucky(real):
        return real if (real == truth(0)).all() else np.where(real, 0, np.eye(EDGE, dtype=np.uint8))

    chips = draw(tmp_path / "c", range(CELLS))
    found = compare(bundles["b"], None, None, chips, predictor=predicting([(bundles["b"], lucky)]))
    assert (found.together.value > 0, found.accepted) == (True, False)


def test_a_champion_from_elsewhere_is_told(bundles, tmp_path):
    make = predicting([(bundles["b"], right), (bundles["a"], shifted)])
    found = compare(bundles["b"], bundles["a"], None, draw(tmp_path / "c"), predictor=make, stranger=True)
    line = "the champion was not trained by this loop: it may have learnt from sealed ground"
    assert (found.accepted, found.to_json()["stranger"], line in found.lines()) == (True, True, True)
    assert line not in gate(bundles, right, shifted, None, draw(tmp_path / "d")).lines()


def test_the_same_comparison_gives_the_same_numbers(bundles, tmp_path):
    chips = draw(tmp_path / "c")
    one, two = (gate(bundles, right, shifted, None, chips).to_json() for _ in range(2))
    assert one == two
    assert one["differences"]["old"] is None


def test_a_large_chip_is_cut_at_the_cells_of_the_ground(bundles, tmp_path):
    chips = draw(tmp_path / "c", (0, 2), edge=1024)
    assert gate(bundles, right, shifted, None, chips).cells["new"] == 8


def test_the_report_can_be_read_by_people_and_programs(bundles, tmp_path):
    found = gate(bundles, right, shifted, None, draw(tmp_path / "c"))
    found = found.with_shadow([{"scene": "new.tif", "changed": 0.25, "areas": {}}])
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (told["schema"], told["accepted"], told["shadow"][0]["scene"]) == (1, True, "new.tif")
    lines = found.lines()
    assert lines[0] == f"accepted: {bundles['b'].digest[:12]} against champion {bundles['a'].digest[:12]}"
    assert "IoU of square: 1.0000 against 0.5000" in lines
    assert lines[-1] == "new.tif: 25.00% of the pixels would change"


def test_bundles_predict_in_eager_pytorch(bundles, tmp_path):
    found = compare(bundles["a"], bundles["a"], None, draw(tmp_path / "c"))
    assert (found.accepted, found.together.value) == (False, 0)
    assert 0 < found.scores["challenger"]["ece"] < 1
    with pytest.raises(TrainingError, match="takes the bands r, g, b, but chips have b, g, r"):
        compare(bundles["a"], None, None, draw(tmp_path / "d", bands=list("bgr")))


def test_sealed_chips_come_back_as_they_were_and_the_same_chips_give_the_same_file(tmp_path):
    present = draw(tmp_path / "c", range(4))
    digests = []
    for name in ("one.zip", "two.zip"):
        assert seal(present, None, tmp_path / name) == 4
        digests.append((tmp_path / name).read_bytes())
    assert digests[0] == digests[1]
    kept = open_sealed(tmp_path / "one.zip")
    assert [fingerprint(kept, i) for i in range(4)] == [fingerprint(present, i) for i in range(4)]
    assert unseen(present, kept) == []


def test_ground_stays_sealed_when_its_labels_leave_the_archive(tmp_path):
    old = draw(tmp_path / "o", range(4), names=("ground", "gone", "square"), labels=lambda cell: 2 * truth(cell))
    present = draw(tmp_path / "n", range(3, 6), labels=lambda cell: shifted(truth(cell)))
    assert seal(present, old, tmp_path / "s.zip") == 6
    kept = open_sealed(tmp_path / "s.zip")
    assert [chip.col // 512 for chip in kept.header.chips] == [3, 4, 5, 0, 1, 2]
    assert [entry.name for entry in kept.header.classes] == ["ground", "square", "gone"]
    assert np.array_equal(kept.labels[0], shifted(truth(3)))
    assert np.array_equal(kept.labels[3], truth(0))


def test_ground_stays_sealed_when_a_model_makes_its_labels_anew(tmp_path):
    old = draw(tmp_path / "o", range(3), origin="corrected")
    assert seal(draw(tmp_path / "n", range(3), origin="model"), old, tmp_path / "s.zip") == 3
    once = open_sealed(tmp_path / "s.zip")
    assert (counted(once), once.header.scenes["a"].origin) == ([0, 1, 2], "corrected")
    assert seal(draw(tmp_path / "t", range(3), split="train"), once, tmp_path / "t.zip") == 3


def test_sealed_ground_that_is_learnt_from_is_named(tmp_path):
    old = draw(tmp_path / "o", range(3))
    assert leaked(draw(tmp_path / "n", range(3)), old) == []
    assert leaked(draw(tmp_path / "m", range(3, 6), split="train"), old) == []
    assert leaked(draw(tmp_path / "t", (2, 3), split="train"), old) == ["a, row 0, column 1024"]
    assert leaked(draw(tmp_path / "v", (0,), split="val"), old) == ["a, row 0, column 0"]
    assert leaked(draw(tmp_path / "w", (0,), split="val"), None) == []
    unlabelled = draw(tmp_path / "u", range(3), split="train", labels=lambda cell: truth(cell) | 255)
    assert leaked(unlabelled, old) == []


def moved(chips, rows, place, scene):
    """The same with chips of another scene, `rows` further down on the same place on the Earth."""
    records = [
        chip.model_copy(update={"scene": scene, "row": 7, "place": f"{place}/{rows}/{chip.col}"})
        for chip in chips.header.chips
    ]
    return replace(chips, header=chips.header.model_copy(update={"chips": tuple(records)}))


def test_sealed_ground_that_another_scene_shows_is_named_too(tmp_path):
    old = moved(draw(tmp_path / "o", range(2)), 1000, "utm", "a")
    learnt = draw(tmp_path / "n", range(1, 2), split="train")
    for rows, shared in ((1000 - EDGE, False), (1001 - EDGE, True), (999 + EDGE, True), (1000 + EDGE, False)):
        assert leaked(moved(learnt, rows, "utm", "b"), old) == ["b, row 7, column 512"] * shared
        assert leaked(moved(learnt, rows, "other", "b"), old) == []


def test_only_what_gates_read_is_sealed(tmp_path):
    assert seal(draw(tmp_path / "t", split="val"), None, tmp_path / "s.zip") == 0
    assert not (tmp_path / "s.zip").exists()
    assert counted(draw(tmp_path / "m", origin="model")) == []


def test_sealed_chips_of_other_sizes_are_padded_and_of_other_bands_refused(tmp_path):
    old, present = draw(tmp_path / "o", (0, 4)), draw(tmp_path / "n", (1, 2), edge=128)
    assert seal(present, old, tmp_path / "s.zip") == 4
    kept = open_sealed(tmp_path / "s.zip")
    assert (kept.edge, int(kept.valid[3].sum()), int((kept.labels[3] != 255).sum())) == (128, 64**2, 64**2)
    with pytest.raises(TrainingError, match="sealed ones bands x, y, z of uint8"):
        seal(present, draw(tmp_path / "x", bands=list("xyz")), tmp_path / "s.zip")


def test_a_file_that_holds_no_chips_says_so(tmp_path):
    (tmp_path / "s.zip").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="holds no sealed chips"):
        open_sealed(tmp_path / "s.zip")
    with pytest.raises(TrainingError, match="holds no sealed chips"):
        open_sealed(tmp_path / "missing.zip")
