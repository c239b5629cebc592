"""What `tilewright doctor` reports: drivers, devices and their self-tests, what is kept between runs, what is wrong."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright import __version__
from tilewright.errors import TilewrightError
from tilewright.output import to_json
from tilewright.runtime import Device, Diagnosis, SelfTest, diagnose, select_device, selftest
from tilewright.tuning_db import Store

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


@dataclass(frozen=True)
class Database:
    """The tuning database's state."""

    url: str
    """Empty if it cannot be opened."""
    measurements: int
    read_only: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything the doctor looked at."""

    drivers: Diagnosis
    tests: tuple[SelfTest, ...]
    """One per device, in the same order."""
    default: str | None
    """Name of the device that is used where none is named."""
    database: Database
    problems: tuple[str, ...]
    """What is wrong and what to do about it, one sentence each."""

    @property
    def usable(self) -> bool:
        """True if some device computed the right numbers."""
        return any(test.passed for test in self.tests)


def examine() -> Report:
    """Look at everything; takes a few seconds per device."""
    drivers = diagnose()
    tests = tuple(selftest(device) for device in drivers.devices)
    database = _database()
    default, complaint = _default(drivers)
    failed = [f"{t.device}: the self-test failed: {t.message}" for t in tests if not t.passed]
    problems = (*drivers.hints, *failed, *complaint, *database.problems)
    return Report(drivers, tests, default, database, problems)


def _default(drivers: Diagnosis) -> tuple[str | None, tuple[str, ...]]:
    """The default device's name, and what is wrong with the choice (a hint says it already if there is no device)."""
    if not drivers.devices:
        return None, ()
    try:
        return select_device(None).name, ()
    except TilewrightError as error:
        return None, (str(error),)


def _database() -> Database:
    try:
        with Store.open() as store:
            return Database(store.url, store.stats().measurements, store.read_only, store.verify())
    except TilewrightError as error:
        return Database("", 0, True, (str(error),))


def as_json(report: Report) -> dict[str, Any]:
    """The report as values for JSON."""
    return {"tilewright": __version__, "python": platform.python_version(), "usable": report.usable, **to_json(report)}


# --- showing ----------------------------------------------------------------------------------------------------------


def render(report: Report, console: Console) -> None:
    """Print the report for people."""
    from rich.markup import escape

    for title, part in _sections(report):
        console.print(f"[bold]{title}[/bold]")
        console.print(part)
    for problem in report.problems:
        console.print(f"[red]problem:[/red] {escape(problem)}")
    default = f", default device {report.default}" if report.default else ""
    console.print(f"[bold]{'ready' if report.usable else 'nothing to run on'}[/bold]{escape(default)}")


def _sections(report: Report) -> Iterator[tuple[str, RenderableType]]:
    drivers, database = report.drivers, report.database
    installed = [(name, version or "not installed") for name, version in drivers.packages]
    versions = [("tilewright", __version__), ("Python", platform.python_version())]
    yield "Versions", _grid([*versions, ("pyopencl", drivers.pyopencl or "not installed"), *installed])
    searched = [(folder, "" if Path(folder).exists() else "(there is none)") for folder in drivers.folders]
    found = [(f"  {entry.path}", "works" if entry.works else entry.error) for entry in drivers.entries]
    origin = f"OCL_ICD_VENDORS ({drivers.vendors_origin})"
    yield "Drivers", _grid([(origin, drivers.vendors_variable or ""), *searched, *found])
    tested = zip(drivers.devices, report.tests, strict=True)
    yield "Devices", _grid(line for device, test in tested for line in _device_lines(device, test))
    cache = drivers.cache
    kernels = f"{cache.files} files, {cache.nbytes / 2**20:.1f} MiB{_writable(cache.writable)}"
    results = f"{database.measurements} measurements{_writable(not database.read_only)}"
    yield "Kept between runs", _grid([(str(cache.folder), kernels), (database.url or "no database", results)])


def _writable(writable: bool) -> str:
    return "" if writable else ", cannot be written"


def _device_lines(device: Device, test: SelfTest) -> Iterator[tuple[str, str]]:
    target = device.target
    speed = f"{test.bandwidth / 1e9:.1f} GB/s, {1e6 * test.launch_seconds:.1f} µs per launch"
    yield device.name, f"self-test {f'passed, {speed}' if test.passed else 'FAILED'}"
    yield "", f"{device.opencl_name}, {device.platform} {device.driver}, {device.opencl_version}"
    types = ", ".join(name for name, has in (("f16", target.has_f16), ("f64", target.has_f64)) if has)
    memory = f"{device.global_memory / 2**30:.1f} GiB (at most {device.max_allocation / 2**30:.1f} GiB at once)"
    units = f"{device.compute_units} units, {8 * target.vector_bytes}-bit vectors"
    yield "", f"{units}, {types or 'no f16, no f64'}, {memory}"
    real = "" if target.has_real_local_memory else " (emulated)"
    yield "", f"local memory {target.local_memory >> 10} KiB{real}, work-groups up to {target.max_work_group}"


def _grid(rows: Iterable[tuple[str, ...]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row("", *(Text(cell, overflow="fold") for cell in row))
    return grid
