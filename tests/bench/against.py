"""File to mask, the same weights on both sides: this pipeline and MONAI's sliding window."""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from tests.bench.common import BUILDINGS, measured, mosaic, record, spread, table, verdict

WINDOW = (0, 0, 4096, 4096)
ROUNDS = 3
BATCH = 4
WANTED = {"MONAI, contiguous": 4.0, "MONAI, channels last": 3.0}


def run(rounds=ROUNDS):
    """Markdown: seconds of each, and how many times ours the others take."""
    if find_spec("monai") is None:
        return "Left out: MONAI is not installed; `make bench` installs it (the extra `bench`).\n"
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        scene = str(mosaic(Path(scratch)))
        measured(_ours(scene) | {"only_plan": True}, scratch)  # compiles the engine, once for each machine
        facts = [_round(scene, scratch) for _ in range(int(rounds))]
    ours = [fact["widefield"]["wall"] for fact in facts]
    rows = list(_rows(facts, ours))
    told = [(f"file to mask, times faster than {row[0]}", f"at least {row[5]}", row[3]) for row in rows]
    record("monai", facts, told)
    head = ["what", "wall s", "CPU s", "times ours", "by CPU", "wanted", "reached", "labels that differ"]
    return table(head, [["widefield segment", *_seconds(facts, "widefield"), "", "", "", "", ""], *rows])


def _ours(scene):
    job = {"job": "segment", "scene": scene, "window": WINDOW, "bundle": str(BUILDINGS), "engine": "auto"}
    return job | {"stage": None, "executor": "serial"}


def _round(scene, scratch):
    mask = str(Path(scratch) / "mask.tif")
    facts = {"widefield": measured(_ours(scene) | {"keep": mask}, scratch, "wall", "cpu", "speed")}
    for name in WANTED:
        job = {"job": "monai", "scene": scene, "window": WINDOW, "bundle": str(BUILDINGS), "batch": BATCH}
        job |= {"channels_last": name.endswith("last"), "ours": mask}
        facts[name] = measured(job, scratch, "wall", "cpu", "differ")
    return facts


def _seconds(facts, name):
    return [spread(fact[name][key] for fact in facts) for key in ("wall", "cpu")]


def _rows(facts, ours):
    for name, wanted in WANTED.items():
        times = [fact[name]["wall"] / wall for fact, wall in zip(facts, ours, strict=True)]
        by_cpu = [fact[name]["cpu"] / fact["widefield"]["cpu"] for fact in facts]
        reached = verdict(median(times), wanted, least=True)
        differ = f"{100 * facts[0][name]['differ']:.2f} %"
        yield [name, *_seconds(facts, name), spread(times, 2), spread(by_cpu, 2), f"{wanted:.0f}", reached, differ]
