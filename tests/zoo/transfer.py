"""Tiles to classes with few labels: from Glorot's normal, and from an encoder that was trained to segment buildings."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.zoo.runs import Run, train

ENCODERS = ("inception_v3", "inception_resnet_v2")
QUESTIONS = ("building", "area")
FEW = ("20", "100", "")
"""Ends of the tables' names: tiles to train on; all of them at last."""
STARTS = {
    "glorot": ("--rate", "0.001"),
    "frozen": ("--rate", "0.01", "--freeze", "40"),
    "fine-tuned": ("--rate", "0.01", "--freeze", "10", "--encoder-rate", "0.1"),
}
"""What a training does with its encoder; all but the first start from the segmenter's, and hurry with the head."""
BUDGET = (
    *("--task", "classify", "--chip", "96", "--steps", "40", "--batch", "8", "--warmup", "10"),
    *("--class-weights", "balanced", "--precision", "bf16-mixed", "--seed", "0"),
)


def tiles(data: Path, out: Path) -> Path:
    """Images and tables, made once."""
    folder = out / "tiles"
    if not folder.exists():
        script = Path(__file__).parents[2] / "examples" / "drone_tiles.py"
        subprocess.run([sys.executable, script, data / "satellite", folder], check=True)
    return folder


def transfer_runs(folder: Path, runs: Path) -> Iterator[Run]:
    """One for each encoder, question, number of labels and start."""
    for encoder in ENCODERS:
        for question in QUESTIONS:
            for few in FEW:
                table = f"{question}-{few}" if few else question
                shared = ("--images", str(folder / "images"), "--labels", str(folder / f"{table}.csv"), *BUDGET)
                for start, options in STARTS.items():
                    from_ = () if start == "glorot" else ("--encoder-from", str(runs / f"{encoder}-unet"))
                    yield Run(f"{encoder}-{table}-{start}", (*shared, "--encoder", encoder, *options, *from_))


def train_transfer(data: Path, out: Path) -> None:
    """Everything that the table of transfer learning is made of; needs the segmenters."""
    train(transfer_runs(tiles(data, out), out / "runs"), out / "runs")
