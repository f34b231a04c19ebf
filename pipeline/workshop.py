"""The folder that a run works in: its lock, its plan, its store, and the records in it that can be trusted.

OUT/.widefield/runs/<name>/lock          held by the one run that may write this output
OUT/.widefield/runs/<name>/<key>/        becomes OUT/<name>/ by one rename
OUT/.widefield/staged/                   the cache of staged scenes
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline import store
from pipeline.errors import OutputError
from pipeline.ledger import BlockRecord, Ledger
from pipeline.outputs import LEDGER, MASK, PLAN, RUN, STAGED
from pipeline.plan import Plan
from pipeline.scene import open_scene
from pipeline.staging import StageCache

HIDDEN = ".widefield"


@contextlib.contextmanager
def locked(workshop: Path) -> Iterator[None]:
    """Hold the output alone. The system frees the lock when its owner dies."""
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        lock = FileLock(workshop / "lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise OutputError(f"another run holds {workshop}: wait for it, or choose another --out") from None
    except OSError as error:
        raise OutputError(
            f"cannot write into {workshop}: {error.strerror or error}; choose another --out, or change its permissions"
        ) from error
    try:
        yield
    finally:
        lock.release()


def open_run(plan: Plan, run: Path) -> dict[tuple[int, int], BlockRecord]:
    """Make the run's folder, or sweep what a killed one left; returns the records that can be trusted."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / PLAN).exists() or not (run / MASK / "zarr.json").exists():
        shutil.rmtree(run / MASK, ignore_errors=True)
        store.create_mask(
            run / MASK,
            height=plan.grid.height,
            width=plan.grid.width,
            core=plan.grid.core,
            block=plan.block,
            planes=plan.spec.planes,
            georef=plan.georef,
            attributes={"bundle": plan.engine.bundle, "engine": plan.engine.digest, "key": plan.key},
        )
    plan.save(run / PLAN)
    store.sweep(run)
    return trusted_records(plan, run)


def trusted_records(plan: Plan, run: Path) -> dict[tuple[int, int], BlockRecord]:
    """The recorded blocks whose stored bytes still have the recorded digest."""
    recorded = Ledger(run / LEDGER).records()
    return {place: record for place, record in recorded.items() if is_intact(plan, run, record)}


def is_intact(plan: Plan, run: Path, record: BlockRecord) -> bool:
    """Whether a block's stored bytes are those that were recorded."""
    return store.shard_digest(run / MASK, record.window, plan.spec.planes) == record.digest


def published(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """The facts of the result in `folder` if it was made by this very plan."""
    try:
        facts: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if facts.get("key") == plan.key else None


def adopt_published(plan: Plan, folder: Path, run: Path) -> None:
    """Start from a published result of the same key, so that only its damaged blocks are done again."""
    if run.exists() or published(folder, plan) is None:
        return
    partial = run.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in (MASK, LEDGER):
        shutil.copytree(folder / name, partial / name)
    shutil.copy(folder / PLAN, partial / PLAN)
    partial.rename(run)


@contextlib.contextmanager
def staged(plan: Plan, run: Path, cache: Path, *, keep: bool) -> Iterator[None]:
    """Put the scene's place in the cache of staged scenes behind `run / STAGED`, for as long as it is needed."""
    if not plan.stage:
        yield
        return
    with open_scene(plan.scene) as scene, StageCache(cache).hold(scene, keep=keep) as place:
        (run / STAGED).unlink(missing_ok=True)
        (run / STAGED).symlink_to(place.absolute(), target_is_directory=True)
        yield
        (run / STAGED).unlink()


def sweep(workshop: Path) -> None:
    """Remove what older runs and the replaced result left."""
    for entry in workshop.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
