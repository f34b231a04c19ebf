"""The tables of a training's report: cells as people read them, without any markup."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.findings import Stitching, Way
from models.metrics import Counts, scores
from pipeline.publish.chip_pictures import ground_class
from pipeline.publish.classes import label
from pipeline.publish.training_facts import ReportFacts

INTERVAL = "95 % interval"
"""Title of a column."""
_DETAILED = 8
"""Most classes for which a confusion matrix holds counts beside shares, and stitching is told by class."""


@dataclass(frozen=True)
class Table:
    """Cells as people read them; the first column is text, the others are numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def headlines(facts: ReportFacts) -> Iterator[tuple[str, str, str]]:
    """Name, value and what stands below it, of the numbers that matter most."""
    val, ends = facts.val, facts.val.get("intervals", {})
    if facts.bundle.spec.cell > 1:
        yield "accuracy", number(val["accuracy"]), facts.counted
        yield "mean F1", number(val["mean_f1"]), "over classes"
    yield "mean IoU", number(val["mean_iou"]), interval(ends.get("mean_iou")) or "over classes"
    ground = ground_class(facts.bundle.spec.classes)
    things = [entry for entry in facts.bundle.spec.classes if entry.id != ground]
    for entry in things if len(things) <= 2 else []:
        yield f"IoU of {label(entry)}", number(val["iou"][entry.name]), interval(ends.get("iou", {}).get(entry.name))
    for name, found in val.get("objects", {}).items():
        yield f"AP50 of {facts.names[name]}", number(found["ap50"]), interval(ends.get("ap50", {}).get(name))
    if "ece" in val:
        yield "calibration error", number(val["ece"]), "expected, 15 bins"


def score_tables(facts: ReportFacts) -> list[Table]:
    """By class, and by class of objects where there are some."""
    val, ends = facts.val, facts.val.get("intervals", {})
    columns = [("f1", "F1"), ("precision", "precision"), ("recall", "recall"), ("boundary_f1", "boundary F1")]
    shown = [(key, title) for key, title in columns if key in val]
    rows = []
    for name, title in (*facts.names.items(), (None, "mean")):
        iou, pair = (
            (val["iou"][name], ends.get("iou", {}).get(name)) if name else (val["mean_iou"], ends.get("mean_iou"))
        )
        others = [number(val[key][name] if name else _mean(val[key].values())) for key, _ in shown]
        rows.append((title, number(iou), *([interval(pair) or "-"] if ends else []), *others))
    header = ("class", "IoU", *([INTERVAL] if ends else []), *(title for _, title in shown))
    note = "Intervals: bootstrap over blocks of ground." if ends else ""
    return [Table("By class", header, tuple(rows), note), *_object_table(facts)]


def _object_table(facts: ReportFacts) -> Iterator[Table]:
    found = facts.val.get("objects", {})
    ends = facts.val.get("intervals", {}).get("ap50", {})
    if found:
        rows = tuple(
            (
                facts.names[name],
                number(one["ap50"]),
                interval(ends.get(name)) or "-",
                number(one["iou"]),
                number(one["f1"]),
                *(f"{one[key]:,}" for key in ("tp", "fp", "fn")),
            )
            for name, one in found.items()
        )
        header = ("objects", "AP50", INTERVAL, "IoU", "F1", "found", "invented", "missed")
        note = (
            "AP50: TP/(TP+FP+FN) at an IoU of 0.5, mean over images. IoU and F1: of their pixels, boundaries included."
        )
        yield Table("Objects", header, rows, note)


def confusion_tables(facts: ReportFacts) -> list[Table]:
    """Shares of each true class by predicted class, with the counts where they are few; none of an old bundle."""
    if "confusion" not in facts.val:
        return []
    names = list(facts.names.values())
    detailed = len(names) <= _DETAILED
    rows = tuple(
        (name, *(share(count, sum(line)) + (f" ({count:,})" if detailed else "") for count in line))
        for name, line in zip(names, facts.val["confusion"], strict=True)
    )
    return [Table("Confusion", ("true class, predicted as", *names), rows, f"Shares of each row; {facts.counted}.")]


def stitching_tables(found: Stitching, names: Mapping[str, str]) -> list[Table]:
    """The three ways beside one another: over all classes, and by class where they are few."""
    reach, tiling, whole = found.tiling.reach, found.tiling, found.ways[0]
    header = (f"within {reach} px", "against whole", "inside", "against whole")
    rows = tuple(
        (way.name, *_sides(way, whole, list(names), None), f"{way.differ:.3%}", f"{way.compute:.2f}")
        for way in found.ways
    )
    note = (
        f"{found.chips} validation chips of {found.edge} px, tiles of {tiling.tile} px with a halo of {tiling.halo}, "
        f"cores of {tiling.core}: pixels within {reach} px of a border between two cores, and all others. Blended: "
        f"overlap {found.overlap:g}, Gaussian weights of sigma {found.sigma:g} tiles. All ways are judged on the same "
        "pixels, near borders and inside: pixels there differ in difficulty, so that the whole chip is what to compare "
        "with."
    )
    together = Table(
        "Stitched three ways: mean IoU", ("way", *header, "other labels", "pixels read per pixel"), rows, note
    )
    if len(names) > _DETAILED:
        return [together]
    by_class = tuple(
        (f"{title}, {way.name}", *_sides(way, whole, list(names), name))
        for name, title in names.items()
        for way in found.ways
    )
    return [together, Table("Stitched three ways: IoU by class", ("class and way", *header), by_class)]


def _sides(way: Way, whole: Way, names: Sequence[str], what: str | None) -> Iterator[str]:
    """IoU near borders and inside, each with what it is above that of the whole chip."""
    for counts, reference in ((way.near, whole.near), (way.inside, whole.inside)):
        value, against = _iou(counts, names, what), _iou(reference, names, what)
        yield number(value, 4)
        yield "-" if value is None or against is None else f"{value - against:+.4f}"


def _iou(counts: Counts, names: Sequence[str], what: str | None) -> float | None:
    """Of the class `what`, or the mean over classes."""
    found: Any = scores(counts, names)
    value: float | None = found["iou"][what] if what else found["mean_iou"]
    return value


def data_table(facts: ReportFacts) -> Table:
    """What was learnt from, and what it was judged by."""
    names, rows = list(facts.names.values()), []
    for split in facts.splits:
        pixels = split.pixels or (0,) * len(names)
        total = f"{sum(pixels):,}" if split.pixels else "-"
        shares = (share(count, sum(pixels)) for count in pixels)
        rows.append((split.name, f"{split.chips:,}", f"{split.scenes:,}", total, *shares))
    note = f"Chips of {facts.metrics['chip_edge']} px."
    if any(split.pixels is None for split in facts.splits):
        note += " Labels of sealed chips are read by the gate alone."
    return Table("Chips", ("split", "chips", "scenes", "labelled pixels", *names), tuple(rows), note)


def band_table(facts: ReportFacts) -> Table:
    """What the network takes."""
    spec = facts.bundle.spec
    rows = tuple(
        (band.name, band.unit, *(f"{value:.5g}" for value in (band.low, band.high, band.mean, band.std)))
        for band in spec.bands
    )
    ground = "" if spec.resolution is None else " Pixels of {:.3g} to {:.3g} m.".format(*spec.resolution)
    note = f"Pixels of type {', '.join(spec.dtypes)}.{ground} What is normalised by: mean and deviation."
    return Table("Bands", ("band", "unit", "lowest", "highest", "mean", "deviation"), rows, note)


def settings(facts: ReportFacts) -> list[tuple[str, str]]:
    """Name and value of all that decided the training, network first."""
    architecture = facts.bundle.spec.architecture.model_dump()
    spec = facts.bundle.spec
    network = {**architecture, "halo": spec.halo, "tiles": spec.tiles}
    rest = {key: value for key, value in facts.metrics.get("training", {}).items() if key not in network}
    return [
        (key.replace("_", " "), text) for key, value in (*network.items(), *rest.items()) if (text := _setting(value))
    ]


def _setting(value: Any) -> str:
    """Text of a setting; none where there is nothing to say."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_setting(each)}" for key, each in value.items() if _setting(each))
    if isinstance(value, list | tuple):
        return ", ".join(_setting(each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def summary_tables(facts: ReportFacts) -> list[Table]:
    """The tables that a page with little room shows."""
    stitched = facts.stitching
    return [
        *score_tables(facts),
        *confusion_tables(facts),
        *(stitching_tables(stitched, facts.names)[:1] if isinstance(stitched, Stitching) else []),
    ]


def number(value: float | None, digits: int = 3) -> str:
    """A score, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(pair: Sequence[float] | None) -> str:
    """Both ends, or nothing where they are not known."""
    return "" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"


def share(part: int, whole: int) -> str:
    """In per cent, or a dash of nothing."""
    return f"{part / whole:.1%}" if whole else "-"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
