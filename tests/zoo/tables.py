"""The tables of docs/models.md, from what the other steps left."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from models.inception import ENCODERS, create_encoder
from models.segmenter import create_segmenter
from tests.bench.common import table
from tests.zoo import transfer
from tests.zoo.engines import CLASSES, Graph
from tests.zoo.facts import multiply_adds, parameters, receptive_fields
from tests.zoo.segmenters import COMPARED

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
GIB = 2**30
EDGE = 1024


def write_tables(_: Path, out: Path) -> None:
    """Put each table between its marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        text = _between(text, f"<!-- zoo {name} -->\n", "<!-- end -->", f"\n{make(out)}\n")
    DOCUMENT.write_text(text, encoding="utf-8")


def _between(text: str, start: str, end: str, new: str) -> str:
    """`text` with what stands between two marks replaced."""
    before, found, rest = text.partition(start)
    if not found:
        raise ValueError(f"{DOCUMENT} has no line {start.strip()}")
    return before + start + new + end + rest.partition(end)[2]


def encoders(out: Path) -> str:
    """A line for each network."""
    head = [
        "encoder",
        "parameters, M",
        "with U-Net, M",
        "GMACs",
        "with U-Net",
        "sees, px",
        "GiB",
        "Mpx/s",
        "building IoU",
    ]
    return table(head, [_encoder(name, out) for name in ENCODERS])


def _encoder(name: str, out: Path) -> list[str]:
    encoder, segmenter = create_encoder(name), create_segmenter(name, CLASSES, output_stride=1)
    measured = _engines(out)[Graph(name).name]
    return [
        f"`{name}`",
        *(f"{parameters(module) / 1e6:.1f}" for module in (encoder, segmenter)),
        *(f"{multiply_adds(module, EDGE) / 1e9:.0f}" for module in (encoder, segmenter)),
        str(receptive_fields(create_encoder(name))[-1]),
        f"{measured['peak_bytes'] / GIB:.2f}",
        f"{EDGE**2 / 1e6 / measured['seconds']:.2f}",
        f"{_val(out, f'{name}-unet')['iou']['building']:.3f}",
    ]


def decoders(out: Path) -> str:
    """A line for each encoder, decoder and output stride."""
    head = ["encoder", "decoder", "stride", "building IoU"]
    head += [f"{what} at {tile}" for tile in (1024, 2048) for what in ("GiB of activations", "Mpx/s")]
    return table(head, list(_decoders(out)))


def _decoders(out: Path) -> Iterator[list[str]]:
    engines = _engines(out)
    for encoder in COMPARED:
        for decoder in ("unet", "fpn"):
            for stride in (1, 2, 4):
                iou = _val(out, f"{encoder}-{decoder}-{stride}")["iou"]["building"]
                small, large = (engines[Graph(encoder, decoder, stride, tile).name] for tile in (1024, 2048))
                pixel_bytes = (large["peak_bytes"] - small["peak_bytes"]) / (2048**2 - 1024**2)
                cells = [f"`{encoder}`", decoder, str(stride), f"{iou:.3f}"]
                for tile, facts in ((1024, small), (2048, large)):
                    cells += [f"{pixel_bytes * tile**2 / GIB:.2f}", f"{tile**2 / 1e6 / facts['seconds']:.2f}"]
                yield cells


def transferred(out: Path) -> str:
    """A line for each encoder, question and start; accuracy and mean F1 by the number of labels."""
    head = ["encoder", "question", "start", *(f"{few or 'all'} labels" for few in transfer.FEW)]
    rows = [
        [f"`{encoder}`", question, start, *(_scores(out, encoder, question, few, start) for few in transfer.FEW)]
        for encoder in transfer.ENCODERS
        for question in transfer.QUESTIONS
        for start in transfer.STARTS
    ]
    return table(head, rows)


def _scores(out: Path, encoder: str, question: str, few: str, start: str) -> str:
    tables = f"{question}-{few}" if few else question
    val = _val(out, f"{encoder}-{tables}-{start}")
    return f"{val['accuracy']:.3f} / {val['mean_f1']:.3f}"


def _val(out: Path, run: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / "runs" / run / "metrics.json").read_text())
    return dict(facts["val"])


def _engines(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "engines.json").read_text()))


TABLES: dict[str, Callable[[Path], str]] = {"encoders": encoders, "decoders": decoders, "transfer": transferred}
