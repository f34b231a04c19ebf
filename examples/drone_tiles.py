"""The labelled drone tiles as a classification set: PNG images, and a table of classes for each question.

Usage:
    python examples/drone_tiles.py DATA OUT [--few 20 100]

DATA holds `oam_buildings_z21.zip` and `oam_buildings_z21_split.csv`. OUT gets `images/` and, with the columns
`path,class,split`, `building.csv` (is there a building in the tile: at least 1 % of its pixels) and `area.csv` (which
of the three areas it shows). `building-20.csv` and the like keep 20 of the tiles to train on, all classes alike, and
every tile held out; the smaller sets are parts of the larger ones.

Imagery: OpenAerialMap, CC-BY 4.0, contributors of Open Imagery Network. Labels: OpenStreetMap contributors, ODbL 1.0.
"""

import argparse
import csv
import io
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

Row = Mapping[str, str]

BUILT = 0.01
"""Least share of building pixels of a tile that counts as built."""
QUESTIONS: dict[str, Callable[[Row], str]] = {
    "building": lambda row: "building" if float(row["building_frac"]) >= BUILT else "none",
    "area": lambda row: row["name"],
}


def few(rows: Sequence[Row], question: Callable[[Row], str], count: int) -> list[Row]:
    """`count` rows to train on, as many of each class as there are, and all held-out rows; always the same ones."""
    shuffled = sorted((row for row in rows if row["split"] == "train"), key=lambda row: row["path"])
    random.Random(0).shuffle(shuffled)  # noqa: S311 - a sample, not a secret
    names = sorted({question(row) for row in shuffled})
    turns = [[row for row in shuffled if question(row) == name] for name in names]
    mixed = [turn[index] for index in range(len(shuffled)) for turn in turns if index < len(turn)]
    return [*mixed[:count], *(row for row in rows if row["split"] == "val")]


def write_table(path: Path, rows: Sequence[Row], question: Callable[[Row], str]) -> None:
    """One line a tile."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("path", "class", "split"))
        writer.writerows((name_of(row), question(row), row["split"]) for row in rows)


def name_of(row: Row) -> str:
    """The image's name below `images/`."""
    return f"{row['area']}-{Path(row['path']).stem}.png"


def write_images(archive: zipfile.ZipFile, rows: Sequence[Row], folder: Path) -> None:
    """RGB PNGs: the tiles are JPEG or PNG, with and without alpha, whatever their names say."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with Image.open(io.BytesIO(archive.read(row["path"]))) as picture:
            picture.convert("RGB").save(folder / name_of(row))


def main() -> None:
    """Parses the arguments and writes images and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the archive and its table")
    parser.add_argument("out", type=Path, help="folder for images and tables")
    parser.add_argument("--few", nargs="*", type=int, default=[20, 100], help="sizes of the small training sets")
    arguments = parser.parse_args()
    with (arguments.data / "oam_buildings_z21_split.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with zipfile.ZipFile(arguments.data / "oam_buildings_z21.zip") as archive:
        write_images(archive, rows, arguments.out / "images")
    for name, question in QUESTIONS.items():
        write_table(arguments.out / f"{name}.csv", rows, question)
        for count in arguments.few:
            write_table(arguments.out / f"{name}-{count}.csv", few(rows, question, count), question)
    print(f"{len(rows)} images, {len(QUESTIONS) * (1 + len(arguments.few))} tables in {arguments.out}")


if __name__ == "__main__":
    main()
