"""A Dask cluster whose parts are processes of their own, so that each one's time and memory can be read.

scheduler process ◄──► worker processes, each with several workers of one thread
        ▲
        └── this process: the client alone
"""

import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from flows.server import free_port
from tests.bench.common import ROOT

PROCESSES = 4
"""Most processes that the workers are spread over."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    address: str
    scheduler: psutil.Process
    client: psutil.Process

    def cpu_by_part(self):
        """Core seconds of client and of scheduler, so far."""
        return [process.cpu_times().user + process.cpu_times().system for process in self._both]

    def cpu_seconds(self):
        """Of client and scheduler together, so far."""
        return sum(self.cpu_by_part())

    def resident(self):
        """Bytes of client and of scheduler, now."""
        return [process.memory_info().rss for process in self._both]

    @property
    def _both(self):
        return self.client, self.scheduler


@contextmanager
def cluster(workers):
    """A scheduler and `workers` workers of one thread each, ready to work."""
    from distributed import Client

    address = f"tcp://127.0.0.1:{free_port()}"
    host, port = address.removeprefix("tcp://").split(":")
    parts = [_process("distributed.cli.dask_scheduler", "--host", host, "--port", port, "--no-dashboard")]
    try:
        with Client(address, timeout="120s", set_as_default=False) as client:  # workers come once the scheduler is up
            shares = [len(range(number, workers, PROCESSES)) for number in range(min(workers, PROCESSES))]
            parts += [_process("tests.bench.answers", address, share) for share in shares]
            client.wait_for_workers(workers, timeout=120)
        yield Cluster(address, psutil.Process(parts[0].pid), psutil.Process())
    finally:
        for part in reversed(parts):
            part.terminate()
        for part in parts:
            with suppress(subprocess.TimeoutExpired):
                part.wait(10)
            part.kill()


def _process(module, *arguments):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    threads = {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__WORKER__USE_FILE_LOCKING": "False"}
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | threads, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
