"""Which scenes an archive holds: a folder, a prefix of any fsspec file system, or a STAC catalogue.

Nothing is opened with GDAL and no pixel is read. What a listing says about files (size, time, ETag) is kept, so that
the fingerprints of 10^4 scenes cost no further request. What cannot be a scene is told and left out; the rest goes on.
"""

import fnmatch
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline.catalogue import Catalogue, is_catalogue
from pipeline.errors import SceneError, UsageError
from pipeline.outputs import MASK
from pipeline.scene import SceneAddress, fingerprint
from pipeline.sources.files import is_address, local_path
from pipeline.sources.formats import SUFFIXES as PLAIN
from pipeline.sources.formats import suffix_of
from pipeline.sources.policy import SourcePolicy
from pipeline.sources.scenefile import SUFFIX as SCENE_FILE
from pipeline.sources.scenefile import is_scene_file, read_bands
from pipeline.walk import Infos, Problem, local_files, reason, remote_files

SUFFIXES = (*PLAIN, ".vrt")
"""Ends of the names of files that are taken for scenes, in lower case."""
LABELS_END = "-labels"
"""Ends the name of a class raster that lies beside its scene."""
RESERVED = ("archive.json", "collection.json")
"""Names in the folder of outputs that are ours."""
LONGEST = 200
"""Most bytes of one part of a name: file systems take 255, and we add to it."""

Trust = Literal["archive", "untrusted"]


@dataclass(frozen=True)
class Entry:
    """One scene of an archive."""

    name: str
    """Relative folder and stem of its result: its place below the archive, without its suffix."""
    address: SceneAddress
    fingerprint: str
    size: int | None = None
    """Bytes of its file, where the listing says."""


@dataclass(frozen=True)
class Listing:
    """What an archive holds."""

    scenes: tuple[Entry, ...]
    """In the order of their names."""
    problems: tuple[Problem, ...] = ()
    """What looks like a scene and cannot be one: its name or path, and why."""


@dataclass(frozen=True)
class Found:
    """A scene whose name has not been judged yet."""

    name: str
    address: SceneAddress


def is_archive(path: str) -> bool:
    """Whether `path` means many scenes: a folder, a STAC file, or an address that does not end as a raster does."""
    folder = os.path.isdir(local_path(path))  # noqa: PTH112 - Path.is_dir raises where a name is too long
    if folder or is_catalogue(path):
        return True
    return is_address(path) and suffix_of(path) not in SUFFIXES and not is_scene_file(path)


def list_archive(
    archive: str,
    *,
    trust: Trust = "archive",
    match: str | None = None,
    out: Path | None = None,
    pattern: SceneAddress | None = None,
) -> Listing:
    """The scenes of a folder, an fsspec address or a STAC catalogue (`.json`), and what is wrong with the others.

    `match` narrows it by a glob on the path below the archive; its `*` takes slashes too. `pattern` gives every scene
    its bands, nodata and window. Hidden files, class rasters (`*-labels`), results of earlier runs and all below `out`
    are no scenes.

    Raises:
        UsageError: there is no such archive, or it cannot be listed at all.
    """
    pattern = pattern or SceneAddress("")
    if is_catalogue(archive):
        found, bad, infos = *_in_catalogue(archive, trust, match, pattern), None
    else:
        place = _Place.of(archive, out)
        policy = replace(pattern.policy, trust=trust, roots=(place.root,))
        found, bad = _found(place, match, replace(pattern, policy=policy))
        bad, infos = [*place.problems, *bad], place.infos
    good, misnamed = judged(found)
    bad += misnamed
    scenes: list[Entry] = []
    for each in good:
        try:
            size = (infos or {}).get(each.address.path, {}).get("size")
            scenes.append(Entry(each.name, each.address, fingerprint(each.address, infos), size))
        except (SceneError, OSError) as error:
            bad.append((each.name, reason(error)))
    return Listing(tuple(scenes), tuple(sorted(bad)))


@dataclass(frozen=True)
class _Place:
    """An archive's files, as one listing tells them."""

    root: str
    infos: Infos
    problems: list[Problem]

    @classmethod
    def of(cls, archive: str, out: Path | None) -> "_Place":
        place = Path(local_path(archive)).absolute()
        if is_address(archive):
            root = archive.rstrip("/")
            return cls(root, *remote_files(root))
        if place.is_dir():
            return cls(str(place), *local_files(place, None if out is None else out.absolute()))
        if place.is_file():
            raise UsageError(f"{archive} is one file: give a folder, an address, or a STAC catalogue (.json)")
        raise UsageError(f"{archive}: no such file or folder")


def _in_catalogue(
    archive: str, trust: Trust, match: str | None, pattern: SceneAddress
) -> tuple[list[Found], list[Problem]]:
    href = archive if is_address(archive) else str(Path(local_path(archive)).absolute())
    policy = replace(pattern.policy, trust=trust, roots=(href.rpartition("/")[0],))
    walk = Catalogue(replace(pattern, policy=policy), SUFFIXES)
    walk.read(href)
    scenes = (Found(name, address) for name, address in walk.scenes)
    return [each for each in scenes if match is None or fnmatch.fnmatchcase(each.name, match)], walk.problems


def _found(place: _Place, match: str | None, pattern: SceneAddress) -> tuple[list[Found], list[Problem]]:
    """The scenes of a place, by name, and what is wrong with its scene files."""
    start = len(place.root.rstrip("/")) + 1
    inside = {path[start:]: path for path in sorted(place.infos)}
    results = {name.partition(f"/{MASK}/")[0] for name in inside if f"/{MASK}/" in name}
    names = [name for name in inside if _is_scene(PurePosixPath(name), results)]
    bands, problems = _bands([inside[name] for name in names if is_scene_file(name)], pattern.policy)
    return [
        Found(stem(name), replace(pattern, path=inside[name]))
        for name in names
        if inside[name] not in bands and (match is None or fnmatch.fnmatchcase(name, match))
    ], problems


def _bands(scene_files: Sequence[str], policy: SourcePolicy) -> tuple[set[str], list[Problem]]:
    """The files that scene files name: they are no scenes of their own."""
    files: set[str] = set()
    problems: list[Problem] = []
    for path in scene_files:
        try:
            files.update(file for _, file in read_bands(path, policy))
        except (SceneError, OSError) as error:
            files.add(path)
            problems.append((path, reason(error)))
    return files, problems


def _is_scene(file: PurePosixPath, results: set[str]) -> bool:
    if not file.name.lower().endswith((*SUFFIXES, SCENE_FILE)) or file.stem.endswith(LABELS_END):
        return False
    if any(part.startswith(".") and part != ".." for part in file.parts):
        return False
    return not results or not any(str(parent) in results for parent in file.parents)


def stem(name: str) -> str:
    """A path without the ending that says what kind of scene it is."""
    end = SCENE_FILE if is_scene_file(name) else PurePosixPath(name).suffix
    return name[: len(name) - len(end)]


def scene_name(path: str) -> str:
    """What the result of a scene is called that is named by itself."""
    return stem(Path(path.partition("?")[0] if is_address(path) else path).name)


def judged(found: Sequence[Found]) -> tuple[list[Found], list[Problem]]:
    """The scenes whose names can be those of results, in their order, and what is wrong with the others.

    A good name is relative, stays below the folder of outputs, is printable, and is neither another scene's nor above
    or below it.
    """
    by_name: defaultdict[str, list[Found]] = defaultdict(list)
    for each in found:
        by_name[each.name].append(each)
    problems = {name: fault for name in by_name if (fault := _fault(name))}
    problems |= {name: fault for name, same in by_name.items() if (fault := _doubled(name, same))}
    for name in by_name:
        if name not in problems and (above := next((part for part in _above(name) if part in by_name), None)):
            problems[name] = f"its result would lie in that of {above}: rename one of them"
    good = [by_name[name][0] for name in sorted(by_name) if name not in problems]
    return good, [(shown(name), fault) for name, fault in problems.items()]


def _above(name: str) -> Iterator[str]:
    return (str(parent) for parent in PurePosixPath(name).parents)


def _doubled(name: str, same: Sequence[Found]) -> str | None:
    if len(same) < 2:
        return None
    files = " and ".join(shown(PurePosixPath(each.address.path).name) for each in same)
    return f"{files} would both be written to {shown(name)}: rename one of them"


def _fault(name: str) -> str | None:
    """What keeps `name` from being that of a result."""
    parts = name.split("/")
    if any(unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for letter in name):
        return "its name holds control characters or is not UTF-8: rename it"
    if any(part in {"", ".", ".."} for part in parts):
        return "its name would leave the folder of outputs: rename it"
    if parts[0] in RESERVED or any(part.startswith(".") for part in parts):
        return "its name is one of our own files', or hidden: rename it"
    if any(len(part.encode()) > LONGEST for part in parts):
        return f"a part of its name is over {LONGEST} bytes: rename it"
    return None


def shown(text: str) -> str:
    """`text` on one line, with what cannot be printed spelled out."""
    return text if text.isprintable() else text.encode("unicode_escape", "backslashreplace").decode()
