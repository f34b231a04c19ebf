"""Buildings from drone images: our network and segmentation-models-pytorch's, from scratch, on the same batches.

Each training is a process of its own with one thread: `python -m tests.quality.buildings NETWORK SEED DATA OUT`.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from models.config import TrainConfig
from models.dataset import measure_bands, open_chips
from models.journal import Log
from models.segmenter import create_segmenter
from models.start import initialise
from models.train import fit, make_fabric
from models.validation import score
from pipeline.chips import write_chips
from pipeline.labels import list_images
from pipeline.resources import cores

SEEDS = (0,)
BUDGET = {"steps": 600, "batch": 8, "crop": 256, "lr": 1.5e-3, "warmup": 60, "foreground": 0.25}
"""Both networks', beside the default augmentation, loss and optimiser."""


def ours(encoder: str, config: TrainConfig) -> nn.Module:
    """A U-Net on one of our encoders, as `widefield train` makes it by default."""
    network = create_segmenter(encoder, 2, output_stride=config.output_stride)
    initialise(network, config)
    return network


def theirs(encoder: str) -> nn.Module:
    """segmentation-models-pytorch's U-Net as it is published, with its own initialisation."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # operators that a torch for CPUs lacks
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import segmentation_models_pytorch as smp

    return smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=2)


NETWORKS = {
    "inception_v1": lambda config: ours("inception_v1", config),
    "smp-resnet34": lambda _: theirs("resnet34"),
}


def train_buildings(data: Path, out: Path) -> None:
    """Every network with every seed, as many at once as there are cores."""
    _chips(data, out)
    runs = [(name, seed) for seed in SEEDS for name in NETWORKS if not _result(out, name, seed).exists()]

    def one(run: tuple[str, int]) -> None:
        command = [sys.executable, "-m", "tests.quality.buildings", *map(str, run), str(data), str(out)]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(one, runs))


def _result(out: Path, name: str, seed: int) -> Path:
    return out / f"{name}-{seed}" / "result.json"


def _chips(data: Path, out: Path) -> Path:
    """All labelled drone tiles; their names say which ground is trained on."""
    scenes, chips = out / "scenes", out / "chips.zarr"
    if not scenes.exists():
        script = Path(__file__).parents[2] / "examples" / "drone_scenes.py"
        subprocess.run([sys.executable, script, data / "satellite", scenes], check=True)
    if not chips.exists():
        write_chips(list_images(scenes), scenes, chips, classes=("background", "building"))
    return chips


def train_one(name: str, seed: int, data: Path, out: Path) -> None:
    """Train one network and score it on the validation ground."""
    folder = _result(out, name, seed).parent
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(
        chips=_chips(data, out),
        out=folder,
        seed=seed,
        threads=1,
        precision="bf16-mixed",
        validate_every=10_000,
        **BUDGET,
    )
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    chips, fabric = open_chips(config.chips), make_fabric(config)
    bands = measure_bands(chips, chips.indices("train"), config.units)
    module = NETWORKS[name](config)
    kept = fit(config, chips, bands, module, Log(folder / "train.jsonl", lambda _: None), fabric)
    scorer = score(kept, chips, bands, chips.indices("val"), fabric)
    result = {
        "network": name,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "val": scorer.result(),
        "blocks": {block: counts.tolist() for block, counts in scorer.blocks.items()},
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    train_one(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
