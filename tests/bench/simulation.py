"""Many workers, simulated: a real scheduler, client and schedule, and workers whose engine sleeps instead of computing.

Workers are threads of a few processes, and tasks sleep for times drawn from a distribution. The efficiency is the time
slept, by the time that all workers had. What is left to pay for are the tail of a scene, in which workers run out of
tasks, and handing out tasks: the second, by tasks a second, holds for any number of workers.
"""

import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

from pipeline.executors import DaskExecutor
from pipeline.schedule import Schedule
from tests.bench import plots
from tests.bench.answers import nap
from tests.bench.cluster import cluster
from tests.bench.common import ROOT, record, table
from tests.bench.dispatch import tiny_plan

WORKERS = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 0.4
"""Mean of a task."""
TASKS, SCENES = 10, 3
"""Tasks a worker of one scene, and scenes of an archive."""
LENGTHS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds of a task where the dispatch is what is measured."""
LASTING = 4.0
"""Least seconds that such a run takes."""
CASES = {"1,000 workers, tasks of 15 s (CPU)": 1000 / 15, "1,000 workers, tasks of 2 s (GPU)": 1000 / 2}
"""Tasks a second that are asked for."""
IMAGE = ROOT / "docs" / "simulation.png"


def run(*workers):
    """Markdown: efficiency by workers, and by tasks a second; draws docs/simulation.png."""
    counts = [int(count) for count in workers] or WORKERS
    facts = {"workers": [], "rate": []}
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        for count in counts:
            with cluster(count) as parts, DaskExecutor(scheduler=parts.address) as executor:
                _slept(executor, parts, Path(scratch), count, 1, 0.01)  # workers import what they need
                one, many = (
                    _slept(executor, parts, Path(scratch), TASKS * count, scenes, SECONDS) for scenes in (1, SCENES)
                )
                facts["workers"].append({"workers": count, "one": one, "many": many})
                if count == max(counts):
                    facts["rate"] = [_rate(executor, parts, Path(scratch), count, mean) for mean in LENGTHS]
    limit = max(fact["tasks_per_second"] for fact in facts["rate"])
    last = facts["workers"][-1]
    record(
        "simulation",
        facts | {"limit": limit},
        [
            (
                f"simulated: efficiency of {last['workers']} workers over {SCENES} scenes",
                "",
                f"{last['many']['efficiency']:.3f}",
            ),
            ("simulated: tasks a second of one scheduler and client", "67 for 1,000 CPU workers", f"{limit:.0f}"),
        ],
    )
    plots.simulation(facts, CASES, IMAGE)
    return _tables(facts, limit)


def _rate(executor, parts, folder, workers, mean):
    tasks = workers * max(6, math.ceil(LASTING / mean / 4))
    return {"seconds": mean, "asked": workers / mean, **_slept(executor, parts, folder, tasks, 1, mean)}


def _slept(executor, parts, folder, tasks, scenes, mean):
    """`scenes` scenes of `tasks` tasks, as many at a time as the executor runs."""
    plan = tiny_plan(folder, tasks)
    start, cpu = time.perf_counter(), parts.cpu_by_part()
    with ThreadPoolExecutor(executor.runs) as pool:
        scene = partial(_scene, executor, plan, folder, mean)
        slept = sum(pool.map(scene, range(scenes)))
    wall = time.perf_counter() - start
    client, scheduler = ((after - before) / wall for after, before in zip(parts.cpu_by_part(), cpu, strict=True))
    return {
        "efficiency": slept / wall / executor.workers,
        "wall": wall,
        "tasks_per_second": scenes * len(plan.blocks) / wall,
        "client": client,
        "scheduler": scheduler,
    }


def _scene(executor, plan, folder, mean, number):
    """Seconds slept for one scene; an earlier scene's tasks go first."""
    schedule, slept = Schedule(plan, folder, {}, lambda _: None), 0.0
    schedule.start()
    with closing(executor.at(-number).run(partial(nap, mean=mean), schedule, f"scene{number}")) as outcomes:
        for outcome in outcomes:
            schedule.finish(outcome)
            slept += outcome.value.seconds
    schedule.check()
    return slept


def _tables(facts, limit):
    head = ["workers", "one scene, efficiency", f"{SCENES} scenes, efficiency", "client's core", "scheduler's core"]
    shares = [
        [fact["workers"], *(f"{fact[what]['efficiency']:.3f}" for what in ("one", "many")),
         *(f"{100 * fact['many'][part]:.0f} %" for part in ("client", "scheduler"))]
        for fact in facts["workers"]
    ]  # fmt: skip
    rates = [
        [f"{fact['seconds']:g}", f"{fact['asked']:.0f}", f"{fact['tasks_per_second']:.0f}", f"{fact['efficiency']:.3f}",
         *(f"{100 * fact[part]:.0f} %" for part in ("client", "scheduler"))]
        for fact in facts["rate"]
    ]  # fmt: skip
    rate_head = ["task s", "tasks/s asked for", "tasks/s done", "efficiency", "client's core", "scheduler's core"]
    told = "; ".join(f"{name} ask for {asked:.0f} tasks/s" for name, asked in CASES.items())
    return f"{table(head, shares)}\n{table(rate_head, rates)}\nAt most {limit:.0f} tasks/s were handed out: {told}.\n"
