"""Charts as inline SVG for an HTML page, with real text and without external resources.

matplotlib draws with placeholder colours, which become CSS variables in the SVG: one drawing serves light and dark pages.
All charts have the same axes box, so adjacent charts are aligned. Trade-off: matplotlib measures text in its own font, so
labels get more room than the page's font needs. User-given text (run names, labels) is not part of the SVG: titles and
legends are HTML around it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

WIDTH, HEIGHT = 420, 266
"""Size of a chart, in CSS pixels."""
BOX = (64, 42, 344, 204)
"""Left, bottom, width and height of the axes, in pixels."""
NUM_COLOURS = 8
"""Number of series colours in style.css."""
MOST_POINTS = 1000
"""Maximum number of drawn points of a series."""
MOST_AREA_POINTS = 200
"""Maximum number of drawn points of a stacked area."""
MOST_MARKERS = 40
"""Maximum number of points that are drawn with markers."""
INK, MUTED, GRID = "#0a0b01", "#0a0b02", "#0a0b03"
"""Placeholder colours, replaced by CSS variables."""
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ulmfit-dist",
    "font.size": 11,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Series:
    """Curve of a chart.

    Attributes:
        label: legend entry.
        x: float64 [points]
        y: float64 [points]; NaN leaves a gap.
        colour: from 1 to `NUM_COLOURS`.
        look: line, dashed, faint (a thin background line) or points (a line with a marker at each point).
        note: text after the label, such as the last value.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: int
    look: str = "line"
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Curves over one axis.

    Attributes:
        name: prefix of the ids in the SVG, unique on a page.
        phases: starts of the training phases, in units of x, and the end of the last one.
        is_log: logarithmic y axis.
        is_stacked: y values are added up, as areas.
        from_zero: the y axis starts at zero.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    phases: Sequence[float] = ()
    is_log: bool = False
    is_stacked: bool = False
    from_zero: bool = False

    @property
    def description(self) -> str:
        """Text alternative for screen readers."""
        curves = "; ".join(" ".join(part for part in (line.label, line.note) if part) for line in self.series)
        return f"Chart: {self.title}, {self.y_label} by {self.x_label}. {curves}"


def draw(chart: Chart) -> str:
    """Return the content of an SVG element with the viewBox `0 0 WIDTH HEIGHT`. Equal charts give equal text."""
    with style.context(["default", SETTINGS]):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        figure.patch.set_visible(False)
        left, bottom, width, height = BOX
        axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))
        (_draw_areas if chart.is_stacked else _draw_curves)(axes, chart)
        _set_axes(axes, chart)
        _mark_phases(axes, chart.phases)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(buffer.getvalue(), chart.name)


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `MOST_POINTS` points: the minimum and maximum of each interval, which keeps all peaks."""
    if len(y) <= MOST_POINTS:
        return x, y
    bounds = np.linspace(0, len(y), MOST_POINTS // 2 + 1).astype(int)
    kept: set[int] = set()
    for start, stop in pairwise(bounds):
        part = y[start:stop]
        lowest = np.where(np.isnan(part), np.inf, part).argmin()
        highest = np.where(np.isnan(part), -np.inf, part).argmax()
        kept |= {int(start + lowest), int(start + highest)}
    order = sorted(kept)
    return x[order], y[order]


def short_number(value: float) -> str:
    """Return a number as an axis label, such as 0.05, 250, 1.5k or 20M."""
    for least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.4g}{unit}".replace("-", "−")
    return f"{value:.4g}".replace("e-0", "e-").replace("-", "−")


def _draw_curves(axes: Axes, chart: Chart) -> None:
    for line in chart.series:
        x, y = thin(line.x, line.y)
        is_marked = len(x) == 1 or (line.look == "points" and len(x) <= MOST_MARKERS)
        axes.plot(
            x,
            y,
            color=_colour(line.colour),
            linewidth=0.9 if line.look == "faint" else 1.8,
            alpha=0.45 if line.look == "faint" else None,
            linestyle=(0, (4, 2)) if line.look == "dashed" else "-",
            marker="o" if is_marked else "",
            markersize=5,
            clip_on=not is_marked,
            zorder=2 if line.look == "faint" else 3,
        )


def _draw_areas(axes: Axes, chart: Chart) -> None:
    starts = np.unique(np.linspace(0, len(chart.series[0].x), MOST_AREA_POINTS, endpoint=False).astype(int))
    x = _means(chart.series[0].x, starts)
    lower = np.zeros(len(x))
    for line in chart.series:
        upper = lower + _means(np.nan_to_num(line.y), starts)
        axes.fill_between(x, lower, upper, color=_colour(line.colour), linewidth=0.4, alpha=0.85)
        lower = upper
    axes.set_ylim(0, max(float(lower.max(initial=0)) * 1.04, 1e-9))


def _means(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the mean of each interval of the values; `starts` are the first indices of the intervals."""
    return np.add.reduceat(values, starts) / np.diff([*starts, len(values)])


def _set_axes(axes: Axes, chart: Chart) -> None:
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(which="both", color=MUTED, labelcolor=INK, width=0.8, length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(chart.x_label, color=INK, labelpad=4)
    axes.set_ylabel(chart.y_label, color=INK)
    axes.yaxis.set_label_coords(-52 / BOX[2], 0.5)
    axes.set_xlim(0, max([1.0, *(float(line.x.max()) for line in chart.series if len(line.x)), *chart.phases]))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if chart.from_zero:
        axes.set_ylim(0, max((float(np.nanmax(line.y, initial=0)) for line in chart.series), default=0) * 1.08 or 1)
    if chart.is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _mark_phases(axes: Axes, phases: Sequence[float]) -> None:
    """Draw lines between phases, and labels above them as far as there is room."""
    right = axes.get_xlim()[1]
    if len(phases) < 3:
        return
    for end in phases[1:-1]:
        axes.axvline(end, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for i, (start, end) in enumerate(pairwise(phases)):
        room = (end - start) / right * BOX[2]  # pixels
        label = f"phase {i + 1}" if room >= 52 else f"{i + 1}" if room >= 16 else ""
        axes.text(
            (start + end) / 2,
            1.025,
            label,
            transform=axes.get_xaxis_transform(),
            color=MUTED,
            ha="center",
            va="bottom",
            size=10,
        )


def _colour(number: int) -> str:
    return f"#0a0c{number:02x}"


def _inline(svg: str, name: str) -> str:
    """Return the content of the svg element, with prefixed ids and CSS variables as colours."""
    inside = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inside = re.sub(r"<style.*?</style>|<!--.*?-->", "", inside, flags=re.DOTALL)
    inside = re.sub(r'\bid="', f'id="{name}-', inside)
    inside = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', inside).replace("url(#", f"url(#{name}-")
    for role, variable in ((INK, "currentColor"), (MUTED, "var(--muted)"), (GRID, "var(--grid)")):
        inside = inside.replace(role, variable)
    return re.sub(r"#0a0c(\d\d)", lambda match: f"var(--series-{int(match[1], 16)})", inside)
