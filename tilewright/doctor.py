"""What there is to run on, what is broken, and whether kernels give right numbers.

Drivers are foreign code that may end the process as they load, so everything that touches one runs in a child
process: loading each library, listing the devices, computing on each of them.
"""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright import __version__
from tilewright.errors import TilewrightError
from tilewright.runtime import CacheUsage, Device, ProgramCache, devices, icd, select_device
from tilewright.tuning_db import Store

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PACKAGES = ("pyopencl", "intel-opencl-rt", "pocl-binary-distribution", "numpy", "onnx", "sqlalchemy", "onnxruntime")
_PATIENCE = 60.0
"""Seconds a child may take: the first kernel of a driver may have to compile its built-in library."""
_TOLERANCE = 1e-5

SELF_TEST = """
op self_test(a[M,K], b[K,N], bias[N]) -> c[M,N]:
    c[m,n] = max(sum(k) a[m,k] * b[k,n] + bias[n], 0)
"""


@dataclass(frozen=True)
class Entry:
    """An .icd file, which tells OpenCL of one driver."""

    file: str
    library: str
    problem: str | None
    """Why the library cannot be loaded, None if it can."""


@dataclass(frozen=True)
class Folder:
    """A place where .icd files are looked for."""

    path: str
    meaning: str
    exists: bool
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Tested:
    """A device after its self-test."""

    device: Device
    seconds: float
    """Time of the self-test: start, compilation and run."""
    problem: str | None
    """Why it cannot be used, None if its numbers were right."""


@dataclass(frozen=True)
class Database:
    """The tuning database's state."""

    url: str
    measurements: int
    read_only: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything the doctor looked at."""

    version: str
    python: str
    system: str
    packages: dict[str, str | None]
    folders: tuple[Folder, ...]
    devices: tuple[Tested, ...]
    default: str | None
    """Name of the device that is used where none is named."""
    problems: tuple[str, ...]
    """What stands in the way and what to do about it, one sentence each."""
    cache: CacheUsage
    database: Database

    @property
    def usable(self) -> bool:
        """True if some device computed the right numbers."""
        return any(tested.problem is None for tested in self.devices)


def examine() -> Report:
    """Look at everything; takes a few seconds per device."""
    problems: list[str] = []
    icd.register_drivers()
    folders = tuple(_folders())
    problems += [f"{e.file} is broken: {e.problem}" for folder in folders for e in folder.entries if e.problem]
    tested: tuple[Tested, ...] = ()
    default = None
    failure = _in_child("list")[1]
    if failure is None:
        tested = tuple(_tested(device) for device in devices())
        default, complaint = _default()
        problems += [complaint] if complaint else []
    else:
        problems.append(failure)
    problems += [f"{t.device.name}: {t.problem}" for t in tested if t.problem]
    database = _database()
    return Report(
        __version__,
        platform.python_version(),
        platform.platform(),
        {name: icd.installed_version(name) for name in _PACKAGES},
        folders,
        tested,
        default,
        (*problems, *database.problems),
        ProgramCache().usage(),
        database,
    )


# --- drivers ----------------------------------------------------------------------------------------------------------


def _folders() -> Iterator[Folder]:
    named = icd.vendors_variable()
    if named is None:
        yield _folder(icd.SYSTEM_FOLDER, "OpenCL's own folder")
    else:
        yield _folder(Path(named), "made by tilewright" if icd.is_ours(named) else "named by OCL_ICD_VENDORS")
    beside = _beside_pyopencl()
    if beside is not None:
        yield _folder(beside, "beside pyopencl's loader")


def _beside_pyopencl() -> Path | None:
    """Where pyopencl's wheel keeps its loader and looks for drivers as well."""
    import importlib.util

    spec = importlib.util.find_spec("pyopencl")
    folder = Path(spec.origin).parent / ".libs" if spec and spec.origin else None
    return folder if folder is not None and folder.is_dir() else None


def _folder(path: Path, meaning: str) -> Folder:
    files = (path,) if path.is_file() else icd.entries(path)
    return Folder(str(path), meaning, path.exists(), tuple(_entry(file) for file in files))


def _entry(file: Path) -> Entry:
    library = str(file) if file.suffix != ".icd" else icd.read_entry(file)
    if not library:
        return Entry(str(file), "", "it names no library; delete it or reinstall its driver")
    local = file.parent / library  # pyopencl's wheel names libraries relative to its own folder
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    _, failure = _run([sys.executable, "-c", code, str(local if local.is_file() else library)])
    return Entry(str(file), library, failure)


# --- devices ----------------------------------------------------------------------------------------------------------


def _default() -> tuple[str | None, str | None]:
    """The default device's name, or what is wrong with the choice."""
    try:
        return select_device(None).name, None
    except TilewrightError as error:
        return None, str(error)


def _tested(device: Device) -> Tested:
    start = time.perf_counter()
    answer, failure = _in_child("test", device.name)
    if failure is None and not answer["difference"] <= _TOLERANCE:
        failure = f"the self-test gave wrong numbers (relative error {answer['difference']:.1e}); update the driver"
    return Tested(device, time.perf_counter() - start, failure)


def self_test(name: str) -> float:
    """The largest relative error of a small matrix product on a device."""
    import numpy as np

    from tilewright.api import op
    from tilewright.bench import largest_difference

    rng = np.random.default_rng(0)
    a, b, bias = (rng.standard_normal(shape, np.float32) for shape in ((37, 65), (65, 50), (50,)))
    ours = op(SELF_TEST)(a, b, bias, device=name)
    return largest_difference([np.asarray(ours)], [np.maximum(a @ b + bias, 0)])


def _in_child(*arguments: str) -> tuple[Any, str | None]:
    """What `_child` answers in a process of its own, and why it failed."""
    output, failure = _run([sys.executable, "-m", "tilewright.doctor", *arguments])
    return (json.loads(output.splitlines()[-1]) if failure is None else None), failure


def _run(command: list[str]) -> tuple[str, str | None]:
    """Standard output of a command, and the last line of its complaint if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {_PATIENCE:.0f} seconds"
    if done.returncode == 0:
        return done.stdout, None
    if done.returncode < 0:
        return "", f"it ended the process with {signal.Signals(-done.returncode).name}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "", (lines[-1].removeprefix("OSError: ") if lines else f"status {done.returncode}")


def _child(arguments: list[str]) -> None:
    """The part that touches drivers; prints JSON, or one line of complaint and ends with status 1."""
    try:
        match arguments:
            case ["list"]:
                print(json.dumps([device.name for device in devices()]))
            case ["test", name]:
                print(json.dumps({"difference": self_test(name)}))
    except TilewrightError as error:
        sys.exit(" ".join(str(error).split()))


# --- database ---------------------------------------------------------------------------------------------------------


def _database() -> Database:
    try:
        with Store.open() as store:
            return Database(store.url, store.stats().measurements, store.read_only, store.verify())
    except TilewrightError as error:
        return Database("", 0, True, (str(error),))


# --- showing ----------------------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """The report as values for JSON (devices as `tilewright devices --json` gives them)."""
    return {**asdict(report), "usable": report.usable}


def render(report: Report, console: Console) -> None:
    """Print the report for people."""
    from rich.markup import escape

    for title, part in _sections(report):
        console.print(f"[bold]{title}[/bold]")
        console.print(part)
    for problem in report.problems:
        console.print(f"[red]problem:[/red] {escape(problem)}")
    verdict = "ready" if report.usable else "nothing to run on"
    extra = f", default device {report.default}" if report.usable and report.default else ""
    console.print(f"[bold]{verdict}[/bold]{escape(extra)}")


def _sections(report: Report) -> Iterator[tuple[str, RenderableType]]:
    installed = [(name, version or "not installed") for name, version in report.packages.items()]
    versions = [("tilewright", report.version), ("Python", report.python), ("system", report.system), *installed]
    yield "Versions", _grid(versions)
    drivers: list[tuple[str, ...]] = []
    for folder in report.folders:
        drivers.append((folder.path, folder.meaning if folder.exists else f"{folder.meaning} (there is none)"))
        drivers += [(f"  {Path(e.file).name}", e.problem or f"loads {e.library}") for e in folder.entries]
    yield "Drivers", _grid(drivers)
    yield "Devices", _grid(line for tested in report.devices for line in _device_lines(tested))
    cache, database = report.cache, report.database
    kept = [
        ("kernels", f"{cache.folder}: {cache.files} files, {cache.nbytes / 2**20:.1f} MiB{_read_only(cache.writable)}"),
        ("tuning", f"{database.url}: {database.measurements} measurements{_read_only(not database.read_only)}"),
    ]
    yield "Kept between runs", _grid(kept)


def _read_only(writable: bool) -> str:
    return "" if writable else ", cannot be written"


def _device_lines(tested: Tested) -> Iterator[tuple[str, str]]:
    device, target = tested.device, tested.device.target
    state = f"self-test failed: {tested.problem}" if tested.problem else f"self-test right ({tested.seconds:.1f} s)"
    yield device.name, state
    yield "", f"{device.opencl_name}, {device.platform} {device.driver}, {device.opencl_version}"
    types = ", ".join(name for name, has in (("f16", target.has_f16), ("f64", target.has_f64)) if has)
    memory = f"{device.global_memory / 2**30:.1f} GiB (at most {device.max_allocation / 2**30:.1f} GiB at once)"
    units = f"{device.compute_units} units, {8 * target.vector_bytes}-bit vectors"
    yield "", f"{units}, {types or 'no f16, no f64'}, {memory}"
    real = "" if target.has_real_local_memory else " (emulated)"
    yield "", f"local memory {target.local_memory >> 10} KiB{real}, work-groups up to {target.max_work_group}"


def _grid(rows: Any) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row("", *(Text(cell) for cell in row))
    return grid


if __name__ == "__main__":
    _child(sys.argv[1:])
