"""The folder that a run works in: its lock, its plan, its store, and the records in it that can be trusted.

OUT/.widefield/runs/<name>/lock          held by the one run that may write this output
OUT/.widefield/runs/<name>/<key>/        becomes OUT/<name>/ by one rename
OUT/.widefield/staged/                   the cache of staged scenes
OUT/.widefield/archive.lock              held by the one run over an archive that may write into OUT
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from models.spec import PROBABILITY
from pipeline import store
from pipeline.errors import OutputError
from pipeline.ledger import BlockRecord, Ledger
from pipeline.outputs import ASSETS, ITEM, LEDGER, MASK, PLAN, RUN, STAGED
from pipeline.plan import Plan
from pipeline.scene import open_scene
from pipeline.shards import layout_of
from pipeline.staging import StageCache

HIDDEN = ".widefield"
LOCK = "lock"
_ARCHIVE_LOCK = "archive.lock"

_OURS = {PLAN, MASK, LEDGER, STAGED, ITEM, *ASSETS}
_OURS |= {f"{name}.aux.xml" for name in _OURS}


def _ours(name: str) -> bool:
    """Whether a result may hold a file of this name."""
    return name in _OURS or (name.startswith(PROBABILITY) and name.endswith((".tif", ".tif.aux.xml")))


@contextlib.contextmanager
def locked(workshop: Path) -> Iterator[None]:
    """Hold the output alone. The system frees the lock when its owner dies."""
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        lock = FileLock(workshop / LOCK, timeout=0, thread_local=False)  # one thread may take it and another end it
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


@contextlib.contextmanager
def alone(out: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One run over an archive at a time for each folder of results. A second one says so by `waiting`, and waits:
    what the first leaves, it finds unchanged.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        (out / HIDDEN).mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / HIDDEN / _ARCHIVE_LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire(poll_interval=0.5)
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror or error}; choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def busy(out: Path) -> bool:
    """Whether a run holds `out` alone just now."""
    if not (out / HIDDEN).is_dir():
        return False
    try:
        with FileLock(out / HIDDEN / _ARCHIVE_LOCK, timeout=0, thread_local=False):
            return False
    except Timeout:
        return True


def open_run(plan: Plan, run: Path) -> dict[tuple[int, int], BlockRecord]:
    """Make the run's folder, or sweep what a killed one left; returns the records that can be trusted."""
    if _stored_key(run) != plan.key:  # after an exchange, a replaced result may lie here until it is swept
        for name in (MASK, LEDGER):
            shutil.rmtree(run / name, ignore_errors=True)
        run.mkdir(parents=True, exist_ok=True)
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


def _stored_key(run: Path) -> str | None:
    """Key of the plan that the run's store was made for; None where there is no whole store."""
    try:
        facts = json.loads((run / MASK / "zarr.json").read_bytes())
        widefield = facts["attributes"]["widefield"]
        for plane in widefield["planes"]:
            layout_of(run / MASK / plane)
        return str(widefield["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def trusted_records(plan: Plan, run: Path) -> dict[tuple[int, int], BlockRecord]:
    """The recorded blocks whose stored bytes still have the recorded digest."""
    recorded = Ledger(run / LEDGER).records()
    return {place: record for place, record in recorded.items() if is_intact(plan, run, record)}


def is_intact(plan: Plan, run: Path, record: BlockRecord) -> bool:
    """Whether a block's stored bytes are those that were recorded."""
    return store.shard_digest(run / MASK, record.window, plan.spec.planes) == record.digest


def published(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """The facts of the result in `folder` if it was made by this very plan, and its store can be opened."""
    try:
        facts: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if facts.get("key") == plan.key == _stored_key(folder) else None


def adopt_published(plan: Plan, folder: Path, run: Path) -> None:
    """Start from a published result of the same key, so that only its damaged blocks are done again."""
    if _stored_key(run) == plan.key or published(folder, plan) is None:
        return
    shutil.rmtree(run, ignore_errors=True)
    partial = run.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copytree(folder / MASK, partial / MASK)
    if (folder / LEDGER).is_dir():
        shutil.copytree(folder / LEDGER, partial / LEDGER)
    partial.rename(run)


def check_place(folder: Path, plan: Plan) -> None:
    """Make sure that nothing but a result lies where a result is to be: what it replaces is removed.

    Raises:
        OutputError: something else lies there, the user's own files or the result of another scene that still exists.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, a result needs a folder there: move it away")
    if foreign := sorted(entry.name for entry in folder.iterdir() if not _ours(entry.name)):
        raise OutputError(
            f"{folder} holds {foreign[0]}, which is no part of a result, and the result would replace the folder: "
            "move it away, or choose another --out"
        )
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        other = json.loads((folder / RUN).read_text(encoding="utf-8"))["scene"]["path"]
        if Path(other).exists() and Path(other).resolve() != Path(plan.scene.path).resolve():
            raise OutputError(f"{folder} is the result of {other}: choose another --out for {plan.scene.path}")


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
    """Remove what older runs and the replaced result left, but no workshop of a scene of a folder of this name."""
    for entry in workshop.iterdir():
        if entry.is_dir() and not any(entry.rglob(LOCK)):
            shutil.rmtree(entry, ignore_errors=True)
