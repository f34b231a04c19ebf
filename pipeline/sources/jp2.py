"""Whether the boxes of a JP2 file lie within each other, read without GDAL: from some that do not it never returns."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import UnreadableError
from pipeline.sources.files import File

_CODESTREAM = b"\xff\x4f\xff\x51"
_PARENTS = {b"jp2h", b"res ", b"asoc", b"uinf", b"jpch", b"jplh", b"cgrp"}
"""Boxes that hold boxes."""
_AT_ONCE = 1 << 16
_BOXES, _DEPTH = 10_000, 8
"""Most boxes, and most of them inside each other, that are believed."""


@dataclass(frozen=True)
class _Box:
    kind: bytes
    start: int
    """Where its content begins."""
    stop: int


def check_jp2(file: File, size: int) -> None:
    """Does nothing for a file of `size` bytes whose boxes are sound, or that is a bare codestream.

    Raises:
        UnreadableError: a box is shorter than its own header, or longer than what holds it; or there are too many.
    """
    head = file.read(0, _AT_ONCE)
    if head.startswith(_CODESTREAM):
        return
    waiting, seen = [(0, size, 0)], 0
    while waiting:
        start, stop, depth = waiting.pop()
        for box in _boxes(file, head, start, stop, last_is_open=depth == 0):
            seen += 1
            if seen > _BOXES or depth > _DEPTH:
                raise _corrupt(file, box.start, "more boxes than a picture has")
            if box.kind in _PARENTS:
                waiting.append((box.start, box.stop, depth + 1))


def _boxes(file: File, head: bytes, start: int, stop: int, *, last_is_open: bool) -> Iterator[_Box]:
    """The boxes that follow each other from `start` to `stop`; the last of the file may leave out its length."""
    while start < stop:
        raw = head[start : start + 16] if start + 16 <= len(head) else file.read(start, 16)
        if len(raw) < 8:
            raise _corrupt(file, start, "the file ends inside a box")
        length, kind = struct.unpack(">I4s", raw[:8])
        begin = start + 8
        if length == 1 and len(raw) == 16:
            length, begin = struct.unpack(">Q", raw[8:])[0], start + 16
        elif length == 0 and last_is_open:
            length = stop - start
        if length < begin - start or start + length > stop:
            raise _corrupt(file, start, f"a box of {length} bytes does not fit the {stop - start} that are left")
        yield _Box(kind, begin, start + length)
        start += length


def _corrupt(file: File, at: int, why: str) -> UnreadableError:
    return UnreadableError(f"{file.path} is truncated or corrupt: at byte {at}, {why}: fetch it again")
