"""The pictures of a tuning report, as SVG to be put into a page: no scripts, no files, nothing fetched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilewright.errors import UnsupportedError
from tilewright.runtime.roofline import Limits
from tilewright.tuned_ops import Tried, TunedOp

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = 300
"""Candidates drawn in one landscape, at most: the fastest half, and others spread over the rest."""
AXES = 10
"""Parameters drawn in one landscape, at most: those with the most values."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a parameter's value may hold a $
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_BEST, _FAILED, _QUIET = "#c0392b", "#d98880", "#8d99a6"


def require() -> None:
    """UnsupportedError with the way out where the packages for reports are missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    except ImportError as e:
        raise UnsupportedError(f'a report needs {e.name}; pip install "tilewright[report]"') from None


def _svg(width: float, height: float, draw: Any) -> str:
    """What `draw` puts on a new figure (sizes in inches), as an <svg> element."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def time_picture(ops: Sequence[TunedOp]) -> str:
    """Where the time goes: per op its share, and the part of it that the device's limits ask for; by table number."""
    shown = [(n, op) for n, op in enumerate(ops, 1) if op.seconds is not None][:25]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = np.arange(len(shown))
        totals = [1e3 * op.weight * (op.seconds or 0.0) for _, op in shown]
        bounds = [1e3 * op.weight * op.bound.seconds if op.bound else 0.0 for _, op in shown]
        axes.bar(places, totals, color="#a9cce3", label="time")
        axes.bar(places, np.minimum(bounds, totals), color="#2471a3", label="least by the roofline")
        axes.set_xticks(places, [f"#{n}" for n, _ in shown])
        axes.set_ylabel("ms in all")
        axes.legend(frameon=False)

    return _svg(9.5, 2.8, draw)


def roofline_picture(ops: Sequence[TunedOp], limits: Limits | None) -> str:
    """Every candidate that works, by operations per byte and operations per second, under the device's roofs."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        found = [op for op in ops if op.intensity and op.operations]
        x = [op.intensity for op in found for t in op.tried if t.seconds]
        y = [1e-9 * op.operations / t.seconds for op in found for t in op.tried if t.seconds]
        axes.scatter(x, y, s=9, color=_QUIET, alpha=0.5, linewidths=0, label="candidates")
        best = [(op.intensity, 1e-9 * op.operations / op.seconds) for op in found if op.seconds]
        axes.scatter([b[0] for b in best], [b[1] for b in best], s=22, color=_BEST, label="winners", zorder=3)
        if limits is not None and x:
            _roofs(axes, limits, min(x) / 2, max(x) * 2)
        _logarithmic(axes, "x")
        _logarithmic(axes, "y")
        axes.set_xlabel("operations per byte")
        axes.set_ylabel("Gop/s")
        axes.legend(frameon=False, loc="lower right")

    return _svg(9.5, 3.6, draw)


def _logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis whose numbers are plain text: matplotlib's own are formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    narrow = high / max(low, 1e-12) < 50
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _roofs(axes: Axes, limits: Limits, low: float, high: float) -> None:
    (near, fast), (far, slow) = limits.bandwidths[0], limits.bandwidths[-1]
    x = np.geomspace(low, high, 100)
    for size, speed, style in ((far, slow, "-"), (near, fast, "--")):
        roof = np.minimum(x * speed, limits.rate("f32"))
        axes.plot(x, 1e-9 * roof, style, color="#2c3e50", linewidth=1, label=f"roof, {size >> 20} MiB, f32")


def op_picture(op: TunedOp) -> str:
    """The landscape of the op's space, family by family, and how the best time came down."""
    families = list(dict.fromkeys(t.family for t in sorted(op.tried, key=lambda t: t.seconds or np.inf)))[:2]
    landscapes = [(f, _drawn([t for t in op.tried if t.family == f])) for f in families]
    landscapes = [(f, tried) for f, tried in landscapes if len(tried) > 1 and _axes_of(tried)]

    def draw(figure: Figure) -> None:
        rows = max(1, len(landscapes))
        grid = figure.add_gridspec(rows, 2, width_ratios=(2.4, 1.0))
        for row, (family, tried) in enumerate(landscapes):
            _landscape(figure.add_subplot(grid[row, 0]), family, tried, op.seconds)
        _best_so_far(figure.add_subplot(grid[:, 1]), op)

    return _svg(9.5, 2.5 * max(1, len(landscapes)), draw)


def _drawn(tried: Sequence[Tried]) -> list[Tried]:
    """Some of many candidates, slowest first, so that the fastest are drawn on top."""
    order = sorted(tried, key=lambda t: t.seconds if t.seconds is not None else np.inf)
    if len(order) > LINES:
        rest = order[LINES // 2 :]
        order = order[: LINES // 2] + rest[:: -(-len(rest) // (LINES // 2))]
    return order[::-1]


def _axes_of(tried: Sequence[Tried]) -> dict[str, list[Any]]:
    """Values by parameter, of those with several."""
    values: dict[str, set[Any]] = {}
    for t in tried:
        for name, value in t.configuration.items():
            values.setdefault(name, set()).add(value)
    several = {n: sorted(v, key=lambda x: (isinstance(x, str), x)) for n, v in values.items() if len(v) > 1}
    chosen = sorted(several, key=lambda n: -len(several[n]))[:AXES]
    return {n: several[n] for n in several if n in chosen}


def _landscape(axes: Axes, family: str, tried: Sequence[Tried], best: float | None) -> None:
    """Parallel coordinates (A. Inselberg, "The plane with parallel coordinates", The Visual Computer 1, 1985).

    One line per candidate over its parameters, the last axis its speed; failures end at the bottom.
    """
    import matplotlib as mpl
    from matplotlib.collections import LineCollection

    names = _axes_of(tried)
    fastest = min([t.seconds for t in tried if t.seconds is not None] + ([best] if best else []), default=None)
    lines, colours = [], []
    for t in tried:
        speed = fastest / t.seconds if fastest is not None and t.seconds is not None else None
        heights = [
            values.index(t.configuration[n]) / (len(values) - 1) if n in t.configuration else 0.5
            for n, values in names.items()
        ]
        lines.append(np.column_stack([np.arange(len(names) + 1), [*heights, speed or 0.0]]))
        colours.append(mpl.colormaps["viridis_r"](speed) if speed is not None else mpl.colors.to_rgba(_FAILED, 0.6))
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.8))
    for place, (_, values) in enumerate(names.items()):
        axes.axvline(place, color=_QUIET, linewidth=0.6)
        step = -(-len(values) // 8)
        for at in range(0, len(values), step):
            label = axes.text(place + 0.03, at / (len(values) - 1), str(values[at])[:12], fontsize=7, va="center")
            label.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6})
    axes.axvline(len(names), color=_QUIET, linewidth=0.6)
    axes.set_xlim(-0.1, len(names) + 0.1)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xticks(range(len(names) + 1), [*(n[:14] for n in names), "speed"], fontsize=7, rotation=20, ha="right")
    axes.set_yticks([])
    axes.set_title(f"{family}: {len(tried)} of its candidates, dark is fast, red failed", fontsize=8, loc="left")


def _best_so_far(axes: Axes, op: TunedOp) -> None:
    from matplotlib.ticker import MaxNLocator

    times = np.array([np.inf if m.seconds is None else m.seconds for m in op.searched])
    best = np.minimum.accumulate(times) if len(times) else times
    worked = np.isfinite(best)
    count = np.arange(1, len(times) + 1)
    shown = np.isfinite(times)
    axes.scatter(count[shown], 1e6 * times[shown], s=5, color=_QUIET, linewidths=0, label="candidate")
    axes.step(count[worked], 1e6 * best[worked], where="post", color=_BEST, linewidth=1.2, label="best so far")
    if op.bound is not None:
        axes.axhline(1e6 * op.bound.seconds, color="#2c3e50", linewidth=0.8, linestyle=":", label="roofline")
    _logarithmic(axes, "y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("candidates measured")
    axes.set_ylabel("µs")
    axes.legend(frameon=False, fontsize=7)


__all__ = ["op_picture", "require", "roofline_picture", "time_picture"]
