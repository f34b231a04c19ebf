"""Putting a finished folder in the place of another one, in one step."""

import ctypes
import errno
import os
from pathlib import Path

from pipeline.errors import OutputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(new: Path, place: Path) -> None:
    """Move the folder `new` to `place`; what was there, if anything, is at `new` afterwards.

    On Linux this is one atomic `renameat2(RENAME_EXCHANGE)`. Where the file system lacks it, `place` is empty for the
    moment between two renames.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        new.rename(place)
        return
    if not place.is_dir():
        raise OutputError(f"{place} is a file, a result needs a folder there: move it away")
    if not _exchange_atomically(new, place):
        aside = new.with_suffix(".replaced")
        place.rename(aside)
        new.rename(place)
        aside.rename(new)


def _exchange_atomically(a: Path, b: Path) -> bool:
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(b))
