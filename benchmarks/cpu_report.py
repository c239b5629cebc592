"""What the benchmark of networks on CPUs found, as data, JSON, tables and a picture.

A ratio is the other runner's median divided by ours: above 1 tilewright is faster. Times are milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from figures import Bars, Timing, draw, figure, geometric_mean, markdown

OURS = "tilewright"
UNTUNED = "untuned"
"""Our own session without a database."""


@dataclass(frozen=True)
class Row:
    """One network at one batch size on one driver."""

    device: str
    network: str
    batch: int
    wall: Mapping[str, Timing]
    """By runner, from NumPy arrays to NumPy arrays."""
    origins: Mapping[str, int]
    """How many of our kernels' configurations are tuned, of the nearest tuned shape, or the family's default."""
    difference: float | None
    """Largest difference of the outputs from onnxruntime's, as a part of the largest output."""
    date: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What the row is about."""
        return self.device, self.network, self.batch

    def ratio(self, runner: str) -> float | None:
        """A runner's time over ours; None if it did not run."""
        return self.wall[runner].median / self.wall[OURS].median if runner in self.wall else None


@dataclass(frozen=True)
class Report:
    """Everything measured on one machine."""

    machine: Mapping[str, str]
    rows: tuple[Row, ...] = ()

    def with_row(self, row: Row) -> Report:
        """With a row added, in place of an older one of the same key."""
        rows = {r.key: r for r in (*self.rows, row)}
        return replace(self, rows=tuple(rows.values()))

    @property
    def runners(self) -> list[str]:
        """All that ran beside ours."""
        return [name for name in dict.fromkeys(n for r in self.rows for n in r.wall) if name != OURS]


@dataclass(frozen=True)
class Mean:
    """The ratios to one runner on one device at one batch size."""

    device: str
    batch: int
    runner: str
    mean: float
    """Geometric."""
    least: float
    networks: int


def means(rows: Iterable[Row], runners: Sequence[str]) -> list[Mean]:
    """Geometric means of the ratios by device, batch and runner."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        for runner in runners:
            ratio = row.ratio(runner)
            if ratio is not None:
                found.setdefault((row.device, row.batch, runner), []).append(ratio)
    return [Mean(*key, geometric_mean(ratios), min(ratios), len(ratios)) for key, ratios in sorted(found.items())]


# --- JSON -------------------------------------------------------------------------------------------------------------


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values, with ratios and means for readers that do not want to compute them."""
    return {
        "machine": dict(report.machine),
        "networks": [{**asdict(r), "ratios": {n: r.ratio(n) for n in r.wall if n != OURS}} for r in report.rows],
        "geometric_means": [asdict(m) for m in means(report.rows, report.runners)],
    }


def read(file: Path) -> Report:
    """What a file holds; ValueError if that is no report."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        names = Row.__dataclass_fields__
        rows = [{name: v for name, v in r.items() if name in names} for r in values["networks"]]
        for r in rows:
            r["wall"] = {runner: Timing(**t) for runner, t in r["wall"].items()}
        return Report(values["machine"], tuple(Row(**r) for r in rows))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no results of this benchmark ({error}); give another file") from error


# --- tables and picture -----------------------------------------------------------------------------------------------


def tables(report: Report) -> str:
    """A table of networks for every device, and one of the geometric means."""
    runners = report.runners
    columns = ["network", "batch", "ours", "spread", *runners, *(f"{n}/ours" for n in runners), "tuned", "difference"]
    parts = []
    for device in dict.fromkeys(r.device for r in report.rows):
        cells = [_cells(r, runners) for r in report.rows if r.device == device]
        parts.append(f"{device}: milliseconds per batch\n\n{markdown(columns, cells)}")
    found = means(report.rows, runners)
    if found:
        rows = [[m.device, str(m.batch), m.runner, f"{m.mean:.2f}", f"{m.least:.2f}", str(m.networks)] for m in found]
        parts.append(markdown(["device", "batch", "beside", "geometric mean", "least", "networks"], rows))
    return "\n\n".join(parts)


def _cells(r: Row, runners: Sequence[str]) -> list[str]:
    return [
        r.network,
        str(r.batch),
        f"{r.wall[OURS].median:.2f}",
        f"{r.wall[OURS].spread:.0%}",
        *(figure(r.wall[n].median if n in r.wall else None, 2) for n in runners),
        *(figure(r.ratio(n), 2) for n in runners),
        f"{r.origins.get('tuned', 0)}/{sum(r.origins.values())}",
        "-" if r.difference is None else f"{r.difference:.0e}",
    ]


def plot(report: Report, peers: Sequence[str], file: Path) -> bool:
    """A panel per device, a bar per batch and peer; False if there is nothing. ImportError without matplotlib."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for row in sorted(report.rows, key=lambda r: r.batch):
        for peer in peers:
            ratio = row.ratio(peer)
            if ratio is not None:
                bars = panels.setdefault(row.device, {}).setdefault(f"{peer}, batch {row.batch}", {})
                bars[row.network] = ratio
    machine = report.machine
    title = f"Times as fast as the engine beside it\n{machine.get('processor', '')}, {machine.get('date', '')}"
    return draw(Bars(title, "its time / tilewright's", panels), file)
