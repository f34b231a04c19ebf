"""Where a registry's files lie: a folder, or an object store. One file is replaced only by who has seen what it holds.

Names are relative, with slashes. `write` is compare-and-swap: it takes the version that was read and fails where
somebody else has replaced the file since. `put` is for what never changes under its name.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from models.errors import ConflictError, RegistryError

LOCK = "registry.lock"
PARTIAL = ".partial"
"""Suffix of a file that is being written."""
PATIENCE = 600.0
"""Seconds to wait for another process that writes into the same folder."""
SCHEMES = ("s3://", "gs://", "az://", "memory://")
"""How the addresses of object stores begin."""


@dataclass(frozen=True)
class Stored:
    """A file as it was read."""

    content: bytes
    version: str
    """What `write` wants to hear, to know that the file is still the same."""


class Store(Protocol):
    """Files by name."""

    @property
    def place(self) -> str:
        """As users name it."""

    def read(self, name: str) -> Stored | None:
        """The file, or None if there is none."""

    def write(self, name: str, content: bytes, expected: str | None) -> None:
        """Replace the file of version `expected`, or make it where that is None; durable when it returns.

        Raises:
            ConflictError: the file is of another version by now.
        """

    def begin(self, name: str, first: bytes, content: bytes) -> None:
        """Make the file `name` that holds `content`, and with it a registry; `first` may stand there for a moment.

        Raises:
            ConflictError: it is there already.
            RegistryError: this store cannot keep what `write` promises.
        """

    def put(self, name: str, content: bytes | Path) -> None:
        """Store bytes, or a file of this machine, whole or not at all."""

    def list(self, folder: str) -> list[str]:
        """Names of all files below `folder`, sorted."""

    def path(self, name: str) -> Path | None:
        """Where this machine finds the file or folder; None where it must be copied."""

    def copy(self, name: str, target: Path) -> None:
        """Write a file's bytes to `target`."""


def conflict(place: str, name: str) -> ConflictError:
    """What the one who comes second is told."""
    return ConflictError(f"{place}: somebody else replaced {name} meanwhile: look at what is there now, and try again")


@dataclass(frozen=True)
class LocalStore:
    """A folder. Writers take turns under a lock that the system frees when its owner dies; readers never wait."""

    root: Path

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.root)

    def read(self, name: str) -> Stored | None:
        """The file; its version is the sha256 of its bytes."""
        with self._mapped():
            try:
                content = (self.root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Stored(content, hashlib.sha256(content).hexdigest())

    def write(self, name: str, content: bytes, expected: str | None) -> None:
        """Compare and rename, under the lock."""
        with self._alone():
            present = self.read(name)
            if (present.version if present else None) != expected:
                raise conflict(self.place, name)
            self._replace(name, content)

    def begin(self, name: str, first: bytes, content: bytes) -> None:  # noqa: ARG002 - a folder has nothing to prove
        """Write the file, if it is not there."""
        self.write(name, content, None)

    def put(self, name: str, content: bytes | Path) -> None:
        """Rename, under the lock."""
        with self._alone():
            self._replace(name, content)

    def list(self, folder: str) -> list[str]:
        """What is complete."""
        with self._mapped():
            files = [path for path in (self.root / folder).rglob("*") if path.is_file() and path.suffix != PARTIAL]
        return sorted(path.relative_to(self.root).as_posix() for path in files)

    def path(self, name: str) -> Path:
        """Below the folder."""
        return self.root / name

    def copy(self, name: str, target: Path) -> None:
        """A plain copy."""
        with self._mapped():
            shutil.copyfile(self.root / name, target)

    def _replace(self, name: str, content: bytes | Path) -> None:
        path = self.root / name
        partial = path.with_name(path.name + PARTIAL)
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with self._mapped():
                self.root.mkdir(parents=True, exist_ok=True)
                with FileLock(self.root / LOCK, timeout=PATIENCE):
                    yield
        except Timeout:
            raise RegistryError(
                f"{self.root / LOCK} has been held for {PATIENCE:.0f} s: wait for the process that holds it, or stop it"
            ) from None

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, Timeout):
                raise
            raise RegistryError(f"{error.filename or self.root}: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    """Make names in a folder durable, as `fsync` does for bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ObjectStore:
    """An object store that can put on condition; one that cannot is refused, for then two writers could both win."""

    def __init__(self, store: Any, place: str) -> None:
        """`store`: one of `obstore.store`; `place`: its address, for messages."""
        self._store, self._place = store, place

    @property
    def place(self) -> str:
        """The address."""
        return self._place

    def read(self, name: str) -> Stored | None:
        """The object; its version is its ETag."""
        import obstore

        with self._mapped(name):
            try:
                result = obstore.get(self._store, name)
            except FileNotFoundError:
                return None
            return Stored(bytes(result.bytes()), _version(self.place, result.meta))

    def write(self, name: str, content: bytes, expected: str | None) -> None:
        """Put on the condition that the object is as it was, or is not there."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create" if expected is None else {"e_tag": expected}
        with self._mapped(name):
            try:
                obstore.put(self._store, name, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                seen = self.read(name)  # a put of ours that was repeated on its way conflicts with itself
                if seen is None or seen.content != content:
                    raise conflict(self.place, name) from None

    def put(self, name: str, content: bytes | Path) -> None:
        """An object appears whole or not at all."""
        import obstore

        with self._mapped(name):
            obstore.put(self._store, name, content)

    def list(self, folder: str) -> list[str]:
        """All objects below."""
        import obstore

        with self._mapped(folder):
            return sorted(str(entry["path"]) for entry in obstore.list(self._store, folder).collect())

    def path(self, name: str) -> None:  # noqa: ARG002 - objects have none
        """Objects are copied before they are opened."""
        return

    def copy(self, name: str, target: Path) -> None:
        """Download, a piece at a time."""
        import obstore

        with self._mapped(name), target.open("wb") as file:
            for piece in obstore.get(self._store, name).stream():
                file.write(piece)

    def begin(self, name: str, first: bytes, content: bytes) -> None:
        """Make the object by a sequence of writes that only a store with conditional writes gets right."""
        self.write(name, first, None)
        try:
            heeded = self._heeds(name, first, content)
        except ConflictError:
            raise
        except RegistryError:
            self._delete(name)
            raise
        if not heeded:
            self._delete(name)
            raise RegistryError(f"{self.place} does not heed the conditions of a put: {_WAY_OUT}")

    def _heeds(self, name: str, first: bytes, content: bytes) -> bool:
        """Replace `first` by `content`; whether putting `first` back on the condition that it never went away fails."""
        seen = self.read(name)
        version = seen.version if seen else ""
        self.write(name, content, version)
        try:
            self.write(name, first, version)
        except ConflictError:
            return True
        return False

    def _delete(self, name: str) -> None:
        import obstore

        with self._mapped(name):
            obstore.delete(self._store, name)

    @contextlib.contextmanager
    def _mapped(self, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError, NotSupportedError

        try:
            yield
        except (NotImplementedError, NotSupportedError):
            raise RegistryError(f"{self.place} cannot replace an object on condition: {_WAY_OUT}") from None
        except (BaseError, OSError) as error:
            raise RegistryError(f"{self.place}: {name}: {_first_line(error)}") from error


_WAY_OUT = "two writers could both win; keep the registry in a folder, or in a store with conditional writes"


def _version(place: str, meta: Any) -> str:
    if not meta["e_tag"]:
        raise RegistryError(f"{place} gives its objects no ETag: {_WAY_OUT}")
    return str(meta["e_tag"])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def open_store(place: Path | str) -> Store:
    """The store at a path or an address; nothing is read yet.

    Raises:
        RegistryError: the address is of no store that is known, or lacks something.
    """
    if isinstance(place, Path) or "://" not in place:
        return LocalStore(Path(place).absolute())
    if not place.startswith(SCHEMES):
        raise RegistryError(f"{place}: a registry is a folder, or an address that begins with {', '.join(SCHEMES)}")
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        return ObjectStore(from_url(place), place)
    except (BaseError, ValueError) as error:
        raise RegistryError(f"{place}: {_first_line(error)}") from error
