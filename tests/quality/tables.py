"""What was measured, as Markdown, between the marks of docs/quality.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from models import bootstrap
from tests.quality.buildings import NETWORKS, SEEDS

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"
BUILDING = 1
"""Index of the class that is scored."""


def write_tables(_: Path, out: Path) -> None:
    """Replace what stands between the marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in {"buildings": buildings(out), "nuclei": nuclei(out)}.items():
        if not lines:
            continue
        start, end = (f"<!-- {name}: {edge} -->\n" for edge in ("begin", "end"))
        before, rest = text.split(start)
        text = before + start + "\n".join(lines) + "\n" + end + rest.split(end)[1]
    PAGE.write_text(text, encoding="utf-8")


def buildings(out: Path) -> list[str]:
    """A row for each training, and the differences of pairs with one seed."""
    results = [_read(out / f"{name}-{seed}" / "result.json") for seed in SEEDS for name in NETWORKS]
    known = [result for result in results if result]
    if not known:
        return []
    lines = ["| network | parameters | seed | building IoU (95 %) | F1 | boundary F1 |", "|---|---|---|---|---|---|"]
    lines += [_row(result) for result in known]
    pairs = [
        (seed, *(next((r for r in known if (r["network"], r["seed"]) == (name, seed)), None) for name in NETWORKS))
        for seed in SEEDS
    ]
    return lines + [""] + [_difference(*pair) for pair in pairs if pair[1] and pair[2]]


def _row(result: dict[str, Any]) -> str:
    val = result["val"]
    low, high = val["intervals"]["iou"]["building"]
    return (
        f"| {result['network']} | {result['parameters'] / 1e6:.1f} M | {result['seed']} "
        f"| {val['iou']['building']:.3f} ({low:.3f} to {high:.3f}) | {val['f1']['building']:.3f} "
        f"| {val['boundary_f1']['building']:.3f} |"
    )


def _difference(seed: int, one: dict[str, Any], other: dict[str, Any]) -> str:
    blocks = sorted(one["blocks"])
    counts = [np.array([result["blocks"][block] for block in blocks]) for result in (one, other)]
    found = bootstrap.paired(counts[0], counts[1], bootstrap.class_iou(BUILDING))
    names = f"{one['network']} minus {other['network']}, seed {seed}"
    return (
        f"- {names}: {found.value:+.3f} building IoU, 95 % {found.low:+.3f} to {found.high:+.3f} ({len(blocks)} blocks)"
    )


def nuclei(out: Path) -> list[str]:
    """Scores of the shipped bundle beside the floor."""
    result = _read(out / "nuclei.json")
    if not result:
        return []
    found, ends = result["pooled"]["objects"]["nucleus"], result["pooled"]["intervals"]["ap50"]["nucleus"]
    span = f"{ends[0]:.3f} to {ends[1]:.3f}"
    floor = result["floor"]
    rows = [("blur and Otsu's threshold (the floor)", floor, ""), ("shipped bundle", found, f" ({span})")]
    head = ["| | IoU | Dice | AP50, mean over images (95 %) | AP50, pooled |", "|---|---|---|---|---|"]
    return head + [
        f"| {name} | {of['iou']:.3f} | {of['f1']:.3f} | {of['ap50']:.3f}{span} | {of['ap50_pooled']:.3f} |"
        for name, of, span in rows
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else None
