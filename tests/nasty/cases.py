"""The files of the archive, what is known about each, and what became of it."""

import csv
import subprocess
from dataclasses import dataclass
from pathlib import Path

ARCHIVES = ("gdal_autotest", "image_tiff", "rasterio")


@dataclass(frozen=True)
class Case:
    """One file, and what rasterio did with it."""

    archive: str
    path: str
    """Below the folder that all archives are unpacked into."""
    read: str
    """`ok`, `skip ... px`, or rasterio's error."""
    tags: str

    @property
    def readable(self):
        """Whether rasterio reads all of it."""
        return self.read == "ok"


@dataclass(frozen=True)
class Outcome:
    """What became of one file: `segmented`, `refused` with a reason, or a `fault` of ours."""

    path: str
    status: str
    reason: str
    """Empty for a file that was segmented and agrees with its source."""
    seconds: float
    peak: int
    """Largest resident set of its processes, in bytes."""

    def __str__(self):
        line = f"{self.status:9} {self.seconds:5.1f} s {self.peak >> 20:5} MiB  {self.path}"
        return f"{line}: {self.reason}" if self.reason else line


def all_cases(folder):
    """Every row of `expected.csv`, in its order."""
    with (folder / "expected.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [Case(row["archive"], row["path"], row["rasterio_1_4_4_read"], row["tags"]) for row in rows]


def unpack(folder, target, members=()):
    """The archives below `target`: all of them, or only `members`, each one named as in `expected.csv`."""
    Path(target).mkdir(parents=True, exist_ok=True)
    for archive in ARCHIVES:
        wanted = [name for name in members if name.startswith(f"{archive}/")]
        if wanted or not members:
            packed = folder / f"{archive}.tar.zst"
            command = ["tar", "--use-compress-program", "zstd -d --long=27", "-xf", packed, "-C", target, *wanted]
            subprocess.run(command, check=True)
    return Path(target)
