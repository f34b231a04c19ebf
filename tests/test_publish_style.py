import xml.etree.ElementTree as ET

from models.spec import Class
from pipeline.publish.style import write_qml


def test_the_style_lists_value_colour_and_label_of_each_class(tmp_path):
    classes = [
        Class(id=0, name="background", color="#000000"),
        Class(id=1, name="building", color="#E6550D", title='Houses & "sheds" <new>'),
    ]
    write_qml(tmp_path / "mask.qml", classes)
    root = ET.parse(tmp_path / "mask.qml").getroot()  # noqa: S314 - our own file
    renderer = root.find("pipe/rasterrenderer")
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    assert [entry.attrib for entry in renderer.find("colorPalette")] == [
        {"value": "0", "color": "#000000", "alpha": "0", "label": "background"},
        {"value": "1", "color": "#e6550d", "alpha": "255", "label": 'Houses & "sheds" <new>'},
    ]


def test_qgis_finds_its_own_document_type(tmp_path):
    write_qml(tmp_path / "mask.qml", [Class(id=0, name="a", color="#FFFFFF"), Class(id=1, name="b", color="#000000")])
    text = (tmp_path / "mask.qml").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<qgis ")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.qml"]
