"""A training that is killed by the kernel, in a process of its own."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from drawn_chips import draw_chips

from models.bundle import open_bundle

TRAINING = """
import os
import signal
import sys
from pathlib import Path
from models.config import TrainConfig
from models.train import train

def kill(line):
    if "loss" in line and line["step"] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

small = {"width": 0.25, "decoder_channels": (8, 8, 8, 8, 8), "output_stride": 4, "batch": 2, "crop": 32, "threads": 1}
much = {"steps": 30, "warmup": 2, "log_every": 1, "save_every": 5, "validate_every": 12, "ema": 0.9, "seed": 5}
train(TrainConfig(chips=Path(sys.argv[1]), out=Path(sys.argv[2]), accelerator="cpu", **small, **much), kill)
"""


def begin(chips, out, killed_at=0):
    return subprocess.Popen([sys.executable, "-c", TRAINING, chips, out, str(killed_at)], cwd=Path(__file__).parents[1])


def steps(out):
    return (out / "train.jsonl").read_text().count('"loss"')


@pytest.mark.timeout(600)  # three processes that import torch, perhaps beside others
def test_a_training_that_was_killed_at_any_step_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    chips, killed, unbroken = draw_chips(tmp_path / "chips.zarr"), tmp_path / "killed", tmp_path / "unbroken"
    at = random.randrange(6, 30)
    process, other = begin(chips, killed, at), begin(chips, unbroken)
    assert process.wait() == -signal.SIGKILL, f"it was not killed at step {at}"
    assert steps(killed) == at
    assert (killed / "training.ckpt").exists()
    assert not (killed / "bundle.json").exists()

    assert [process.wait() for process in (begin(chips, killed), other)] == [0, 0]
    assert (steps(killed), steps(unbroken)) == (at + 30 - (at - 1) // 5 * 5, 30), f"killed at step {at}"
    weights = [(out / "weights.safetensors").read_bytes() for out in (killed, unbroken)]
    assert weights[0] == weights[1], f"killed after step {at}"
    assert open_bundle(killed).digest == open_bundle(unbroken).digest
