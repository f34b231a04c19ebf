"""Fetching published weights: never by itself, never more than asked for, and checked before it has its name."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.published import Published
from pipeline.errors import WeightsError

CHUNK = 1 << 20
"""Bytes that are read at once."""
PATIENCE = 60
"""Seconds without a byte after which an address is given up."""


@dataclass(frozen=True)
class Fetched:
    """A file of weights on this machine."""

    path: Path
    sha256: str
    verified: bool
    """Whether its checksum begins as its published name says; False: no checksum is known."""
    downloaded: bool
    """False: it was there already."""


def fetch(entry: Published, folder: Path, *, unverified: bool = False) -> Fetched:
    """The file of `entry` in `folder`: downloaded unless it is there, under its name only once its checksum is right.

    Args:
        entry: what to fetch.
        folder: where it goes; made if missing.
        unverified: take a file for which no checksum is known.

    Raises:
        WeightsError: no checksum is known, no address answers, the checksum differs, or the folder cannot be written.
    """
    if not entry.sha256 and not unverified:
        raise WeightsError(
            f"no checksum of {entry.file} is known, nobody could tell whether it is the right one: "
            "give --unverified to take what comes"
        )
    place = folder / entry.file
    with _writing(folder):
        if place.exists():
            digest = _digest(entry, place, f"{place} is there already and")
            return Fetched(place, digest, verified=bool(entry.sha256), downloaded=False)
        folder.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
        try:
            url = _download(entry, partial, place)
            digest = _digest(entry, partial, f"what {url} sent")
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)
    return Fetched(place, digest, verified=bool(entry.sha256), downloaded=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{folder} cannot be written: {error.strerror or error}: choose another --out") from error


def _digest(entry: Published, path: Path, called: str) -> str:
    """The file's checksum, if it begins as it should."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(entry.sha256):
        raise WeightsError(
            f"{called} has the checksum {digest[:16]}..., that of {entry.file} begins with {entry.sha256}: "
            "it is damaged or another file; remove it and try again"
        )
    return digest


def _download(entry: Published, partial: Path, place: Path) -> str:
    """Write what the first address that answers sends, and return the address."""
    tried = []
    for url in entry.urls:
        try:
            _write(partial, url)
        except _NoAnswerError as error:
            tried.append(f"{url} ({error})")
        else:
            return url
    raise WeightsError(
        f"{entry.name} cannot be downloaded: tried {', '.join(tried)}; download it by hand and put it at {place}"
    )


def _write(partial: Path, url: str) -> None:
    with partial.open("wb") as file:
        for chunk in _chunks(url):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


class _NoAnswerError(Exception):
    """An address gave no whole file."""


def _chunks(url: str) -> Iterator[bytes]:
    """The bytes at `url` as they come."""
    import fsspec

    try:
        with fsspec.open(url, **_options(url)) as source:
            while chunk := source.read(CHUNK):
                yield chunk
    except Exception as error:  # stores raise what their client libraries raise, which have no base in common
        cause = error.__cause__ or error  # fsspec says of every failure that there is no such file
        raise _NoAnswerError(f"{type(cause).__name__}: {cause}".rstrip(": ")) from error


def _options(url: str) -> dict[str, Any]:
    """Of fsspec: one request that streams, without an end as long as bytes come."""
    if not url.startswith("http"):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
    return {"block_size": 0, "client_kwargs": {"timeout": timeout}}
