"""What workers of simulated clusters do instead of computing. Imports no torch: each of their processes imports this.

`python -m tests.bench.answers ADDRESS COUNT` is one process with COUNT workers.
"""

import asyncio
import os
import random
import sys
import time

from pipeline.ledger import BlockRecord
from pipeline.worker import TaskReport

SIGMA = 0.3
"""Spread of the logarithm of a block's time."""


def answer(task):
    """The report of a task whose blocks took no time."""
    return TaskReport(0.0, 0.0, 0, tuple(map(facts_of, task.windows)))


def facts_of(window):
    """A record as a block of one class leaves it."""
    return BlockRecord(
        window.row, window.col, window.height, window.width, "0" * 64, window.pixels, {0: window.pixels},
        {0: window.pixels / 4}, (0,) * 15 + (window.pixels,), 1, {"read": 0.0, "wait": 0.0, "write": 0.0},
    )  # fmt: skip


def nothing(number):
    """What a bare submit runs."""
    return number


def nap(task, mean):
    """Sleep as long as the task's blocks would be computed; the same for each of its runs."""
    seconds = sum(random.Random(str(window)).lognormvariate(-(SIGMA**2) / 2, SIGMA) for window in task.windows) * mean
    time.sleep(seconds)
    return TaskReport(seconds, 0.0, 0, tuple(map(facts_of, task.windows)))


async def _work(address, count):
    from distributed import Worker

    workers = [
        Worker(address, nthreads=1, memory_limit=None, dashboard=False, name=f"{os.getpid()}-{n}") for n in range(count)
    ]
    await asyncio.gather(*workers)
    await asyncio.gather(*(worker.finished() for worker in workers))


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], int(sys.argv[2])))
