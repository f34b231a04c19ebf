"""The raster formats that are known by their first bytes, and the names their files go by."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

HEAD_BYTES = 1024
"""Bytes that `sniff` wants to see."""

VRT = "VRT"
_VRT_ROOT = b"<VRTDataset"


@dataclass(frozen=True)
class Format:
    """A raster format that plain files come in."""

    driver: str
    """GDAL's name for it."""
    suffixes: tuple[str, ...]
    """Endings of file names, in lower case."""
    magic: re.Pattern[bytes]
    """Matches the first bytes of each such file."""


FORMATS = (
    Format("GTiff", (".tif", ".tiff", ".gtif", ".gtiff", ".btf", ".tf8", ".svs"), re.compile(rb"II[*+]\0|MM\0[*+]")),
    Format("PNG", (".png",), re.compile(rb"\x89PNG\r\n\x1a\n")),
    Format("JPEG", (".jpg", ".jpeg", ".jpe"), re.compile(rb"\xff\xd8\xff")),
    Format(
        "JP2OpenJPEG",
        (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
        re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", re.DOTALL),
    ),
    Format("WEBP", (".webp",), re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    Format(VRT, (".vrt",), re.compile(rb"(\xef\xbb\xbf)?\s*<(?=.*<VRTDataset|VRTDataset)", re.DOTALL)),
)
"""What a policy can tell apart without GDAL."""

SUFFIXES = tuple(suffix for known in FORMATS for suffix in known.suffixes if known.driver != VRT)
"""Endings of the names of plain rasters."""


def sniff(head: bytes) -> Format | None:
    """The format that a file starting with `head` is of; None: none of those known here."""
    if head[:1] == b"<" and _VRT_ROOT not in head:
        return None
    return next((known for known in FORMATS if known.magic.match(head[:HEAD_BYTES])), None)


def suffix_of(name: str) -> str:
    """The ending of a path's or an address's last part, in lower case; what follows a `?` in an address is no part."""
    path = urlsplit(name).path if "://" in name else name
    return PurePosixPath(path).suffix.lower()
