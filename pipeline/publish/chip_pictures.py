"""A chip as four pictures of one size: the scene, what is true, what was predicted, and where the two differ."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.findings import Reviewed
from models.spec import NODATA, Band, Class
from pipeline.publish.classes import is_clear, rgb
from pipeline.publish.render import INVALID, RGB, display

MISSED, INVENTED, CONFUSED = (0, 114, 178), (213, 94, 0), (204, 121, 167)
"""Colours of errors that are told apart with any kind of colour vision (Okabe and Ito)."""
UNKNOWN = (236, 238, 241)
"""Colour of pixels without a label."""
_EDGE = 512
"""Largest edge of a picture: chips above twice this are made smaller by a whole factor."""
_NATURAL = ("red", "green", "blue")
_GAP, _PAPER = 6, (255, 255, 255)


@dataclass(frozen=True)
class Panels:
    """(S, S, 3) each."""

    scene: RGB
    truth: RGB
    prediction: RGB
    errors: RGB


def draw_panels(chip: Reviewed, classes: Sequence[Class], bands: Sequence[Band]) -> Panels:
    """The four pictures. Errors lie opaque over the scene in pale grey; without a label, nothing is an error."""
    scene = _scene(chip, bands)
    errors = np.repeat(np.rint(160 + 0.36 * scene.mean(axis=2, keepdims=True)).clip(0, 255).astype(np.uint8), 3, axis=2)
    ground = ground_class(classes)
    known = (chip.labels != NODATA) & (chip.prediction != NODATA)
    wrong = known & (chip.labels != chip.prediction)
    errors[wrong] = CONFUSED
    if ground is not None:
        errors[wrong & (chip.prediction == ground)] = MISSED
        errors[wrong & (chip.labels == ground)] = INVENTED
    errors[chip.labels == NODATA] = UNKNOWN
    errors[~chip.valid] = INVALID
    truth, prediction = (_coloured(plane, chip.valid, classes) for plane in (chip.labels, chip.prediction))
    return Panels(*(_smaller(panel) for panel in (scene, truth, prediction, errors)))


def ground_class(classes: Sequence[Class]) -> int | None:
    """The class that everything else stands on: the background; of two classes the first; else there is none."""
    named = [entry.id for entry in classes if is_clear(entry)]
    return named[0] if named else 0 if len(classes) == 2 else None


def _scene(chip: Reviewed, bands: Sequence[Band]) -> RGB:
    """Red, green and blue where bands are called so, else the first three, or the first in grey."""
    names = [band.name.lower() for band in bands]
    chosen = [names.index(name) for name in _NATURAL] if set(_NATURAL) <= set(names) else list(range(len(names)))[:3]
    pixels = np.where(chip.valid, chip.pixels[chosen].astype(np.float32), np.float32(0))
    return display(pixels, chip.valid, stretch=chip.pixels.dtype != np.uint8)


def _coloured(labels: NDArray[np.uint8], valid: NDArray[np.bool_], classes: Sequence[Class]) -> RGB:
    table = np.full((256, 3), UNKNOWN, np.uint8)
    for entry in classes:
        table[entry.id] = rgb(entry)
    return np.where(valid[..., None], table[labels], np.array(INVALID, np.uint8))


def _smaller(panel: RGB) -> RGB:
    factor = -(-len(panel) // _EDGE)
    return np.asarray(Image.fromarray(panel).reduce(factor)) if factor > 1 else panel


def encode(panel: RGB, most: int) -> tuple[str, bytes]:
    """Media type and bytes: exact where colours are few, else a photograph, as good as `most` bytes allow."""
    image = Image.fromarray(panel)
    if image.getcolors(256) is not None:
        exact = _saved(image.quantize(256, dither=Image.Dither.NONE), "PNG", optimize=True)
        if len(exact) <= most:
            return "image/png", exact
    for quality in (88, 80, 70, 60, 50, 40):
        data = _saved(image, "JPEG", quality=quality)
        if len(data) <= most or (quality == 40 and min(image.size) < 64):
            return "image/jpeg", data
    return encode(np.asarray(image.reduce(2)), most)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def montage(rows: Sequence[Panels], edge: int = 180) -> RGB:
    """(H, W, 3): the four pictures of a chip beside one another, chips one below the other."""
    width, height = 4 * (edge + _GAP) - _GAP, len(rows) * (edge + _GAP) - _GAP
    sheet = Image.new("RGB", (width, max(1, height)), _PAPER)
    for down, panels in enumerate(rows):
        for across, panel in enumerate((panels.scene, panels.truth, panels.prediction, panels.errors)):
            picture = Image.fromarray(panel).resize((edge, edge), Image.Resampling.BOX)
            sheet.paste(picture, (across * (edge + _GAP), down * (edge + _GAP)))
    return np.asarray(sheet)
