"""The bytes of a Cloud-Optimised GeoTIFF around tiles that are compressed already.

    header | GDAL's note on the layout | directory of each level, largest first | tiles of each level, smallest first

What the tags mean is not known here: those that describe the raster are read from a file that GDAL wrote, and carried
over as they are. Numbers are little-endian. Above 4 GiB the file is a BigTIFF.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.publish.spool import Spool

_SUBFILE, _WIDTH, _HEIGHT, _OFFSETS, _SIZES = 254, 256, 257, 324, 325
"""Tags that we write ourselves."""
_OVERVIEW_TAGS = frozenset({258, 259, 262, 277, 284, 317, 320, 322, 323, 338, 339, 42113})
"""What an overview needs of the tags of the whole: how pixels are stored, their colours and nodata; no place."""
_LONG, _LONG8 = 4, 16
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, _LONG8: 8}
"""Bytes of one value, by the type of a tag."""
_CLASSIC_LIMIT = 1 << 32
_ALIGNMENT = 16

_NOTE = (
    "LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    "BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
)
"""By this GDAL knows that one request gets a tile, without its directory's arrays; an editor turns NO into YES."""


@dataclass(frozen=True)
class Tag:
    """One entry of a directory."""

    code: int
    kind: int
    """Type of the values."""
    count: int
    content: bytes
    """All values."""


@dataclass(frozen=True)
class Level:
    """The plane, or one of its overviews."""

    height: int
    width: int
    spool: Spool
    """Its tiles."""


def read_tags(path: Path) -> tuple[Tag, ...]:
    """The entries of the first directory of a classic little-endian TIFF.

    Raises:
        OSError: the file is no such thing, or ends too early.
    """
    data = path.read_bytes()
    try:
        magic, start = struct.unpack_from("<4sI", data)
        (count,) = struct.unpack_from("<H", data, start)
        tags = [_read_tag(data, start + 2 + 12 * i) for i in range(count)]
    except struct.error as error:
        raise OSError(f"{path.name} ends too early") from error
    if magic != b"II*\0":
        raise OSError(f"{path.name} is no classic TIFF")
    return tuple(tags)


def _read_tag(data: bytes, at: int) -> Tag:
    code, kind, count = struct.unpack_from("<HHI", data, at)
    size = _BYTES[kind] * count
    start = at + 8 if size <= 4 else struct.unpack_from("<I", data, at + 8)[0]
    return Tag(code, kind, count, struct.unpack_from(f"{size}s", data, start)[0])


def write_tiff(out: IO[bytes], tags: Sequence[Tag], levels: Sequence[Level], *, big: bool = False) -> None:
    """Write a raster with the `tags` of a template and the pixels of `levels`, largest first.

    With `big`, it is a BigTIFF however small it is. The levels' spools are empty afterwards.

    Raises:
        OSError: `out` cannot be written.
    """
    pixels = sum(level.spool.size for level in levels)
    form = _BIG if big or len(_front(_CLASSIC, tags, levels, 0)) + pixels >= _CLASSIC_LIMIT else _CLASSIC
    start = len(_front(form, tags, levels, 0))
    out.write(_front(form, tags, levels, start))
    for level in reversed(levels):
        level.spool.move_to(out, start)
        start += level.spool.size


@dataclass(frozen=True)
class _Form:
    """How numbers of a classic or a big TIFF are written."""

    header: bytes
    """All but the address of the first directory."""
    count: struct.Struct
    """Entries in a directory."""
    entry: struct.Struct
    """Code, kind and count of an entry."""
    address: struct.Struct
    """Of a directory, or of an entry's values; values that are no longer than this stand there themselves."""
    kind: int
    """Type of an address."""


_CLASSIC = _Form(b"II*\0", struct.Struct("<H"), struct.Struct("<HHI"), struct.Struct("<I"), _LONG)
_BIG = _Form(b"II+\0\x08\0\0\0", struct.Struct("<Q"), struct.Struct("<HHQ"), struct.Struct("<Q"), _LONG8)


def _front(form: _Form, tags: Sequence[Tag], levels: Sequence[Level], start: int) -> bytes:
    """Everything before the tiles, which begin at `start`; its length does not depend on `start`."""
    starts = [start + sum(lower.spool.size for lower in levels[i + 1 :]) for i in range(len(levels))]
    note = f"GDAL_STRUCTURAL_METADATA_SIZE={len(_NOTE):06d} bytes\n{_NOTE}".encode()
    first = _aligned(len(form.header) + form.address.size + len(note))
    front = bytearray(form.header + form.address.pack(first) + note)
    known: dict[bytes, int] = {}
    for i, (level, at) in enumerate(zip(levels, starts, strict=True)):
        directory = _tags(form, tags if i == 0 else _overview(tags), level, at)
        _append(front, form, directory, known, last=i == len(levels) - 1)
    return bytes(front)


def _overview(tags: Sequence[Tag]) -> list[Tag]:
    reduced = Tag(_SUBFILE, _LONG, 1, struct.pack("<I", 1))
    return [reduced, *(tag for tag in tags if tag.code in _OVERVIEW_TAGS)]


def _tags(form: _Form, tags: Iterable[Tag], level: Level, start: int) -> list[Tag]:
    """The template's tags with the size of `level` and the places of its tiles, in ascending order."""
    sizes, offsets = level.spool.sizes(), level.spool.offsets(start)
    own = {
        _WIDTH: Tag(_WIDTH, _LONG, 1, struct.pack("<I", level.width)),
        _HEIGHT: Tag(_HEIGHT, _LONG, 1, struct.pack("<I", level.height)),
        _OFFSETS: Tag(_OFFSETS, form.kind, len(offsets), offsets.astype(f"<u{form.address.size}").tobytes()),
        _SIZES: Tag(_SIZES, _LONG, len(sizes), sizes.astype("<u4").tobytes()),
    }
    return sorted([*(tag for tag in tags if tag.code not in own), *own.values()], key=lambda tag: tag.code)


def _append(front: bytearray, form: _Form, tags: Sequence[Tag], known: dict[bytes, int], *, last: bool) -> None:
    """One directory, followed by the values that have no room in it; those of the template are shared by all levels."""
    front.extend(bytes(_aligned(len(front)) - len(front)))
    entry = form.entry.size + form.address.size
    behind = len(front) + form.count.size + entry * len(tags) + form.address.size
    entries, values = bytearray(form.count.pack(len(tags))), bytearray()
    for tag in tags:
        entries += form.entry.pack(tag.code, tag.kind, tag.count)
        if len(tag.content) <= form.address.size:
            entries += tag.content.ljust(form.address.size, b"\0")
            continue
        at = known.get(tag.content)
        if at is None:
            values.extend(bytes(-(behind + len(values)) % _ALIGNMENT))
            at = behind + len(values)
            values += tag.content
            if tag.code not in {_OFFSETS, _SIZES}:
                known[tag.content] = at
        entries += form.address.pack(at)
    following = 0 if last else _aligned(behind + len(values))
    front += entries + form.address.pack(following) + values


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT
