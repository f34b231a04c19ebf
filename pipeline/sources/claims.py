"""What a raster claims about itself against what a policy allows and its length can hold, before a pixel is read."""

import functools
from typing import Any

from pipeline.errors import RefusedError, UnreadableError
from pipeline.sources import header
from pipeline.sources.files import Facts, File
from pipeline.sources.jp2 import check_jp2
from pipeline.sources.policy import Admitted, SourcePolicy
from pipeline.sources.tiff import Blocks, check_tiff

_PIXELS_PER_BYTE = {"PNG": 8 * 1032, "JPEG": 512}
"""Most pixels that a byte of a file can hold: deflate's best at one bit a pixel; a bit for 8 x 8 pixels."""
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
"""What the last bytes of a whole file hold: GDAL answers a cut PNG, read at once, with whatever its memory held."""


def early_claims(admitted: Admitted, policy: SourcePolicy) -> Blocks | None:
    """What a TIFF claims, checked against the policy and its own length before GDAL allocates anything for it.

    The sources of a VRT are held to the same.

    Raises:
        RefusedError: more than the policy allows.
        UnreadableError: more than the file can hold, or the boxes of a JP2 do not fit into each other.
    """
    for source in admitted.sources:
        early_claims(source, policy)
    if admitted.file is None or admitted.facts is None:
        return None
    if admitted.driver == "JP2OpenJPEG":
        check_jp2(admitted.file, admitted.facts.size)
    if admitted.driver != "GTiff":
        return None
    blocks = _tiff_blocks(admitted.file, admitted.facts)
    if blocks is not None:
        _check_size(admitted.name, policy, blocks.height, blocks.width)
        _check_block(admitted.name, policy, blocks.block_bytes)
    return blocks


@functools.lru_cache(maxsize=256)
def _tiff_blocks(file: File, facts: Facts) -> Blocks | None:
    return check_tiff(file, facts.size)


def _check_size(path: str, policy: SourcePolicy, height: int, width: int) -> None:
    if height * width > policy.max_pixels:
        raise RefusedError(
            f"{path} claims {height} x {width} = {height * width:.3g} pixels, at most {policy.max_pixels:.3g} are "
            "allowed: raise --max-pixels if it is meant"
        )


def _check_block(path: str, policy: SourcePolicy, size: int) -> None:
    if size > policy.max_block_bytes:
        raise RefusedError(
            f"{path} has blocks of {size / 2**30:.2f} GiB, at most {policy.max_block_bytes / 2**30:.2f} are allowed: "
            "rewrite it as a COG"
        )


def check_claims(opened: Any, admitted: Admitted, policy: SourcePolicy) -> int:
    """Decoded bytes of the block that GDAL holds to give a pixel of an opened dataset, if all it claims is allowed.

    Raises:
        RefusedError: it is too large, has too large blocks, or leads to another file.
        UnreadableError: its length cannot hold it, or its end is missing; or it has no band that is supported.
    """
    if policy.trust != "named" and "OVERVIEW_FILE" in opened.tags(ns="OVERVIEWS"):  # opened by any driver
        raise RefusedError(f"{admitted.name} takes its overviews from another file: name it by itself if you trust it")
    _check_size(admitted.name, policy, opened.height, opened.width)
    header.pixel_type(opened, admitted.name)
    size = header.block_bytes(opened)
    if opened.driver == "PNG" and _interlaced(admitted):  # decoded as a whole
        size *= opened.height
    _check_block(admitted.name, policy, size)
    _check_plausible(admitted, opened)
    return size


def _check_plausible(admitted: Admitted, opened: Any) -> None:
    """Whether a PNG or JPEG can hold what it claims, and has its end: one that was cut fails only after long work."""
    size = 0 if admitted.facts is None else admitted.facts.size
    if admitted.file is None or opened.driver not in _ENDS:
        return
    if opened.height * opened.width > _PIXELS_PER_BYTE[opened.driver] * size:
        raise UnreadableError(
            f"{admitted.name} is truncated or corrupt: {opened.height} x {opened.width} pixels do not fit {size} bytes"
        )
    if _ENDS[opened.driver] not in admitted.file.read(max(0, size - (1 << 16)), 1 << 16):
        raise UnreadableError(f"{admitted.name} is truncated or corrupt: its end is missing; fetch it again")


def _interlaced(admitted: Admitted) -> bool:
    return admitted.file is not None and admitted.file.read(28, 1) == b"\1"
