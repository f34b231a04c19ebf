"""File to mask, the same weights on both sides: this pipeline, MONAI's sliding window, and what else people use.

`python -m tests.bench against-v1 [window|whole|smoke [ROUNDS]]`, likewise `against-resnet`; `window` is a part of the
scene that takes a few minutes, `whole` all of it, `smoke` shows that everything runs and records nothing. For each tile
the part is one that its lattice, and MONAI's, cover without much waste, so that the ratio is that of a large scene.
"""

import math
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import rasterio
import rasterio.windows

from tests.bench.common import BUILDINGS, measured, mosaic, record, spread, table, verdict
from tests.bench.networks import he_bundle

WHOLE = (0, 0, 4096, 8192)
LAYOUTS = {"MONAI, contiguous": False, "MONAI, channels last": True}


OTHERS = {
    "rasterio + torch, no overlap": {"job": "loops.plain", "halo": 0},
    "rasterio + torch, 64 pixels cut off": {"job": "loops.plain", "halo": 64},
    "geo-inference": {"job": "loops.geo_inference"},
}
"""Measured once, contiguous or channels last as they do it themselves."""


@dataclass(frozen=True)
class Case:
    """One tile of ours against the others on one part of the scene."""

    tile: int
    window: tuple[int, int, int, int]
    wanted: dict[str, float]
    """Times ours that the others take, at least."""
    others: tuple[str, ...] = ()
    """Loops other than MONAI's that are measured too: keys of `OTHERS`."""


SMALL = {"MONAI, contiguous": 4.8, "MONAI, channels last": 3.5}
LARGE = {"MONAI, contiguous": 5.5, "MONAI, channels last": 4.0}
SMOKE = (Case(512, (0, 0, 512, 896), SMALL, tuple(OTHERS)),)
CASES = {
    "buildings": {
        "window": (Case(1152, (0, 0, 4096, 4096), SMALL),),
        "whole": (Case(1152, WHOLE, SMALL),),
    },
    "inception_v1": {
        "window": (Case(1152, (0, 0, 4096, 4096), SMALL, tuple(OTHERS)), Case(2048, (0, 0, 3904, 3904), LARGE)),
        "whole": (Case(1152, WHOLE, SMALL, tuple(OTHERS)), Case(2048, (0, 0, 3904, 7744), LARGE)),
    },
    "inception_resnet_v2": {
        "window": (Case(1152, (0, 0, 2048, 4096), SMALL, tuple(OTHERS)[:2]), Case(2048, (0, 0, 2048, 3904), LARGE)),
        "whole": (Case(1152, WHOLE, SMALL, tuple(OTHERS)[:2]), Case(2048, (0, 0, 3904, 7744), LARGE)),
    },
}


def run(name, network, size="window", rounds=1):
    """Markdown: seconds of each, and how many times ours the others take."""
    if find_spec("monai") is None:
        return "Left out: MONAI is not installed; `make bench` installs it (the extra `bench`).\n"
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        bundle = BUILDINGS if network == "buildings" else he_bundle(scratch, network)
        cases = SMOKE if size == "smoke" else CASES[network][size]
        facts = [_case(case, bundle, Path(scratch), int(rounds)) for case in cases]
    rows = [row for case, fact in zip(cases, facts, strict=True) for row in _rows(case, fact)]
    told = [
        (f"file to mask, {network}, tile {row[0]}, times as fast as {row[1]}", f"at least {row[9]}", row[7])
        for row in rows
        if row[9]
    ]
    if size != "smoke":
        record(name, {"network": network, "size": size, "cases": facts}, told)
    head = ["tile", "what", "network pixels a pixel", "wall s", "of it loading", "CPU s", "Mpx/s", "times ours"]
    return table([*head, "without loading", "wanted", "reached", "labels that differ"], rows)


def _case(case, bundle, scratch, rounds):
    scene = cut(mosaic(scratch), case.window, scratch / f"{case.tile}.tif")
    ours = {"job": "segment", "scene": str(scene), "bundle": str(bundle), "engine": "auto", "tile": case.tile}
    ours |= {"stage": None, "executor": "serial"}
    measured(ours | {"only_plan": True}, scratch)  # compiles the engine, once for each machine
    facts = {"pixels": case.window[2] * case.window[3], "rounds": []}
    for _ in range(rounds):
        facts["rounds"].append(_round(ours, scene, bundle, scratch))
    if case.others:
        facts["others"] = _others(case.others, scene, bundle, scratch)
    return facts


def _round(ours, scene, bundle, scratch):
    """One of each, in turn, so that a busy machine hits all alike."""
    mask = str(scratch / "mask.tif")
    keys = ("wall", "cpu", "engine", "grid", "bottleneck")
    facts = {"widefield": measured(ours | {"keep": mask}, scratch, *keys)}
    if facts["widefield"]["grid"]["tile"] != ours["tile"]:
        raise RuntimeError(f"planned {facts['widefield']['grid']}, not tile {ours['tile']}: choose another window")
    for name, channels_last in LAYOUTS.items():
        job = {"job": "sliding.job", "scene": str(scene), "bundle": str(bundle)}
        facts[name] = measured(job | {"channels_last": channels_last, "ours": mask}, scratch, "wall", "cpu", "differ")
    return facts


def _others(names, scene, bundle, scratch):
    address = {"scene": str(scene), "bundle": str(bundle), "ours": str(scratch / "mask.tif")}
    known = [name for name in names if name != "geo-inference" or find_spec("geo_inference")]
    return {name: measured(OTHERS[name] | address, scratch, "wall", "cpu", "differ") for name in known}


def cut(scene, window, path):
    """A part of a scene as a file of its own, stored as the scene is."""
    row, col, height, width = window
    place = rasterio.windows.Window(col, row, width, height)
    with rasterio.open(scene) as source:
        profile = source.profile | {"height": height, "width": width, "transform": source.window_transform(place)}
        with rasterio.open(path, "w", **profile) as file:
            file.write(source.read(window=place))
    return path


def work(shape, roi, overlap):
    """Network pixels a pixel of MONAI's windows over an image of `shape`."""
    step = max(int(roi * (1 - overlap)), 1)
    counts = (max(-(-(length - roi) // step), 0) + 1 for length in shape)
    return math.prod(count * roi / max(length, roi) for count, length in zip(counts, shape, strict=True))


def _rows(case, fact):
    rounds, megapixels = fact["rounds"], fact["pixels"] / 1e6
    ours = [one["widefield"] for one in rounds]
    walls, loading = [one["wall"] for one in ours], [one["bottleneck"]["seconds"]["start"] for one in ours]
    speed = f"{megapixels / median(walls):.2f}"
    engine = ours[0]["engine"]
    name = f"widefield ({engine['backend']} {engine['precision']})"
    seconds = [spread(walls), spread(loading), spread(one["cpu"] for one in ours)]
    yield [case.tile, name, f"{ours[0]['grid']['overhead']:.2f}", *seconds, speed, "", "", "", "", ""]
    for other in (*LAYOUTS, *fact.get("others", {})):
        runs = [one[other] for one in rounds] if other in LAYOUTS else [fact["others"][other]]
        theirs = [one["wall"] for one in runs]
        alike = walls if other in LAYOUTS else [median(walls)]
        times = [t / w for t, w in zip(theirs, alike, strict=True)]
        bare = [t / (w - median(loading)) for t, w in zip(theirs, alike, strict=True)]
        wanted = case.wanted.get(other, "")
        reached = verdict(median(times), wanted, least=True) if wanted else ""
        seconds = [spread(theirs), "", spread(one["cpu"] for one in runs), f"{megapixels / median(theirs):.2f}"]
        differ = f"{100 * runs[0]['differ']:.2f} %"
        effort = f"{work(case.window[2:], 512, 0.25):.2f}" if other in LAYOUTS else ""
        yield [case.tile, other, effort, *seconds, spread(times, 2), spread(bare, 2), wanted, reached, differ]


BENCHES = {
    "monai": partial(run, "monai", "buildings"),
    "against-v1": partial(run, "against-v1", "inception_v1"),
    "against-resnet": partial(run, "against-resnet", "inception_resnet_v2"),
}
