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

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from models import default_folder, source
from rich.console import Console
from rich.table import Table

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


def measured(way: str, file: str) -> Held:
    """Start in this process: ``way`` is onnxruntime or the name of a device."""
    load = _with_onnxruntime if way == "onnxruntime" else _with_tilewright
    create = load(way)
    loaded = _status("VmHWM")
    run, buffers = create(file)
    for _ in range(3):
        run()
    relocated = _of_files("Anonymous")
    private = _status("RssAnon")
    taken = buffers()
    return Held(loaded, _status("VmHWM"), _status("RssFile"), relocated, taken, private - relocated - taken)


Started = tuple[Callable[[], object], Callable[[], float]]


def _with_onnxruntime(_: str) -> Callable[[str], Started]:
    import onnxruntime

    def create(file: str) -> Started:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        feeds = {i.name: _image(i.shape) for i in session.get_inputs()}
        return lambda: session.run(None, feeds), lambda: 0.0

    return create


def _with_tilewright(device: str) -> Callable[[str], Started]:
    from tilewright.graph.session import InferenceSession
    from tilewright.runtime import context, select_device

    ctx = context(select_device(device))

    def create(file: str) -> Started:
        session = InferenceSession(file, device=device)
        feeds = {i.name: _image(i.shape) for i in session.get_inputs()}
        held = (lambda: ctx.pool.in_use / (1 << 20)) if ctx.device.kind == "cpu" else (lambda: 0.0)
        return lambda: session.run(None, feeds), held

    return create


def _image(shape: list[int | str | None]) -> np.ndarray:
    return np.zeros([n if isinstance(n, int) else 1 for n in shape], np.float32)


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


def started(way: str, file: Path, environment: dict[str, str]) -> Held:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--start", way, str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return Held(**json.loads(done.stdout))


def compared(device: str, file: Path) -> dict[str, Held]:
    """The three ways to start, and onnxruntime."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {"TILEWRIGHT_CACHE": folder}
        found = {way: started(device, file, {**cache, **_plans(way)}) for way in WAYS}
    return {**found, "onnxruntime": started("onnxruntime", file, {})}


def _plans(way: str) -> dict[str, str]:
    return {"TILEWRIGHT_PLANS": "off"} if way == "kernels" else {}


def main() -> None:
    parser = argparse.ArgumentParser(description="where the host's memory goes, beside onnxruntime")
    parser.add_argument("networks", nargs="*", default=["resnet50"], help="torchvision's names, or ONNX files")
    parser.add_argument("--device", default="intel", help="a device's name (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(asdict(measured(*options.start))))
        return
    table = Table("network", "start", *Held.__dataclass_fields__, title="MiB")
    rows = []
    for name in options.networks:
        file = Path(name) if name.endswith(".onnx") else source(name, default_folder()).file
        for way, held in compared(options.device, file).items():
            rows.append({"network": name, "start": way, **asdict(held)})
            table.add_row(name, way, *(f"{mib:.0f}" for mib in asdict(held).values()))
    if options.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
    else:
        Console().print(table)


if __name__ == "__main__":
    main()
