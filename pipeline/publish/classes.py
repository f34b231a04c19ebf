"""How classes look wherever they are shown: one name and one colour in the raster, the style and the preview."""

from models.spec import Class

BACKGROUND = "background"
"""The class of this name is drawn clear: maps show the scene through it."""


def label(entry: Class) -> str:
    """What people read."""
    return entry.title or entry.name


def rgb(entry: Class) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255."""
    red, green, blue = bytes.fromhex(entry.color.removeprefix("#"))
    return red, green, blue


def is_clear(entry: Class) -> bool:
    """Whether the class is drawn as nothing."""
    return entry.name == BACKGROUND
