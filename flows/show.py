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
    if "tiles" in coverage:
        table.add_row("tiles", f"{coverage['tiles']:,} computed, {coverage['empty_tiles']:,} empty")
    made_by = f"{engine['backend']} {engine['precision']}, tile {engine['tile']}, {engine['threads']} threads"
    table.add_row("engine", made_by)
    for phase, value in _speeds(facts["speed"]):
        table.add_row(phase, value)
    for label, value in bottleneck(facts.get("bottleneck")):
        table.add_row(label, value)
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


def bottleneck(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Where the time went and what would help, as (label, value); nothing of runs that did not measure it."""
    if found is None:
        return []
    seconds = found["seconds"]
    engine = f"busy {100 * found['engine_share']:.0f} % of the workers' time: {seconds['engine']:.1f} s"
    waited = f"waited {seconds['waiting_for_input']:.1f} s for input, {seconds['waiting_for_output']:.1f} s for output"
    threads = f"read {seconds['read']:.1f} s, write {seconds['write']:.1f} s"
    workers = "" if found["workers"] == 1 else f" in each of {found['workers']} workers"
    most = f"up to {found['readers']} and {found['writers']} threads{workers}"
    return [
        *_shared(found),
        ("engine's time", f"{engine}; {waited}"),
        ("beside it", f"{threads}, by {most}"),
        (f"limit: {found['limit']}", found["advice"]),
    ]


def _shared(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What scenes share that were done together: older versions did not measure it."""
    if found.get("together", 1) == 1:
        return []
    speed = f"{found['together']} scenes in {found['wall']:.1f} s, {found['megapixels_per_second']:.2f} Mpx/s"
    parts = {"open": "opening", "start": "engine start", "stage": "copying", "publish": "publishing", "idle": "idle"}
    seconds = ((name, found["seconds"][part]) for part, name in parts.items())
    others = (f"{name} {value:.1f} s" for name, value in seconds if value >= 0.05)
    return [("together", ", ".join((speed, *others)))]


def score_table(result: dict[str, Any]) -> Table:
    """Scores by scene and class, the pooled ones last, and below what is said of all classes together."""
    pooled = result["pooled"]
    counted = "objects" in pooled
    table = Table("scene", "class", "IoU", "F1", "precision", "recall", "boundary F1", *(["AP50"] if counted else []))
    for scene, scores in (*result["scenes"].items(), ("pooled", pooled)):
        ends = scores["intervals"]
        for name in scores["iou"]:
            values = [_score(scores["iou"][name], ends["iou"][name])]
            values += [_score(scores[key][name]) for key in ("f1", "precision", "recall")]
            values += [_score(scores["boundary_f1"][name], ends["boundary_f1"][name])]
            if counted:
                found = scores["objects"].get(name)
                values += [_score(found["ap50"], ends["ap50"][name]) if found else ""]
            table.add_row(Text(plain(scene)), name, *values)
        table.add_section()
    table.caption = Text("\n".join(_remarks(pooled)))
    table.caption_justify = "left"
    return table


def _remarks(pooled: dict[str, Any]) -> list[str]:
    near, inside = (_score(pooled["borders"][part]["mean_iou"]) for part in ("within_16", "interior"))
    lines = [f"mean IoU {_score(pooled['mean_iou'], pooled['intervals']['mean_iou'])}"]
    lines[0] += f"; within 16 px of the borders of cores {near}, elsewhere {inside}"
    for name, found in pooled.get("objects", {}).items():
        counts = "found {tp:,}, missed {fn:,}, invented {fp:,}".format(**found)
        shares = f"AP50 {_score(found['ap50'])} as a mean over images, {_score(found['ap50_pooled'])} over all objects"
        pixels = f"IoU {_score(found['iou'])}, F1 {_score(found['f1'])}"
        lines.append(f"{name} as objects: {counts}; {shares}; their pixels: {pixels}")
    if "ece" in pooled:
        lines.append(f"calibration error of the confidence {_score(pooled['ece'])}")
    return [*lines, f"In brackets: 95 % interval, by drawing from {pooled['blocks']:,} squares of ground of 512 px."]


def _score(value: float | None, ends: list[float] | None = None) -> str:
    """With its interval: `0.812 [0.790, 0.833]`; `-` where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def weights_table(entries: "list[Published]") -> Table:
    """Published weights: what to ask for, what they are, and how far they can be checked."""
    table = Table("name", "from", "file", "sha256", "classes", "px", "licence")
    for entry in entries:
        checksum = f"{entry.sha256}..." if entry.sha256 else "not known"
        classes = str(entry.classes or "encoder only")
        table.add_row(entry.name, entry.source, entry.file, checksum, classes, str(entry.input_size), entry.licence)
    return table
