"""Compiled things on disk, keyed by everything that they depend on, verified before anything is loaded.

ROOT/<kind>/<key>/manifest.json   {schema, fields, files: {name: sha256}}
ROOT/<kind>/<key>/...             the artefacts

Engines are native code in effect, so they come from the owner's own folder alone: nobody else may write to it, links
are not followed, and an entry of which a byte has changed is made anew. A manifest's time of modification tells when
its entry was used last.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from models.errors import EngineError

SCHEMA = 1
MANIFEST = "manifest.json"
PATIENCE = 3600
"""Seconds to wait for another process that is making the same entry."""
DAY = 24 * 3600
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a disk answers that takes no more."""

Fields = Mapping[str, object]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A folder whose bytes have been verified."""

    path: Path
    files: dict[str, str]
    """sha256 of each file."""


class Cache:
    """A folder of entries, each found by what it depends on."""

    def __init__(self, root: Path | str | None = None) -> None:
        """`root`: the folder; $WIDEFIELD_CACHE or ~/.cache/widefield if left out.

        Raises:
            EngineError: it belongs to somebody else, others may write to it, or it cannot be made.
        """
        named = root or os.environ.get("WIDEFIELD_CACHE") or Path.home() / ".cache" / "widefield"
        self.root = Path(named).expanduser().resolve()
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"cache {self.root} cannot be made ({error.strerror}): set WIDEFIELD_CACHE") from error
        status = self.root.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise EngineError(
                f"cache {self.root} (owner {status.st_uid}, mode {status.st_mode & 0o777:o}) can be written by others, "
                f"and what it holds is executed: chmod 700 it, or set WIDEFIELD_CACHE to a folder of your own"
            )

    def get(self, kind: str, fields: Fields) -> Entry | None:
        """The entry, if it is there and every byte is as it was written; None, with a warning, if one has changed."""
        path = self._path(kind, fields)
        if not path.exists():
            return None
        try:
            entry = _verified(path, fields)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s has changed on disk (%s): it is not loaded but made anew", path, error)
            return None
        with contextlib.suppress(OSError):  # a cache that can only be read serves as well
            os.utime(path / MANIFEST)
        return entry

    def make(
        self,
        kind: str,
        fields: Fields,
        maker: Callable[[Path], None],
        stands: Callable[[Entry], bool] = lambda _: True,
    ) -> Entry:
        """The entry; `maker` fills an empty folder if it is missing, or if it is there and no longer `stands`.

        Of several processes, one makes it. A folder appears under its name complete and on disk, or not at all.

        Raises:
            EngineError: another process has been making it for too long, or the disk is full.
        """
        path = self._path(kind, fields)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with FileLock(path.with_suffix(".lock"), timeout=PATIENCE):
                found = self.get(kind, fields)
                return found if found is not None and stands(found) else _publish(path, fields, maker)
        except Timeout as error:
            raise EngineError(f"{path.with_suffix('.lock')} has been held for {PATIENCE} s: stop its owner") from error
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise EngineError(f"cache {self.root}: {error.strerror}: free space or set WIDEFIELD_CACHE") from error

    def forget(self, days: float = 0) -> int:
        """Remove what nobody has used for so many days, and what killed makers left; the bytes that this freed.

        What is being made at this moment stays.
        """
        return sum(_forget(lock, days) for lock in self.root.glob("*/*.lock"))

    def _path(self, kind: str, fields: Fields) -> Path:
        return self.root / kind / digest_of(fields)[:32]


def digest_of(fields: Fields) -> str:
    """sha256 over canonical JSON: the order of fields does not matter, every value does."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _verified(path: Path, fields: Fields) -> Entry:
    manifest = json.loads(_read(path / MANIFEST))
    if manifest["schema"] != SCHEMA or digest_of(manifest["fields"]) != digest_of(fields):
        raise ValueError("its manifest speaks of something else")
    for name, expected in manifest["files"].items():
        if Path(name).name != name or _sha256(path / name) != expected:
            raise ValueError(f"{name} differs from its manifest")
    return Entry(path, manifest["files"])


def _publish(path: Path, fields: Fields, maker: Callable[[Path], None]) -> Entry:
    for leftover in _leftovers(path):
        shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        maker(folder)
        files = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
        manifest = {"schema": SCHEMA, "fields": dict(fields), "files": files}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        for written in (*folder.iterdir(), folder):
            _sync(written)
        if path.exists():
            shutil.rmtree(path)
        folder.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Entry(path, files)


def _leftovers(path: Path) -> Iterator[Path]:
    """Folders of makers that were killed, for who holds their lock."""
    return path.parent.glob(f".{path.name}.*")


def _forget(lock: Path, days: float) -> int:
    """Remove the entry of a lock if it has not been used for so many days; the bytes that this freed."""
    path = lock.with_suffix("")
    try:
        with FileLock(lock, timeout=0):
            manifest = path / MANIFEST
            unused = manifest.is_file() and manifest.stat().st_mtime <= time.time() - days * DAY
            return sum(_remove(folder) for folder in (*_leftovers(path), *([path] if unused else [])))
    except Timeout:
        return 0


def _remove(folder: Path) -> int:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shutil.rmtree(folder)
    return size


def _open(file: Path) -> int:
    return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)


def _read(file: Path) -> bytes:
    with open(_open(file), "rb") as opened:
        return opened.read()


def _sha256(file: Path) -> str:
    with open(_open(file), "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = _open(path)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
