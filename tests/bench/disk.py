"""Disk that a run holds at its peak, the staged scene, temporary files and outputs together."""

import os
import tempfile
import threading
from pathlib import Path

from tests.bench.common import BUILDINGS, MIB, grey_bundle, mosaic, record, table, verdict, watch, world

WANTED = {True: 1.3, False: 0.2}
"""Times the decoded bytes of the source, staged or not."""


def run():
    """Markdown: the most that was on disk at once."""
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        folder = Path(scratch)
        cases = [
            ("RGB drone scene, 8192 x 4096", mosaic(folder), BUILDINGS, "auto", 3 * 8192 * 4096),
            ("cog_world, 36000 x 18000", world(), grey_bundle(folder), "null", 36000 * 18000),
        ]
        facts = [_case(folder, stage, *case) for case in cases for stage in WANTED]
    rows = [_row(fact) for fact in facts]
    told = "disk at the peak, times the decoded source: "
    names = [f"{told}{row[0]}{', staged' if row[2] == 'yes' else ''}" for row in rows]
    record("disk", facts, [(name, f"at most {row[6]}", row[5]) for name, row in zip(names, rows, strict=True)])
    head = ["scene", "engine", "staged", "decoded MiB", "peak MiB", "times decoded", "wanted", "reached"]
    return table(head, rows)


def _case(folder, stage, name, scene, bundle, engine, decoded):
    job = {"job": "segment", "scene": str(scene), "bundle": str(bundle), "engine": engine, "executor": "serial"}
    with tempfile.TemporaryDirectory(dir=folder) as out:
        job |= {"stage": stage, "out": f"{out}/out"}
        watch(job | {"only_plan": True})
        peak = _peak(Path(out), job)
    return {"scene": name, "engine": engine, "stage": stage, "decoded": decoded, "peak": peak}


def _peak(folder, job):
    """Most bytes below `folder` during a job; the job's temporary files are there too."""
    peak, ended = [0], threading.Event()

    def look():
        while not ended.wait(0.02):
            peak.append(_allocated(folder))

    watcher = threading.Thread(target=look)
    watcher.start()
    watch(job, temporary=folder)
    ended.set()
    watcher.join()
    return max(peak)


def _allocated(folder):
    """Bytes on disk of what lies below a folder, what vanishes meanwhile left out."""
    total = 0
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                total += _allocated(entry.path)
            else:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        pass
    return total


def _row(fact):
    times, wanted = fact["peak"] / fact["decoded"], WANTED[fact["stage"]]
    sizes = [f"{fact[key] / MIB:.0f}" for key in ("decoded", "peak")]
    staged = "yes" if fact["stage"] else "no"
    reached = verdict(times, wanted, least=False)
    return [fact["scene"], fact["engine"], staged, *sizes, f"{times:.2f}", wanted, reached]
