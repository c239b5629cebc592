"""The GPU benchmark's picture: a bar per network and batch, how many times PyTorch's speed, a panel per precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_report import GRAPH, NetworkRow, Report, geometric_mean

COLOURS = ("#1b6ca8", "#5fa8d3", "#b8d8ea", "#f2a65a", "#8d99ae")
"""One per batch size, the smallest first."""
BAR = 0.8
"""Of the height of a network's place that its bars fill."""


def plot(report: Report, file: Path) -> bool:
    """Write the picture; False if there is nothing to show. ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [r for r in report.networks if r.ratio() is not None]
    if not rows:
        return False
    precisions = list(dict.fromkeys(r.precision for r in rows))
    networks = list(dict.fromkeys(r.network for r in rows))
    batches = sorted({r.batch for r in rows})
    height = 1.9 + len(networks) * (0.25 + 0.17 * len(batches))
    figure = Figure(figsize=(2.2 + 3.4 * len(precisions), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(precisions), sharey=True, squeeze=False)[0]
    for axes, precision in zip(panels, precisions, strict=True):
        _panel(axes, [r for r in rows if r.precision == precision], networks, batches)
        mean = geometric_mean(r.ratio() or 1.0 for r in rows if r.precision == precision)
        axes.set_title(f"{precision} (geometric mean {mean:.2f})", fontsize=10)
    panels[0].set_yticks(range(len(networks)), networks)
    panels[0].set_ylim(len(networks) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(batches), frameon=False, fontsize=9)
    machine = report.machine
    figure.suptitle(
        "Times as fast as PyTorch in a CUDA graph\n"
        f"{machine.get('device', '')}, driver {machine.get('driver', '')}, {machine.get('date', '')}",
        fontsize=11,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return True


def _panel(axes: Any, rows: Sequence[NetworkRow], networks: Sequence[str], batches: Sequence[int]) -> None:
    """Bars of one precision with their figures, and the line where both are equally fast."""
    thickness = BAR / len(batches)
    for place, batch in enumerate(batches):
        offset = (place - (len(batches) - 1) / 2) * thickness
        chosen = [r for r in rows if r.batch == batch]
        ratios = [r.ratio(GRAPH) or 0.0 for r in chosen]
        positions = [networks.index(r.network) + offset for r in chosen]
        colour = COLOURS[place % len(COLOURS)]
        bars = axes.barh(positions, ratios, 0.92 * thickness, color=colour, label=f"batch {batch}")
        for text in axes.bar_label(bars, labels=[f"{r:.2f}" for r in ratios], padding=2, fontsize=7):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.4})  # over the line at 1
    axes.axvline(1.0, color="black", linewidth=1.0, zorder=0.9)
    axes.margins(x=0.14)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("PyTorch's time / tilewright's", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
