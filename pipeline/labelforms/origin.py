"""Who made labels: a person from nothing, a person from a model's mask, or a model alone."""

import csv
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pipeline.errors import LabelError
from pipeline.labelforms.base import TIFF

ORIGINS = ("drawn", "corrected", "model")
"""From the most to the least trusted."""
TABLE = "origins.csv"
"""Beside labels: columns `scene` and `origin`; it has the last word."""
_OURS = "labels: class of each "
"""How the band of a mask that this project published is described."""


def read_origins(table: Path) -> dict[str, str]:
    """Origin by scene.

    Raises:
        LabelError: it cannot be read, lacks a column, or has a word that is no origin.
    """
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{table} cannot be read: {error}") from error
    if rows and not {"scene", "origin"} <= rows[0].keys():
        raise LabelError(f"{table} needs the columns scene and origin")
    return {row["scene"]: _known(row["origin"], table) for row in rows}


def worst(origins: Iterable[str], path: Path) -> str:
    """The least trusted of several; `drawn` where nothing is said.

    Raises:
        LabelError: a word is no origin.
    """
    return max((_known(word, path) for word in origins), key=ORIGINS.index, default=ORIGINS[0])


def raster_origin(path: Path) -> str:
    """What a class raster says: a tag `origin`, else whether this project published it."""
    if path.suffix.lower() not in TIFF:
        return ORIGINS[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as file:
                tags: Mapping[str, str] = file.tags()
                described = file.descriptions[0] or ""
    except RasterioError as error:
        raise LabelError(f"{path} cannot be read as a class raster: {error}") from error
    said = [value for key, value in tags.items() if key.lower() == "origin"]
    if said:
        return worst(said, path)
    return "model" if described.startswith(_OURS) else ORIGINS[0]


def _known(word: str | None, path: Path) -> str:
    text = (word or "").strip().lower()
    if text not in ORIGINS:
        raise LabelError(f"{path} has the origin {word!r}: allowed are {', '.join(ORIGINS)}")
    return text
