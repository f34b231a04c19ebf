import json

import numpy as np
import pytest
import zarr
from drawn_bundle import draw_bundle

from models.dataset import open_chips
from models.errors import TrainingError
from models.promotion import Rules, compare
from models.sealed import counted, fingerprint, open_sealed, seal, unseen
from models.spec import Class

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
    old = draw(tmp_path / "o", range(2))
    new = draw(tmp_path / "n", range(12), labels=lambda cell: shifted(truth(cell)))
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


def test_one_cell_shows_nothing(bundles, tmp_path):
    found = gate(bundles, right, shifted, None, draw(tmp_path / "c", range(1)))
    assert (found.accepted, len(found.reasons)) == (False, 1)
    assert found.reasons[0].startswith("failed: 1 cells of sealed ground")
    assert gate(bundles, right, shifted, None, None).cells["together"] == 0


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
        assert "for ground everywhere" in found.reasons[0]
    assert not compare(bundles["b"], None, None, None, predictor=predicting([(bundles["b"], right)])).accepted


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
