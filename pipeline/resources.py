"""What this machine has and what this process used: cores, memory, CPU time by thread.

Linux tells it all through /proc; elsewhere the figures that cannot be had are None, and reports say so.
"""

import contextlib
import ctypes
import os
import resource
import sys
import time
from pathlib import Path

import psutil

TASKS = Path("/proc/self/task")
STATUS = Path("/proc/self/status")
CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may really use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that can be allocated now without swapping, within the control group if there is one."""
    free = int(psutil.virtual_memory().available)
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    return min(free, limit - used + _file_cache()) if limit is not None and used is not None else free


def _file_cache() -> int:
    """Bytes of files that the control group counts as used, and that the system gives up when asked for memory."""
    try:
        facts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(facts["active_file"]) + int(facts["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def held_memory() -> int:
    """Bytes that the workers hold now: this process's children, or this process where there are none."""
    this, held = psutil.Process(), 0
    for process in this.children(recursive=True) or [this]:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            held += int(process.memory_info().rss)
    return held


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes.

    From /proc where there is one: `getrusage` reports the parent's peak for a process that a large parent started.
    """
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def threads() -> frozenset[int]:
    """Identifiers of this process's threads; empty where the system does not tell."""
    return frozenset(int(path.name) for path in TASKS.iterdir()) if TASKS.is_dir() else frozenset()


def cpu_seconds(*, without: frozenset[int] = frozenset()) -> float | None:
    """CPU seconds of this process, ended threads included, except those of the living threads `without`; None where
    the system does not tell.
    """
    if not TASKS.is_dir():
        return None
    return time.process_time() - sum(map(_thread_nanoseconds, without)) / 1e9


def _thread_nanoseconds(thread: int) -> int:
    try:
        return int((TASKS / str(thread) / "schedstat").read_text().split()[0])
    except (OSError, IndexError):  # it ended meanwhile
        return 0


def release_memory() -> None:
    """Give freed memory back to the system, where the allocator can: a task starts from where the first one did."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def total_memory() -> int:
    """Bytes of memory that this machine, or its control group, has."""
    limit = _number(CGROUP / "memory.max")
    total = int(psutil.virtual_memory().total)
    return min(total, limit) if limit is not None else total


def limit_caches(gdal_bytes: int) -> None:
    """Cap what libraries keep or start by themselves in this process; a value that the user set stays."""
    os.environ.setdefault("GDAL_CACHEMAX", str(gdal_bytes))
