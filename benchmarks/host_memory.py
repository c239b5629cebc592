"""Where the host's memory goes when a network starts: MiB by what holds it, beside onnxruntime, in fresh processes.

    python benchmarks/host_memory.py --device intel resnet50 mobilenet_v2

Each network starts three times with a cache folder of its own: *first* with nothing in it, *kernels* with compiled
kernels, *plan* with plans as well, as all later sessions do. *Loaded* is the most memory the process ever held until
the driver (onnxruntime: the package) was loaded, *peak* until three runs with a batch of one were done, as the system
counts (VmHWM). What is held at the end: *files*, pages of libraries and others as they lie on disk, which processes
share; *relocated*, pages of libraries that the loader has written to; *buffers*, memory of the device, which is that
of the host on CPUs, for weights, temporaries, inputs and outputs; *other*, everything else that is the process's own:
Python's objects, heaps, and compiled programs. Linux only.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from starting import ONNXRUNTIME, alone, files, imported, parser, show

if TYPE_CHECKING:
    from tilewright.runtime import Context

WAYS = ("first", "kernels", "plan")


@dataclass(frozen=True)
class Held:
    """Memory of one process in MiB."""

    loaded: float
    peak: float
    files: float
    relocated: float
    buffers: float
    other: float


def measured(engine: str, file: str) -> Held:
    """Start in this process: ``engine`` is onnxruntime or the name of a device."""
    create = imported(engine)
    ctx = None if engine == ONNXRUNTIME else _opened(engine)
    loaded = _status("VmHWM")
    run = create(file)
    for _ in range(3):
        run()
    relocated, private, buffers = _of_files("Anonymous"), _status("RssAnon"), _buffers(ctx)
    return Held(loaded, _status("VmHWM"), _status("RssFile"), relocated, buffers, private - relocated - buffers)


def _opened(device: str) -> Context:
    from tilewright.runtime import context, select_device  # not in onnxruntime's process

    return context(select_device(device))


def _buffers(ctx: Context | None) -> float:
    """The device's memory where it is the host's, in MiB."""
    return ctx.pool.in_use / (1 << 20) if ctx is not None and ctx.device.kind == "cpu" else 0.0


def _status(name: str) -> float:
    """A figure of /proc/self/status in MiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def _of_files(name: str) -> float:
    """The sum of a figure over the mappings of files, in MiB (/proc/self/smaps)."""
    total, is_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if re.match(r"[0-9a-f]+-[0-9a-f]+$", words[0]):
            is_file = len(words) > 5 and words[5].startswith("/")
        elif is_file and words[0] == f"{name}:":
            total += int(words[1])
    return total / 1024


def compared(device: str, file: Path) -> dict[str, Held]:
    """The three ways to start, and onnxruntime."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {"TILEWRIGHT_CACHE": folder}
        found = {way: Held(**alone(__file__, device, file, {**cache, **_plans(way)})) for way in WAYS}
    return {**found, ONNXRUNTIME: Held(**alone(__file__, ONNXRUNTIME, file, {}))}


def _plans(way: str) -> dict[str, str]:
    return {"TILEWRIGHT_PLANS": "off"} if way == "kernels" else {}


def main() -> None:
    options = parser("where the host's memory goes, beside onnxruntime").parse_args()
    if options.start:
        print(json.dumps(asdict(measured(*options.start))))
        return
    table = Table("network", "start", *Held.__dataclass_fields__, title="MiB")
    rows = []
    for name, file in files(options.networks):
        for way, held in compared(options.device, file).items():
            rows.append({"network": name, "start": way, **asdict(held)})
            table.add_row(name, way, *(f"{mib:.0f}" for mib in asdict(held).values()))
    show(table, rows, options.json)


if __name__ == "__main__":
    main()
