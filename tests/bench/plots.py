"""The figures of docs/performance.md, drawn from what benchmarks measured."""

from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.figure import Figure

from pipeline.publish.charts import _STYLE, ACCENT, DASHES, FAINT, INK

SECOND = "#C8553D"


@contextmanager
def _drawn(path, columns):
    """A figure with `columns` axes side by side, written to `path`."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * columns, 3.2), dpi=150, layout="constrained")
        yield figure.subplots(1, columns, squeeze=False)[0]
        figure.savefig(path)


def simulation(facts, cases, path):
    """Efficiency by workers, and by tasks a second with what 1,000 workers ask for."""
    with _drawn(path, 2) as (left, right):
        counts = [fact["workers"] for fact in facts["workers"]]
        for what, name, color in (("many", "three scenes at a time", ACCENT), ("one", "one scene alone", SECOND)):
            left.plot(
                counts, [fact[what]["efficiency"] for fact in facts["workers"]], marker="o", color=color, label=name
            )
        left.set(title="Time that workers compute", xscale="log", xlabel="workers", ylim=(0, 1.05))
        left.set_xticks(counts, counts)
        left.minorticks_off()
        left.legend(loc="lower left")
        rates = facts["rate"]
        right.plot([fact["asked"] for fact in rates], [fact["efficiency"] for fact in rates], marker="o", color=ACCENT)
        right.set(title=f"What one scheduler hands out ({counts[-1]} workers)", xscale="log", ylim=(0, 1.05))
        right.set_xlabel("tasks a second that the workers ask for")
        right.xaxis.set_major_formatter("{x:g}")
        right.xaxis.set_minor_formatter("")
        right.set_xlim(left=0.6 * min(cases.values()))
        for name, asked in cases.items():
            right.axvline(asked, color=FAINT, linewidth=1, linestyle=DASHES)
            right.text(asked * 0.97, 0.04, name, rotation=90, ha="right", va="bottom", fontsize=7, color=INK)


def scaling(facts, path):
    """Megapixels a second of the data path by threads that read, beside the engine's own speed."""
    with _drawn(path, 1) as (axes,):
        for source, color in zip(facts["sources"], (ACCENT, SECOND, INK, FAINT), strict=False):
            points = sorted((int(readers), speed) for readers, speed in facts["sources"][source].items())
            axes.plot(*zip(*points, strict=True), marker="o", color=color, label=source)
        axes.axhline(facts["engine"], color=FAINT, linewidth=1, linestyle=DASHES)
        axes.text(1, facts["engine"], facts["engine_name"], va="bottom", fontsize=7, color=INK)
        axes.set(title="Image to mask without a network", xlabel="readers", ylabel="Mpx/s", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_xticks(sorted({int(readers) for speeds in facts["sources"].values() for readers in speeds}))
        axes.legend(loc="best", fontsize=7)
