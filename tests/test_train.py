import json
from dataclasses import replace

import pytest
import torch
import zarr
from drawn_chips import draw_chips
from drawn_weights import PUBLIC_KEYS, draw_state
from torch import nn

from models.averaging import Average
from models.bundle import load_metrics, load_module, load_probes
from models.config import TrainConfig
from models.dataset import measure_bands, open_chips
from models.errors import TrainingError, UsageError
from models.journal import Log
from models.spec import Band
from models.start import starting_bands
from models.train import class_weights, fit, train
from models.validation import validate


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        ema=0.5,
        chips=draw_chips(tmp_path / "chips.zarr"),
        out=tmp_path / "bundle",
        width=0.25,
        decoder_channels=(8, 8, 8, 8, 8),
        steps=4,
        batch=2,
        crop=32,
        warmup=2,
        log_every=1,
        save_every=2,
        validate_every=3,
        threads=1,
    )


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums come out alike only with the same number of threads."""
    torch.set_num_threads(1)


class KilledError(Exception):
    pass


def kill_after(step):
    def report(line):
        if line["step"] > step:
            raise KilledError

    return report


def test_a_seeded_training_repeats_bitwise_killed_or_not(config, tmp_path):
    first = train(config)
    second = replace(config, out=tmp_path / "second")
    with pytest.raises(KilledError):
        train(second, kill_after(2))
    assert (second.out / "training.ckpt").exists()
    resumed = []
    assert train(second, resumed.append).digest == first.digest
    assert [line["step"] for line in resumed if "loss" in line] == [3, 4]
    assert not (second.out / "training.ckpt").exists()


def test_the_scores_are_those_of_the_stored_weights(config):
    bundle = train(config)
    chips = open_chips(config.chips)
    assert load_metrics(bundle)["val"] == validate(load_module(bundle), chips, bundle.spec.bands)
    assert "| square |" in (bundle.path / "README.md").read_text()


def test_a_bundle_says_what_the_chips_and_the_settings_said(config):
    draw_chips(config.chips, objects=(1,))
    spec = train(replace(config, name="squares", colors=("#000000", "#FF0000"), codes=(0, 40), attribution="me")).spec
    assert [(c.name, c.color, c.code) for c in spec.classes] == [("ground", "#000000", 0), ("square", "#FF0000", 40)]
    assert [band.name for band in spec.bands] == ["b0", "b1", "b2"]
    assert (spec.schema_version, spec.objects, spec.boundary) == (4, (1,), None)
    assert (spec.dtypes, spec.attribution, spec.stride) == (("uint8",), "me", 32)


def test_the_log_has_a_line_for_each_interval_and_learning_happens(config):
    bundle = train(replace(config, steps=30, log_every=5, precision="bf16-mixed", crop=64))
    lines = [json.loads(line) for line in (config.out / "train.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]
    assert len(load_probes(bundle)) == 2


def test_the_rate_rises_to_its_peak_and_falls_to_nothing(config):
    config = replace(config, steps=100, warmup=10, lr=1.0)
    rates = [config.rate(step) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_a_loss_that_is_not_finite_stops_before_the_step(config):
    with pytest.raises(TrainingError, match=r"the (loss|gradient) of step \d is (nan|inf): lower the learning rate"):
        train(replace(config, lr=1e30, warmup=0))
    assert not (config.out / "bundle.json").exists()


def test_a_checkpoint_of_other_settings_is_refused(config):
    with pytest.raises(KilledError):
        train(config, kill_after(2))
    with pytest.raises(TrainingError, match=r"training.ckpt belongs to other settings or chips"):
        train(replace(config, width=0.5))


def test_training_leaves_torchs_settings_as_they_were(config):
    threads = torch.get_num_threads()
    train(replace(config, steps=1))
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(TrainingError, match="batch is 0: it must be at least 1"):
        TrainConfig(chips="c", out="o", batch=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0: it must be above 0"),
        ({"lr": float("nan")}, "lr is nan: it must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1: it must be at least 0"),
        ({"foreground": 5}, "foreground is 5: it must be from 0 to 1"),
        ({"label_smoothing": 3}, "label_smoothing is 3: it must be at least 0 and below 1"),
        ({"ema": -0.5}, "ema is -0.5: it must be below 1"),
        ({"seed": 2**32}, "seed is 4294967296: it must be from 0 to 4294967295"),
        ({"seed": -1}, "seed is -1: it must be from 0 to 4294967295"),
        ({"warmup": -1}, "warmup is -1: it must be at least 0"),
        ({"freeze": -1}, "freeze is -1: it must be at least 0"),
        ({"encoder_rate": -1}, "encoder_rate is -1: it must be at least 0"),
        ({"clip": 0}, "clip is 0: it must be above 0"),
    ],
)
def test_numbers_beyond_their_range_are_refused_whoever_asks(changes, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(chips="c", out="o", **changes)


def test_the_largest_seed_trains(config):
    train(replace(config, steps=1, seed=2**32 - 1))


def test_a_checkpoint_is_of_its_deviations_too(config):
    chips = open_chips(config.chips)
    bands = measure_bands(chips, chips.indices("train"))
    facts = {"bands": bands, "network": nn.Conv2d(3, 2, 1), "chips": chips.digest()}
    assert config.key(**facts, deviations=(1.0, 2.0, 3.0)) != config.key(**facts, deviations=(1.0, 2.0, 4.0))


def logged(config):
    return [json.loads(line) for line in (config.out / "train.jsonl").read_text().splitlines()]


def test_the_log_is_of_one_training(config):
    """A shorter one in the same folder would keep the older one's scores."""
    train(replace(config, steps=6))
    assert [line["step"] for line in logged(config)] == [1, 2, 3, 3, 4, 5, 6]
    train(replace(config, steps=2, seed=1))
    assert [line["step"] for line in logged(config)] == [1, 2]


def test_a_log_that_goes_on_has_one_start(config, tmp_path):
    start = train(replace(config, out=tmp_path / "start", steps=1)).path
    config = replace(config, start=start)
    with pytest.raises(KilledError):
        train(config, kill_after(2))
    train(config)
    assert [line["step"] for line in logged(config) if "start" in line] == [0]
    assert logged(config)[0].keys() == {"step", "start", "seconds"}
    assert [line["step"] for line in logged(config) if "loss" in line] == [1, 2, 3, 3, 4]


def classifying(config, tmp_path, **changes):
    chips = draw_chips(tmp_path / "images.zarr", task="classify", count=12)
    return replace(config, **{"chips": chips, "crop": 64, "task": "classify", "out": tmp_path / "classes", **changes})


def test_a_trained_classifier_is_a_bundle_of_patches(config, tmp_path):
    bundle = train(classifying(config, tmp_path))
    spec, val = bundle.spec, load_metrics(bundle)["val"]
    assert (spec.architecture.decoder, spec.cell, spec.stride, spec.halo) == (None, 64, 64, 0)
    assert spec.tiles == (128, 256, 512)
    assert load_module(bundle)(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
    assert val["pixels"] == 4
    assert sum(map(sum, val["confusion"])) == 4
    assert "4 images" in (bundle.path / "README.md").read_text()


def test_auxiliary_heads_serve_the_training_alone(config, tmp_path):
    lines = []
    bundle = train(classifying(config, tmp_path, aux=True), lines.append)
    plain = train(classifying(config, tmp_path, aux=False, out=tmp_path / "plain"))
    assert not [name for name in load_module(bundle).state_dict() if name.startswith("aux")]
    assert bundle.digest != plain.digest
    with pytest.raises(UsageError, match="auxiliary heads are those of the classifiers"):
        replace(config, aux=True)


def test_a_frozen_encoder_keeps_its_weights_and_statistics(config, tmp_path):
    first = train(config)
    frozen = train(replace(config, out=tmp_path / "frozen", encoder_from=first.path, freeze=4, seed=1))
    tuned = train(replace(config, out=tmp_path / "tuned", encoder_from=first.path, freeze=2, encoder_rate=0.5))
    before, after, moved = (load_module(b).encoder.state_dict() for b in (first, frozen, tuned))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(before["conv1.conv.weight"], moved["conv1.conv.weight"])
    assert frozen.spec.bands == first.spec.bands
    assert load_metrics(frozen)["training"]["encoder_from"] == {"name": "bundle", "digest": first.digest}


def test_a_classifier_starts_from_the_encoder_of_a_segmenter(config, tmp_path):
    segmenter = train(config)
    bundle = train(classifying(config, tmp_path, encoder_from=segmenter.path, freeze=4))
    theirs, ours = load_module(segmenter).encoder.state_dict(), load_module(bundle).encoder.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_start_of_another_network_is_refused_with_both_named(config, tmp_path):
    first = train(config)
    with pytest.raises(TrainingError, match=r"has encoder inception_v1, this training inception_v3"):
        train(replace(config, out=tmp_path / "x", encoder="inception_v3", encoder_from=first.path))
    (tmp_path / "mine.pth").write_bytes(b"")
    with pytest.raises(TrainingError, match="the name of no published weights"):
        train(replace(config, out=tmp_path / "x", encoder_from=tmp_path / "mine.pth"))


def test_chips_of_the_other_task_are_refused(config, tmp_path):
    with pytest.raises(TrainingError, match="holds chips to classify: make chips to segment"):
        train(replace(classifying(config, tmp_path), task="segment"))
    with pytest.raises(TrainingError, match="images are classified whole, and have 64 pixels"):
        train(replace(classifying(config, tmp_path), crop=32))


def test_balanced_weights_are_the_inverse_shares(config):
    chips = open_chips(config.chips)
    labels = chips.labels[chips.indices("train")]
    shares = torch.tensor([(labels == k).mean() for k in (0, 1)])
    torch.testing.assert_close(class_weights(chips).double(), 1 / (2 * shares))
    assert train(replace(config, class_weights="balanced", label_smoothing=0.1)).digest != train(config).digest


def test_a_pyramid_on_a_residual_encoder_trains_into_a_bundle(config):
    bundle = train(
        replace(config, encoder="inception_resnet_v2", decoder="fpn", decoder_channels=(), output_stride=4, steps=1)
    )
    assert bundle.spec.architecture.decoder_channels == (128, 64)
    assert load_module(bundle)(torch.zeros(1, 3, 70, 65)).shape == (1, 2, 70, 65)


def test_public_weights_bring_their_variant_and_their_normalisation(config, tmp_path):
    file = tmp_path / "googlenet-1378be20.pth"
    torch.save(draw_state(PUBLIC_KEYS["tv_googlenet"]), file)
    bundle = train(replace(config, width=1.0, encoder_from=file, freeze=1, steps=1, storage="fp32"))
    assert bundle.spec.architecture.variant == {"kernel5": 3}
    assert [(band.mean, band.std) for band in bundle.spec.bands] == [(127.5, 127.5)] * 3
    stored = load_module(bundle).encoder.state_dict()["inception5b.branch1.conv.weight"]
    assert torch.equal(stored, draw_state(PUBLIC_KEYS["tv_googlenet"])["inception5b.branch1.conv.weight"].float())


def test_public_weights_of_another_network_are_refused(config, tmp_path):
    file = tmp_path / "googlenet-1378be20.pth"
    file.touch()
    with pytest.raises(TrainingError, match="holds weights of inception_v1, this training is of inception_v4"):
        train(replace(config, encoder="inception_v4", encoder_from=file))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", (127.5, 127.5)), ("uint16", (2500, 600 * 127.5 / 57.4))],
)
def test_the_first_layer_meets_values_as_large_as_public_weights_were_trained_on(config, tmp_path, dtype, expected):
    bands = tuple(Band(name=name, low=0, high=12000, mean=2500, std=600) for name in "rgb")
    start = replace(config, encoder_from=tmp_path / "googlenet-1378be20.pth")
    assert [(b.mean, pytest.approx(b.std)) for b in starting_bands(bands, dtype, start)] == [expected] * 3


def test_a_bundles_normalisation_is_for_pixels_of_its_own_type(config):
    start = replace(config, encoder_from=train(config).path)
    bands = tuple(Band(name=f"b{i}", low=0, high=12000, mean=2500, std=600) for i in range(3))
    assert starting_bands(bands, "uint16", start) == bands
    assert starting_bands(bands, "uint8", start)[0].mean < 200


def fit_foreign(config, **changes):
    """Three layers of somebody else's."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    chips, lines = open_chips(config.chips), []
    bands = measure_bands(chips, chips.indices("train"))
    config = replace(config, steps=40, log_every=10, lr=0.05, validate_every=99, **changes)
    config.out.mkdir()
    kept = fit(config, chips, bands, network, Log(config.out / "train.jsonl", lines.append))
    return lines, validate(kept, chips, bands)


def test_any_network_is_trained_in_the_same_loop(config):
    lines, val = fit_foreign(config)
    assert val["iou"]["square"] > 0.5
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert all(0 <= line["waiting"] <= 1 for line in lines)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("loss", ["ce", "dice", "focal", "ce+dice+focal"])
def test_every_loss_falls_under_every_optimiser(config, optimizer, loss):
    lines, _ = fit_foreign(config, optimizer=optimizer, loss=loss)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


def test_the_average_is_the_one_that_its_formula_says():
    module = nn.BatchNorm1d(1)
    average = Average(module, 0.3)
    expected = 1.0
    for step, keep in enumerate((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3)):
        with torch.no_grad():
            module.weight.fill_(step)
        module.running_mean.fill_(step)
        module.num_batches_tracked += 1
        average.update(step)
        expected = keep * expected + (1 - keep) * step
    assert average.module.weight.item() == pytest.approx(expected)
    assert average.module.running_mean.item() == pytest.approx(expected, abs=0.01)
    assert average.module.num_batches_tracked == 5


def test_the_bundle_holds_the_average(config, tmp_path):
    last = load_module(train(replace(config, ema=0.0, out=tmp_path / "last", storage="fp32"))).state_dict()
    mean = load_module(train(replace(config, storage="fp32"))).state_dict()
    assert not torch.equal(last["head.weight"], mean["head.weight"])
    assert not torch.equal(last["encoder.conv1.bn.running_var"], mean["encoder.conv1.bn.running_var"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "ce+ce"}, "loss is ce[+]ce: join some of ce, dice, focal"),
        ({"loss": "hinge"}, "loss is hinge"),
        ({"loss": "focal", "label_smoothing": 0.1}, "add ce, or smooth none"),
        ({"loss": "dice", "class_weights": "balanced"}, "Dice weighs all classes alike"),
        ({"ema": 1.0}, "ema is 1.0: it must be below 1"),
    ],
)
def test_losses_and_averages_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(chips="c", out="o", **changes)


def test_a_bundle_tells_which_labels_it_was_trained_on(config):
    facts = load_metrics(train(replace(config, steps=1)))
    assert facts["labels"] == {"a": {"fingerprint": "print", "labels": "labels", "origin": "drawn"}}
    assert facts["extent"] is None


def test_scores_of_objects_come_with_those_of_pixels(config):
    draw_chips(config.chips, objects=(1,))
    val = load_metrics(train(replace(config, steps=1)))["val"]
    assert val["objects"]["square"].keys() >= {"iou", "f1", "ap50", "tp", "fp", "fn"}
    assert 0 <= val["ece"] <= 1
    assert set(val["boundary_f1"]) == {"ground", "square"}


def test_sealed_chips_change_neither_weights_nor_scores(config, tmp_path):
    draw_chips(config.chips, sealed=3, count=9)
    first = train(config)
    chips = zarr.open_group(config.chips)
    for chip in open_chips(config.chips).indices("sealed"):
        chips["labels"][chip], chips["pixels"][chip] = 0, 9
    second = train(replace(config, out=tmp_path / "second"))
    assert first.digest == second.digest
