"""How good trainings are: `python -m tests.quality [STEP ...] [--out FOLDER]`; writes docs/quality.md.

`buildings` trains our network and segmentation-models-pytorch's, from scratch, in the same loop on the same batches.
`nuclei` scores the shipped bundle. Trainings are kept in FOLDER and not made twice. WIDEFIELD_DATA names the folder of
real imagery; `make quality` brings the other package.
"""

import argparse
import os
from pathlib import Path

from tests.quality.buildings import train_buildings
from tests.quality.nuclei import score_nuclei
from tests.quality.tables import write_tables

STEPS = {"buildings": train_buildings, "nuclei": score_nuclei, "tables": write_tables}


def main() -> None:
    """Do the steps that are named, in the order in which they need each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    chosen = parser.parse_args()
    data = Path(os.environ.get("WIDEFIELD_DATA", "../shared/data"))
    for name, step in STEPS.items():
        if name in chosen.steps:
            step(data.resolve(), chosen.out.resolve())


if __name__ == "__main__":
    main()
