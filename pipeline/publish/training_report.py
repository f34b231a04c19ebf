"""One HTML file that tells how a training went: it needs no network and no script, and what it shows is escaped."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from models.findings import Reviewed, Stitching
from pipeline.publish import charts
from pipeline.publish.chip_pictures import CONFUSED, INVENTED, MISSED, draw_panels, encode, ground_class, montage
from pipeline.publish.classes import label
from pipeline.publish.files import write_text
from pipeline.publish.training_facts import ReportFacts
from pipeline.publish.training_tables import (
    band_table,
    data_table,
    headlines,
    number,
    score_tables,
    settings,
    share,
    stitching_tables,
)

MOST_WAITING = 5
"""Share of the time, in per cent, that a device may wait for data."""
TEMPLATE = Path(__file__).with_name("training_report.html.jinja")
MEAN = "mean of all"
"""Beside the names of classes, none of which holds a space."""
_PANEL_BYTES = 40_000
"""About the most bytes of one picture of a chip."""
_SHEET_BYTES = 90_000
"""Likewise of a picture of several chips."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture with the text that stands for it."""

    title: str
    media: str
    data: bytes

    @property
    def uri(self) -> str:
        """The picture itself as an address."""
        return f"data:{self.media};base64,{base64.b64encode(self.data).decode()}"


def write_report(path: Path, facts: ReportFacts) -> None:
    """Write the report as one file. The same facts give the same bytes.

    Raises:
        OutputError: `path` cannot be written.
    """
    # Autoescape is what keeps names of scenes from being markup.
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = pages.from_string(TEMPLATE.read_text(encoding="utf-8"))
    spec = facts.bundle.spec
    write_text(
        path,
        page.render(
            title=spec.name,
            digest=facts.bundle.digest,
            derived_from=spec.derived_from,
            attribution=spec.attribution,
            licence=spec.licence,
            pixels=f"{facts.val['pixels']:,} {facts.counted}",
            headlines=list(headlines(facts)),
            scores=score_tables(facts),
            curves=[_drawn(title, figure) for title, figure in training_figures(facts)],
            quality=[_drawn(title, figure) for title, figure in quality_figures(facts)],
            classes=[(label(entry), entry.color) for entry in spec.classes],
            confusion=_shaded(facts),
            stitching=stitching_tables(facts.stitching, facts.names) if isinstance(facts.stitching, Stitching) else [],
            unstitched=facts.stitching if isinstance(facts.stitching, str) else "",
            errors=_error_legend(facts),
            groups=[group for group in _groups(facts) if group["chips"]],
            ranked=facts.review.ranked,
            unlabelled=facts.review.unlabelled,
            data=[data_table(facts), band_table(facts)],
            settings=settings(facts),
        ),
    )


def _shaded(facts: ReportFacts) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """Each true class with its cells: share, count, and the share as a number for the shade."""
    rows = []
    for name, line in zip(facts.names.values(), facts.val.get("confusion", ()), strict=False):
        total = sum(line)
        rows.append((name, [(share(count, total), f"{count:,}", round(count / max(total, 1), 3)) for count in line]))
    return rows


Titled = tuple[str, Figure]
"""A figure with a text for those who do not see it."""


def training_figures(facts: ReportFacts) -> Iterator[Titled]:
    """Curves over the steps, of what the log tells."""
    yield from _losses(facts)
    rates = [(line["step"], line["lr"]) for line in facts.log if "lr" in line]
    if rates:
        yield "Learning rate by step", charts.curve("Learning rate", rates)
    yield from _validations(facts)
    waiting = [(line["step"], 100 * line["waiting"]) for line in facts.log if "waiting" in line]
    if waiting:
        drawn = charts.curve("Waiting for data", waiting, unit="% of the time", smooth=True, limit=MOST_WAITING)
        yield "Share of time waiting for data, by step", drawn


def _losses(facts: ReportFacts) -> Iterator[Titled]:
    losses = [(line["step"], line["loss"]) for line in facts.log if "loss" in line]
    if losses:
        yield "Training loss by step", charts.curve("Training loss", losses, smooth=True)


def _validations(facts: ReportFacts) -> Iterator[Titled]:
    """IoU by step, where there was more than one validation; the last one is that of the weights as stored."""
    found = {line["step"]: line["val"] for line in facts.log if "val" in line}
    last = facts.metrics.get("training", {}).get("steps")
    if last is not None:
        found[last] = facts.val
    if len(found) > 1:
        values = {step: {MEAN: val["mean_iou"], **val["iou"]} for step, val in found.items()}
        lines = {
            name: [(step, one[name]) for step, one in values.items() if one.get(name) is not None]
            for name in (MEAN, *facts.names)
        }
        yield "Validation IoU by step", charts.curves("Validation IoU", lines, _colors(facts), bold=MEAN)


def quality_figures(facts: ReportFacts) -> Iterator[Titled]:
    """What the scores look like: IoU by class with intervals, and whether confidence means what it says."""
    val, ends = facts.val, facts.val.get("intervals", {})
    values = {name: value for name, value in ((MEAN, val["mean_iou"]), *val["iou"].items()) if value is not None}
    intervals = {MEAN: ends.get("mean_iou"), **ends.get("iou", {})}
    title = "IoU by class, with 95 % intervals" if ends else "IoU by class"
    yield title, charts.ranges(title, values, intervals, _colors(facts))
    sums = facts.review.reliability
    filled = sums.pixels > 0
    if filled.any():
        pixels = sums.pixels[filled]
        confidence, right = ((part[filled] / pixels).tolist() for part in (sums.confidence, sums.hits))
        title = f"Reliability (expected calibration error {number(sums.ece)})"
        yield title, charts.reliability(title, confidence, right, (pixels / pixels.sum()).tolist())


def _colors(facts: ReportFacts) -> dict[str, str]:
    """By the names of classes, which any font can write."""
    return {entry.name: entry.color for entry in facts.bundle.spec.classes}


def _groups(facts: ReportFacts) -> list[dict[str, Any]]:
    return [
        {"title": title, "chips": [_chip(facts, chip) for chip in chips]}
        for title, chips in (("Worst chips", facts.review.worst), ("Best chips", facts.review.best))
    ]


def _chip(facts: ReportFacts, chip: Reviewed) -> dict[str, Any]:
    spec = facts.bundle.spec
    panels = draw_panels(chip, spec.classes, spec.bands)
    shown = {"scene": panels.scene, "truth": panels.truth, "prediction": panels.prediction, "errors": panels.errors}
    return {
        "scene": chip.scene,
        "place": f"row {chip.row:,}, column {chip.col:,}",
        "score": number(chip.score),
        "loss": number(chip.loss),
        "panels": [Picture(name, *encode(panel, _PANEL_BYTES)) for name, panel in shown.items()],
    }


def _error_legend(facts: ReportFacts) -> list[tuple[str, str]]:
    """What the colours of errors mean; with two classes, or without a background, not all of them occur."""
    classes = facts.bundle.spec.classes
    ground = ground_class(classes)
    shown = [] if ground is None else [(f"missed: predicted as {label(classes[ground])}", MISSED)]
    shown += [] if ground is None else [(f"invented: {label(classes[ground])} in truth", INVENTED)]
    shown += [] if ground is not None and len(classes) == 2 else [("another class", CONFUSED)]
    return [(text, "#{:02X}{:02X}{:02X}".format(*colour)) for text, colour in shown]


def summary_pictures(facts: ReportFacts) -> list[Picture]:
    """For pages with little room: two curves, and the worst and the best chips in one picture each."""
    curves = (*_losses(facts), *_validations(facts))
    pictures = [Picture(title, "image/png", charts.png(figure)) for title, figure in curves]
    spec = facts.bundle.spec
    for title, chips in (("Worst chips", facts.review.worst[:4]), ("Best chips", facts.review.best[:2])):
        if chips:
            sheet = montage([draw_panels(chip, spec.classes, spec.bands) for chip in chips])
            pictures.append(Picture(f"{title}: scene, truth, prediction, errors", *encode(sheet, _SHEET_BYTES)))
    return pictures


def _drawn(title: str, figure: Figure) -> Picture:
    return Picture(title, "image/svg+xml", charts.svg(figure))
