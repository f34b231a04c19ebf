"""What handing out a task costs at 1e5 blocks, against bare submits of nothing; and whether memory stays flat.

Schedule, gate and executor are those of a run. On the workers the `null` engine is taken to its limit: it answers with
the facts of its blocks at once, so that what is left is dispatch.
"""

import queue
import tempfile
import time
import uuid
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import rasterio

from models.bundle import save_bundle
from pipeline.executors import DaskExecutor
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.schedule import Schedule
from pipeline.segment import SegmentRequest, plan_request
from tests.bench.answers import answer, nothing
from tests.bench.cluster import cluster
from tests.bench.common import MIB, record, spread, table, verdict
from tests.drawn_bundle import drawn_network, drawn_spec

BLOCKS, WORKERS, ROUNDS = 100_000, 4, 5
TILE = 64
CLOCKS = ("wall", "cpu")
BARE = {"fetched": "is fetched", "left": "stays where it is"}
WANTED = 1.5
"""Times a bare submit."""


def tiny_plan(folder, blocks, task_blocks=1):
    """A plan of `blocks` blocks of 64 pixels, over a raster that is all nothing."""
    spec = drawn_spec(name="tiny", bands=drawn_spec().bands[:1], halo=0, tiles=(TILE,))
    bundle, scene = folder / "tiny", folder / f"{blocks}.tif"
    if not bundle.exists():
        crops = [np.random.default_rng(0).integers(0, 256, (1, 48, 48), np.uint8)]
        save_bundle(bundle, spec, drawn_network(spec), {}, "# Drawn\n", crops, storage="fp32")
    rows = int(blocks**0.5)
    size = {"height": rows * TILE, "width": -(-blocks // rows) * TILE, "count": 1, "dtype": "uint8"}
    with rasterio.open(
        scene,
        "w",
        "GTiff",
        tiled=True,
        sparse_ok=True,
        crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4600000),
        **size,
    ):
        pass
    options = PlanOptions(stage=False, any_resolution=True, block=TILE)
    request = SegmentRequest(SceneAddress(str(scene)), bundle, folder, "scene", options, backend="null")
    return replace(plan_request(request), task_blocks=task_blocks)


def run(blocks=BLOCKS, rounds=ROUNDS):
    """Markdown: microseconds a task, in turn; and resident memory at the start, in the middle and at the end."""
    blocks, rounds = int(blocks), int(rounds)
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch, cluster(WORKERS) as parts:
        plan = tiny_plan(Path(scratch), blocks)
        with DaskExecutor(scheduler=parts.address) as executor:
            facts = _rounds(plan, Path(scratch), executor, parts, rounds)
    ratios = {(what, clock): _ratios(facts, what, clock) for what in BARE for clock in CLOCKS}
    told = "a task of a run over 100,000 blocks, times a bare submit of nothing whose result "
    headline = [(told + BARE[what], f"at most {WANTED}", spread(ratios[what, "wall"], 2)) for what in BARE]
    record("dispatch", facts, headline)
    rows = [
        [clock, BARE[what], *(spread((1e6 * one[clock] for one in facts[part]), 0) for part in (what, "ours")),
         spread(ratios[what, clock], 2), WANTED, verdict(median(ratios[what, clock]), WANTED, least=False)]
        for what, clock in ratios
    ]  # fmt: skip
    head = ["clock", "its result", "bare submit, µs", "task of a run, µs", "ratio", "wanted", "reached"]
    return table(head, rows) + "\n" + _memory(facts["memory"])


def _ratios(facts, what, clock):
    return [ours[clock] / bare[clock] for ours, bare in zip(facts["ours"], facts[what], strict=True)]


def _rounds(plan, folder, executor, parts, rounds):
    """One run over all blocks, with as many bare submits between its parts."""
    facts = {**{what: [] for what in BARE}, "ours": [], "memory": []}
    schedule = Schedule(plan, folder, {}, lambda _: None)
    schedule.start()
    share = len(plan.blocks) // rounds
    _bare(executor, 100, fetched=True)  # workers import what they need
    with closing(executor.run(answer, schedule, "bench")) as outcomes:
        for number in range(rounds):
            for what in BARE:
                facts[what].append(_timed(parts, share // 8, partial(_bare, executor, fetched=what == "fetched")))
            facts["ours"].append(_timed(parts, share, lambda count: _ours(outcomes, schedule, count)))
            facts["memory"].append([(number + 1) * share, *parts.resident()])
        for outcome in outcomes:
            schedule.finish(outcome)
    schedule.check()
    return facts


def _ours(outcomes, schedule, count):
    for _, outcome in zip(range(count), outcomes, strict=False):
        schedule.finish(outcome)


def _bare(executor, count, *, fetched):
    """The same window of tasks in flight, and nothing else."""
    client, finished, flying = executor._stack[-1], queue.SimpleQueue(), 0
    for number in range(count + 2 * executor.workers):
        if number < count:
            future = client.submit(nothing, number, key=f"bare-{uuid.uuid4().hex}", pure=False)
            future.add_done_callback(finished.put)
            flying += 1
        if flying == 2 * executor.workers or (number >= count and flying):
            done = finished.get()
            flying -= 1
            if fetched:
                done.result()


def _timed(parts, count, work):
    """Seconds a task: of the clock, and of client and scheduler together."""
    start, cpu = time.perf_counter(), parts.cpu_seconds()
    work(count)
    return {"wall": (time.perf_counter() - start) / count, "cpu": (parts.cpu_seconds() - cpu) / count}


def _memory(samples):
    rows = [[done, *(f"{size / MIB:.0f}" for size in sizes)] for done, *sizes in samples]
    return table(["tasks done", "client MiB", "scheduler MiB"], rows)
