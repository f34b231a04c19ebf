"""A QGIS layer style: `mask.qml` beside `mask.tif` is applied when the mask is opened."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from models.spec import Class
from pipeline.publish.classes import is_clear, number, numbered
from pipeline.publish.files import write_text

_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def write_qml(out: Path, classes: Sequence[Class]) -> None:
    """Write a paletted renderer with one entry a class: value, colour, label. The background is drawn clear.

    Raises:
        OutputError: `out` cannot be written.
    """
    root = ET.Element("qgis", version="3.28", styleCategories="Symbology")
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", alphaBand="-1", opacity="1", nodataColor=""
    )
    palette = ET.SubElement(renderer, "colorPalette")
    for entry in classes:
        ET.SubElement(
            palette,
            "paletteEntry",
            value=str(number(entry)),
            color=entry.color.lower(),
            alpha="0" if is_clear(entry) else "255",
            label=numbered(entry),
        )
    ET.SubElement(root, "blendMode").text = "0"
    ET.indent(root, " ")
    write_text(out, _DOCTYPE + ET.tostring(root, encoding="unicode") + "\n")
