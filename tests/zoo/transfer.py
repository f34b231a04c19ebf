"""Tiles to classes with few labels: from Glorot's normal, and from an encoder that was trained to segment buildings."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.zoo.runs import Run, train

SHIPPED = Path(__file__).parents[2] / "examples" / "bundles" / "buildings"
ENCODERS = ("inception_v3", "inception_resnet_v2", "inception_v1")
"""The first two start from the zoo's segmenters, the last from the shipped bundle, which was trained for longer."""
QUESTIONS = ("building", "area")
FEW = ("20", "100", "")
"""Ends of the tables' names: tiles to train on; all of them at last."""
STARTS = {
    "glorot": ("--steps", "40", "--rate", "0.001"),
    "frozen": ("--steps", "120", "--rate", "0.001", "--freeze", "120"),
    "fine-tuned": ("--steps", "90", "--rate", "0.002", "--freeze", "50", "--encoder-rate", "0.5"),
}
"""How a training starts and goes on: 40 steps of the whole network, none, or 40 behind 50 of the head alone. All but
the first start from the segmenter's encoder."""
BUDGET = (
    *("--task", "classify", "--chip", "96", "--batch", "8", "--warmup", "10"),
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
                    from_ = () if start == "glorot" else ("--encoder-from", str(segmenter_of(encoder, runs)))
                    width = "0.75" if encoder == "inception_v1" else "1"
                    yield Run(
                        f"{encoder}-{table}-{start}",
                        (*shared, "--encoder", encoder, "--width", width, *options, *from_),
                    )


def segmenter_of(encoder: str, runs: Path) -> Path:
    """The bundle whose encoder is the start."""
    return SHIPPED if encoder == "inception_v1" else runs / f"{encoder}-unet"


def train_transfer(data: Path, out: Path) -> None:
    """Everything that the table of transfer learning is made of; needs the segmenters."""
    train(transfer_runs(tiles(data, out), out / "runs"), out / "runs")
