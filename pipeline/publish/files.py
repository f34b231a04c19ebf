"""Published files appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import OutputError
from pipeline.shards import partial_name, sync

SIDECAR = ".aux.xml"
"""What GDAL appends to a raster's name for the facts that the raster's own format cannot hold."""


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a draft of `out`, in a folder of its own beside it; on leaving, the draft takes the place of `out`.

    At any moment `out` is the old file or the new one, durable and whole. Whatever fails, the folder is removed with
    all that was written into it. A draft's sidecar moves with it; without one, an old sidecar goes.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    folder = partial_name(out.with_name(f".{out.name}"))
    try:
        folder.mkdir(parents=True)
        draft = folder / out.name
        yield draft
        _publish(draft, out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}. Choose an output folder with rights and space") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(out: Path, text: str) -> None:
    """Replace `out` by `text` in UTF-8."""
    with replacing(out) as draft:
        draft.write_text(text, encoding="utf-8")


def _publish(draft: Path, out: Path) -> None:
    sidecar, old = Path(f"{draft}{SIDECAR}"), Path(f"{out}{SIDECAR}")
    if sidecar.exists():
        sync(sidecar)
        sidecar.replace(old)
    else:
        old.unlink(missing_ok=True)
    sync(draft)
    draft.replace(out)
    sync(out.parent)
