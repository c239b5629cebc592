"""How much of networks' floating-point work the device does: time of launches beside that of nodes on the host.

    python benchmarks/node_coverage.py ~/models --device intel-cpu --json coverage.json
    python benchmarks/node_coverage.py ~/models --only '*rcnn*' --only '*/ssd*'

Every .onnx file below the folder runs once to be planned and is profiled RUNS times; of these the run with the median
time counts. The share is that of the device in the time of all launches and of those nodes on the host that read or
write floats; host nodes of integers alone, sequences and texts stand beside it. Of control flow the time of the bodies'
nodes counts, each where it ran, and its own (the cutting and stacking of tensors that it carries) as any node's.
Launches of integers are not told from others. Inputs are random; a folder with a `materialize.py` fills its graphs and
gives inputs itself.

The status is 1 if a network failed or lies below --least.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from models import default_folder, script
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.feeds import network_feeds
from tilewright.graph.plan import ProfileRow

_FLOATS = ("f", "bf")
"""What names of floating-point types begin with, the narrow ones that only hosts hold (float8e5m2) among them."""


@dataclass(frozen=True)
class Coverage:
    """Where one run of a network spends its time; milliseconds."""

    network: str
    device_ms: float
    host_float_ms: float
    """Of nodes on the host that read or write floats."""
    host_other_ms: float
    host_float_ops: Mapping[str, float]
    """Milliseconds of the former by operator, longest first."""

    @property
    def share(self) -> float:
        """The device's part of the time of floating-point nodes; 1 where there is none."""
        total = self.device_ms + self.host_float_ms
        return self.device_ms / total if total else 1.0


def covered(network: str, rows: Iterable[ProfileRow]) -> Coverage:
    """The rows of a profile by place and type."""
    device = other = 0.0
    floats: Counter[str] = Counter()
    for row in rows:
        milliseconds = 1e-3 * row.microseconds
        if row.family != "host":
            device += milliseconds
        elif any(name.startswith(_FLOATS) for name in row.types):
            floats[row.op.partition(" ")[0]] += milliseconds
        else:
            other += milliseconds
    return Coverage(network, device, floats.total(), other, dict(floats.most_common()))


def total(name: str, rows: Sequence[Coverage]) -> Coverage:
    """All networks as one."""
    floats: Counter[str] = Counter()
    for r in rows:
        floats.update(r.host_float_ops)
    device, other = (sum(part) for part in ([r.device_ms for r in rows], [r.host_other_ms for r in rows]))
    return Coverage(name, device, floats.total(), other, dict(floats.most_common()))


def measure(file: Path, network: str, device: tw.Device, runs: int, filler: ModuleType | None) -> Coverage:
    """The run of median time of a network's file."""
    model = filler.materialize(str(file)) if filler else None
    session = tw.InferenceSession(model or file, device)
    feeds = filler.sample_inputs(model, 1, 1) if filler else network_feeds(session.get_inputs(), [])
    found = sorted((covered(network, session.profile(feeds)) for _ in range(runs)), key=_time)
    return found[len(found) // 2]


def _time(coverage: Coverage) -> float:
    return coverage.device_ms + coverage.host_float_ms + coverage.host_other_ms


def files(folder: Path, patterns: Sequence[str]) -> list[tuple[str, Path]]:
    """The networks below a folder by name: their paths inside it that match one of the patterns, or all."""
    found = [(str(f.relative_to(folder).with_suffix("")), f) for f in sorted(folder.rglob("*.onnx"))]
    return [(n, f) for n, f in found if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def shown(rows: Sequence[Coverage], device: tw.Device) -> Table:
    """The table that is printed, lowest shares first."""
    table = Table("network", title=f"Floating-point time on {device.name}")
    for column in ("device ms", "host ms, floats", "host ms, other", "on the device"):
        table.add_column(column, justify="right")
    table.add_column("float operators on the host")
    for r in sorted(rows, key=lambda r: (r.share, r.network)):
        operators = ", ".join(f"{op} {ms:.2f}" for op, ms in r.host_float_ops.items())
        figures = (f"{r.device_ms:.2f}", f"{r.host_float_ms:.2f}", f"{r.host_other_ms:.2f}", f"{100 * r.share:.2f} %")
        table.add_row(r.network, *figures, operators)
    return table


def written(file: Path, device: tw.Device, rows: Sequence[Coverage], failed: Mapping[str, str]) -> None:
    """All results as JSON."""
    networks: list[dict[str, Any]] = [{**asdict(r), "share": r.share} for r in rows]
    result: dict[str, Any] = {"device": device.name, "identity": device.identity, "share": total("", rows).share}
    result |= {"networks": networks, "failed": dict(failed)}
    file.write_text(json.dumps(result, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="the device's share of the time of floating-point nodes")
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder(), help="default: $TILEWRIGHT_MODELS")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="networks whose path matches")
    parser.add_argument("--runs", type=int, default=3, help="profiled runs of each (default: %(default)s)")
    parser.add_argument("--least", type=float, default=99.0, help="per cent (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, after each network")
    given = parser.parse_args()
    found = files(given.folder, given.only) if given.folder else []
    if not found or given.runs < 1:
        parser.error("give a folder that holds .onnx files and matches --only, and at least one run")
    filler = script(given.folder) if (given.folder / "materialize.py").is_file() else None
    device = tw.select_device(given.device)
    rows: list[Coverage] = []
    failed: dict[str, str] = {}
    console = Console(width=160)
    for n, (network, file) in enumerate(found):
        console.print(f"{n + 1} of {len(found)}: {network}", highlight=False)
        try:
            rows.append(measure(file, network, device, given.runs, filler))
        except tw.TilewrightError as error:
            failed[network] = str(error)
        if given.json:
            written(given.json, device, rows, failed)
    console.print(shown(rows, device))
    everything = total("all together", rows)
    console.print(f"all together: {100 * everything.share:.2f} % on the device")
    low = [r.network for r in rows if 100 * r.share < given.least]
    console.print(f"{len(rows) - len(low)} of {len(found)} have at least {given.least:g} % of it on the device")
    for network, text in failed.items():
        console.print(f"{network}: {text}", markup=False)
    return 1 if failed or low else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
