"""Single shards of zarr arrays: found, encoded in memory, and put into place whole and durable, or not at all."""

import contextlib
import functools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore

from pipeline.errors import OutputError
from pipeline.grid import Window

PARTIAL = ".partial"
"""Ends the name of whatever is not whole yet."""


def sync(path: Path) -> None:
    """Makes a file's bytes, or a folder's names, survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_array(path: Path) -> Any:
    """The array at `path`; opened once a process for as long as its metadata stays the same."""
    stat = (path / "zarr.json").stat()
    return _opened(path, stat.st_ino, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _opened(path: Path, _inode: int, _changed: int) -> Any:
    return zarr.open_array(LocalStore(path, read_only=True), mode="r")


def partial_name(path: Path) -> Path:
    """A name beside `path` that nobody else has."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def place(window: Window) -> str:
    """Where a window is, for messages."""
    return f"row {window.row}, column {window.col}"


def shard_windows(window: Window, shard: int) -> Iterator[Window]:
    """The parts of `window` that lie in one shard each, row by row."""
    for row in range(window.row // shard, -(-window.stop_row // shard)):
        for col in range(window.col // shard, -(-window.stop_col // shard)):
            part = Window(row * shard, col * shard, shard, shard).intersect(window)
            if part is not None:
                yield part


def shard_key(array: Any, window: Window) -> str:
    """Name of the shard that holds the first pixel of `window`, from the array's folder."""
    rows, cols = array.shards[-2:]
    indices = (0,) * (array.ndim - 2) + (window.row // rows, window.col // cols)
    return "c/" + "/".join(str(index) for index in indices)


def write_shard(path: Path, window: Window, values: NDArray[Any]) -> bytes:
    """Encodes and places the shard of the array at `path` that is `window`; returns its bytes."""
    array = open_array(path)
    rows, cols = array.shards[-2:]
    whole = Window(window.row, window.col, rows, cols).intersect(Window(0, 0, *array.shape[-2:]))
    if window != whole or window.row % rows or window.col % cols or values.shape[-2:] != (window.height, window.width):
        raise ValueError(f"{window} with values {values.shape} is not one shard of {rows} x {cols} pixels of {path}")
    key = shard_key(array, window)
    encoded = _encode(path, key, window, values)
    with writing(path):
        _place_file(path, path / key, encoded)
    return encoded


def _encode(path: Path, key: str, window: Window, values: NDArray[Any]) -> bytes:
    """The bytes of one shard, made in a store in memory: a fresh array, so nothing old is read or kept."""
    prototype = default_buffer_prototype()
    entries: dict[str, Any] = {"zarr.json": prototype.buffer.from_bytes((path / "zarr.json").read_bytes())}
    array = zarr.open_array(MemoryStore(entries), mode="r+").with_config({"write_empty_chunks": True})
    array[..., *window.slices] = values
    encoded: bytes = entries[key].to_bytes()
    return encoded


def _place_file(root: Path, target: Path, content: bytes) -> None:
    """Puts a file below `root`, whole and durable or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(target)
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    for folder in target.parents:
        sync(folder)
        if folder == root:
            break


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system raises into `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
