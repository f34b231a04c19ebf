"""Curves and dots of a training's report, drawn by matplotlib without a screen.

Figures are made one by one and share nothing: `matplotlib.pyplot`, which keeps them all, is not imported.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, RULE, ACCENT = "#20242A", "#707680", "#DDE1E6", "#2E86AB"
DASHES = (0, (4, 3))
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.labelcolor": FAINT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # it comes with matplotlib
    "font.size": 8.5,
    "grid.color": "#EEF0F3",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "widefield",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
_SIZE = (5.2, 2.7)
"""Inches across and down."""
_RAW = 60
"""Points of a curve up to which each one is marked."""

Points = Sequence[tuple[float, float]]


def curve(title: str, points: Points, *, unit: str = "", smooth: bool = False, limit: float | None = None) -> Figure:
    """One value over the steps; with `smooth`, a running mean over a pale curve; what is allowed as a dashed line."""

    def draw(axes: Axes) -> None:
        steps, values = _split(points)
        if smooth and len(points) > _RAW:
            axes.plot(steps, values, color=ACCENT, alpha=0.3, linewidth=0.8)
            axes.plot(steps, _running(values, max(3, len(values) // 25)), color=ACCENT)
        else:
            axes.plot(steps, values, color=ACCENT, marker="." if len(points) <= _RAW else "")
        if limit is not None:
            axes.axhline(limit, color=FAINT, linewidth=1, linestyle=DASHES)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)

    return _figure(title, draw)


def curves(title: str, lines: Mapping[str, Points], colors: Mapping[str, str], *, bold: str) -> Figure:
    """Values between 0 and 1 over the steps, one line a name; the one called `bold` is thick and black."""

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            steps, values = _split(points)
            strong = name == bold
            axes.plot(
                steps,
                values,
                marker="." if len(points) <= _RAW else "",
                color=INK if strong else readable(colors.get(name, FAINT)),
                linewidth=2.2 if strong else 1.4,
                zorder=3 if strong else 2,
                label=name,
            )
        axes.set_ylim(0, 1)
        axes.set_xlabel("step")
        if len(lines) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, handlelength=1.4)

    return _figure(title, draw)


def ranges(
    title: str, values: Mapping[str, float], ends: Mapping[str, Sequence[float] | None], colors: Mapping[str, str]
) -> Figure:
    """A dot for each name between 0 and 1, with its interval where there is one."""

    def draw(axes: Axes) -> None:
        for place, (name, value) in enumerate(values.items()):
            color = readable(colors.get(name, INK))
            if (pair := ends.get(name)) is not None:
                axes.plot(pair, (place, place), color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.plot(value, place, marker="o", markersize=6, color=color)
        axes.set_yticks(range(len(values)), values, color=INK)
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")

    return _figure(title, draw, size=(_SIZE[0], max(1.3, 0.7 + 0.3 * len(values))))


def reliability(title: str, confidence: Sequence[float], accuracy: Sequence[float], share: Sequence[float]) -> Figure:
    """Share of hits by confidence, over the diagonal where they are equal; bars say how many pixels each bin has."""

    def draw(axes: Axes) -> None:
        axes.bar(confidence, share, width=0.04, color=RULE, label="share of pixels")
        axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=DASHES, label="as confident as right")
        axes.plot(confidence, accuracy, color=ACCENT, marker="o", markersize=4, label="share that is right")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence")
        axes.legend(loc="upper left", fontsize=8)

    return _figure(title, draw)


def svg(figure: Figure) -> bytes:
    """The same figure gives the same bytes; letters are drawn as shapes, so that no font is asked for."""
    with mpl.rc_context(_STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def png(figure: Figure, dpi: int = 110) -> bytes:
    """For pages that take no SVG."""
    with mpl.rc_context(_STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def readable(color: str) -> str:
    """`color`, darkened where it would be too pale on white."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    light = (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255
    factor = min(1.0, 0.62 / light) if light else 1.0
    return "#" + "".join(f"{round(part * factor):02X}" for part in parts)


def _figure(title: str, draw: Any, size: tuple[float, float] = _SIZE) -> Figure:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title)
    return figure


def _split(points: Points) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _running(values: Sequence[float], width: int) -> list[float]:
    """The mean of up to `width` values around each one, fewer at the ends."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
