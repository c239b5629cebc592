"""What the GPU benchmark found, as data, JSON and tables; it needs neither a device nor a peer.

A ratio is the peer's median divided by ours: above 1 tilewright is faster. Times are milliseconds, memory is bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from figures import Timing, figure, geometric_mean, markdown

OURS = "tilewright"
OURS_NUMPY = "tilewright, NumPy"
EAGER = "torch eager"
GRAPH = "torch graph"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
DECIMALS = 3

DLPRIMITIVES = {
    "alexnet": {1: 1.64, 16: 3.03, 64: 8.98},
    "resnet18": {1: 1.87, 16: 4.36, 64: 14.5},
    "resnet50": {1: 5.20, 16: 13.1, 64: 37.3},
    "vgg16": {1: 3.60, 16: 17.5, 64: 60.7},
    "mobilenet_v2": {1: 1.68, 16: 5.30, 64: 18.5},
}
"""Milliseconds per batch of DLPrimitives' own benchmark and networks, fp32 through OpenCL on an NVIDIA H100 80GB,
driver 580.159, 2026-11. Not run again here, so a ratio to these is rougher than one to a peer run in turns."""
DLPRIMITIVES_DEVICE = "H100"


@dataclass(frozen=True)
class NetworkRow:
    """One network at one batch and precision."""

    network: str
    batch: int
    precision: str
    wall: Mapping[str, Timing]
    """By runner, launching and waiting included. OURS and the peers leave inputs and outputs on the device."""
    device: Mapping[str, Timing]
    """By the device's clock: OURS is the sum of its kernels, GRAPH a replay with the gaps between its kernels."""
    memory: Mapping[str, int]
    """Most device memory in use by OURS (arena, constants, inputs, outputs) and EAGER (PyTorch's count)."""
    launches: int
    origins: Mapping[str, int]
    """How many of our kernels' configurations are tuned, of the nearest tuned shape, or the family's default."""
    difference: float | None = None
    """Largest difference of the outputs from PyTorch's, as a part of the largest output, where weights are equal."""
    date: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What the row is about."""
        return self.precision, self.network, self.batch

    def ratio(self, peer: str = GRAPH) -> float | None:
        """The peer's wall time over ours; None without the peer."""
        return self.wall[peer].median / self.wall[OURS].median if peer in self.wall else None

    @property
    def memory_ratio(self) -> float | None:
        """Our device memory over PyTorch's; None without PyTorch."""
        return self.memory[OURS] / self.memory[EAGER] if self.memory.get(EAGER) else None

    def dlprimitives(self, device: str) -> float | None:
        """DLPrimitives' published time over ours, for fp32 on the device it was published for."""
        published = DLPRIMITIVES.get(self.network, {}).get(self.batch)
        if published is None or self.precision != "fp32" or DLPRIMITIVES_DEVICE not in device:
            return None
        return published / self.wall[OURS].median


@dataclass(frozen=True)
class KernelRow:
    """One kernel at one precision; times by the device's clock."""

    kernel: str
    precision: str
    device: Mapping[str, Timing]
    """By runner: OURS, and the peer where there is one."""
    operations: float
    """Multiplications and additions of the definition."""
    errors: Mapping[str, float]
    """Largest error by runner, as a part of the largest element of the product in f64."""
    choice: str = ""
    """Family and configuration of each of our stages, separated by semicolons."""
    date: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What the row is about."""
        return self.precision, self.kernel

    @property
    def peer(self) -> str | None:
        """The runner that ours is compared with."""
        return next((name for name in self.device if name != OURS), None)

    @property
    def ratio(self) -> float | None:
        """The peer's time over ours; None without a peer."""
        return self.device[self.peer].median / self.device[OURS].median if self.peer else None

    def tflops(self, runner: str) -> float:
        """Operations per second of a runner, in units of 1e12."""
        return 1e-9 * self.operations / self.device[runner].median


@dataclass(frozen=True)
class Report:
    """Everything measured on one device."""

    machine: Mapping[str, str]
    """Device, driver, and versions by name."""
    networks: tuple[NetworkRow, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    skipped: tuple[str, ...] = field(default=(), compare=False)
    """What could not be measured, and why."""

    def with_rows(self, networks: Iterable[NetworkRow] = (), kernels: Iterable[KernelRow] = ()) -> Report:
        """With rows added, in place of older ones of the same key; by precision, then network or kernel, then batch."""
        rows = {r.key: r for r in (*self.networks, *networks)}
        others = {r.key: r for r in (*self.kernels, *kernels)}
        names = list(dict.fromkeys(r.network for r in rows.values()))
        kinds = list(dict.fromkeys(r.kernel for r in others.values()))

        def place(r: NetworkRow) -> tuple[int, int, int]:
            return _place(r.precision), names.index(r.network), r.batch

        return replace(
            self,
            networks=tuple(sorted(rows.values(), key=place)),
            kernels=tuple(sorted(others.values(), key=lambda r: (_place(r.precision), kinds.index(r.kernel)))),
        )


def _place(precision: str) -> int:
    return PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)


# --- summaries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """The ratios of one precision, of one batch size or (batch None) of all."""

    precision: str
    batch: int | None
    mean: float
    """Geometric."""
    least: float
    networks: int


def means(rows: Iterable[NetworkRow], peer: str = GRAPH) -> list[Mean]:
    """Geometric means of the ratios by precision and batch, in the rows' order, each precision's own mean last."""
    ratios: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        ratio = row.ratio(peer)
        if ratio is not None:
            ratios.setdefault(row.precision, {}).setdefault(row.batch, []).append(ratio)
    found = []
    for precision, by_batch in ratios.items():
        found += [Mean(precision, n, geometric_mean(r), min(r), len(r)) for n, r in sorted(by_batch.items())]
        every = [r for some in by_batch.values() for r in some]
        found.append(Mean(precision, None, geometric_mean(every), min(every), len(every)))
    return found


# --- JSON -------------------------------------------------------------------------------------------------------------


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values, with ratios and means for readers that do not want to compute them."""
    device = report.machine.get("device", "")
    return {
        "machine": dict(report.machine),
        "networks": [
            {
                **asdict(r),
                "ratio": r.ratio(),
                "ratio_eager": r.ratio(EAGER),
                "memory_ratio": r.memory_ratio,
                "ratio_dlprimitives": r.dlprimitives(device),
            }
            for r in report.networks
        ],
        "geometric_means": [asdict(m) for m in means(report.networks)],
        "kernels": [{**asdict(r), "ratio": r.ratio} for r in report.kernels],
        "skipped": list(report.skipped),
    }


def from_json(values: Mapping[str, Any]) -> Report:
    """The report that `to_json` gave these values of; KeyError or TypeError for anything else."""
    return Report(
        values["machine"],
        tuple(_row(NetworkRow, r) for r in values["networks"]),
        tuple(_row(KernelRow, r) for r in values["kernels"]),
    )


def _row(kind: type[Any], values: Mapping[str, Any]) -> Any:
    fields = {name: v for name, v in values.items() if name in kind.__dataclass_fields__}
    for name in ("wall", "device"):
        if name in fields:
            fields[name] = {runner: Timing(**t) for runner, t in fields[name].items()}
    return kind(**fields)


def read(file: Path) -> Report:
    """What a file holds; ValueError if that is no report."""
    try:
        return from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no results of this benchmark ({error}); give another file") from error


def resume(file: Path, machine: Mapping[str, str]) -> Report:
    """What a file holds of this very device and driver, to be added to; ValueError if it is of another one."""
    if not file.is_file():
        return Report(machine)
    old = read(file)
    for name in ("device", "driver"):
        if old.machine.get(name) != machine.get(name):
            raise ValueError(
                f"{file} holds results of {name} {old.machine.get(name)!r}, not {machine.get(name)!r}; "
                "give another file"
            )
    return replace(old, machine=machine, skipped=())


# --- tables -----------------------------------------------------------------------------------------------------------


def network_tables(report: Report) -> str:
    """A table of networks for every precision, and one of the geometric means."""
    parts = []
    device = report.machine.get("device", "")
    for precision in dict.fromkeys(r.precision for r in report.networks):
        rows = [r for r in report.networks if r.precision == precision]
        published = any(r.dlprimitives(device) for r in rows)
        columns = ["network", "batch", "ours", "spread", "NumPy", "graph", "eager", "graph/ours", "eager/ours"]
        columns += ["kernels", "graph, device", "MiB", "of torch's", "launches", "tuned", "difference"]
        columns += ["DLPrimitives/ours"] if published else []
        cells = [_network_cells(r) + ([_figure(r.dlprimitives(device), 2)] if published else []) for r in rows]
        parts.append(f"{precision}: milliseconds per batch\n\n{markdown(columns, cells)}")
    found = means(report.networks)
    if found:
        columns = ["precision", "batch", "geometric mean", "least", "networks"]
        parts.append("graph/ours\n\n" + markdown(columns, [_mean_cells(m) for m in found]))
    if len({r.precision for r in report.networks}) > 1:
        parts.append(f"milliseconds, ours / graph = times as fast\n\n{overview(report)}")
    return "\n\n".join(parts)


def overview(report: Report) -> str:
    """One table of all precisions: per network and batch "ours / graph = ratio", and our memory over PyTorch's."""
    precisions = list(dict.fromkeys(r.precision for r in report.networks))
    rows = {(r.network, r.batch, r.precision): r for r in report.networks}
    cells = []
    names = list(dict.fromkeys(r.network for r in report.networks))
    for network, batch in sorted({(r.network, r.batch) for r in report.networks}, key=lambda k: (names.index(k[0]), k)):
        found = [rows.get((network, batch, precision)) for precision in precisions]
        memory = None if found[0] is None else found[0].memory_ratio
        cells.append([network, str(batch), *map(_brief, found), _figure(memory, 2)])
    return markdown(["network", "batch", *precisions, f"memory, {precisions[0]}"], cells) if cells else ""


def _brief(row: NetworkRow | None) -> str:
    if row is None:
        return "-"
    ratio = row.ratio()
    ours = f"{row.wall[OURS].median:.2f}"
    return ours if ratio is None else f"{ours} / {row.wall[GRAPH].median:.2f} = {ratio:.2f}"


def _network_cells(r: NetworkRow) -> list[str]:
    ours = r.wall[OURS]
    return [
        r.network,
        str(r.batch),
        _figure(ours.median),
        f"{ours.spread:.0%}",
        *(_figure(r.wall[name].median if name in r.wall else None) for name in (OURS_NUMPY, GRAPH, EAGER)),
        _figure(r.ratio(), 2),
        _figure(r.ratio(EAGER), 2),
        *(_figure(r.device[name].median if name in r.device else None) for name in (OURS, GRAPH)),
        f"{r.memory[OURS] / 2**20:.0f}",
        _figure(r.memory_ratio, 2),
        str(r.launches),
        f"{r.origins.get('tuned', 0)}/{sum(r.origins.values())}",
        "-" if r.difference is None else f"{r.difference:.0e}",
    ]


def _mean_cells(m: Mean) -> list[str]:
    return [m.precision, "all" if m.batch is None else str(m.batch), f"{m.mean:.2f}", f"{m.least:.2f}", str(m.networks)]


def kernel_table(report: Report) -> str:
    """The table of kernels."""
    columns = ["kernel", "precision", "ours", "peer", "ratio", "TFLOP/s", "peer's", "error", "peer's", "family"]
    return markdown(columns, [_kernel_cells(r) for r in report.kernels])


def _kernel_cells(r: KernelRow) -> list[str]:
    peer = r.peer
    return [
        r.kernel,
        r.precision,
        _figure(r.device[OURS].median),
        _figure(r.device[peer].median if peer else None),
        _figure(r.ratio, 2),
        f"{r.tflops(OURS):.1f}",
        f"{r.tflops(peer):.1f}" if peer else "-",
        *(f"{r.errors[name]:.1e}" if name in r.errors else "-" for name in (OURS, peer or "")),
        " + ".join(part.partition(" ")[0] for part in r.choice.split("; ")),
    ]


def _figure(value: float | None, decimals: int = DECIMALS) -> str:
    return figure(value, decimals)
