"""Bytes of a source without GDAL: files on local disks and on any store that fsspec knows.

Whatever fsspec and its libraries raise becomes `UnreadableError` here.
"""

import contextlib
import errno
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from stat import S_ISREG
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from rasterio.abc import FileContainer

from pipeline.errors import UnreadableError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_LOCAL = ("file://", "local://")
_VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")
_BUSY = {408, 429}
"""Answers of web servers that blame the caller, and say nothing about the file."""
_BUFFER = 1 << 18
"""Bytes that one request to a remote store fetches at least."""
_PAUSE = 1.0
"""Seconds until a request that failed is made once more."""


def is_address(name: str) -> bool:
    """Whether a name is an address for fsspec (`s3://...`) and no local path."""
    return _ADDRESS.match(name) is not None and not name.startswith(_LOCAL) and not os.path.lexists(name)


def local_path(name: str) -> str:
    """The path of a local name, which may be written as `file://...`."""
    return name.split("://", 1)[1] if name.startswith(_LOCAL) else name


class NoFileError(UnreadableError):
    """A name leads to something else than a regular file."""


@dataclass(frozen=True)
class Facts:
    """What a store says about a file without opening it."""

    size: int
    """Bytes."""
    version: str
    """Changes when the content does: ETag, else time of change; empty where the store knows neither."""


@dataclass(frozen=True)
class File:
    """A file that need not exist: a store and the path in it."""

    filesystem: Any
    """Of fsspec."""
    path: str
    """Absolute, as the filesystem names it."""
    start: str = ""
    cut: int = 0
    """The address is `start + path[cut:]`."""

    @property
    def address(self) -> str:
        """As a user, or a listing, names it."""
        return self.start + self.path[self.cut :]

    @property
    def local(self) -> bool:
        """Whether GDAL can open the path by itself."""
        return isinstance(self.filesystem, LocalFileSystem)

    def beside(self, path: str) -> "File":
        """Another file of the same store."""
        return File(self.filesystem, path, self.start, self.cut)

    def facts(self, infos: Mapping[str, Mapping[str, Any]] | None = None) -> Facts | None:
        """Size and version, from a listing by address if `infos` is one; None where there is no such file.

        Raises:
            UnreadableError: the store does not answer.
            NoFileError: the path is a folder or a device.
        """
        listed = None if infos is None else infos.get(self.address)
        if infos is not None and listed is None:
            return None
        with _mapped(self.path):
            try:
                if self.local:  # a listing may describe a link instead of what it leads to
                    return _local_facts(self.path)
                info = self.filesystem.info(self.path) if listed is None else listed
            except (FileNotFoundError, NotADirectoryError) as error:
                if (cause := error.__cause__) is not None and _unanswered(cause):
                    raise cause from None
                return None
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:  # where no such name can be, there is no file of it
                    return None
                raise
        if info.get("type", "file") != "file":
            raise NoFileError(f"{self.path} is a {info['type']} and no file: name the raster itself")
        version = next((_stamp(info[key]) for key in _VERSIONS if info.get(key) is not None), "")
        if info.get("size") is None:
            raise UnreadableError(f"{self.path} cannot be opened: its server does not tell its size; download it")
        return Facts(int(info["size"]), version)

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start` on; fewer at the end of the file.

        Raises:
            UnreadableError: it cannot be read, or a server sends nothing but whole files.
        """
        with _mapped(self.path):
            if self.local:
                with open(self.path, "rb") as stream:  # noqa: PTH123 - the path is a string throughout
                    stream.seek(start)
                    return stream.read(length)
            if "http" in self.filesystem.protocol:  # cat_file takes a whole file from a server that overlooks ranges
                with self.filesystem.open(self.path, size=start + length, cache_type="none") as stream:
                    stream.seek(start)
                    return bytes(stream.read(length))
            return bytes(self.filesystem.cat_file(self.path, start=start, end=start + length))


def locate(name: str) -> File:
    """The file of a local path or an address.

    Raises:
        UnreadableError: no filesystem is known for the address, or the name cannot be one.
    """
    with _mapped(name):
        if is_address(name):
            filesystem, path = fsspec.url_to_fs(name)
            same = next((n for n in range(len(path), 0, -1) if name.endswith(path[-n:])), 0)
            return File(filesystem, path, name[: len(name) - same], len(path) - same)
        return File(LocalFileSystem(), os.path.abspath(local_path(name)))  # noqa: PTH100 - links must stay as they are


class Container(FileContainer):  # type: ignore[misc]  # rasterio is untyped
    """The few files of a store that GDAL may see, and no other.

    Each opening has a position of its own, whatever the filesystem does: so threads do not disturb each other.
    """

    def __init__(self, files: Mapping[str, Facts], filesystem: Any) -> None:
        """`files`: paths, with what is known about them."""
        self._files = files
        self._filesystem = filesystem
        self._failures: list[UnreadableError] = []

    def check(self) -> None:
        """Raises what reading has failed with since the last call.

        GDAL is told of an end of the file instead: what Python raises below it would be printed and lost, and only
        this says why.

        Raises:
            UnreadableError: a file could not be read.
        """
        failures, self._failures = self._failures, []
        if failures:
            raise failures[0]

    def open(self, path: str, mode: str = "rb", **_: object) -> io.BufferedReader:
        """A file for reading."""
        if path not in self._files or "r" not in mode:
            raise FileNotFoundError(path)
        ranges = _Ranges(File(self._filesystem, path), self._files[path].size, self._note)
        return io.BufferedReader(ranges, _BUFFER)

    def _note(self, failure: UnreadableError) -> None:
        self._failures.append(failure)

    def isfile(self, path: str) -> bool:
        """Whether the path is one of the files."""
        return path in self._files

    def isdir(self, path: str) -> bool:
        """Nothing is a folder here."""
        del path
        return False

    def ls(self, path: str) -> list[str]:
        """Nothing is listed: GDAL asks for what it wants."""
        del path
        return []

    def mtime(self, path: str) -> int:
        """Not told."""
        del path
        return 0

    def rm(self, path: str) -> None:
        """Never."""
        raise PermissionError(path)

    def size(self, path: str) -> int:
        """Bytes of one of the files."""
        return self._files[path].size if path in self._files else 0


class _Ranges(io.RawIOBase):
    """A remote file, a range of bytes for each request; a request that fails twice is noted and ends the file."""

    def __init__(self, file: File, size: int, note: Callable[[UnreadableError], None]) -> None:
        self._file, self._size, self._note, self._at = file, size, note, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        try:
            data = self._twice(length)
        except UnreadableError as failure:
            self._note(failure)
            return 0
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _twice(self, length: int) -> bytes:
        try:
            return self._file.read(self._at, length)
        except UnreadableError:
            time.sleep(_PAUSE)
            return self._file.read(self._at, length)


def _stamp(version: Any) -> str:
    """One text for a time, however a store tells it: a listing and a single answer may differ."""
    return str(version.timestamp() if isinstance(version, datetime) else version)


def _local_facts(path: str) -> Facts:
    stat = os.stat(path)  # noqa: PTH116 - the path is a string throughout
    if not S_ISREG(stat.st_mode):
        raise NoFileError(f"{path} is not a file (a folder or a device): name the raster itself")
    return Facts(stat.st_size, str(stat.st_mtime_ns))


def _unanswered(cause: BaseException) -> bool:
    """Whether a web server failed or was not reached; fsspec says that there is no file then.

    Taken for absent, a mask beside a scene would no longer count.
    """
    status = getattr(cause, "status", 0)
    if status:
        return bool(status >= 500 or status in _BUSY)
    return isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")


@contextlib.contextmanager
def _mapped(name: str) -> Iterator[None]:
    """Turns what a store raises into `UnreadableError`."""
    try:
        yield
    except UnreadableError:
        raise
    except ImportError as error:
        raise UnreadableError(f"{name} cannot be opened: {error} (install the fsspec library of this store)") from error
    except TimeoutError as error:
        raise UnreadableError(f"{name} cannot be opened: the store does not answer") from error
    except ValueError as error:
        reason = f"ValueError: {error}"
        if "range requests" in reason:
            reason = "its server sends whole files and no parts of them; download it, and name the copy"
        raise UnreadableError(f"{name} cannot be opened: {reason}") from error
    except Exception as error:  # stores raise what their client libraries raise, which have no base in common
        raise UnreadableError(f"{name} cannot be opened: {type(error).__name__}: {error}") from error
