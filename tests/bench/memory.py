"""Peak memory against the plan: of the pipeline alone, for a scene twenty times as large; of real engines; and of the
largest network at two tiles, each with what it may take.
"""

import tempfile
from pathlib import Path

from tests.bench.common import MIB, grey_bundle, mosaic, record, table, watch, world
from tests.bench.networks import he_bundle

SCENES = {"33 Mpx": (2048, 16384, 4096, 8192), "648 Mpx": None}
EXECUTORS = ("serial", "dask")
ENGINES = ("openvino", "onnxruntime", "torch")
"""On the large scene, with a small network."""
LARGEST = "inception_resnet_v2"
LIMITS = {1152: 4.5, 2048: 12.0}
"""GiB that a worker may take with the largest network, by tile."""
PART = (0, 0, 3840, 3840)
"""Part of the drone scene for it: four cores of the larger tile, which would not be chosen for a worse fit."""
HEAD = ["what", "tile", "(tile/core)^2", "planned MiB", "peak MiB by run.json", "worst process MiB"]
HEAD += ["wanted GiB", "planned GiB", "reached"]


def run():
    """Markdown: the worst process of each run with the `null` engine."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        bundle = grey_bundle(Path(scratch))
        cases = [(executor, stage) for executor in EXECUTORS for stage in (True, False)]
        facts = [_case(bundle, Path(scratch), executor, stage=stage) for executor, stage in cases]
    record("memory", facts)
    head = ["executor", "staged", "planned MiB", *(f"{name}: peak MiB" for name in SCENES), "peaks' ratio", "worst"]
    return table(head, map(_row, facts))


def engines(*names):
    """Markdown: real engines on the large scene, by default all."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        bundle = grey_bundle(Path(scratch))
        facts = [_engine(f"648 Mpx, {name}", world(), None, bundle, scratch, engine=name) for name in names or ENGINES]
    rows = [_engine_row(fact) for fact in facts]
    told = "peak memory of a worker over 648 Mpx by run.json, MiB: "
    record("memory-engines", facts, [(told + row[0], f"at most {row[3]} (planned)", row[4]) for row in rows])
    return table(HEAD, rows)


def largest(*tiles):
    """Markdown: the largest network, at each of `tiles`."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        scene, bundle, name = mosaic(Path(scratch)), he_bundle(scratch, LARGEST), f"15 Mpx, {LARGEST}, openvino"
        wanted = [int(tile) for tile in tiles] or LIMITS
        facts = [_engine(name, scene, PART, bundle, scratch, engine="openvino", tile=tile) for tile in wanted]
    rows = [_engine_row(fact) for fact in facts]
    told = f"memory of a worker with {LARGEST}, planned, GiB, at (tile/core)^2 of "
    record("memory-largest", facts, [(told + row[2], f"at most {row[6]}", row[7]) for row in rows])
    return table(HEAD, rows)


BENCHES = {"memory": run, "memory-engines": engines, "memory-largest": largest}


def _engine(name, scene, window, bundle, scratch, **chosen):
    """One run on one worker, its engine built beforehand."""
    job = {"job": "segment", "scene": str(scene), "window": window, "bundle": str(bundle), "executor": "serial"}
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        job |= {"stage": False, "out": out, **chosen}
        watch(job | {"only_plan": True})
        watched = watch(job)
    memory, grid = watched.answer["memory"], watched.answer["grid"]
    facts = {"name": name, **memory, "peaks": watched.peaks, "tile": grid["tile"], "core": grid["core"]}
    return facts | {"limit": LIMITS.get(chosen.get("tile"))}


def _engine_row(fact):
    planned, peak = fact["planned_bytes"], fact["peak_bytes"]
    worst, limit = max(fact["peaks"].values()), fact["limit"]
    held = peak <= planned and (limit is None or max(planned, worst) <= limit * 2**30)
    return [
        fact["name"],
        fact["tile"],
        f"{(fact['tile'] / fact['core']) ** 2:.2f}",
        f"{planned / MIB:.0f}",
        f"{peak / MIB:.0f}",
        f"{worst / MIB:.0f}",
        limit or "",
        f"{planned / 2**30:.2f}",
        "yes" if held else "no",
    ]


def _case(bundle, scratch, executor, *, stage):
    facts = {"executor": executor, "stage": stage, "planned": {}, "peak": {}, "peaks": {}, "seconds": {}}
    for name, window in SCENES.items():
        job = {"job": "segment", "scene": str(world()), "window": window, "bundle": str(bundle), "executor": executor}
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            # Compiled and measured beforehand, so that no builder's memory counts.
            watch(job | {"stage": stage, "out": out, "only_plan": True})
            watched = watch(job | {"stage": stage, "out": out, "workers": 1})
        facts["planned"][name] = watched.answer["memory"]["planned_bytes"]
        facts["peaks"][name] = watched.peaks
        facts["peak"][name] = max(watched.peaks.values())
        facts["seconds"][name] = watched.seconds
    small, large = (facts["peak"][name] for name in SCENES)
    return facts | {"ratio": large / small}


def _row(facts):
    planned = max(facts["planned"].values())
    peaks = facts["peaks"]["648 Mpx"]
    return [
        facts["executor"],
        "yes" if facts["stage"] else "no",
        f"{planned / MIB:.0f}",
        *(f"{facts['peak'][name] / MIB:.0f}" for name in SCENES),
        f"{facts['ratio']:.3f}",
        max(peaks, key=peaks.get),
    ]
