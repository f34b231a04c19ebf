"""What a run shows on Prefect's pages: Markdown, small pictures, tables, progress. Names of scenes are foreign text."""

import base64
import contextlib
import hashlib
import html
import io
import re
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image
from prefect.artifacts import create_progress_artifact, update_progress_artifact

PREVIEW_LIMIT = 200_000
"""Most bytes of a picture inside an artifact, as it is encoded there."""
PREVIEW_EDGE = 800
"""Its longer side, in pixels."""
TEXT_LIMIT = 300
"""Most characters of one name or reason."""

_MARKUP = re.compile(
    r"[\\`*\[\]#|~@]"  # anywhere
    r"|(?<![^\W_])_|_(?![^\W_])"  # inside a word an underscore is one
    r"|:(?=/)|(?<=www)\."  # links
    r"|^[-+]|(?<=\d)[.)](?=\s)",  # lists
    re.IGNORECASE,
)
"""What would be markup in a line, a heading or a cell. No more is escaped: some pages show cells as they are."""


def plain(text: object) -> str:
    """One line of at most `TEXT_LIMIT` characters, every control and format character shown as a replacement."""
    line = " ".join(str(text).split())
    shown = "".join("\ufffd" if unicodedata.category(sign).startswith("C") else sign for sign in line)
    return shown if len(shown) <= TEXT_LIMIT else f"{shown[: TEXT_LIMIT - 1]}…"


def escape(text: object) -> str:
    """`plain` text that Markdown shows as it is: no markup, no HTML, no link, no new cell of a table.

    Cells of table artifacts need it too: Prefect's first page takes them for Markdown, and would fetch their images.
    """
    return _MARKUP.sub(r"\\\g<0>", html.escape(plain(text), quote=False))


def slug(place: str) -> str:
    """A short name for an address, of the letters that keys and resources may have, different for each address."""
    last = re.sub("[^a-z0-9]+", "-", place.rstrip("/").rpartition("/")[2].lower()).strip("-")[:40]
    return f"{last or 'archive'}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"


def table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    """Lines of a Markdown table; cells are escaped."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(map(escape, row))} |" for row in rows]


def picture(path: Path, edge: int = PREVIEW_EDGE) -> str:
    """A picture as Markdown with a data URI of at most `PREVIEW_LIMIT` bytes, as sharp as that and `edge` allow."""
    with Image.open(path) as original:
        small = original.convert("RGB")
    data = ""
    while not data or len(data) > PREVIEW_LIMIT:
        small.thumbnail((edge, edge))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
        data = f"![preview](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})"
        edge = edge * 3 // 4
    return data


class ProgressBar:
    """A progress artifact that is written at most once a second; a server that does not answer stops no run."""

    INTERVAL = 1.0
    """Seconds between two updates: each costs the server about 25 ms."""

    def __init__(self, key: str, description: str) -> None:
        self.key, self.description = key, description
        self._id: UUID | None = None
        self._next = 0.0

    def __call__(self, share: float, *, last: bool = False) -> None:
        """Show `share` of 0 to 1, unless the last update is younger than a second and more will come."""
        if time.monotonic() < self._next and not last:
            return
        with contextlib.suppress(Exception):
            self._write(round(100 * min(max(share, 0.0), 1.0), 1))
        self._next = time.monotonic() + self.INTERVAL

    def _write(self, percent: float) -> None:
        if self._id is None:
            made: Any = create_progress_artifact(progress=percent, key=self.key, description=self.description)
            self._id = made
        else:
            update_progress_artifact(self._id, progress=percent)
