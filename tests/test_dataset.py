from contextlib import closing

import numpy as np
import pytest
import torch
from drawn_chips import draw_chips

from models import dataset
from models.dataset import draw_probes, measure_bands, open_chips
from models.errors import TrainingError
from models.readahead import ReadAhead
from models.sampling import Augmentation, Sampler, normalised, warp
from models.sealed import fingerprint

STILL = Augmentation(gain=0, offset=0, gamma=0)


def sampler(path, **options):
    chips = open_chips(path)
    train = chips.indices("train")
    options = {"batch": 4, "crop": 32, **options}
    return Sampler(chips, train, measure_bands(chips, train), **options)


@pytest.mark.parametrize("kept", [2 << 30, 0])
def test_the_slots_of_chips_make_no_difference(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(dataset, "IN_MEMORY", kept)
    plain, moved = (open_chips(draw_chips(tmp_path / str(s), slots=s)) for s in (None, (4, 0, 9, 2, 3, 8)))
    assert moved.digest() == plain.digest()
    assert moved.pixels.shape == (6, 3, 64, 64)
    for index in range(6):
        for name in ("pixels", "valid", "labels", "objects", "scale", "offset"):
            assert np.array_equal(getattr(moved, name)[index], getattr(plain, name)[index])


@pytest.mark.parametrize("name", ["pixels", "valid", "labels", "scale", "offset"])
def test_the_digest_is_of_all_that_a_training_sees(tmp_path, name):
    chips = open_chips(draw_chips(tmp_path / "c"))
    before = chips.digest(), fingerprint(chips, 2)
    getattr(chips, name)[2] += 1
    assert chips.digest() != before[0]
    assert fingerprint(chips, 2) != before[1]


def test_chips_of_schema_1_are_read_as_chips_without_objects(tmp_path):
    old, new = (open_chips(draw_chips(tmp_path / str(schema), schema=schema)) for schema in (1, 2))
    assert old.digest() == new.digest()
    assert old.objects is None
    assert [chip.slot for chip in old.header.chips] == [0, 1, 2, 3, 4, 5]
    assert (old.header.objects, old.header.boundary) == ((), None)
    assert old.header.scenes["a"].fingerprint == new.header.scenes["a"].fingerprint == "print"


def test_sealed_chips_are_neither_trained_on_nor_chosen_by(tmp_path):
    chips = open_chips(draw_chips(tmp_path / "c", sealed=2))
    assert [chips.indices(split) for split in ("train", "val", "sealed")] == [[1, 2], [0, 3], [4, 5]]


def test_bands_are_measured_over_valid_training_pixels_in_the_bands_unit(tmp_path):
    chips = open_chips(draw_chips(tmp_path / "c", bands=5, dtype="int16", invalid_value=-9999))
    for i, band in enumerate(measure_bands(chips, chips.indices("train"), ("K",) * 5)):
        seen = chips.pixels[chips.indices("train")][:, i, :, 16:] * 0.5 + 3
        assert (band.name, band.unit, band.low, band.high) == (f"b{i}", "K", seen.min(), seen.max())
        assert (band.mean, band.std) == pytest.approx((seen.mean(), seen.std()))


def test_the_labels_of_a_batch_do_not_depend_on_what_invalid_pixels_hold(tmp_path):
    drawn = [draw_chips(tmp_path / str(v), dtype="float32", invalid_value=v) for v in (-9999, 1e30, np.nan, np.inf)]
    first, *others = (sampler(path).batch_at(3) for path in drawn)
    assert (first[1] == 255).any()
    assert (first[0].movedim(1, -1)[first[1] == 255] == 0).all()
    for x, labels in others:
        assert torch.equal(x, first[0])
        assert torch.equal(labels, first[1])


def test_a_batch_repeats_and_differs_from_other_steps_and_seeds(tmp_path):
    path = draw_chips(tmp_path / "c")
    x, labels = sampler(path).batch_at(7)
    again, again_labels = sampler(path).batch_at(7)
    assert torch.equal(x, again)
    assert torch.equal(labels, again_labels)
    assert not torch.equal(x, sampler(path).batch_at(8)[0])
    assert not torch.equal(x, sampler(path, seed=1).batch_at(7)[0])


def test_labels_stay_on_their_pixels(tmp_path):
    draw = sampler(draw_chips(tmp_path / "c"), augmentation=STILL, batch=32)
    threshold = (100 * 0.5 + 3 - draw.bands[0].mean) / draw.bands[0].std
    x, labels = draw.batch_at(0)
    agree = (x[:, 0] >= threshold) == (labels == 1)
    native = agree.flatten(1).all(1)
    assert 0.3 < native.float().mean() < 0.95
    assert agree.float().mean() > 0.9


def test_whole_chips_come_out_in_all_eight_positions_and_no_other(tmp_path):
    draw = sampler(draw_chips(tmp_path / "c", count=2), augmentation=Augmentation(1, True, 0, 0, 0), crop=64, batch=16)
    chip = normalised(draw.chips, 1, draw.bands)[0][0].numpy()
    positions = np.stack([np.rot90(flipped, turns) for flipped in (chip, chip.T) for turns in range(4)])
    x = torch.cat([draw.batch_at(step)[0][:, 0] for step in range(3)]).numpy()
    close = np.abs(x[:, None] - positions).max((2, 3)) < 1e-3
    assert (close.sum(1) == 1).all()
    assert close.any(0).all()


def test_the_identity_changes_nothing():
    x, valid = torch.randn(2, 3, 20, 20), torch.ones(2, 20, 20, dtype=torch.bool)
    labels = torch.randint(0, 255, (2, 20, 20), dtype=torch.uint8)
    images, known, ids = warp(x, valid, labels, torch.eye(2, 3).repeat(2, 1, 1), 20)
    torch.testing.assert_close(images, x, rtol=1e-4, atol=1e-4)
    assert known.all()
    assert torch.equal(ids, labels)


def test_foreground_draws_only_from_chips_that_have_some(tmp_path):
    path = draw_chips(tmp_path / "c", count=9)
    chips = open_chips(path)
    chips.labels[[i for i in chips.indices("train") if i != 4]] = 0
    draw = Sampler(chips, chips.indices("train"), measure_bands(chips, [4]), batch=8, crop=64, foreground=1.0)
    assert all((labels == 1).any() for labels in draw.batch_at(0)[1])


def test_a_class_is_drawn_first_and_then_a_chip_that_holds_it(tmp_path):
    chips = open_chips(draw_chips(tmp_path / "c", count=30, names=("ground", "square", "rare", "absent")))
    train = chips.indices("train")
    chips.labels[train[7], :9, :9] = 2
    chips.labels[train[8:]] = 0
    draw = Sampler(chips, train, measure_bands(chips, train), batch=4000, crop=64, foreground=0.5)
    drawn = np.bincount(draw._draw(np.random.default_rng(0)), minlength=30) / 4000
    assert drawn[train[7]] == pytest.approx(0.5 / 20 + 0.25 + 0.25 / 8, abs=0.02)
    assert drawn[train[:7]].sum() == pytest.approx(7 * (0.5 / 20 + 0.25 / 8), abs=0.03)
    assert drawn[chips.indices("val")].sum() == 0


def test_processes_share_a_batch_row_by_row(tmp_path):
    path = draw_chips(tmp_path / "c")
    images, labels = sampler(path, batch=5).batch_at(3)
    for rank in range(2):
        ours = sampler(path, batch=5, rows=slice(rank, None, 2)).batch_at(3)
        assert torch.equal(ours[0], images[rank::2])
        assert torch.equal(ours[1], labels[rank::2])


def test_counts_are_of_labelled_pixels_by_chip(tmp_path):
    chips = open_chips(draw_chips(tmp_path / "c"))
    chips.labels[2, :32] = 255
    assert chips.counts.shape == (6, 2)
    assert chips.counts[2].tolist() == [(chips.labels[2] == k).sum() for k in (0, 1)]


@pytest.mark.parametrize("threads", [1, 3])
def test_reading_ahead_keeps_the_order_and_raises_where_it_stands(threads):
    assert list(ReadAhead(lambda step: step * step, range(3, 9), threads=threads)) == [9, 16, 25, 36, 49, 64]
    assert list(ReadAhead(lambda step: step, range(2), threads=threads)) == [0, 1]
    ahead = ReadAhead(lambda step: 1 // (2 - step), range(9), threads=threads)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_as_much_is_read_ahead_as_was_asked_for():
    made = []
    with closing(ReadAhead(made.append, range(9), depth=3)) as ahead:
        next(ahead)
        next(ahead)
    assert made == [0, 1, 2, 3, 4][: len(made)]
    assert len(made) >= 2


def test_waiting_is_the_share_of_time_without_a_next_one():
    """Begun at 0; asked at 10, there at 19; told at 20. Asked at 56, there at 60; told at 60."""
    clock = iter([0, 10, 19, 20, 56, 60, 60]).__next__
    with closing(ReadAhead(lambda step: step, range(3), depth=1, clock=clock)) as ahead:
        next(ahead)
        assert ahead.waiting() == 9 / 20
        next(ahead)
        assert ahead.waiting() == 4 / 40


def test_probes_are_validation_crops_within_the_budget(tmp_path):
    chips = open_chips(draw_chips(tmp_path / "c", count=12))
    pixels, valid = draw_probes(chips, budget=50_000)
    assert len(pixels) == 3
    assert np.array_equal(pixels[0], chips.pixels[chips.indices("val")[0]])
    assert sum(p.nbytes for p in pixels) + sum(v.nbytes for v in valid) <= 50_000


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="holds no chips of schema 1 or 2"):
        open_chips(tmp_path / "none")
    with pytest.raises(TrainingError, match="crops of 96 pixels do not fit chips of 64"):
        sampler(draw_chips(tmp_path / "c"), crop=96)
    with pytest.raises(TrainingError, match="two chips lie in one slot"):
        open_chips(draw_chips(tmp_path / "twice", slots=(0, 1, 2, 3, 4, 4)))
    with pytest.raises(TrainingError, match="a class is named twice"):
        open_chips(draw_chips(tmp_path / "objects", objects=(1, 1)))
    chips = open_chips(tmp_path / "c")
    with pytest.raises(TrainingError, match="no training chip has a valid pixel"):
        measure_bands(chips, [])
