"""The files below a place, with what the system says about each: one listing, no request for a single file."""

import os
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.outputs import MASK

Infos = dict[str, dict[str, Any]]
"""What a listing says about each file, by its path or address: `size`, and `mtime` or `ETag`."""
Problem = tuple[str, str]
"""(name or path, message)."""


def local_files(root: Path, out: Path | None) -> tuple[Infos, list[Problem]]:
    """All files below `root` by absolute path, and the folders that cannot be read.

    Hidden folders, folders that hold a result, and `out` where it lies below are left out. Links to folders are not
    followed: they may lead out, or round in a ring.
    """
    infos: Infos = {}
    problems: list[Problem] = []
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            problems.append((folder, f"cannot be listed: {error.strerror}"))
            continue
        if any(entry.name == MASK for entry in entries):
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith(".") and (out is None or entry.path != str(out)):
                    waiting.append(entry.path)
            elif info := _info(entry):
                infos[entry.path] = info
    return infos, problems


def _info(entry: "os.DirEntry[str]") -> dict[str, Any] | None:
    """What is known of a file; None for what is no file: a link to a folder, a device, a pipe."""
    try:
        if not entry.is_file() and not entry.is_symlink():
            return None
        if entry.is_symlink() and entry.is_dir():
            return None
        stat = entry.stat(follow_symlinks=entry.is_file())
    except OSError:
        return None
    return {"size": stat.st_size, "mtime": stat.st_mtime_ns / 1e9, "mtime_ns": stat.st_mtime_ns}


def remote_files(root: str) -> tuple[Infos, list[Problem]]:
    """All files below an fsspec address by their own addresses.

    Raises:
        UsageError: nothing answers there, or it is no address that fsspec knows.
    """
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(root)
        found = files.find(path, detail=True)
    except Exception as error:
        raise UsageError(f"{root} cannot be listed: {reason(error)}") from error
    prefix = path.rstrip("/")
    infos = {root + name.removeprefix(prefix): info for name, info in found.items() if name.startswith(prefix + "/")}
    if not infos:
        raise UsageError(f"{root}: nothing is there")
    return infos, []


def reason(error: Exception) -> str:
    """One line that says what an exception means."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
