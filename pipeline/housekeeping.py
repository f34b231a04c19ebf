"""Making the folder of outputs, and removing what nobody needs any more: dead runs, staged scenes, compiled engines."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from models.engines.cache import Cache
from pipeline.errors import OutputError
from pipeline.staging import StageCache
from pipeline.store import folder_bytes
from pipeline.workshop import HIDDEN, LOCK


@dataclass(frozen=True)
class Cleaned:
    """What `clean` did."""

    freed: int
    """Bytes."""
    living: int
    """Runs that were left alone because a process holds them."""


def make_folder(folder: Path) -> None:
    """Make the folder of outputs if it is missing, and make sure that a file can be written there.

    Raises:
        OutputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}; choose another --out") from error


def clean(out: Path, *, engines: bool = False) -> Cleaned:
    """Remove unfinished runs and staged scenes below `out`; with `engines`, this user's compiled engines too.

    What a living run holds stays: its folder and its staged scene. Published results are not touched.
    """
    freed, living = 0, 0
    locks = (lock for lock in (out / HIDDEN / "runs").rglob(LOCK) if lock.is_file())  # a scene may have that name
    for workshop in sorted({lock.parent for lock in locks}):
        try:
            with FileLock(workshop / LOCK, timeout=0):
                freed += sum(_remove(run) for run in workshop.iterdir() if run.is_dir() and not any(run.rglob(LOCK)))
        except Timeout:
            living += 1
    freed += StageCache(out / HIDDEN / "staged").clear()
    if engines:
        freed += Cache().forget()
    return Cleaned(freed, living)


def _remove(folder: Path) -> int:
    size = folder_bytes(folder)
    shutil.rmtree(folder)
    return size
