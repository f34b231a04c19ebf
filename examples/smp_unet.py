"""A U-Net of segmentation-models-pytorch as ONNX, and what `widefield bundle import` has to be told of it.

Usage:
    PYTHONPATH=build/parity python examples/smp_unet.py OUT [--weights FILE] [--encoder NAME] [--like BUNDLE]
    widefield bundle import --onnx OUT/model.onnx --spec OUT/spec.yaml --out BUNDLE --probes SCENE.tif

`make parity` installs the package. FILE is a checkpoint of PyTorch's whose entry `model` is the state of
`smp.Unet(NAME, classes=2)`; without one, the network keeps the weights that it is created with. Bands and classes are
those of the bundle BUNDLE, whose training pixels it was normalised by.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

BUILDINGS = Path(__file__).parent / "bundles" / "buildings"


def network(encoder: str, classes: int, bands: int, weights: Path | None) -> nn.Module:
    """The package's own U-Net, in eval mode."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # operators that a torch for CPUs lacks
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    module: nn.Module = smp.Unet(encoder, encoder_weights=None, in_channels=bands, classes=classes)
    if weights is not None:
        module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["model"])
    return module.eval()


def write_onnx(module: nn.Module, bands: int, path: Path) -> None:
    """Images of any number and size (N, bands, H, W), multiples of 32, to logits (N, classes, H, W)."""
    axes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            module,
            (torch.zeros(2, bands, 128, 192),),
            path,
            dynamo=True,
            opset_version=20,
            dynamic_shapes=(axes,),
            input_names=["images"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )


def said(encoder: str, like: dict[str, Any]) -> dict[str, Any]:
    """What a spec.yaml says of it."""
    keys = ("name", "mean", "std", "low", "high", "unit")
    return {
        "name": f"smp-unet-{encoder}",
        "licence": like["licence"],
        "attribution": like["attribution"],
        "activation": "logits",
        "dtypes": like["dtypes"],
        "bands": [{key: band[key] for key in keys} for band in like["bands"]],
        "classes": [{"name": each["name"], "color": each["color"]} for each in like["classes"]],
        "resolution": like["resolution"],
    }


def main() -> None:
    """Parses the arguments and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for model.onnx and spec.yaml")
    parser.add_argument("--weights", type=Path, help="checkpoint of PyTorch's, state under `model`")
    parser.add_argument("--encoder", default="resnet34", help="one of segmentation-models-pytorch's")
    parser.add_argument("--like", type=Path, default=BUILDINGS, help="bundle whose bands and classes it has")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    like = json.loads((arguments.like / "spec.json").read_text())
    module = network(arguments.encoder, len(like["classes"]), len(like["bands"]), arguments.weights)
    write_onnx(module, len(like["bands"]), arguments.out / "model.onnx")
    text = yaml.safe_dump(said(arguments.encoder, like), sort_keys=False)
    (arguments.out / "spec.yaml").write_text(text)


if __name__ == "__main__":
    main()
