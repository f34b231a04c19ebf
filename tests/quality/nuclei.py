"""Nuclei under the microscope: the shipped bundle on the images that it was not trained on, by `widefield evaluate`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.quality.floor import floor

BUNDLE = Path(__file__).parents[2] / "examples" / "bundles" / "nuclei"


def score_nuclei(data: Path, out: Path) -> None:
    """Everything that `evaluate` says, and what needs no learning, as OUT/nuclei.json."""
    images, result = out / "nuclei", out / "nuclei.json"
    out.mkdir(parents=True, exist_ok=True)
    if not images.exists():
        script = Path(__file__).parents[2] / "examples" / "nuclei.py"
        subprocess.run([sys.executable, script, data / "microscopy", images, "--only", "val"], check=True)
    widefield = str(Path(sys.executable).with_name("widefield"))
    command = [widefield, "evaluate", "--bundle", BUNDLE, "--images", images, "--labels", images, "--json"]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    result.write_text(json.dumps({**said, "floor": floor(_pictures(images))}))


def _pictures(images: Path) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int32]]]:
    """Grey values and true ids (H, W) of each image."""
    for file in sorted(images.glob("*.png")):
        grey = np.asarray(Image.open(file), np.float64).mean(-1)
        ids = np.zeros(grey.shape, np.int32)
        for number, mask in enumerate(sorted((images / f"{file.stem}-objects").iterdir()), 1):
            ids[np.asarray(Image.open(mask)) > 0] = number
        yield grey, ids
