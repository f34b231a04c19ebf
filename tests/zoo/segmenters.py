"""Every encoder with a U-Net, and every decoder at every output stride, after the same small training on buildings."""

import subprocess
import sys
from pathlib import Path

from models.inception import ENCODERS
from tests.zoo.runs import Run, train

BLOCKS = ("1-A", "2-A", "4-B", "2-B", "4-A")
"""Blocks of ground: all that are trained on, and of those held out 2-B and 4-A (48 tiles of 256 pixels)."""
BUDGET = (
    *("--class", "background=#3B4252", "--class", "building=#E4572E", "--chip", "256", "--crop", "192"),
    *("--batch", "4", "--warmup", "30", "--rate", "0.0015", "--foreground", "0.5"),
    *("--precision", "bf16-mixed", "--seed", "0"),
)
COMPARED = ("inception_v1", "inception_resnet_v2")
"""Encoders with which decoders are compared."""


def scenes(data: Path, out: Path) -> Path:
    """The labelled drone tiles as scenes, made once."""
    folder = out / "scenes"
    if not folder.exists():
        script = Path(__file__).parents[2] / "examples" / "drone_scenes.py"
        source = data / "satellite"
        subprocess.run([sys.executable, script, source, folder, "--only", *BLOCKS], check=True)
    return folder


def encoder_runs(folder: Path) -> list[Run]:
    """One for each encoder."""
    shared = ("--images", str(folder), "--labels", str(folder), *BUDGET, "--steps", "150", "--output-stride", "1")
    return [Run(f"{encoder}-unet", (*shared, "--encoder", encoder)) for encoder in ENCODERS]


def decoder_runs(folder: Path, runs: Path) -> list[Run]:
    """One for each decoder and output stride on the frozen encoders of `COMPARED`, which were trained with a U-Net."""
    shared = ("--images", str(folder), "--labels", str(folder), *BUDGET, "--steps", "40", "--freeze", "40")
    return [
        Run(
            f"{encoder}-{decoder}-{stride}",
            (
                *(*shared, "--encoder", encoder, "--encoder-from", str(runs / f"{encoder}-unet")),
                *("--decoder", decoder, "--output-stride", str(stride)),
            ),
        )
        for encoder in COMPARED
        for decoder in ("unet", "fpn")
        for stride in (1, 2, 4)
    ]


def train_encoders(data: Path, out: Path) -> None:
    """Everything that the table of encoders is made of."""
    train(encoder_runs(scenes(data, out)), out / "runs")


def train_decoders(data: Path, out: Path) -> None:
    """Everything that the table of decoders is made of; needs the encoders."""
    train(decoder_runs(scenes(data, out), out / "runs"), out / "runs")


def train_nuclei(data: Path, out: Path) -> None:
    """Another kind of image: nuclei under the microscope, with a pyramid on the largest encoder."""
    folder = out / "nuclei"
    if not folder.exists():
        script = Path(__file__).parents[2] / "examples" / "nuclei.py"
        subprocess.run([sys.executable, script, data / "microscopy", folder], check=True)
    arguments = (
        *("--images", str(folder), "--labels", str(folder), "--class", "background", "--class", "nucleus"),
        *("--chip", "256", "--crop", "192", "--steps", "100", "--batch", "4", "--warmup", "20", "--rate", "0.0015"),
        *("--encoder", "inception_resnet_v2", "--decoder", "fpn", "--output-stride", "4"),
        *("--precision", "bf16-mixed", "--seed", "0"),
    )
    train([Run("nuclei", arguments)], out / "runs")
