"""The scenes of a STAC catalogue: each item's raster assets are one scene.

Only files at or below the catalogue's own folder are read, links and assets alike: a local catalogue makes no network
request. What is broken or leads elsewhere is told, and the rest goes on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pystac

from pipeline.errors import SceneError, UnreadableError, UsageError
from pipeline.sources.address import SceneAddress
from pipeline.sources.formats import suffix_of
from pipeline.sources.policy import SourcePolicy
from pipeline.sources.scenefile import is_scene_file
from pipeline.walk import Problem, reason

LIMIT = 64 << 20
"""Most bytes of one file of a catalogue."""
_NO_SCENE = {"thumbnail", "overview", "metadata"}
"""Roles of assets that are no scene."""


def is_catalogue(path: str) -> bool:
    """Whether a path is that of a STAC file rather than of a raster or a scene file."""
    return suffix_of(path) == ".json" and not is_scene_file(path)


@dataclass
class Catalogue:
    """What a walk through a catalogue finds."""

    pattern: SceneAddress
    """What each scene is asked for; its policy says what may be read."""
    suffixes: Sequence[str]
    """Of files that are rasters."""
    scenes: list[tuple[str, SceneAddress]] = field(default_factory=list)
    """Name and address of each scene. A name is the identifiers from below the top down to the item."""
    problems: list[Problem] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def read(self, href: str) -> None:
        """Walk from the file at `href`.

        Raises:
            UsageError: it is no STAC file at all.
        """
        try:
            top = _load(href, self.pattern.policy)
        except Exception as error:
            raise UsageError(f"{href} is no STAC catalogue, collection or item: {reason(error)}") from error
        self._seen.add(href)
        self._walk(top, "")

    def _walk(self, found: pystac.STACObject, above: str) -> None:
        waiting = [(found, above)]
        while waiting:
            each, name = waiting.pop()
            if isinstance(each, pystac.Item):
                self._item(each, name)
                continue
            links = (link for link in each.links if link.rel in {"child", "item"})
            followed = (below for link in links if (below := self._follow(link)) is not None)
            waiting.extend(
                (below, f"{name}{below.id}/" if isinstance(below, pystac.Catalog) else name) for below in followed
            )

    def _follow(self, link: pystac.Link) -> pystac.STACObject | None:
        href = str(link.get_absolute_href())
        if href in self._seen:
            return None
        self._seen.add(href)
        try:
            return _load(href, self.pattern.policy)
        except Exception as error:  # noqa: BLE001 - whatever a broken file makes of its reader is that file's problem
            self.problems.append((href, reason(error)))
            return None

    def _item(self, item: pystac.Item, above: str) -> None:
        name = above + item.id
        try:
            self.scenes.append((name, self._address(item)))
        except SceneError as error:
            self.problems.append((name, reason(error)))

    def _address(self, item: pystac.Item) -> SceneAddress:
        assets = self._rasters(item)
        if len(assets) == 1:
            return replace(self.pattern, path=self._allowed(assets[0][1]))
        single = [(bands[0], href) for bands, href in assets if len(bands) == 1]
        if not single or len({band for band, _ in single}) < len(single):
            raise UnreadableError(
                f"item {item.id} has {len(assets)} raster assets, and they are not one band each: "
                "give one of them the role data"
            )
        files = tuple((band, self._allowed(href)) for band, href in single)
        return replace(self.pattern, path=str(item.get_self_href()), files=files)

    def _allowed(self, href: str) -> str:
        self.pattern.policy.locate(href)
        return href

    def _rasters(self, item: pystac.Item) -> list[tuple[list[str], str]]:
        """(names of its bands, place) of each asset that holds data of the scene."""
        assets = [
            (key, asset)
            for key, asset in item.assets.items()
            if asset.href.partition("?")[0].lower().endswith(tuple(self.suffixes))
            and not _NO_SCENE & set(asset.roles or ())
        ]
        data = [(key, asset) for key, asset in assets if "data" in (asset.roles or ())] or assets
        if not data:
            raise UnreadableError(f"item {item.id} has no raster asset: looked for {', '.join(self.suffixes)}")
        return [(_bands(key, asset), str(asset.get_absolute_href())) for key, asset in data]


def _bands(key: str, asset: pystac.Asset) -> list[str]:
    """Names of an asset's bands; its key where it does not say."""
    told = asset.extra_fields.get("bands") or asset.extra_fields.get("eo:bands") or [{}]
    return [str(band.get("name") or band.get("eo:common_name") or band.get("common_name") or key) for band in told]


def _load(href: str, policy: SourcePolicy) -> pystac.STACObject:
    """One STAC file below the roots, of any version that pystac knows."""
    file = policy.locate(href)
    facts = None if file is None else file.facts()
    if file is None or facts is None:
        raise UnreadableError(f"{href}: no such file")
    if facts.size > LIMIT:
        raise UnreadableError(f"{href} has {facts.size} bytes, a file of a catalogue at most {LIMIT}")
    content: dict[str, Any] = json.loads(file.read(0, facts.size))
    return pystac.StacIO.default().stac_object_from_dict(content, href=href, preserve_dict=False)
