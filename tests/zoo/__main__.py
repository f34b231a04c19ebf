"""Measure the networks: `python -m tests.zoo [STEP ...] [--out FOLDER]`.

Trainings and measurements are kept in FOLDER and not made twice; `tables` writes them into docs/models.md. All of it
takes about two hours on two cores. WIDEFIELD_DATA names the folder of real imagery.
"""

import argparse
import os
from pathlib import Path

from tests.zoo.engines import export_graphs, measure_engines
from tests.zoo.segmenters import train_decoders, train_encoders, train_nuclei
from tests.zoo.tables import write_tables
from tests.zoo.transfer import train_transfer

STEPS = {"encoders": train_encoders, "decoders": train_decoders, "nuclei": train_nuclei, "transfer": train_transfer}
STEPS |= {"graphs": export_graphs, "engines": measure_engines, "tables": write_tables}


def main() -> None:
    """Do the steps that are named, in the order in which they need each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    chosen = parser.parse_args()
    data = Path(os.environ.get("WIDEFIELD_DATA", "../shared/data"))
    for name, step in STEPS.items():
        if name in chosen.steps:
            step(data.resolve(), chosen.out.resolve())


if __name__ == "__main__":
    main()
