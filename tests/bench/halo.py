"""What a halo buys: tiled against whole-image prediction, by the production grid, in fp32 (`pipeline.probe`)."""

import sys
from pathlib import Path

from models.bundle import open_bundle
from models.engines.whole import predictor
from pipeline import resources
from pipeline.grid import TileGrid
from pipeline.probe import compared, crop_of
from pipeline.scene import SceneAddress
from pipeline.seams import REACH
from tests.bench.common import ROOT, record, table

HALOS = (0, 32, 64, 96, 128, 192)
LARGEST = 2048
"""Edge of the part of a scene that is predicted whole, in pixels."""


def run(bundle=ROOT / "examples/bundles/buildings", *scenes, tiles=(512, 1024)):
    """Markdown: share of pixels whose label differs, near borders and of all, by scene, tile and halo."""
    opened = open_bundle(Path(bundle))
    whole = predictor(opened, resources.cores())
    chosen = [Path(scene) for scene in scenes] or sorted((ROOT / "examples/scenes").glob("*.tif"))
    facts = [fact for scene in chosen for fact in _scene(whole, opened.spec, scene, tiles)]
    record("halo", {"bundle": opened.digest, "rows": facts})
    head = ["scene", "tile", "halo", f"labels that differ within {REACH} px of borders", "of all"]
    head += ["confidence off by more than 0.05", "network pixels a pixel"]
    return table(head, map(_row, facts))


def _scene(whole, spec, path, tiles):
    crop = crop_of(SceneAddress(str(path)), spec, LARGEST)
    everything = whole(crop.batch(crop.window))[0]
    for tile in tiles:
        for halo in (halo for halo in HALOS if 4 * halo <= tile <= min(crop.shape)):
            row = compared(whole, crop, everything, TileGrid(*crop.shape, tile, halo, spec.stride), spec)
            sys.stderr.write(f"{crop.name} tile {tile} halo {halo}\n")
            yield {"scene": f"{crop.name}, {crop.shape[0]} x {crop.shape[1]}", **row.to_json(), "cells": row.cells}


def _row(fact):
    return [fact["scene"], *fact["cells"]]
