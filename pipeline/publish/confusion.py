"""A confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.publish.files import replacing

_PAPER, _INK, _FAINT, _FULL = (255, 255, 255), (32, 36, 42), (112, 118, 128), (46, 134, 171)
_CELL, _MARGIN, _LINE = 84, 24, 22


def write_confusion(path: Path, counts: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Write a PNG: a row for each true class, a column for each predicted one; colour is the share of the row.

    Args:
        path: the picture.
        counts: (K, K), images or pixels by (true, predicted) class.
        names: K.
    """
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    wide = max(round(font.getlength(name)) for name in names)
    left, top = _MARGIN + _LINE + wide + 12, _MARGIN + 2 * _LINE + 8
    size = len(names) * _CELL
    cell = max(_CELL, wide + 16)
    picture = Image.new("RGB", (left + len(names) * cell + _MARGIN, top + size + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((left + len(names) * cell / 2, _MARGIN), "predicted", _FAINT, small, anchor="mt")
    draw.text((_MARGIN, top - _LINE), "true", _FAINT, small, anchor="lt")
    for row, (name, line) in enumerate(zip(names, counts, strict=True)):
        middle = top + row * _CELL + _CELL / 2
        draw.text((left - 12, middle), name, _INK, font, anchor="rm")
        draw.text((left + row * cell + cell / 2, top - 6), name, _INK, font, anchor="mb")
        for col, count in enumerate(line):
            _draw_cell(draw, (left + col * cell, top + row * _CELL, cell), count, sum(line))
    with replacing(path) as partial:
        picture.save(partial, format="PNG", optimize=True)


def _draw_cell(draw: ImageDraw.ImageDraw, place: tuple[int, int, int], count: int, total: int) -> None:
    left, top, width = place
    share = count / total if total else 0.0
    colour = tuple(round(paper + share * (full - paper)) for paper, full in zip(_PAPER, _FULL, strict=True))
    draw.rectangle((left, top, left + width - 3, top + _CELL - 3), fill=colour)
    ink = _PAPER if share > 0.5 else _INK
    draw.text((left + width / 2, top + _CELL / 2 - 8), f"{count}", ink, ImageFont.load_default(18), anchor="mm")
    draw.text((left + width / 2, top + _CELL / 2 + 14), f"{share:.0%}", ink, ImageFont.load_default(12), anchor="mm")
