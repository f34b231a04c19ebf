"""Which ground is for training, which for validation, and which is sealed: a permanent property of the ground.

The Earth is cut into cells of a global equal-area grid, and a hash of a cell decides. So ground never moves, whatever
scenes are added later, and two scenes over the same ground agree, whatever their CRS. What has no place on the Earth
is cut into cells of its own pixels, with its name.
"""

import csv
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np
import pyproj
from numpy.typing import NDArray

from pipeline.errors import LabelError
from pipeline.georef import Georef
from pipeline.grid import Window

SPLITS = ("train", "val", "sealed")
VAL_SHARE = 0.2
"""Share of the ground that a hash puts into `val`."""
CELL = 2048
"""Edge of a cell, in pixels: of those of the first scenes on the Earth."""
_EARTH = "EPSG:6933"
"""Cylindrical, equal-area, in metres: cells are squares of one area everywhere, longer from north to south at high
latitudes."""
_NET = 17
"""Points a side between which a chip's place on the Earth is interpolated: exact to a thousandth of a pixel."""
_NAMED = 3
"""Most scenes that an error names."""
_NOWHERE = -(2**31)
"""Number of the cell of pixels that have no place on the Earth."""

Cells = NDArray[np.int64]


@dataclass(frozen=True)
class Ground:
    """How ground is split."""

    edge: float | None = None
    """Edge of a cell on the Earth, in metres; None: no scene with a place there has been seen."""
    pixels: int = CELL
    """Edge of a cell of what has no place there, in pixels."""
    seed: int = 0
    val: float = VAL_SHARE
    """Share of the ground to validate on."""
    sealed: float = 0.0
    """Share that only the gate reads."""

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.sealed >= 0 and self.val + self.sealed < 1):
            raise LabelError(
                f"{self.val:g} of the ground to validate on and {self.sealed:g} sealed leave none to train"
            )
        if self.pixels < 1 or not (self.edge is None or 0 < self.edge < math.inf):
            raise LabelError(f"cells of {self.edge} m and {self.pixels} pixels: both need a positive edge")

    def split(self, cell: str) -> str:
        """Of a cell, by its name. Whatever share is sealed, the cells of `val` are the same."""
        digest = hashlib.sha256(f"{self.seed}/{cell}".encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        if place >= 1 - self.val:
            return "val"
        return "sealed" if place < self.sealed else "train"

    def on_earth(self, resolutions: Iterable[float | None]) -> Self:
        """With an edge, if it has none: the power of two of metres nearest to `pixels` of the scenes' middle size."""
        known = [value for value in resolutions if value is not None]
        if self.edge is not None or not known:
            return self
        return replace(self, edge=2.0 ** round(math.log2(self.pixels * median(known))))

    def unmoved(self, wanted: Self) -> Self:
        """Itself, where `wanted` moves no ground.

        Raises:
            LabelError: it would. What the gate reads must never have been trained on, nor be trained on later.
        """
        pairs = [(name, value, getattr(wanted, name)) for name, value in asdict(self).items()]
        moved = [pair for pair in pairs if pair[1] != pair[2] and not (pair[0] == "edge" and None in pair)]
        if moved:
            name, old, new = moved[0]
            raise LabelError(
                f"the chips that are there split the ground with {name} {old:g}, now {new:g} is asked for: "
                "ground never moves from one split to another; choose another folder"
            )
        return self if self.edge is not None else replace(self, edge=wanted.edge)

    def to_json(self) -> dict[str, Any]:
        """For the attributes of chips."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """What `to_json` wrote."""
        return cls(**facts)


@dataclass(frozen=True)
class Splitter:
    """The splits of one scene's ground."""

    ground: Ground
    name: str
    georef: Georef
    fixed: str | None = None
    """The split of all of it, if somebody gave one."""

    def split(self, window: Window) -> str:
        """Of a window: that of the ground in its middle."""
        if self.fixed:
            return self.fixed
        return self._split(self._cells(*_middle(window))[0])

    def kept(self, window: Window) -> NDArray[np.bool_] | None:
        """Pixels (H, W) whose ground has the window's split; None: all of them."""
        if self.fixed:
            return None
        rows = np.array([window.row, window.row, window.stop_row, window.stop_row], np.float64)
        cols = np.array([window.col, window.stop_col, window.col, window.stop_col], np.float64)
        row, col = _middle(window)
        corners = self._cells(np.concatenate([row, rows]), np.concatenate([col, cols]))
        if (corners == corners[0]).all():
            return None
        cells, which = np.unique(self._all_cells(window), axis=0, return_inverse=True)
        same = np.array([self._split(cell) == self._split(corners[0]) for cell in cells])
        return None if same.all() else same[which].reshape(window.height, window.width)

    def cell(self, window: Window) -> str:
        """The name of the cell in the middle of a window."""
        return self._name(self._cells(*_middle(window))[0])

    def _split(self, cell: Cells) -> str:
        return self.ground.split(self._name(cell))

    def _name(self, cell: Cells) -> str:
        return "/".join(map(str, cell)) if self._on_earth else f"{self.name}/{cell[0]}/{cell[1]}"

    @functools.cached_property
    def _on_earth(self) -> bool:
        return self.ground.edge is not None and places_on_earth(self.georef)

    def _cells(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> Cells:
        """(N, 2) of N fractional pixel positions."""
        return _whole(self._coordinates(rows, cols))

    def _all_cells(self, window: Window) -> Cells:
        """(H * W, 2) of the middles of a window's pixels, interpolated between a few that are placed exactly."""
        rows, up = _net(window.row, window.height)
        cols, left = _net(window.col, window.width)
        net = self._coordinates(*(part.ravel() for part in np.meshgrid(rows, cols, indexing="ij")))
        fine = [up @ axis.reshape(len(rows), len(cols)) @ left.T for axis in net.T]
        return _whole(np.stack([axis.ravel() for axis in fine], 1))

    def _coordinates(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) in cells."""
        if not self._on_earth:
            return np.stack([rows, cols], 1) / self.ground.pixels
        found, to_earth = self.georef.on_ground(rows, cols), _to_earth(_crs(self.georef))
        assert found is not None and to_earth is not None and self.ground.edge  # noqa: S101, PT018 - see `_on_earth`
        x, y = to_earth.transform(*found)
        return np.stack([y, x], 1) / self.ground.edge


def _whole(cells: NDArray[np.float64]) -> Cells:
    return np.floor(np.nan_to_num(cells, nan=_NOWHERE, posinf=_NOWHERE, neginf=_NOWHERE)).astype(np.int64)


def _middle(window: Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([window.row + window.height / 2]), np.array([window.col + window.width / 2])


def _net(start: int, length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions of a net along one axis, and the weights (length, len(net)) of a linear interpolation at the middles
    of pixels.
    """
    at = np.linspace(0, length, _NET)
    middles = np.arange(length) + 0.5
    weights = np.maximum(0, 1 - np.abs(middles[:, None] - at) * (_NET - 1) / length)
    return start + at, weights


def places_on_earth(georef: Georef) -> bool:
    """Whether ground can be told by its place on the Earth."""
    return georef.on_ground(0.0, 0.0) is not None and _to_earth(_crs(georef)) is not None


def _crs(georef: Georef) -> str:
    """The CRS of what `Georef.on_ground` gives."""
    return georef.crs if georef.crs is not None and (georef.transform or georef.gcps) else "OGC:CRS84"


@functools.lru_cache(maxsize=64)
def _to_earth(crs: str) -> pyproj.Transformer | None:
    try:
        source = pyproj.CRS.from_user_input(crs)
        if source.geodetic_crs is None or source.is_geocentric:
            return None
        return pyproj.Transformer.from_crs(source, _EARTH, always_xy=True)
    except pyproj.exceptions.ProjError:
        return None


def read_split(table: Path) -> dict[str, str]:
    """Split of each scene from a CSV with the columns `scene` (a file's stem) and `split`.

    Raises:
        LabelError: it lacks a column, has a scene twice, or says something else than `train`, `val` or `sealed`.
    """
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"scene", "split"} <= rows[0].keys():
        raise LabelError(f"{table} needs the columns scene and split")
    names = [row["scene"] for row in rows]
    if len(set(names)) < len(names):
        raise LabelError(f"{table} has the scene {next(n for n in names if names.count(n) > 1)} twice: take a line out")
    wrong = [row for row in rows if row["split"] not in SPLITS]
    if wrong:
        raise LabelError(_no_split(wrong[0]["scene"], wrong[0]["split"]))
    return {row["scene"]: row["split"] for row in rows}


def check_scenes(table: Mapping[str, str], scenes: Iterable[str]) -> None:
    """Every row of a table of splits is that of a scene, or ground that it should seal would silently be trained on.

    Raises:
        LabelError: some name none of `scenes`.
    """
    unknown = sorted(table.keys() - set(scenes))
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" * (len(unknown) > _NAMED)
        raise LabelError(
            f"the split names {', '.join(unknown[:_NAMED])}{more}, which no image is called: "
            "correct the name, or take the line out"
        )


def _no_split(name: str, said: str | None) -> str:
    return f"the split says {said!r} for the scene {name}: allowed are {', '.join(SPLITS)}"


def fixed_split(name: str, table: Mapping[str, str] | None = None) -> str | None:
    """The split that a table, else the name's end, gives all of a scene; None: its ground decides."""
    if table is not None and name in table:
        if table[name] not in SPLITS:
            raise LabelError(_no_split(name, table[name]))
        return table[name]
    return next((split for split in SPLITS if name.endswith(f"-{split}")), None)
