"""What commands print: tables for people, one line for an error."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from models.published import Published

WIDE = 200
"""Columns of a table where no terminal says how many it has."""

out = Console(width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, width=None if sys.stderr.isatty() else WIDE)


def plain(text: object) -> str:
    """`text` without what a terminal would obey: names of files may hold escape sequences, or be no text at all."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def complain(message: object) -> None:
    """One line on standard error."""
    text = " ".join(str(message).split())
    err.print(f"widefield: {plain(text)}", style="red", markup=False, highlight=False, soft_wrap=True)


def say(message: object) -> None:
    """One line on standard output, as it is."""
    out.print(plain(message), markup=False, highlight=False, soft_wrap=True)


def rows(pairs: list[tuple[str, str]]) -> Table:
    """(label, value) rows without a frame."""
    table = Table(show_header=False, box=None)
    for label, value in pairs:
        table.add_row(f"[bold]{label}", Text(plain(value)))
    return table


def area(square_metres: float | None) -> str:
    """In the unit that suits it: `3,420 m2`, on a slide `7.46 mm2`, `512 um2`; nothing where it is not known."""
    if square_metres is None:
        return ""
    if square_metres == 0 or square_metres >= 10:
        return f"{square_metres:,.0f} m2"
    if square_metres >= 1e-3:
        return f"{square_metres:.3g} m2"
    return f"{square_metres * 1e6:.3g} mm2" if square_metres >= 1e-8 else f"{square_metres * 1e12:,.0f} um2"


def summary(facts: dict[str, Any], folder: Path) -> Table:
    """What a run did, from the facts of its run.json."""
    coverage, blocks, engine, memory = (facts[key] for key in ("coverage", "blocks", "engine", "memory"))
    title = f"{folder}" + (" (unchanged: nothing was left to do)" if facts.get("unchanged") else "")
    table = Table("what", "value", title=Text(plain(title)), title_justify="left")
    for entry in facts["classes"]:
        values = (f"{entry['share']:.2%}", f"{entry['pixels']:,} px", area(entry["area_m2"]))
        table.add_row(entry["name"], "  ".join(filter(None, values)))
    valid = f"{coverage['valid']:,} = {coverage['classified']:,}"
    table.add_row("valid = classified", f"{valid} of {coverage['pixels']:,} px")
    table.add_row("blocks", f"{blocks['done']} done, {blocks['resumed']} resumed, {blocks['total']} in all")
    made_by = f"{engine['backend']} {engine['precision']}, tile {engine['tile']}, {engine['threads']} threads"
    table.add_row("engine", made_by)
    for phase, value in _speeds(facts["speed"]):
        table.add_row(phase, value)
    peak, planned = memory["peak_bytes"] / 1e9, memory["planned_bytes"] / 1e9
    table.add_row("memory", f"{peak:.2f} GB of {planned:.2f} GB planned")
    for note in facts["notes"]:
        table.add_row("note", Text(plain(note)))
    return table


def _speeds(speed: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for phase, seconds in speed["seconds"].items():
        rate = speed["megapixels_per_second"].get(phase)
        lines.append((phase, f"{seconds:.1f} s" + (f", {rate:.2f} Mpx/s" if rate else "")))
    if (outside := speed["outside_engine_core_ms_per_megapixel"]) is not None:
        lines.append(("outside the engine", f"{outside:.1f} core-ms per Mpx"))
    return lines


def score_table(result: dict[str, Any]) -> Table:
    """Scores by scene and class, the pooled ones last."""
    table = Table("scene", "class", "IoU", "F1", "precision", "recall")
    for scene, scores in (*result["scenes"].items(), ("pooled", result["pooled"])):
        for name in scores["iou"]:
            values = (scores[key][name] for key in ("iou", "f1", "precision", "recall"))
            table.add_row(scene, name, *("-" if value is None else f"{value:.3f}" for value in values))
    return table


def weights_table(entries: "list[Published]") -> Table:
    """Published weights: what to ask for, what they are, and how far they can be checked."""
    table = Table("name", "from", "file", "sha256", "classes", "px", "licence")
    for entry in entries:
        checksum = f"{entry.sha256}..." if entry.sha256 else "not known"
        classes = str(entry.classes or "encoder only")
        table.add_row(entry.name, entry.source, entry.file, checksum, classes, str(entry.input_size), entry.licence)
    return table
