"""Arrays on disk by their shards: found, read by window, put into place whole and durable or not at all."""

import contextlib
import functools
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.chunks import Layout, decode, encode
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


def layout_of(path: Path) -> Layout:
    """How the array at `path` is stored; read once a process for as long as its metadata stays the same.

    Raises:
        OSError: there is none.
        ValueError: its metadata is damaged, or not of a layout that `store` creates.
    """
    stat = (path / "zarr.json").stat()
    return _layout(path, stat.st_ino, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _layout(path: Path, _inode: int, _changed: int) -> Layout:
    return Layout.from_json(json.loads((path / "zarr.json").read_bytes()))


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


def shard_key(layout: Layout, window: Window) -> str:
    """Name of the shard that holds the first pixel of `window`, from the array's folder."""
    rows, cols = layout.shard[-2:]
    indices = (0,) * (len(layout.shape) - 2) + (window.row // rows, window.col // cols)
    return "c/" + "/".join(str(index) for index in indices)


def read_array(path: Path, window: Window) -> NDArray[Any]:
    """(..., H, W) of a window of the array at `path`; its fill value where no shard has been written.

    Raises:
        ValueError, RuntimeError: a shard is corrupt.
        OSError: there is no array, or it cannot be read.
    """
    layout = layout_of(path)
    values = np.empty((*layout.shape[:-2], window.height, window.width), layout.dtype)
    rows, cols = layout.shard[-2:]
    for part in shard_windows(window, rows):
        target = values[..., *part.relative_to(window).slices]
        shard = Window(part.row // rows * rows, part.col // cols * cols, rows, cols)
        try:
            decode(layout, path / shard_key(layout, part), part.relative_to(shard).slices, target)
        except FileNotFoundError:
            target[...] = layout.fill
    return values


def write_shard(path: Path, window: Window, values: NDArray[Any]) -> bytes:
    """Encodes and places the shard of the array at `path` that is `window`; returns its bytes."""
    layout = layout_of(path)
    rows, cols = layout.shard[-2:]
    whole = Window(window.row, window.col, rows, cols).intersect(Window(0, 0, *layout.shape[-2:]))
    if window != whole or window.row % rows or window.col % cols or values.shape[-2:] != (window.height, window.width):
        raise ValueError(f"{window} with values {values.shape} is not one shard of {rows} x {cols} pixels of {path}")
    encoded = encode(layout, values)
    with writing(path):
        target = path / shard_key(layout, window)
        _place_file(target, encoded)
        stat = (path / "zarr.json").stat()
        _sync_above(target.parent, path, stat.st_ino, stat.st_mtime_ns)
    return encoded


def _place_file(target: Path, content: bytes) -> None:
    """Puts a file into its folder, whole and durable or not at all; the folder may be new."""
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
    sync(target.parent)


@functools.lru_cache(maxsize=4096)
def _sync_above(folder: Path, root: Path, _inode: int, _changed: int) -> None:
    """Makes the name of `folder` durable in all folders above it, up to the array `root`: once a process and array."""
    for above in folder.parents:
        sync(above)
        if above == root:
            break


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system raises into `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
