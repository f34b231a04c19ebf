"""Which windows of scenes become chips: all with a label, or so many of each split, evenly over the ground."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pipeline.chipsources import Source
from pipeline.chipstore import Record
from pipeline.grid import Window
from pipeline.split import SPLITS

Place = tuple[int, int]
Candidates = dict[Place, str]
"""Split of each window with a label, by its first row and column."""


def choose(
    survey: Callable[[Source], Iterable[tuple[Place, str]]],
    sources: Sequence[Source],
    stay: Sequence[Record],
    left: Mapping[str, Sequence[Any]],
    *,
    most: int | None,
    seed: int,
) -> tuple[dict[str, set[Place]] | None, dict[str, list[list[Any]]]]:
    """Windows of each scene that become chips, None: all with a label; and those that would be too many."""
    if most is None and not any(left.values()):
        return None, {}
    candidates: dict[str, Candidates] = {source.name: {} for source in sources}
    for record in stay:
        candidates[record.scene][record.first] = record.split
    for name, places in left.items():
        candidates[name] |= {(row, col): split for row, col, split in places}
    for source in sources:
        if not candidates[source.name]:
            candidates[source.name] = dict(survey(source))
    chosen = draw(candidates, most, seed)
    spare = {
        name: [[*place, split] for place, split in sorted(found.items()) if place not in chosen[name]]
        for name, found in candidates.items()
    }
    return chosen, {name: places for name, places in spare.items() if places}


def draw(candidates: Mapping[str, Candidates], most: int | None, seed: int) -> dict[str, set[Place]]:
    """At most `most` windows of each split, evenly over the ground.

    Their order is that of a hash: a window that is drawn stays so until enough others come before it.
    """

    def rank(entry: tuple[str, Place]) -> bytes:
        name, (row, col) = entry
        return hashlib.sha256(f"{seed}/{name}/{row}/{col}".encode()).digest()

    chosen: dict[str, set[Place]] = {name: set() for name in candidates}
    for split in SPLITS:
        entries = [(name, place) for name, found in candidates.items() for place, its in found.items() if its == split]
        for name, place in sorted(entries, key=rank)[:most]:
            chosen[name].add(place)
    return chosen


def missing(
    source: Source, same: Collection[str], there: Collection[Place], chosen: Mapping[str, set[Place]] | None, size: int
) -> list[Window]:
    """Windows that are to be cut: of scenes that have not changed, only those that were left before."""
    if chosen is None:
        return [] if source.name in same else list(source.windows(size))
    wanted = chosen[source.name].difference(there)
    return [window for window in source.windows(size) if (window.row, window.col) in wanted]
