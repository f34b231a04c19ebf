"""What the benchmarks share: where data is, tables, child processes whose memory is watched."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from models.bundle import save_bundle
from tests.drawn_bundle import drawn_network, drawn_spec

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "runs" / "bench.json"
MIB = 2**20


def data_folder():
    """The folder of real imagery."""
    folder = Path(os.environ.get("WIDEFIELD_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        sys.exit(f"real imagery is not at {folder}: set WIDEFIELD_DATA")
    return folder


def world():
    """648 megapixels of one uint8 band, a third of them valid."""
    return data_folder() / "satellite" / "cog_world_36000x18000.tif"


def grey_bundle(folder):
    """A bundle for one band of bytes, with random weights and the tiles and halo of a real one."""
    path = folder / "grey"
    if not path.exists():
        band = drawn_spec().bands[0]
        spec = drawn_spec(name="grey", bands=(band,), halo=64, tiles=(256, 512, 1024))
        crops = [np.random.default_rng(0).integers(0, 256, (1, 48, 48), np.uint8)]
        save_bundle(path, spec, drawn_network(spec), {}, "# Drawn\n", crops, storage="fp32")
    return path


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def record(name, facts):
    """Keep the figures of one benchmark beside those of the others."""
    RESULTS.parent.mkdir(exist_ok=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {name: facts}, indent=1))


@dataclass(frozen=True)
class Watched:
    """A child process that has ended."""

    answer: dict
    """The last line that it printed."""
    seconds: float
    peaks: dict[str, int]
    """Largest resident set in bytes, of the child and of each process below it, by what the process is."""


def watch(job):
    """Run `tests.bench.child` with a job, and read every process's own high-water mark until it ends."""
    start, peaks = time.perf_counter(), {}
    command = [sys.executable, "-m", "tests.bench.child", json.dumps(job)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    ended = threading.Event()
    watcher = threading.Thread(target=_follow, args=(psutil.Process(child.pid), peaks, ended))
    watcher.start()
    out, _ = child.communicate()
    ended.set()
    watcher.join()
    if child.returncode:
        sys.exit(f"{job}: exit code {child.returncode}")
    return Watched(json.loads(out.splitlines()[-1]), time.perf_counter() - start, peaks)


def _follow(process, peaks, ended):
    """A high-water mark never falls, so that what is read last is at most one interval old."""
    while not ended.wait(0.02):
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in family:
            if peak := _high_water(member.pid):
                role = _role(member, process)
                peaks[role] = max(peak, peaks.get(role, 0))


def _high_water(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _role(member, first):
    if member.pid == first.pid:
        return "client"
    try:
        line = " ".join(member.cmdline())
    except psutil.Error:
        return "other"
    return next(
        (role for mark, role in (("spawn_main", "worker"), ("engines.build", "engine")) if mark in line), "other"
    )
