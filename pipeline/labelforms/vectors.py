"""Polygon files of every format as arrays: shapes, the values of their class field, and where they come from."""

import functools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.errors
import shapely
from numpy.typing import NDArray

from pipeline.errors import LabelError
from pipeline.labelforms.base import IGNORE, PARQUET

CLASS, ORIGIN, AREA_LAYER, LABELS_LAYER = "class", "origin", "aoi", "labels"
"""Field that is taken for the class unless another is named; field of the origin; layers of a GeoPackage."""
IGNORED = "ignore"
"""Class of polygons that hide what is below them: no label."""
_POLYGON, _MULTIPOLYGON = 3, 6


@dataclass(frozen=True)
class VectorFile:
    """The polygons of one file or layer."""

    path: Path
    crs: str | None
    """None: the file says nothing."""
    shapes: NDArray[Any]
    """Polygons and multipolygons, none of them empty."""
    rows: NDArray[np.int64]
    """Number of each shape's feature in the file, from 1."""
    dropped: NDArray[np.int64]
    """Numbers of the features that are no polygons: lines, points, or nothing at all."""
    names: tuple[str, ...]
    """Of all fields."""
    field: str | None
    """Field of the classes; None: there is none, and every polygon is of the only class that it can have."""
    values: NDArray[Any] | None
    """Of that field, None where a feature has none."""
    origins: frozenset[str]
    """What features say of their origin."""

    def ids(self, classes: Sequence[str], boundary: int | None = None) -> NDArray[np.uint8]:
        """The class of each shape; `boundary` is the class that parts them, which no polygon needs to have.

        Raises:
            LabelError: the first of `problems`.
        """
        ids, problems = self._ids(classes, boundary)
        if problems:
            raise LabelError(f"{self.path} {problems[0]}")
        return ids

    def problems(self, classes: Sequence[str], boundary: int | None = None) -> list[str]:
        """What keeps the polygons from having a class, one line each."""
        return self._ids(classes, boundary)[1]

    def _ids(self, classes: Sequence[str], boundary: int | None) -> tuple[NDArray[np.uint8], list[str]]:
        if self.values is None:
            return self._the_only(classes, boundary)
        ids = np.ones(len(self.shapes), np.uint8)
        known = {text: class_id(text, classes) for text in set(map(_text, self.values))}
        found = [known[_text(value)] for value in self.values]
        problems = []
        if "" in known:
            bare = [int(row) for row, value in zip(self.rows, self.values, strict=True) if not _text(value)]
            polygons = "1 polygon" if len(bare) == 1 else f"{len(bare)} polygons"
            problems.append(
                f"has {polygons} without a class in the field {self.field!r}, the first is feature {bare[0]}: "
                f"give each one, or {IGNORED!r}"
            )
        allowed = ", ".join(f"{index} {name}" for index, name in enumerate(classes))
        problems += [
            f"has the class {text!r}: known are {allowed}, and {IGNORED!r}"
            for text, number in sorted(known.items())
            if number is None and text
        ]
        return (ids if problems else np.array(found, np.uint8)), problems

    def _the_only(self, classes: Sequence[str], boundary: int | None) -> tuple[NDArray[np.uint8], list[str]]:
        """Where no field tells, polygons have the only class that they can have."""
        possible = [index for index in range(1, len(classes)) if index != boundary] or [1]
        ids = np.full(len(self.shapes), possible[0], np.uint8)
        if len(possible) == 1 or not len(self.shapes):
            return ids, []
        told = ", ".join(classes[index] for index in possible)
        fields = ", ".join(self.names) or "none"
        problem = f"has no field {CLASS!r} that tells {told} apart, its fields are {fields}: name it with --attribute"
        return ids, [problem]


def read_vectors(path: Path, attribute: str | None = None, layer: str | None = None) -> VectorFile:
    """The polygons of a file; of a GeoPackage those of `layer`, else of the layer `labels` or the first but `aoi`.

    Raises:
        LabelError: it cannot be read, or has no field `attribute`.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror}") from error
    return _read(path, attribute, layer, (facts.st_mtime_ns, facts.st_size))


@functools.lru_cache(maxsize=4)
def _read(path: Path, attribute: str | None, layer: str | None, _: tuple[int, int]) -> VectorFile:
    """Read once while the file is the same: often one file has the labels of many scenes."""
    read = _read_parquet if path.suffix.lower() in PARQUET else _read_ogr
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            crs, shapes, fields, names = read(path, attribute, layer)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, shapely.GEOSException) as error:
        raise LabelError(f"{path} cannot be read as polygons: {error}") from error
    except (OSError, ValueError) as error:
        raise LabelError(f"{path} cannot be read as polygons: {error}") from error
    if attribute is not None and attribute not in fields:
        raise LabelError(f"{path} has no field {attribute!r}: its fields are {', '.join(names) or 'none'}")
    areal = np.isin(shapely.get_type_id(shapes), (_POLYGON, _MULTIPOLYGON)) & ~shapely.is_empty(shapes)
    field = attribute or (CLASS if CLASS in fields else None)
    return VectorFile(
        path,
        crs,
        shapely.force_2d(shapes[areal]),
        np.flatnonzero(areal) + 1,
        np.flatnonzero(~areal) + 1,
        tuple(names),
        field,
        None if field is None else fields[field][areal],
        frozenset(filter(None, map(_text, fields.get(ORIGIN, ())))),
    )


def class_id(text: str, classes: Sequence[str]) -> int | None:
    """A class by its name or by its id; None where it is neither."""
    if text in classes:
        return list(classes).index(text)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if text.lower() == IGNORED or number == IGNORE:
        return IGNORE
    return int(number) if number in range(len(classes)) else None


def layers(path: Path) -> list[str]:
    """Names of the layers of a GeoPackage that are no mere tables; none of other files, which have one."""
    if path.suffix.lower() != ".gpkg":
        return []
    try:
        return [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    except pyogrio.errors.DataSourceError as error:
        raise LabelError(f"{path} cannot be read as polygons: {error}") from error


Read = tuple[str | None, NDArray[Any], dict[str, NDArray[Any]], list[str]]
"""CRS, shapes, the wanted fields by name, the names of all fields."""


def _wanted(names: Iterable[str], attribute: str | None) -> list[str]:
    present = set(names)
    return [name for name in dict.fromkeys((attribute or CLASS, ORIGIN)) if name in present]


def _read_ogr(path: Path, attribute: str | None, layer: str | None) -> Read:
    layer = layer or _labels_layer(path)
    names = [str(name) for name in pyogrio.read_info(path, layer=layer)["fields"]]
    meta, _, wkb, fields = pyogrio.raw.read(path, layer=layer, columns=_wanted(names, attribute))
    if wkb is None:
        raise LabelError(f"{path} has no layer of polygons")
    return meta["crs"], shapely.from_wkb(wkb), dict(zip(map(str, meta["fields"]), fields, strict=True)), names


def _labels_layer(path: Path) -> str | None:
    names = [name for name in layers(path) if name != AREA_LAYER]
    return LABELS_LAYER if LABELS_LAYER in names else next(iter(names), None)


def _read_parquet(path: Path, attribute: str | None, _: str | None) -> Read:
    import geopandas

    frame = geopandas.read_parquet(path)
    names = [str(name) for name in frame.columns if name != frame.geometry.name]
    fields = {
        name: frame[name].astype(object).where(frame[name].notna(), None).to_numpy()
        for name in _wanted(names, attribute)
    }
    return None if frame.crs is None else frame.crs.to_wkt(), np.asarray(frame.geometry.array), fields, names


def _text(value: Any) -> str:
    """What a field holds, as text; nothing where it holds nothing."""
    return "" if value is None or value != value else str(value).strip()  # noqa: PLR0124 - NaN
