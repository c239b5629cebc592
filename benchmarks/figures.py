"""What all benchmarks' results are made of: timings, means of ratios, tables in Markdown, bars."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("#1b6ca8", "#5fa8d3", "#b8d8ea", "#f2a65a", "#8d99ae")
"""One per kind of bar."""
BAR = 0.8
"""Of the height of a network's place that its bars fill."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one runner."""

    median: float
    low: float
    """The 10th percentile."""
    high: float
    """The 90th percentile."""
    runs: int

    @property
    def spread(self) -> float:
        """From the 10th to the 90th percentile, as a part of the median."""
        return (self.high - self.low) / self.median


def timing(seconds: Sequence[float]) -> Timing:
    """Times in seconds as a Timing."""
    low, median, high = (1e3 * float(p) for p in np.percentile(seconds, (10, 50, 90)))
    return Timing(median, low, high, len(seconds))


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean; NaN of nothing."""
    logarithms = [math.log(v) for v in values]
    return math.exp(statistics.fmean(logarithms)) if logarithms else math.nan


def words(text: str) -> tuple[str, ...]:
    """What a command line gives between commas."""
    return tuple(word for word in text.split(",") if word)


def numbers(text: str) -> tuple[int, ...]:
    """The same as whole numbers."""
    return tuple(int(word) for word in words(text))


def figure(value: float | None, decimals: int) -> str:
    """A number in a table, or a dash."""
    return "-" if value is None else f"{value:.{decimals}f}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown that also reads well as it is; columns after the first stand to the right."""
    widths = [max(len(row[n]) for row in (columns, *rows)) for n in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]) + " |"
    return "\n".join([line(columns), rule, *map(line, rows)])


# --- bars -------------------------------------------------------------------------------------------------------------

Ratios = Mapping[str, Mapping[str, float]]
"""By kind of bar, then by network."""


@dataclass(frozen=True)
class Bars:
    """A picture of ratios: a panel for each title, in it a place per network with a bar per kind."""

    title: str
    axis: str
    """What a ratio is."""
    panels: Mapping[str, Ratios]

    @property
    def networks(self) -> list[str]:
        """All networks, in the order in which they come first."""
        return list(dict.fromkeys(n for panel in self.panels.values() for bars in panel.values() for n in bars))


def draw(bars: Bars, file: Path) -> bool:
    """Write the picture; False if there is nothing to show. ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    networks = bars.networks
    if not networks:
        return False
    kinds = list(dict.fromkeys(kind for panel in bars.panels.values() for kind in panel))
    height = 1.9 + len(networks) * (0.25 + 0.17 * len(kinds))
    picture = Figure(figsize=(2.2 + 3.4 * len(bars.panels), height), layout="constrained")
    FigureCanvasAgg(picture)
    panels = picture.subplots(1, len(bars.panels), sharey=True, squeeze=False)[0]
    for axes, (name, ratios) in zip(panels, bars.panels.items(), strict=True):
        _panel(axes, ratios, networks, kinds)
        mean = geometric_mean(r for each in ratios.values() for r in each.values())
        axes.set_title(f"{name} (geometric mean {mean:.2f})", fontsize=10)
        axes.set_xlabel(bars.axis, fontsize=9)
    panels[0].set_yticks(range(len(networks)), networks)
    panels[0].set_ylim(len(networks) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(kinds), 2 * len(bars.panels))
    picture.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    picture.suptitle(bars.title, fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(file, dpi=110)
    return True


def _panel(axes: Any, ratios: Ratios, networks: Sequence[str], kinds: Sequence[str]) -> None:
    """Bars with their figures, and the line where both are equally fast."""
    thickness = BAR / len(kinds)
    for place, kind in enumerate(kinds):
        offset = (place - (len(kinds) - 1) / 2) * thickness
        found = ratios.get(kind, {})
        positions = [networks.index(n) + offset for n in found]
        colour = COLOURS[place % len(COLOURS)]
        bars = axes.barh(positions, list(found.values()), 0.92 * thickness, color=colour, label=kind)
        for text in axes.bar_label(bars, labels=[f"{r:.2f}" for r in found.values()], padding=2, fontsize=7):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.4})  # over the line at 1
    axes.axvline(1.0, color="black", linewidth=1.0, zorder=0.9)
    axes.margins(x=0.14)
    axes.set_xlim(left=0.0)
    axes.spines[["top", "right"]].set_visible(False)
