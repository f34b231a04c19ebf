"""A process for each job: forked from one that has loaded everything, with a watchdog and a limit of memory."""

import json
import os
import resource
import signal
import tempfile
import time
import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import Path

SECONDS = 20
MEMORY = 2 << 30
PAUSE = 0.005


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    job: object
    answer: object
    """What the function returned; None where it did not return."""
    problem: str
    """Empty, or why there is no answer: an exception, a signal, too long, too large."""
    seconds: float
    peak: int
    """Largest resident set, in bytes, of the process and of those that it waited for."""


def each(function, jobs, *, processes=2, seconds=SECONDS, memory=MEMORY):
    """Yield an `Ended` for each job as it ends. The caller has one thread only, or forking is not safe."""
    waiting, running = deque(jobs), {}
    with tempfile.TemporaryDirectory() as scratch:
        while waiting or running:
            while waiting and len(running) < processes:
                job, answer = waiting.popleft(), Path(scratch) / f"{len(waiting)}.json"
                running[_start(function, job, answer, seconds, memory)] = job, answer, time.monotonic()
            time.sleep(PAUSE)
            for pid, (job, answer, start) in list(running.items()):
                if ended := _ended(pid, job, answer, start, seconds, memory):
                    del running[pid]
                    yield ended


def _start(function, job, answer, seconds, memory):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (2 * seconds, 2 * seconds))
        limit = _virtual_bytes() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(quiet, stream)
        try:
            text = json.dumps({"answer": function(job)})
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = json.dumps({"problem": f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"})
        answer.write_text(text)
        status = 0
    finally:
        os._exit(status)


def _virtual_bytes():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _ended(pid, job, answer, start, seconds, memory):
    """None while the process runs and may go on."""
    done, status, usage = os.wait4(pid, os.WNOHANG)
    elapsed = time.monotonic() - start
    late = not done and elapsed > seconds
    if late:
        _, status, usage = os.wait4(_killed(pid), 0)
    if not done and not late:
        return None
    told, peak = _told(answer), usage.ru_maxrss * 1024
    problem = told.get("problem") or ("" if "answer" in told else _why(status))
    if late:
        problem = f"still running after {seconds} s"
    elif peak > memory:
        problem = f"took {peak / 2**30:.1f} GiB"
    return Ended(job, told.get("answer"), problem, elapsed, peak)


def _killed(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # forked, but not yet the head of its own group
        os.kill(pid, signal.SIGKILL)
    return pid


def _told(answer):
    try:
        return json.loads(answer.read_text())
    except (OSError, ValueError):
        return {}


def _why(status):
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit status {os.WEXITSTATUS(status)} without an answer"
