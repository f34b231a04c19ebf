"""A scene whose bands lie in several files, on the grid of the first: `NAME.scene.json` names them.

    {"schema": 1, "bands": {"red": "B04.tif", "green": "B03.tif", "blue": "B02.tif"}}

Paths are relative to the scene file. A file may be coarser than the first by a whole factor: its pixels are repeated.
"""

import posixpath
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipeline.errors import RefusedError, SceneError, UnreadableError
from pipeline.sources.files import is_address
from pipeline.sources.policy import SourcePolicy

if TYPE_CHECKING:
    from pipeline.sources.raster import Raster

SUFFIX = ".scene.json"
_SIZE_LIMIT = 1 << 20
_SAME = 1e-6
"""Share of a pixel by which corners and sizes may differ."""

_Name = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]
_Path = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class _SceneFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1] = Field(alias="schema")
    bands: Annotated[dict[_Name, _Path], Field(min_length=1, max_length=1024)]


def is_scene_file(name: str) -> bool:
    """Whether a name is that of a scene file."""
    return name.lower().endswith(SUFFIX)


def read_bands(name: str, policy: SourcePolicy) -> tuple[tuple[str, str], ...]:
    """(band, path) of each band that a scene file names, in its order.

    Raises:
        RefusedError: the policy does not allow the file, or one that it names.
        UnreadableError: it is missing, or not a scene file.
    """
    file = policy.locate(name)
    facts = None if file is None else file.facts()
    if file is None or facts is None:
        raise UnreadableError(f"{name}: no such file")
    if facts.size > _SIZE_LIMIT:
        raise RefusedError(f"{name} has {facts.size} bytes, a scene file at most {_SIZE_LIMIT}")
    try:
        said = _SceneFile.model_validate_json(file.read(0, facts.size))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UnreadableError(
            f"{name} is no scene file: {where}: {first['msg']}; it should be "
            '{"schema": 1, "bands": {"red": "B04.tif", ...}}'
        ) from error
    folder = name.rpartition("/")[0]
    paths = {band: _beside(folder, path) for band, path in said.bands.items()}
    limited = policy.trust != "named" and not policy.roots
    within = replace(policy, roots=(folder or ".",)) if limited else policy  # what is not trusted names its neighbours
    for path in paths.values():
        within.locate(path)
    return tuple(paths.items())


def _beside(folder: str, path: str) -> str:
    if path.startswith("/") or is_address(path) or not folder:
        return path
    return f"{folder}/{path}" if is_address(folder + "/") else posixpath.join(folder, path)


def factor(first: "Raster", other: "Raster") -> tuple[int, int]:
    """How many rows and columns of `first` a pixel of `other` covers, (1, 1) if they are of one size.

    Raises:
        SceneError: CRS, corner or size of the two do not agree.
    """
    rows, cols = (round(a / b) for a, b in ((first.height, other.height), (first.width, other.width)))
    sizes = (-(-first.height // max(rows, 1)), -(-first.width // max(cols, 1)))
    if rows < 1 or cols < 1 or sizes != (other.height, other.width):
        raise SceneError(
            f"{other.path} has {other.height} x {other.width} pixels, {first.path} {first.height} x {first.width}: "
            "allowed are the same size, or a whole fraction of it; resample it with gdalwarp"
        )
    if other.crs != first.crs:
        raise SceneError(f"{other.path} has another CRS than {first.path}: reproject it with gdalwarp")
    one, two = first.georef.transform, other.georef.transform
    if one is None or two is None:
        if one != two:
            raise SceneError(f"one of {first.path} and {other.path} is georeferenced, the other is not")
        return rows, cols
    expected = (one[0] * cols, one[1] * rows, one[2], one[3] * cols, one[4] * rows, one[5])
    pixel = max(abs(one[0]), abs(one[1]), abs(one[3]), abs(one[4]))
    # A difference of size adds up over the scene.
    spans = (first.width, first.height, 1, first.width, first.height, 1)
    off = max(abs(a - b) / pixel * span for a, b, span in zip(expected, two, spans, strict=True))
    if off > _SAME * max(first.width, first.height, 1000):
        raise SceneError(
            f"{other.path} does not lie on the grid of {first.path}: transform {two}, expected {expected}; "
            "warp it there with gdalwarp -te -tr"
        )
    return rows, cols
