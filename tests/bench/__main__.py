"""`python -m tests.bench [NAME [ARGUMENT...]] [--write]`: Markdown on stdout, all figures in runs/bench.json.

With `--write` the tables of docs/performance.md are replaced by what was measured; `summary` tells what was wanted and
reached of all of it, for the summaries there and in the README, which are put together by hand.
"""

import re
import sys

from models.engines.device import gpus
from tests.bench import (
    against,
    archive,
    blending,
    codecs,
    cog,
    datapath,
    disk,
    dispatch,
    encoders,
    engine,
    gpu,
    halo,
    imported,
    memory,
    openvino_app,
    outside,
    simulation,
    training,
)
from tests.bench.common import ROOT, recorded, table

BENCHES = {
    **against.BENCHES,
    **blending.BENCHES,
    **openvino_app.BENCHES,
    "imported": imported.run,
    "engine": engine.run,
    "datapath": datapath.run,
    "codecs": codecs.run,
    "dispatch": dispatch.run,
    "simulation": simulation.run,
    "encoders": encoders.run,
    "outside": outside.run,
    "cog": cog.run,
    "disk": disk.run,
    "archive": archive.run,
    **memory.BENCHES,
    "halo": halo.run,
    "training": training.run,
    "gpu": gpu.run,
}


def summary():
    """Markdown: wanted and reached of all benchmarks that have been run, and on what."""
    known = recorded()
    rows = [row for name in BENCHES if name in known for row in known[name]["headline"]]
    machines = {
        f"{facts['machine']['cores']} cores of {facts['machine']['processor']}, {facts['machine']['memory_gib']} GiB"
        for facts in known.values()
    }
    return f"{table(['what', 'wanted', 'reached'], rows)}\nMeasured on {' and '.join(sorted(machines))}.\n"


def write(name, text):
    """Replace what stands between the marks of a benchmark, if there are some."""
    path, mark = ROOT / "docs/performance.md", re.escape(f"<!-- bench {name} -->")
    marked = re.compile(rf"({mark}\n).*?(<!-- end -->)", re.DOTALL)
    path.write_text(marked.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", path.read_text()))


def _all():
    """Those whose figures mean something here: a GPU's are not replaced by a processor's."""
    return [name for name in BENCHES if name != "gpu" or gpus()]


def main():
    """Run one benchmark, or all."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--write"]
    wanted, *arguments = arguments or ["all"]
    if wanted not in {*BENCHES, "all", "summary"}:
        sys.exit(f"there is no benchmark '{wanted}': {', '.join(BENCHES)}, summary or all")
    for name in _all() if wanted == "all" else [wanted]:
        text = summary() if name == "summary" else BENCHES[name](*arguments)
        sys.stdout.write(f"\n## {name}\n\n{text}")
        sys.stdout.flush()
        if "--write" in sys.argv:
            write(name, text)


if __name__ == "__main__":
    main()
