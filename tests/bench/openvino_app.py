"""What OpenVINO's own `benchmark_app` gets out of the very graph, beside our engine and the pipeline around it.

`python -m tests.bench openvino-v1` or `openvino-resnet` [ROUNDS [SECONDS [smoke]]]: in turn, on tiles of 1152 pixels.
The app is asked with every number of streams that shares the cores evenly, pinned and not; the best one counts.
"""

import re
import subprocess
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

from models.bundle import open_bundle
from models.engines.base import EngineRecord
from models.engines.cache import Cache
from models.engines.openvino import GRAPH, HINTS
from models.engines.prepare import graph_fields
from tests.bench.common import measured, mosaic, record, spread, table, verdict, watch
from tests.bench.networks import he_bundle

TILE = 1152
WINDOWS = {"inception_v1": (0, 0, 4096, 4096), "inception_resnet_v2": (0, 0, 3072, 4096)}
"""Parts of the scene that cores cover without waste."""
SMOKE = {"window": (0, 0, 512, 896), "tile": 512}
WANTED = {"engine": 0.95, "inception_v1": 0.95, "inception_resnet_v2": 0.97}


def run(name, network, rounds=2, seconds=30, size=""):
    """Markdown: megapixels of the network a second of all three."""
    chosen = SMOKE if size == "smoke" else {"window": WINDOWS[network], "tile": TILE}
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        bundle = he_bundle(scratch, network)
        job = {
            "scene": str(mosaic(Path(scratch))),
            "bundle": str(bundle),
            "engine": "openvino",
            "stage": True,
            **chosen,
        }
        answer = watch(job | {"job": "segment", "only_plan": True, "out": f"{scratch}/plan"}).answer
        engine = EngineRecord.from_json(answer["engine"])
        facts = [_round(job, bundle, engine, float(seconds), scratch) for _ in range(int(rounds))]
    rows, told = _table(network, engine, facts)
    if size != "smoke":
        record(name, {"engine": engine.version, "rounds": facts}, told)
    head = ["what", "streams", "threads pinned", "network Mpx/s", "share", "wanted", "reached"]
    return table(head, rows)


def _round(job, bundle, engine, seconds, scratch):
    apps = {
        f"{streams} {pinned}": benchmark_app(graph_of(bundle, engine), engine, streams, pinned, seconds)
        for streams, pinned in product(_streams(engine.threads), ("NO", "YES"))
    }
    ours = measured(job | {"job": "engine", "rounds": 1}, scratch, "rounds", "tiles")
    one = ours["rounds"][0]
    walls = {part: ours["tiles"] / one[part]["wall"] for part in ("alone", "phase")}
    return {"apps": apps, "engine": walls["alone"], "pipeline": walls["phase"], "tiles": ours["tiles"]}


def _streams(threads):
    return [streams for streams in (1, 2, 4, 8, 16) if threads % streams == 0]


def graph_of(bundle, engine):
    """The file of the graph that an engine runs."""
    entry = Cache().get("graph", graph_fields(open_bundle(bundle), engine.request))
    return entry.path / GRAPH


def benchmark_app(graph, engine, streams, pinned, seconds):
    """Tiles a second, as the app measures them with as many requests in flight as it likes."""
    program = Path(sys.executable).with_name("benchmark_app")
    command = [program, "-m", graph, "-d", "CPU", "-hint", "none", "-api", "async", "-t", f"{seconds:.0f}"]
    command += [
        "-nstreams",
        str(streams),
        "-nthreads",
        str(engine.threads),
        "-infer_precision",
        HINTS[engine.precision],
    ]
    command += ["-pin", pinned]
    told = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    return engine.batch * float(re.search(r"Throughput:\s+([\d.]+) FPS", told)[1])


def _table(network, engine, facts):
    megapixels = engine.tile**2 / 1e6
    best = [max(fact["apps"].values()) for fact in facts]
    rows = []
    for name in facts[0]["apps"]:
        streams, pinned = name.split()
        rows.append(["benchmark_app", streams, pinned.lower(), _speeds(megapixels, (f["apps"][name] for f in facts))])
        rows[-1] += ["", "", ""]
    told = []
    engines = [fact["engine"] for fact in facts]
    for what, beside, wanted in (("engine", best, WANTED["engine"]), ("pipeline", engines, WANTED[network])):
        speeds = [fact[what] for fact in facts]
        shares = [ours / theirs for ours, theirs in zip(speeds, beside, strict=True)]
        reached = verdict(median(shares), wanted, least=True)
        rows.append([what, engine.streams, "no", _speeds(megapixels, speeds), spread(shares, 3), wanted, reached])
        of = "OpenVINO's benchmark_app at its best" if what == "engine" else "the engine"
        told.append((f"{what}, share of {of} ({network})", f"at least {wanted}", spread(shares, 3)))
    return rows, told


def _speeds(megapixels, tiles):
    return spread([megapixels * count for count in tiles], 3)


BENCHES = {
    "openvino-v1": partial(run, "openvino-v1", "inception_v1"),
    "openvino-resnet": partial(run, "openvino-resnet", "inception_resnet_v2"),
}
