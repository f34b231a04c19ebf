"""What a halo buys: tiled against whole-image prediction, by the production grid, with eager PyTorch in fp32."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch

from models.bundle import open_bundle
from models.engines.base import Batch
from models.engines.torch import laid_out, predict
from models.serve import served
from pipeline import resources
from pipeline.fit import choose_bands
from pipeline.grid import TileGrid, Window
from pipeline.scene import SceneAddress, open_scene
from tests.bench.common import ROOT, record, table

HALOS = (0, 32, 64, 96, 128, 192)
LARGEST = 2048
"""Edge of the part of a scene that is predicted whole, in pixels."""


def run(bundle=ROOT / "examples/bundles/buildings", *scenes, tiles=(512, 1024)):
    """Markdown: share of pixels whose label differs, by scene, tile and halo."""
    opened = open_bundle(Path(bundle))
    serve = laid_out(served(opened), "fp32")
    chosen = [Path(scene) for scene in scenes] or sorted((ROOT / "examples/scenes").glob("*.tif"))
    facts = [fact for scene in chosen for fact in _scene(serve, opened.spec, scene, tiles)]
    record("halo", {"bundle": opened.digest, "rows": facts})
    head = ["scene", "tile", "halo", "labels that differ", "confidence off by more than 0.05", "network pixels a pixel"]
    return table(head, map(_row, facts))


def _scene(serve, spec, path, tiles):
    with open_scene(SceneAddress(str(path))) as scene:
        address = choose_bands(scene, spec)
    with open_scene(address) as scene:
        window = Window(0, 0, *(min(length, LARGEST) // 32 * 32 for length in (scene.height, scene.width)))
        pixels, valid = scene.read(window)
        scale, offset = (np.asarray(v, np.float32) for v in (scene.radiometry.scale, scene.radiometry.offset))
    torch.set_num_threads(resources.cores())

    def prediction(pixels, valid):
        return predict(serve, Batch(pixels[None], valid[None], scale, offset))[0]

    whole = prediction(pixels, valid)
    name = f"{path.stem}, {window.height} x {window.width}"
    for tile, halo in product(tiles, HALOS):
        if 4 * halo <= tile <= min(window.height, window.width):
            grid = TileGrid(window.height, window.width, tile, halo)
            tiled = _tiled(prediction, grid, pixels, valid)
            yield {"scene": name, "tile": tile, "halo": halo, **_differ(tiled, whole, valid), "network": _work(grid)}
            sys.stderr.write(f"{name} tile {tile} halo {halo}\n")


def _tiled(prediction, grid, pixels, valid):
    """Planes (P, H, W), tile by tile; each core is taken from its own tile."""
    planes = None
    for core in grid.cores(grid.scene):
        at = core.tile.slices
        answer = prediction(np.ascontiguousarray(pixels[:, *at]), np.ascontiguousarray(valid[at]))
        planes = np.empty((len(answer), *valid.shape), np.uint8) if planes is None else planes
        planes[:, *core.owned.slices] = answer[:, *core.kept.slices]
    return planes


def _differ(tiled, whole, valid):
    labels = (tiled[0] != whole[0]) & valid
    confidence = (np.abs(tiled[-1].astype(int) - whole[-1]) > 0.05 * 254) & valid
    return {"labels": float(labels.sum() / valid.sum()), "confidence": float(confidence.sum() / valid.sum())}


def _work(grid):
    """Of a scene so large that its rims do not count."""
    return (grid.tile / grid.core) ** 2


def _row(fact):
    shares = [f"{100 * fact[key]:.4f} %" for key in ("labels", "confidence")]
    return [fact["scene"], fact["tile"], fact["halo"], *shares, f"{fact['network']:.2f}"]
