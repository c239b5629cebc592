"""From a file to the first result: seconds and the most memory of the host, beside onnxruntime, in fresh processes.

    python benchmarks/startup.py --device intel resnet50 mobilenet_v2

Every figure is from a process of its own, the fastest of some. *First* makes a session and runs it once with a batch of
one; compiled kernels and the plan lie in the cache on disk, unless `--plan` has it planned anew. *CPU* is the
processor time of that and of imports, by all threads, which says more than seconds on a busy machine. *Peak* is the
most memory the process ever held (resident, libraries included), after three runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from models import default_folder, source
from rich.console import Console
from rich.table import Table

MIB = 1 << 20


@dataclass(frozen=True)
class Start:
    """One process; seconds and bytes."""

    imports: float
    first: float
    cpu: float
    peak: int


def started(way: str, file: str) -> Start:
    """Start in this process: ``way`` is onnxruntime or the name of a device."""
    begin, cpu = time.perf_counter(), time.process_time()
    make = _with_onnxruntime if way == "onnxruntime" else _with_tilewright
    create = make(way, file)
    imported = time.perf_counter()
    run = create()
    run()
    first, used = time.perf_counter(), time.process_time()
    for _ in range(2):
        run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Start(imported - begin, first - imported, used - cpu, peak)


def _with_onnxruntime(_: str, file: str) -> Callable[[], Callable[[], object]]:
    import onnxruntime

    def create() -> Callable[[], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        feeds = {i.name: _image(i.shape) for i in session.get_inputs()}
        return lambda: session.run(None, feeds)

    return create


def _with_tilewright(device: str, file: str) -> Callable[[], Callable[[], object]]:
    from tilewright.graph.session import InferenceSession

    def create() -> Callable[[], object]:
        session = InferenceSession(file, device=device)
        feeds = {i.name: _image(i.shape) for i in session.get_inputs()}
        return lambda: session.run(None, feeds)

    return create


def _image(shape: list[int | str | None]) -> np.ndarray:
    return np.zeros([n if isinstance(n, int) else 1 for n in shape], np.float32)


def best(way: str, file: Path, repeats: int, plan: bool) -> Start:
    """The fastest of some processes, and the least memory, after one that fills caches; `plan`: keep no plans."""
    environment = {**os.environ, "TILEWRIGHT_PLANS": "off"} if plan else None
    found = []
    for _ in range(repeats + 1):
        command = [sys.executable, __file__, "--start", way, str(file)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found.append(Start(**json.loads(done.stdout)))
    kept = found[1:]
    return Start(*(min(getattr(s, name) for s in kept) for name in ("imports", "first", "cpu", "peak")))


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds and memory until the first result, beside onnxruntime")
    parser.add_argument("networks", nargs="*", default=["resnet50"], help="torchvision's names, or ONNX files")
    parser.add_argument("--device", default="intel", help="a device's name (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each (default: %(default)s)")
    parser.add_argument("--plan", action="store_true", help="have every process plan the network anew")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(asdict(started(*options.start))))
        return
    table = Table("network", "by", "imports s", "first s", "CPU s", "peak MiB")
    rows = []
    for name in options.networks:
        file = Path(name) if name.endswith(".onnx") else source(name, default_folder()).file
        for way in (options.device, "onnxruntime"):
            s = best(way, file, options.repeats, options.plan)
            rows.append({"network": name, "by": way, **asdict(s)})
            table.add_row(name, way, f"{s.imports:.2f}", f"{s.first:.2f}", f"{s.cpu:.2f}", f"{s.peak / MIB:.0f}")
    if options.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
    else:
        Console().print(table)


if __name__ == "__main__":
    main()
