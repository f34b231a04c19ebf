"""Nuclei under the microscope: the shipped bundle on the images that it was not trained on, by `widefield evaluate`."""

import subprocess
import sys
from pathlib import Path

BUNDLE = Path(__file__).parents[2] / "examples" / "bundles" / "nuclei"


def score_nuclei(data: Path, out: Path) -> None:
    """Everything that `evaluate` says, as OUT/nuclei.json."""
    images, result = out / "nuclei", out / "nuclei.json"
    out.mkdir(parents=True, exist_ok=True)
    if not images.exists():
        script = Path(__file__).parents[2] / "examples" / "nuclei.py"
        subprocess.run([sys.executable, script, data / "microscopy", images, "--only", "val"], check=True)
    widefield = str(Path(sys.executable).with_name("widefield"))
    command = [widefield, "evaluate", "--bundle", BUNDLE, "--images", images, "--labels", images, "--json"]
    result.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
