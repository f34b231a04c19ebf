"""The report of a training: a file to open, and the same in short for Prefect's pages."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.dataset import Chips
    from models.findings import Stitching
    from pipeline.publish.training_facts import ReportFacts

REPORT = "report.html"
LOG = "train.jsonl"
REACH = 16
"""How far from a border between cores a pixel counts as near it, in pixels."""


def report(bundle: "Bundle", chips: Path, out: Path) -> Path:
    """Write `out / "report.html"`, and return its path. The training's log is looked for beside the bundle.

    Raises:
        TrainingError: there are no chips at `chips`.
        OutputError: `out` cannot be written.
    """
    from pipeline.publish.training_report import write_report

    write_report(out / REPORT, collect(bundle, chips))
    return out / REPORT


def collect(bundle: "Bundle", chips: Path) -> "ReportFacts":
    """What the report tells: the network is run on the validation chips."""
    from models.bundle import load_metrics
    from models.dataset import open_chips
    from models.review import census, review
    from pipeline.publish.training_facts import ReportFacts, read_log

    opened = open_chips(chips)
    return ReportFacts(
        bundle=bundle,
        metrics=load_metrics(bundle),
        log=read_log(bundle.path / LOG),
        splits=census(opened),
        review=review(bundle, opened),
        stitching=_stitching(bundle, opened),
    )


def _stitching(bundle: "Bundle", chips: "Chips") -> "Stitching | str":
    """What tiles cost, with the smallest tile of the bundle; or why it cannot be told."""
    from models.findings import Tiling
    from models.stitching import stitching
    from pipeline.grid import TileGrid, near_borders

    spec = bundle.spec
    tile, edge = spec.tiles[0], chips.edge // spec.stride * spec.stride
    if spec.cell > 1:
        return "A classifier judges each square by itself: there is nothing to stitch."
    if edge <= tile:
        return f"Not measured: chips of {chips.edge} px are no larger than the smallest tile, {tile} px."
    grid = TileGrid(edge, edge, tile, spec.halo, spec.stride)
    cores = [(core.owned.slices, core.tile.slices) for core in grid.cores(grid.scene)]
    near = near_borders(grid.scene, grid.core, REACH, grid.scene)
    return stitching(bundle, chips, Tiling(tile, spec.halo, cores, near, REACH))


def to_markdown(facts: "ReportFacts") -> str:
    """Scores, confusion, stitching and a few pictures, as Prefect's pages show them."""
    from flows.artifacts import escape, table
    from pipeline.publish.training_report import summary_pictures
    from pipeline.publish.training_tables import summary_tables

    lines = [f"# {escape(facts.bundle.spec.name)}", "", f"Bundle `{facts.bundle.digest}`", ""]
    for one in summary_tables(facts):
        lines += [f"## {escape(one.title)}", "", *table(tuple(map(escape, one.header)), one.rows), ""]
        lines += [escape(one.note), ""] if one.note else []
    for picture in summary_pictures(facts):
        lines += [f"## {escape(picture.title)}", "", f"![{escape(picture.title)}]({picture.uri})", ""]
    return "\n".join(lines)
