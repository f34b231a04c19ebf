"""The STAC collection of an archive: `collection.json` above the items of all its results, and their links to it."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pipeline.publish.files import write_text
from pipeline.publish.geometry import union
from pipeline.publish.stac import ITEM, Json

COLLECTION = "collection.json"

_JSON = "application/json"
_SUMMARISED = (
    "processing:expression",
    "processing:version",
    "proj:code",
    "widefield:engine",
    "widefield:cell",
    "license",
)
"""Properties of items of which the collection tells all values."""
_OWN = frozenset({"href", "file:checksum", "file:size"})
"""Fields of an asset that are different in every item."""
_WORLD = [-180.0, -90.0, 180.0, 90.0]


@dataclass(frozen=True)
class _Entry:
    """One result, with its item as it lies on disk."""

    name: str
    """Path of its folder below the collection, with slashes."""
    item: dict[str, Any]

    @property
    def properties(self) -> dict[str, Any]:
        found: dict[str, Any] = self.item["properties"]
        return found

    def values(self, name: str) -> list[Any]:
        """The property of this name, if there is one."""
        value = self.properties.get(name)
        return [] if value is None else [value]


def write_collection(
    out: Path,
    results: Sequence[Path],
    *,
    id: str,  # noqa: A002 - the name of the field in STAC
    description: str,
    title: str = "",
    licence: str | None = None,
    providers: Sequence[Mapping[str, object]] = (),
) -> list[str]:
    """Write `out/collection.json` over the items of `results`, which lie below `out`; what is not named drops out.

    Items that do not link to the collection yet are made to; an item below a sub-folder is then named by its whole
    path, because identifiers must differ. Extent: the smallest box around all items, across the antimeridian if that
    is smaller. Scenes without a place on the Earth belong to the collection too; its description says how many there
    are, and if no scene has a place the extent is the whole world, because STAC asks for one.
    `licence` (SPDX) is by default that of all items, "other" if they differ. Who is to be credited for the bundles
    joins `providers` as licensors. Returns a line for each result whose item cannot be read; those are left out.

    Raises:
        OutputError: `out` or an item cannot be written.
    """
    entries, problems = _entries(out, results)
    for entry in entries:
        _adopt(out, entry, id)
    licences = _distinct(entry.properties.get("license") for entry in entries)
    collection: Json = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": _distinct(name for entry in entries for name in entry.item["stac_extensions"]),
        "id": id,
        **({"title": title} if title else {}),
        "description": _description(description, entries),
        "license": licence or (licences[0] if len(licences) == 1 else "other"),
        "providers": [*providers, *_licensors(entries)],
        "extent": {"spatial": {"bbox": [_box(entries)]}, "temporal": {"interval": [_interval(entries)]}},
        "summaries": _summaries(entries),
        "item_assets": _item_assets(entries),
        "links": [
            {"rel": "root", "href": f"./{COLLECTION}", "type": _JSON},
            *({"rel": "item", "href": _href(entry), "type": "application/geo+json"} for entry in entries),
        ],
    }
    _write(out / COLLECTION, collection)
    return problems


def collect(out: Path, archive: str, names: Iterable[str], *, complete: bool = True) -> None:
    """Write the collection of `archive`: of the results below `out` with these names, as far as there are any.

    With `complete` false, only a part of the archive was looked at: results that the collection holds stay in it.

    Raises:
        OutputError: `out` or an item cannot be written.
    """
    folders = {out / name for name in names} | (set() if complete else _linked(out))
    results = [folder for folder in folders if folder.is_relative_to(out) and (folder / ITEM).is_file()]
    name = archive.rstrip("/").rpartition("/")[2].removesuffix(".json") or "archive"
    write_collection(out, results, id=name, description=f"The class of each pixel of the scenes of {name}.")


def _linked(out: Path) -> set[Path]:
    """Folders of the results that the collection leads to now."""
    try:
        links = json.loads((out / COLLECTION).read_text(encoding="utf-8"))["links"]
        return {out / unquote(link["href"]).removesuffix(f"/{ITEM}") for link in links if link["rel"] == "item"}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _entries(out: Path, results: Iterable[Path]) -> tuple[list[_Entry], list[str]]:
    entries, problems = [], []
    for folder in sorted(results):
        name = folder.relative_to(out).as_posix()
        try:
            item = json.loads((folder / ITEM).read_text(encoding="utf-8"))
            if not {"id", "properties", "links", "assets", "stac_extensions"} <= item.keys():
                raise ValueError("fields are missing")  # noqa: TRY301 - the same answer as to what is no JSON
        except (OSError, ValueError, AttributeError) as error:
            problems.append(f"{name}: {ITEM} cannot be read ({error}): segment the scene again")
        else:
            entries.append(_Entry(name, item))
    return entries, problems


def _adopt(out: Path, entry: _Entry, collection: str) -> None:
    """Let the item name its collection and link to it; written only if it does not yet."""
    above = "../" * (entry.name.count("/") + 1) + COLLECTION
    links = [{"rel": rel, "href": above, "type": _JSON} for rel in ("root", "parent", "collection")]
    mine = {link["rel"] for link in links}
    wanted = entry.item | {
        "id": entry.name.replace("/", "--"),
        "collection": collection,
        "links": [*links, *(link for link in entry.item["links"] if link["rel"] not in mine)],
    }
    if wanted != entry.item:
        write_text(out / entry.name / ITEM, _text(wanted))


def _href(entry: _Entry) -> str:
    # An IRI, as STAC asks: what is no letter of any script and has a meaning there is escaped, the rest is not.
    name = re.sub(r'[\s"<>\\^`{|}%#?]', lambda found: quote(found[0]), entry.name)
    return f"./{name}/{ITEM}"


def _description(description: str, entries: Sequence[_Entry]) -> str:
    nowhere = sum(entry.item.get("bbox") is None for entry in entries)
    cells = Counter(cell for entry in entries for cell in entry.values("widefield:cell"))
    told = [(count, f"have one class a square of {cell} x {cell} pixels") for cell, count in sorted(cells.items())]
    told += [(nowhere, "have no place on the Earth; the extent leaves them out")] if nowhere else []
    return "\n\n".join([description, *(f"{count} of {len(entries)} scenes {what}." for count, what in told)])


def _box(entries: Sequence[_Entry]) -> list[float]:
    return union([entry.item["bbox"] for entry in entries if entry.item.get("bbox")]) or _WORLD


def _interval(entries: Sequence[_Entry]) -> list[str | None]:
    """First and last moment; ISO 8601 in UTC sorts as text."""
    moments = sorted(moment for entry in entries for moment in entry.values("datetime"))
    return [moments[0], moments[-1]] if moments else [None, None]


def _licensors(entries: Sequence[_Entry]) -> list[Json]:
    names = _distinct(entry.properties.get("attribution") for entry in entries)
    return [{"name": name, "roles": ["licensor"]} for name in names if name]


def _summaries(entries: Sequence[_Entry]) -> Json:
    """All values of what matters for choosing items; classes are those of the masks."""
    classes = (
        value for entry in entries for value in entry.item["assets"].get("mask", {}).get("classification:classes", ())
    )
    found = {name: _distinct(v for entry in entries for v in entry.values(name)) for name in _SUMMARISED}
    found["classification:classes"] = _distinct(classes)
    return {name: values for name, values in found.items() if values}


def _item_assets(entries: Sequence[_Entry]) -> Json:
    """What the assets of one name have in common."""
    common: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for key, asset in entry.item["assets"].items():
            known = common.setdefault(key, {name: value for name, value in asset.items() if name not in _OWN})
            for name in [name for name, value in known.items() if asset.get(name) != value]:
                del known[name]
    return dict(common)


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they first come."""
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, content: Json) -> None:
    """Nothing is touched where nothing changes."""
    text = _text(content)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
