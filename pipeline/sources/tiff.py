"""What a TIFF says about its first image, read without GDAL: its size, its blocks, and where in the file they lie.

Reading millions of block positions takes a fraction of a second, and nothing is decoded: so a file that is shorter
than its blocks claim is known before anything is allocated for it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableError
from pipeline.sources.files import File

_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
"""Numeric field types: byte, short, long, IFD, long8, IFD8."""
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS_PER_STRIP, _PLANAR = 256, 257, 258, 259, 277, 278, 284
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 322, 323, 324, 325
_UNCOMPRESSED = 1
_CHUNK = 1 << 18
"""Block positions read at once."""
_ENTRY_LIMIT = 4096
"""Most fields of a directory that is believed."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a TIFF's first image."""

    height: int
    width: int
    count: int
    """Blocks, all bands together."""
    block_bytes: int
    """Decoded bytes of the largest one."""
    sparse: int
    """Blocks that are not stored: they read as nodata, or as zero."""


@dataclass(frozen=True)
class _Field:
    kind: str
    count: int
    at: int
    """Where its values lie in the file."""


def check_tiff(file: File, size: int) -> Blocks | None:
    """The blocks of the first image of a TIFF of `size` bytes; None where its directory is left to GDAL to judge.

    Raises:
        UnreadableError: a block lies beyond the end of the file, or holds fewer bytes than its pixels need.
    """
    try:
        order, fields = _directory(file)
        width, height = _one(file, order, fields, _WIDTH), _one(file, order, fields, _HEIGHT)
        tiled = _TILE_WIDTH in fields
        rows = _one(file, order, fields, _TILE_HEIGHT) if tiled else _one(file, order, fields, _ROWS_PER_STRIP, height)
        cols = _one(file, order, fields, _TILE_WIDTH) if tiled else width
        samples, planar = _one(file, order, fields, _SAMPLES, 1), _one(file, order, fields, _PLANAR, 1)
        bits = _one(file, order, fields, _BITS, 1)
        rows = rows if tiled else min(rows, height)
        together = 1 if planar == 2 else samples
        block_bytes = -(-cols * together * bits // 8) * rows
        offsets, lengths = (
            fields[_TILE_OFFSETS if tiled else _STRIP_OFFSETS],
            fields[_TILE_BYTES if tiled else _STRIP_BYTES],
        )
        plain = _one(file, order, fields, _COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    except (KeyError, struct.error, ValueError):
        return None
    if min(width, height, rows, cols) <= 0 or offsets.count != lengths.count:
        return None
    # A last strip may be cut short with the image.
    needed = block_bytes if plain and (tiled or offsets.count == 1) else 0
    sparse = _check(file, size, order, offsets, lengths, needed=needed)
    return Blocks(height, width, offsets.count, block_bytes, sparse)


def _check(file: File, size: int, order: str, offsets: _Field, lengths: _Field, *, needed: int) -> int:
    sparse = 0
    pairs = zip(_values(file, size, order, offsets), _values(file, size, order, lengths), strict=True)
    for number, (start, length) in enumerate(pairs):
        stored = (start != 0) & (length != 0)
        sparse += int((~stored).sum())
        ends = start + length
        for bad in np.flatnonzero(stored & ((ends > size) | (ends < start)))[:1]:
            raise UnreadableError(
                f"{file.path} is truncated or corrupt: block {number * _CHUNK + bad + 1} of {offsets.count} ends at "
                f"byte {ends[bad]}, the file at {size}: fetch it again"
            )
        for bad in np.flatnonzero(stored & (length < needed))[:1]:
            raise UnreadableError(
                f"{file.path} is truncated or corrupt: block {number * _CHUNK + bad + 1} of {offsets.count} has "
                f"{length[bad]} bytes, its pixels need {needed}: fetch it again"
            )
    return sparse


def _directory(file: File) -> tuple[str, dict[int, _Field]]:
    """Byte order and fields of the first directory.

    Raises:
        ValueError, struct.error: there is none.
    """
    head = file.read(0, 16)
    order = {b"II": "<", b"MM": ">"}[head[:2]]
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    at = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
    counter, entry, inline = ("Q", 20, 8) if big else ("H", 12, 4)
    start = struct.calcsize(order + counter)
    count = struct.unpack(order + counter, file.read(at, start))[0]
    if not 0 < count <= _ENTRY_LIMIT:
        raise ValueError(count)
    table = file.read(at + start, count * entry)
    fields = {}
    for position in range(0, count * entry, entry):
        tag, kind = struct.unpack_from(order + "HH", table, position)
        length, where = struct.unpack_from(order + ("QQ" if big else "II"), table, position + 4)
        if kind in _TYPES:
            fits = length * np.dtype(_TYPES[kind]).itemsize <= inline
            value = at + start + position + (12 if big else 8)
            fields[tag] = _Field(_TYPES[kind], length, value if fits else where)
    return order, fields


def _one(file: File, order: str, fields: dict[int, _Field], tag: int, default: int | None = None) -> int:
    """The first value of a field.

    Raises:
        KeyError: it is not there, and there is no default.
        ValueError: it lies beyond the end of the file.
    """
    if tag not in fields and default is not None:
        return default
    field = fields[tag]
    kind = np.dtype(order + field.kind)
    return int(np.frombuffer(file.read(field.at, kind.itemsize), kind, 1)[0])


def _values(file: File, size: int, order: str, field: _Field) -> Iterator[NDArray[np.uint64]]:
    """All values of a field, `_CHUNK` at a time.

    Raises:
        UnreadableError: they lie beyond the end of the file.
    """
    kind = np.dtype(order + field.kind)
    if field.at + field.count * kind.itemsize > size:
        raise UnreadableError(
            f"{file.path} is truncated or corrupt: {field.count} block positions do not fit its {size} bytes: "
            "fetch it again"
        )
    for start in range(0, field.count, _CHUNK):
        length = min(_CHUNK, field.count - start) * kind.itemsize
        data = file.read(field.at + start * kind.itemsize, length)
        yield np.frombuffer(data, kind).astype(np.uint64)
