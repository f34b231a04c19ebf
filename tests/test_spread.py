"""Several processes train as one does."""

from dataclasses import replace

import pytest
import torch
from drawn_chips import draw_chips
from torch import nn

from models.bundle import load_metrics
from models.config import TrainConfig
from models.dataset import measure_bands, open_chips
from models.errors import TrainingError
from models.journal import Log
from models.spread import spread
from models.train import fit, make_fabric, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SMALL = {"width": 0.25, "decoder_channels": (8, 8, 8, 8, 8), "steps": 4, "batch": 4, "crop": 32, "threads": 1}


@pytest.fixture
def config(tmp_path):
    chips = draw_chips(tmp_path / "chips.zarr")
    return TrainConfig(chips=chips, out=tmp_path / "bundle", accelerator="cpu", log_every=1, **SMALL)


def fit_plain(fabric, config, report):
    """A network whose images do not know of each other: no statistics over the batch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    chips = open_chips(config.chips)
    bands = measure_bands(chips, chips.indices("train"))
    log = Log(config.out / "train.jsonl" if fabric.is_global_zero else None, report)
    kept = fit(config, chips, bands, network, log, fabric)
    if fabric.is_global_zero:
        torch.save(kept.state_dict(), config.out / "weights.pt")


def test_two_processes_end_with_the_weights_of_one_to_rounding(config, tmp_path):
    config = replace(config, optimizer="sgd", loss="ce", lr=0.1, ema=0.5, steps=20, validate_every=5)
    states = []
    for devices in (1, 2):
        mine = replace(config, devices=devices, out=tmp_path / str(devices))
        mine.out.mkdir()
        lines = []
        if devices == 1:
            fit_plain(make_fabric(mine), mine, lines.append)
        else:
            spread(make_fabric(mine), fit_plain, mine, lines.append)
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
        states.append(torch.load(mine.out / "weights.pt"))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-4)


def test_two_processes_make_one_bundle(config):
    bundle = train(replace(config, devices=2))
    assert load_metrics(bundle)["training"]["devices"] == 2
    assert not (config.out / "training.ckpt").exists()


def test_what_goes_wrong_in_a_process_is_said_as_if_it_were_this_one(config):
    with pytest.raises(TrainingError, match=r"of step \d is (nan|inf): lower the learning rate"):
        train(replace(config, devices=2, lr=1e30, warmup=0))


def test_a_report_that_fails_is_heard(config):
    def refuse(_):
        raise LookupError

    with pytest.raises(LookupError):
        train(replace(config, devices=2), refuse)
