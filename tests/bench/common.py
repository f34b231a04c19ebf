"""What the benchmarks share: where data is, tables, child processes whose memory is watched."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from examples.drone_scenes import build
from models.bundle import save_bundle
from pipeline import resources
from tests.drawn_bundle import drawn_network, drawn_spec

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "runs" / "bench.json"
BUILDINGS = ROOT / "examples/bundles/buildings"
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


def mosaic(folder):
    """A gap-free drone scene, 8192 x 4096 pixels of RGB, as a deflate-compressed tiled GeoTIFF."""
    path = folder / "1-A-train.tif"
    if not path.exists():
        deque(build(data_folder() / "satellite", folder, {"1-A"}), maxlen=0)
    return path


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


def spread(values, digits=1):
    """Median, and between brackets the least and the most."""
    values = list(values)
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def verdict(reached, wanted, *, least):
    """Whether a figure is what was wanted: at least, or else at most."""
    return "yes" if (reached >= wanted if least else reached <= wanted) else "no"


def machine():
    """What the figures depend on, without names."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": next(named, platform.machine()),
        "cores": resources.cores(),
        "memory_gib": round(resources.total_memory() / 2**30),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in ("numpy", "zarr", "rasterio", "torch", "openvino")},
        "load_before": round(os.getloadavg()[0], 1),
    }


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def record(name, facts, headline=()):
    """Keep the figures of one benchmark beside those of the others; `headline`: rows of what, wanted, reached."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(recorded() | {name: _entry(facts, headline)}, indent=1))


def recorded():
    """What `record` has kept, by benchmark."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _entry(facts, headline):
    return {"machine": machine(), "headline": [[str(cell) for cell in row] for row in headline], "facts": facts}


@dataclass(frozen=True)
class Watched:
    """A child process that has ended."""

    answer: dict
    """The last line that it printed."""
    seconds: float
    peaks: dict[str, int]
    """Largest resident set in bytes, of the child and of each process below it, by what the process is."""


def measured(job, scratch, *keys):
    """Some facts of a job that ran in a process of its own, with a folder of its own below `scratch`."""
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        answer = watch(job | {"out": f"{out}/out"}).answer
    return {key: answer.get(key) for key in keys}


def watch(job, *, temporary=None):
    """Run `tests.bench.child` with a job, and read every process's own high-water mark until it ends.

    `temporary` is the folder for its temporary files.
    """
    start, peaks = time.perf_counter(), {}
    command = [sys.executable, "-m", "tests.bench.child", json.dumps(job)]
    environment = os.environ | ({} if temporary is None else {"TMPDIR": str(temporary)})
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
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
