"""The GPU benchmark's picture: a bar per network and batch, how many times PyTorch's speed, a panel per precision."""

from __future__ import annotations

from pathlib import Path

from figures import Bars, draw
from gpu_report import Report


def plot(report: Report, file: Path) -> bool:
    """Write the picture; False if there is nothing to show. ImportError without matplotlib."""
    machine = report.machine
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for row in sorted(report.networks, key=lambda r: r.batch):
        ratio = row.ratio()
        if ratio is not None:
            panels.setdefault(row.precision, {}).setdefault(f"batch {row.batch}", {})[row.network] = ratio
    title = (
        "Times as fast as PyTorch in a CUDA graph\n"
        f"{machine.get('device', '')}, driver {machine.get('driver', '')}, {machine.get('date', '')}"
    )
    in_order = {r.precision: panels[r.precision] for r in report.networks if r.precision in panels}
    return draw(Bars(title, "PyTorch's time / tilewright's", in_order), file)
