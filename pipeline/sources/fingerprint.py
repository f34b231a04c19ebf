"""What names a scene's content without reading it."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import RefusedError, UnreadableError
from pipeline.sources.address import SceneAddress, expanded
from pipeline.sources.files import Facts, File, locate
from pipeline.sources.formats import suffix_of
from pipeline.sources.policy import SourcePolicy
from pipeline.sources.sidecars import sidecars
from pipeline.sources.vrt import read_sources

_HEADER_BYTES = 1 << 16
_PAM, _PAM_BYTES = ".aux.xml", 1 << 24
"""What GDAL keeps beside a raster, and up to which length it is read."""
_VIEWED = re.compile(
    rb'<MDI key="STATISTICS_\w+">[^<]*</MDI>|<Histograms>.*?</Histograms>'
    rb'|<(Metadata|PAMRasterBand|PAMDataset)(?: band="\d+")?(?:/>|></\1>)|(?<=>)\s+(?=<|\Z)',
    re.DOTALL,
)
"""What looking at a raster with GDAL or QGIS leaves in there: statistics, and elements that hold nothing else."""


def fingerprint(address: SceneAddress, infos: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Names the content of a scene's files, and of the sidecars that are used, without GDAL and without pixels.

    Size, time of change and a digest of the first 64 KiB of local files; size and ETag, or time of change, of others.
    `infos`, what a listing said about each path (`fsspec`'s `find(detail=True)`), saves the requests for these; the
    result is the same. A night without news costs no reading; a sidecar that comes, goes or changes makes another
    scene, but for statistics in a local `.aux.xml`, whose content counts and not its time. The names of files count by
    their endings alone.

    Raises:
        RefusedError, UnreadableError: the scene may not be opened, or is not there.
    """
    digest = hashlib.sha256()
    address = expanded(address)
    for path in [path for _, path in address.files] or [address.path]:
        for part in _parts(address.policy, path, infos):
            digest.update(part)
    return digest.hexdigest()


def _parts(policy: SourcePolicy, path: str, infos: Mapping[str, Mapping[str, Any]] | None) -> Iterator[bytes]:
    file = policy.locate(path)
    if file is None:
        yield path.encode(errors="surrogateescape")
        for inside in _files_in(path):
            yield from _file_parts(locate(inside), "", None)
        return
    listed = infos if infos is not None and file.address in infos else None
    yield from _file_parts(file, suffix_of(file.path), listed)
    if policy.trust != "untrusted":
        for neighbour, facts in sidecars(file, infos):
            if neighbour.path.lower().endswith(".ovr"):  # smaller views of the same pixels
                continue
            ending = neighbour.path.removeprefix(os.path.splitext(file.path)[0])  # noqa: PTH122 - the path is a string
            if file.local and ending.endswith(_PAM) and facts.size <= _PAM_BYTES:
                yield from _pam_parts(neighbour, ending)
            else:
                yield from _file_parts(neighbour, ending, None, facts)
    if file.local and suffix_of(path) == ".vrt":
        yield from _vrt_parts(Path(file.path), {file.path})


def _file_parts(
    file: File, ending: str, infos: Mapping[str, Mapping[str, Any]] | None, facts: Facts | None = None
) -> Iterator[bytes]:
    facts = facts or file.facts(infos)
    if facts is None:
        raise UnreadableError(f"{file.path}: no such file")
    yield f"{ending} {facts.size} {facts.version} ".encode()
    if file.local:
        yield hashlib.sha256(file.read(0, _HEADER_BYTES)).digest()


def _pam_parts(file: File, ending: str) -> Iterator[bytes]:
    """What a local `.aux.xml` says about the scene: a look at it in QGIS makes it no other scene."""
    said, found = file.read(0, _PAM_BYTES), 1
    while found:  # emptied elements may leave the one around them empty
        said, found = _VIEWED.subn(b"", said)
    if said:
        yield f"{ending} {len(said)} ".encode()
        yield hashlib.sha256(said).digest()


def _vrt_parts(vrt: Path, seen: set[str]) -> Iterator[bytes]:
    """The files that a VRT draws on belong to it; what cannot be told is left to whoever opens it."""
    try:
        sources = read_sources(vrt, plain=False)
    except (RefusedError, OSError):
        return
    for source in sources:
        path = source.path(vrt)
        if str(path) not in seen and path.is_file():
            seen.add(str(path))
            yield from _file_parts(locate(str(path)), source.name, None)
            if path.suffix.lower() == ".vrt":
                yield from _vrt_parts(path, seen)


def _files_in(name: str) -> Iterator[str]:
    """The local files inside a name that only GDAL understands: of a subdataset, or of an archive."""
    for start in re.finditer(r"/", name):
        rest = name[start.start() :].split('"', maxsplit=1)[0]
        ends = [end.start() for end in re.finditer(r"[/:]|$", rest)]
        for end in ends:
            if os.path.isfile(rest[:end]):  # noqa: PTH113 - the path is a string
                yield rest[:end]
                return
