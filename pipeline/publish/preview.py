"""A picture that says at a glance whether a mask is right: the scene, the mask over it, and a legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.spec import Class
from pipeline.georef import Georef
from pipeline.publish.classes import is_clear, numbered, rgb
from pipeline.publish.files import replacing
from pipeline.publish.render import INVALID, RGB, display, overlay
from pipeline.publish.thumbnail import shrink_image, shrink_mask
from pipeline.scene import Source

_PAPER, _INK, _FAINT = (255, 255, 255), (32, 36, 42), (112, 118, 128)
_MARGIN, _GAP, _LINE, _SWATCH = 24, 16, 26, 14
_HEADER, _NARROWEST = 84, 520
_ENLARGE = 8
"""Small scenes are enlarged by at most this."""


@dataclass(frozen=True)
class _Layout:
    """Two panels of one size, side by side or one over the other."""

    rows: int
    """Height of a panel, in pixels of the picture."""
    cols: int
    side_by_side: bool

    @property
    def shift(self) -> tuple[int, int]:
        """From the first panel to the second: right, down."""
        return (self.cols + _GAP, 0) if self.side_by_side else (0, self.rows + _GAP)

    @property
    def width(self) -> int:
        """Of both panels and the gap between them."""
        return self.cols + self.shift[0]

    @property
    def height(self) -> int:
        """Likewise."""
        return self.rows + self.shift[1]


def write_preview(
    source: Source,
    mask_store: Path,
    out: Path,
    *,
    classes: Sequence[Class],
    georef: Georef,
    title: str,
    counts: Sequence[int] | None = None,
    confidence: float | None = None,
    attribution: str = "",
    max_edge: int = 1400,
) -> None:
    """Write a PNG of at most about `max_edge` pixels: the scene, and beside or below it the scene under its mask.

    Args:
        source: the scene that the mask belongs to.
        mask_store: has a plane `labels` of the source's height and width.
        out: the picture.
        classes: names and colours; the class `background` is left clear.
        georef: says how large a pixel is; the picture is not turned to the north.
        title: first line.
        counts: pixels of each class in the whole mask; without them the legend's shares are those of the picture.
        confidence: mean probability of the labels, 0 to 1.
        attribution: last line.
        max_edge: allowed size, in pixels.

    Raises:
        OutputError: `out` cannot be written.
    """
    pixels = source.height * source.width
    layout = _arrange(
        source.height, source.width, max_edge - 2 * _MARGIN, max_edge - _HEADER - _footer(2 + len(classes) // 5)
    )
    scene, labels = _views(source, mask_store, layout)
    if counts is None:
        counts, pixels = np.bincount(labels.ravel(), minlength=256)[: len(classes)].tolist(), labels.size
    lines = _wrap(_legend(classes, counts, pixels), max(layout.width, _NARROWEST))
    height = _HEADER + layout.height + _footer(len(lines) + bool(attribution))
    picture = Image.new("RGB", (max(layout.width, _NARROWEST) + 2 * _MARGIN, height), _PAPER)
    right, down = layout.shift
    picture.paste(Image.fromarray(scene), (_MARGIN, _HEADER))
    picture.paste(Image.fromarray(overlay(scene, labels, classes)), (_MARGIN + right, _HEADER + down))
    draw = ImageDraw.Draw(picture)
    resolution = georef.resolution(source.height, source.width)
    if resolution is not None:
        _draw_scale(draw, layout, resolution * source.width / layout.cols)
    draw.text((_MARGIN, 20), _one_line(title), _INK, _font(22), anchor="lt")
    draw.text((_MARGIN, 52), _facts(source, resolution, confidence), _FAINT, _font(15), anchor="lt")
    _draw_legend(draw, lines, _HEADER + layout.height + _GAP)
    draw.text((_MARGIN, height - _MARGIN), _one_line(attribution), _FAINT, _font(12), anchor="lb")
    with replacing(out) as draft:
        picture.save(draft, "PNG")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _footer(lines: int) -> int:
    return _GAP + _LINE * lines + _MARGIN


def _arrange(height: int, width: int, across: int, down: int) -> _Layout:
    """The arrangement in which two panels of `height` x `width` are largest within `down` x `across` pixels."""
    beside = min((across - _GAP) / 2 / width, down / height)
    below = min(across / width, (down - _GAP) / 2 / height)
    scale = max(beside, below)
    if scale > 1:
        scale = min(math.floor(scale), _ENLARGE)
    return _Layout(max(1, round(height * scale)), max(1, round(width * scale)), beside >= below)


def _views(source: Source, mask_store: Path, layout: _Layout) -> tuple[RGB, NDArray[np.uint8]]:
    """The scene in colours and its labels, both at the size of a panel."""
    # A panel is at most twice smaller than what is read: cells alone would waste up to half its resolution.
    factor = max(1, min(source.height // layout.rows, source.width // layout.cols))
    pixels, valid = shrink_image(source, factor)
    labels = shrink_mask(mask_store, source.height, source.width, factor)
    size = (layout.cols, layout.rows)
    larger = layout.rows > source.height
    scene = Image.fromarray(display(pixels, valid, stretch=source.dtype != "uint8"))
    scene = scene.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BOX)
    return np.asarray(scene), np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


@dataclass(frozen=True)
class _Entry:
    text: str
    colour: tuple[int, int, int]

    @property
    def width(self) -> int:
        """Of swatch, text and the space after it, in pixels."""
        return _SWATCH + 8 + round(_font(15).getlength(self.text)) + 28


def _legend(classes: Sequence[Class], counts: Sequence[int], pixels: int) -> list[_Entry]:
    """Each class with its share of the classified pixels, and nodata with its share of the scene."""
    classified = sum(counts)
    entries = [
        _Entry(f"{numbered(entry)} {_percent(count, classified)}", _PAPER if is_clear(entry) else rgb(entry))
        for entry, count in zip(classes, counts, strict=True)
    ]
    if classified < pixels:
        entries.append(_Entry(f"no data {_percent(pixels - classified, pixels)} of the scene", INVALID))
    return entries


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f} %" if share >= 0.05 or part == 0 else "< 0.1 %"


def _wrap(entries: Sequence[_Entry], width: int) -> list[list[_Entry]]:
    """Entries in lines of at most `width` pixels."""
    lines: list[list[_Entry]] = [[]]
    for entry in entries:
        if lines[-1] and sum(e.width for e in lines[-1]) + entry.width > width:
            lines.append([])
        lines[-1].append(entry)
    return lines


def _draw_legend(draw: ImageDraw.ImageDraw, lines: Sequence[Sequence[_Entry]], top: int) -> None:
    for row, line in enumerate(lines):
        left, middle = _MARGIN, top + row * _LINE + _LINE // 2
        for entry in line:
            corner = middle - _SWATCH // 2
            draw.rectangle((left, corner, left + _SWATCH, corner + _SWATCH), entry.colour, outline=_FAINT)
            draw.text((left + _SWATCH + 8, middle), entry.text, _INK, _font(15), anchor="lm")
            left += entry.width


def _facts(source: Source, resolution: float | None, confidence: float | None) -> str:
    facts = [f"{source.width} x {source.height} pixels"]
    if resolution is not None:
        ground = (length(resolution * edge) for edge in (source.width, source.height))
        facts += [f"{length(resolution)} a pixel", " x ".join(ground)]
    if confidence is not None:
        facts.append(f"mean confidence {100 * confidence:.0f} %")
    return "  ·  ".join(facts)


def _draw_scale(draw: ImageDraw.ImageDraw, layout: _Layout, metres_per_pixel: float) -> None:
    """A bar of a round length, at most a third of the panel, in the first panel's lower left corner."""
    metres = round_length(metres_per_pixel * layout.cols / 3)
    left, bottom = _MARGIN + 12, _HEADER + layout.rows - 12
    right = left + metres / metres_per_pixel
    draw.rectangle((left - 1, bottom - 5, right + 1, bottom + 1), (0, 0, 0))
    draw.rectangle((left, bottom - 4, right, bottom), (255, 255, 255))
    draw.text(
        (left, bottom - 9),
        length(metres),
        (255, 255, 255),
        _font(14),
        anchor="lb",
        stroke_width=2,
        stroke_fill=(0,) * 3,
    )


def round_length(limit: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most `limit`."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step * power for step in (1, 2, 5) if step == 1 or step * power <= limit)


def length(metres: float) -> str:
    """Three digits and the unit that suits them: `7.46 cm`, `307 m`, `1.2 km`."""
    for unit, size in (("km", 1e3), ("m", 1.0), ("cm", 1e-2), ("mm", 1e-3)):
        if metres >= 0.9995 * size:
            return f"{float(f'{metres / size:.3g}'):g} {unit}"
    return f"{float(f'{metres * 1e6:.3g}'):g} um"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # The face that Pillow carries: the same picture on every machine.
    return ImageFont.load_default(size)
