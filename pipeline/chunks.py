"""The bytes of one shard, made and read directly: zarr's own machinery costs several times the work that is in them.

A shard is zarr v3's `sharding_indexed`:  chunk, chunk, ... (Morton order) | index: offset, length a chunk | crc32c
Only the layouts that `store` creates are understood; what is written is byte for byte what zarr writes.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray

_EMPTY = 2**64 - 1
"""Offset and length of a chunk that is not there."""
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_CHECKSUM = 4
"""Bytes of a crc32c."""


@dataclass(frozen=True)
class Layout:
    """How one array is stored; arrays are (..., H, W), and only the last two axes are cut."""

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    """Shape of a shard: a whole number of chunks."""
    chunk: tuple[int, ...]
    dtype: str
    fill: float
    """Value of what is not stored, and of the part of a chunk that lies beyond the array."""
    compressor: Any
    """`encode` and `decode` of a chunk's bytes."""
    checksummed: bool
    """Whether a crc32c follows each chunk; else the compressor has a checksum of its own."""

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Layout":
        """Of the content of an array's `zarr.json`.

        Raises:
            ValueError: it is not a layout that `store` creates.
        """
        try:
            (sharding,) = facts["codecs"]
            inner = sharding["configuration"]
            _, compressor, *after = inner["codecs"]
            names = [sharding["name"], *(codec["name"] for codec in (*inner["codecs"], *inner["index_codecs"]))]
            layout = cls(
                shape=tuple(facts["shape"]),
                shard=tuple(facts["chunk_grid"]["configuration"]["chunk_shape"]),
                chunk=tuple(inner["chunk_shape"]),
                dtype=np.dtype(facts["data_type"]).newbyteorder("<").str,
                fill=facts["fill_value"],
                compressor=_compressor(compressor),
                checksummed=bool(after),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the metadata of an array of ours: {error!r}") from error
        checksum = ["crc32c"] if compressor["name"] == "blosc" else []
        expected = ["sharding_indexed", "bytes", compressor["name"], *checksum, "bytes", "crc32c"]
        whole = all(edge % part == 0 for edge, part in zip(layout.shard, layout.chunk, strict=True))
        if names != expected or inner["index_location"] != "end" or not whole or layout.shard[:-2] != layout.shape[:-2]:
            raise ValueError(f"not a layout of ours: codecs {names}, shards {layout.shard}, chunks {layout.chunk}")
        return layout

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of chunks in a shard."""
        rows, cols = (edge // part for edge, part in zip(self.shard[-2:], self.chunk[-2:], strict=True))
        return rows, cols

    @cached_property
    def order(self) -> tuple[tuple[int, int], ...]:
        """(row, col) of a shard's chunks, as they follow each other in its file."""
        rows, cols = self.grid
        places = itertools.product(range(rows), range(cols))
        return tuple(sorted(places, key=lambda place: _morton(place, self.grid)))

    @cached_property
    def index_bytes(self) -> int:
        """Length of the index at a shard's end."""
        return 16 * self.grid[0] * self.grid[1] + _CHECKSUM


def _compressor(codec: Mapping[str, Any]) -> Any:
    settings = dict(codec["configuration"])
    match codec["name"]:
        case "zstd" if settings["checksum"]:
            return Zstd(**settings)
        case "blosc":
            return Blosc(**settings | {"shuffle": _SHUFFLES[settings["shuffle"]]})
    raise ValueError(f"codec {codec} is not one of ours")


def _morton(place: tuple[int, int], grid: tuple[int, int]) -> int:
    """Place on the Z-curve: the bits of row and column in turn, row first, as many as the grid needs."""
    code, at = 0, 0
    for bit in range(max(grid).bit_length()):
        for number, count in zip(place, grid, strict=True):
            if bit < (count - 1).bit_length():
                code |= (number >> bit & 1) << at
                at += 1
    return code


def encode(layout: Layout, values: NDArray[Any]) -> bytes:
    """The bytes of a shard of `values` (..., H, W), which is less high or wide at the array's rim."""
    rows, cols = layout.chunk[-2:]
    index = np.full((*layout.grid, 2), _EMPTY, "<u8")
    parts: list[bytes] = []
    end = 0
    for row, col in layout.order:
        inside = values[..., row * rows : (row + 1) * rows, col * cols : (col + 1) * cols]
        if not inside.size:
            continue
        body = layout.compressor.encode(_whole(layout, inside))
        tail = _crc(body) if layout.checksummed else b""
        parts += body, tail
        index[row, col] = end, len(body) + len(tail)
        end += len(body) + len(tail)
    encoded = index.tobytes()
    return b"".join((*parts, encoded, _crc(encoded)))


def _whole(layout: Layout, values: NDArray[Any]) -> NDArray[Any]:
    """One chunk in its full shape, in one piece."""
    if values.shape == layout.chunk:
        return np.ascontiguousarray(values, layout.dtype)
    chunk = np.full(layout.chunk, layout.fill, layout.dtype)
    chunk[..., : values.shape[-2], : values.shape[-1]] = values
    return chunk


def decode(layout: Layout, path: Path, window: Sequence[slice], out: NDArray[Any]) -> None:
    """Fills `out` (..., H, W) with rows and columns of the shard in the file `path`, counted from the shard's first.

    Raises:
        ValueError, RuntimeError: the shard is corrupt.
        OSError: the file cannot be read.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        index = _read_index(layout, handle)
        for place, inside, target in _parts(layout, window):
            start, length = (int(number) for number in index[place])
            if start == length == _EMPTY:
                out[..., *target] = layout.fill
            else:
                out[..., *target] = _chunk(layout, _read(handle, start, length))[..., *inside]
    finally:
        os.close(handle)


def _read_index(layout: Layout, handle: int) -> NDArray[np.uint64]:
    start = os.fstat(handle).st_size - layout.index_bytes
    if start < 0:
        raise ValueError("a shard shorter than its index")
    return np.frombuffer(_checked(_read(handle, start, layout.index_bytes)), "<u8").reshape(*layout.grid, 2)


def _parts(
    layout: Layout, window: Sequence[slice]
) -> Iterator[tuple[tuple[int, int], tuple[slice, slice], tuple[slice, slice]]]:
    """For each chunk that `window` touches: its place, what is wanted of it, and where that goes."""
    rows, cols = (list(_cut(part, edge)) for part, edge in zip(window, layout.chunk[-2:], strict=True))
    for (row, inside_rows, target_rows), (col, inside_cols, target_cols) in itertools.product(rows, cols):
        yield (row, col), (inside_rows, inside_cols), (target_rows, target_cols)


def _cut(part: slice, edge: int) -> Iterator[tuple[int, slice, slice]]:
    for number in range(part.start // edge, -(-part.stop // edge)):
        start, stop = max(part.start, number * edge), min(part.stop, (number + 1) * edge)
        yield number, slice(start - number * edge, stop - number * edge), slice(start - part.start, stop - part.start)


def _read(handle: int, start: int, length: int) -> bytes:
    # The file's size bounds what is read: a length from a corrupt index must not.
    if start + length > os.fstat(handle).st_size:
        raise ValueError(f"{length} bytes at {start} lie beyond the shard's end")
    return os.pread(handle, length, start)


def _chunk(layout: Layout, body: bytes) -> NDArray[Any]:
    chunk = np.empty(layout.chunk, layout.dtype)
    layout.compressor.decode(_checked(body) if layout.checksummed else body, chunk)
    return chunk


def _checked(body: bytes) -> NDArray[np.uint8]:
    """`body` without the crc32c at its end, which must be right."""
    content = np.frombuffer(body, np.uint8)[:-_CHECKSUM]
    if _crc(content) != body[-_CHECKSUM:]:
        raise ValueError("a checksum does not fit")
    return content


def _crc(content: bytes | NDArray[np.uint8]) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(_CHECKSUM, "little")
