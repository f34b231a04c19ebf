"""What the training loop leaves of the speed of a bare step: the same network on batches that are in memory already.

In turn, in one process: some steps of `models.train.fit`, counted from its first line to its last, and as many of
forward, loss, backward and optimiser with nothing around them. On a GPU if there is one.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from models.config import TrainConfig
from models.dataset import measure_bands, open_chips
from models.journal import Log
from models.objective import Objective
from models.optimizer import make_optimizer
from models.sampling import Sampler
from models.segmenter import create_segmenter
from models.train import fit, make_fabric
from pipeline import resources
from tests.bench.common import record, spread, table, verdict
from tests.drawn_chips import draw_chips

ROUNDS = 5
STEPS = 10
"""Timed in each round; half as many go before."""
WANTED = 0.95
WAITING = 0.05


def run(rounds=ROUNDS, steps=STEPS, precision="32-true", threads=None):
    """Markdown: seconds a step of both by either clock, and the share of time that the loop waits for batches.

    Where a machine has other work, the processor's clock tells more than the wall's.
    """
    steps = int(steps)
    torch.set_num_threads(int(threads or resources.cores()))
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        chips = draw_chips(Path(scratch) / "chips.zarr", edge=512, count=24)
        config = TrainConfig(chips=chips, out=Path(scratch), foreground=0.25, validate_every=10**6, save_every=10**6)
        config = replace(config, precision=precision, steps=steps + steps // 2, log_every=steps // 2)
        opened = open_chips(chips)
        bands = measure_bands(opened, opened.indices("train"))
        facts = [_round(config, opened, bands, steps) for _ in range(int(rounds))]
    device, waiting = make_fabric(config).device.type, [fact["waiting"] for fact in facts]
    rows = [_row(facts, clock) for clock in ("wall", "cpu")]
    told = [
        (f"training loop, share of a bare step's speed ({device})", f"at least {WANTED}", rows[0][3]),
        (f"training loop, share of the time waiting for batches ({device})", f"below {WAITING}", spread(waiting, 4)),
    ]
    record("training", {"device": device, "precision": precision, "rounds": facts}, told)
    idle = verdict(median(waiting), WAITING, least=False)
    rows.append(["waiting for batches", "", "", spread(waiting, 4), f"below {WAITING}", idle])
    return table([f"clock, on {device}", "bare step s", "step of the loop s", "share", "wanted", "reached"], rows)


def _row(facts, clock):
    bare, loop = ([fact[part][clock] for fact in facts] for part in ("bare", "loop"))
    shares = [ours / theirs for ours, theirs in zip(bare, loop, strict=True)]
    reached = verdict(median(shares), WANTED, least=True)
    return [clock, spread(bare, 3), spread(loop, 3), spread(shares, 3), WANTED, reached]


def _network():
    torch.manual_seed(0)
    return create_segmenter("inception_v1", 2)


def _round(config, chips, bands, steps):
    lines = []
    fit(config, chips, bands, _network(), Log(config.out / "train.jsonl", lambda line: lines.append(_stamped(line))))
    (config.out / "training.ckpt").unlink()
    loop = {clock: (lines[-1][clock] - lines[0][clock]) / steps for clock in ("wall", "cpu")}
    waiting = sum(line["waiting"] for line in lines[1:]) / len(lines[1:])
    return {"loop": loop, "waiting": waiting, "bare": _bare(config, chips, bands, steps)}


def _stamped(line):
    """With the time at which it came; on a GPU every step ends in a look at the loss, which waits for it."""
    return line | _clocks()


def _clocks():
    return {"wall": time.perf_counter(), "cpu": time.process_time()}


def _bare(config, chips, bands, steps):
    """Seconds a step, by either clock."""
    fabric, objective = make_fabric(config), Objective("segment")
    network = _network().to(memory_format=torch.channels_last).to(fabric.device).train()
    optimizer = make_optimizer(network, config)
    sampler = Sampler(chips, chips.indices("train"), bands, batch=config.batch, crop=config.crop)
    batches = [[fabric.to_device(part) for part in sampler.batch_at(step)] for step in range(4)]
    batches = [(x.contiguous(memory_format=torch.channels_last), labels) for x, labels in batches]
    for step in range(-(steps // 2), steps):
        if step == 0:
            _settle(fabric)
            start = _clocks()
        x, labels = batches[step % len(batches)]
        with fabric.autocast():
            loss = objective.loss(network, x, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _settle(fabric)
    return {clock: (now - start[clock]) / steps for clock, now in _clocks().items()}


def _settle(fabric):
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()
