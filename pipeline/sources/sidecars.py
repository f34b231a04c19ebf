"""Files beside a raster that change what it says: which they are, and what they changed.

GDAL looks for them by name, in lower case and in upper case. They belong to the scene: to its fingerprint, to the
roots that a policy allows, and to what `run.json` reports.
"""

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.georef import Affine6
from pipeline.sources.files import Facts, File, NoFileError

_APPENDED = (".aux.xml", ".msk", ".ovr")
"""To the raster's whole name."""
_BESIDE = (".tab", ".rpb", ".imd", ".pvl", ".rpc", "_rpc.txt", "_metadata.txt", "_mtl.txt")
"""In place of its suffix, on local disks."""
_SAID = {
    "crs": b"<SRS",
    "transform": b"<GeoTransform",
    "GCPs": b"<GCPList",
    "RPCs": b"RPC",
    "nodata": b"<NoDataValue",
    "mask": b"<NoDataValue",
    "scale and offset": b"<Scale",
    "names": b"<Description",
    "colours": b"<Color",
}
"""What a `.aux.xml` can change, and the element that does it."""
_CAN = {".msk": ("mask",), ".ovr": (), ".tab": ("crs", "transform", "GCPs")}
"""What other kinds can change; the rest places the raster."""


def sidecars(file: File, infos: Mapping[str, Mapping[str, Any]] | None = None) -> list[tuple[File, Facts]]:
    """The sidecars of a raster that exist, in the order in which they are looked for.

    On a remote store only names in lower case are asked for, one request each, unless `infos` lists them.
    """
    if "?" in file.path and not file.local:  # an address with a query has no neighbours
        return []
    beside = (file.beside(path) for path in _names(file.path, local=file.local))
    return [(neighbour, facts) for neighbour in beside if (facts := _facts(neighbour, infos)) is not None]


def _facts(file: File, infos: Mapping[str, Mapping[str, Any]] | None) -> Facts | None:
    try:
        return file.facts(infos)
    except NoFileError:
        return None


def _names(path: str, *, local: bool) -> list[str]:
    folder, slash, name = path.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    start = f"{folder}{slash}{stem if dot else name}"
    ending = suffix.lower()
    world = [f".{ending[0]}{ending[-1]}w", f".{ending}w", ".wld"] if dot and ending else [".wld"]
    if not local:
        return [path + suffix for suffix in _APPENDED] + [start + suffix for suffix in world]
    beside = [start + suffix for suffix in (*world, *_BESIDE)]
    capital = [start + suffix.upper() for suffix in (*world, *_BESIDE)]
    return list(dict.fromkeys([*(path + suffix for suffix in (*_APPENDED, ".MSK", ".OVR")), *beside, *capital]))


def is_raster(file: File) -> bool:
    """Whether GDAL opens a sidecar as a raster, by any driver."""
    return file.path.lower().endswith((".msk", ".ovr"))


def world_transform(file: File) -> Affine6 | None:
    """The transform of a world file; None where the file is none, or not understood.

    GDAL finds no end of line-based text in a Python file, so on remote stores the six numbers are read here.
    """
    suffix = file.path.rpartition(".")[2].lower()
    if suffix != "wld" and not suffix.endswith("w"):
        return None
    try:
        a, d, b, e, x, y = (float(word) for word in file.read(0, 4096).decode("ascii").split()[:6])
    except ValueError:
        return None
    return (a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)


def attributed(files: list[File], changed: list[str]) -> list[dict[str, Any]]:
    """Each sidecar with its share of the changes: a change belongs to the first that can have made it."""
    facts, left = [], list(changed)
    for file in files:
        own = [change for change in left if change in _can_change(file)]
        left = [change for change in left if change not in own]
        facts.append({"file": file.path.rpartition("/")[2], "changes": own})
    return facts


def _can_change(file: File) -> Collection[str]:
    if file.path.endswith(".aux.xml"):
        text = file.read(0, 1 << 20)
        return [change for change, element in _SAID.items() if element in text]
    return _CAN.get(file.path[-4:].lower(), ("transform", "RPCs"))
