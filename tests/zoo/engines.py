"""Speed and memory of every encoder, and of every decoder at every output stride, in OpenVINO bf16.

Graphs are exported first, with random weights; each one is measured in a process of its own that loads nothing else.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from models.inception import ENCODERS
from tests.zoo.segmenters import COMPARED

BANDS, CLASSES = 3, 2


@dataclass(frozen=True)
class Graph:
    """One network at one tile."""

    encoder: str
    decoder: str = "unet"
    stride: int = 1
    tile: int = 1024

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.encoder}-{self.decoder}-{self.stride}-{self.tile}"


def graphs() -> list[Graph]:
    """All that are measured; of decoders two tiles, whose difference is activations alone."""
    decoders = [
        Graph(encoder, decoder, stride, tile)
        for tile in (1024, 2048)
        for encoder in COMPARED
        for decoder in ("unet", "fpn")
        for stride in (1, 2, 4)
    ]
    return list(dict.fromkeys([*map(Graph, ENCODERS), *decoders]))


def export(graph: Graph, folder: Path) -> None:
    """The graph in OpenVINO's form."""
    import torch

    from models.engines.openvino import convert
    from models.export import export_onnx
    from models.init import glorot_normal_
    from models.rewrite import rewritten
    from models.segmenter import create_segmenter
    from models.serve import COMPILED, Serve

    torch.manual_seed(0)
    network = create_segmenter(graph.encoder, CLASSES, decoder=graph.decoder, output_stride=graph.stride)
    network = rewritten(glorot_normal_(network, seed=0), BANDS, COMPILED)
    serve = Serve(network, [110.0] * BANDS, [50.0] * BANDS, ("labels", "confidence")).eval()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        onnx = export_onnx(serve, Path(scratch) / "model.onnx", tile=graph.tile, dtype="uint8")
        convert(onnx, folder)


def export_graphs(_: Path, out: Path) -> None:
    """Every graph that is missing."""
    for graph in graphs():
        folder = out / "graphs" / graph.name
        if not (folder / "model.xml").exists():
            print("exporting", graph.name, flush=True)  # noqa: T201 - progress
            export(graph, folder)


def measure_engines(data: Path, out: Path) -> None:
    """`engines.json`: seconds a tile and most resident bytes, by the graph's name."""
    export_graphs(data, out)
    file = out / "engines.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for graph in graphs():
        if graph.name not in known:
            command = [sys.executable, "-m", "tests.zoo.measure", out / "graphs" / graph.name, str(graph.tile)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            known[graph.name] = json.loads(done.stdout.splitlines()[-1])
            print(graph.name, known[graph.name], flush=True)  # noqa: T201 - progress
            file.write_text(json.dumps(known, indent=1))
