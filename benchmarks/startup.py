"""From a file to the first result: seconds and the most memory of the host, beside onnxruntime, in fresh processes.

    python benchmarks/startup.py --device intel resnet50 mobilenet_v2

Every figure is from a process of its own, the best of some, each by itself, so that parts need not add up. *Open*
imports the engine and opens the device (NumPy's import, which both engines need, is not counted), *session* makes a
session of the file, *first* runs it once with a batch of one; compiled kernels and the plan lie in the cache on disk,
unless `--plan` has it planned anew. Our sessions load programs and pack weights when they are first run, onnxruntime's
when they are made. Each part has its seconds and its processor time by all threads, which says more on a busy machine;
*CPU* is that of all three. *MiB* is the most memory the process ever held (resident, libraries included), after three
runs.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from starting import ONNXRUNTIME, alone, files, imported, parser, show

MIB = 1 << 20


@dataclass(frozen=True)
class Start:
    """One process; seconds and bytes."""

    open: float
    session: float
    first: float
    open_cpu: float
    session_cpu: float
    first_cpu: float
    cpu: float
    peak: int


def started(engine: str, file: str) -> Start:
    """Start in this process: ``engine`` is onnxruntime or the name of a device."""
    begin = _now()
    create = imported(engine)
    ready = _now()
    run = create(file)
    made = _now()
    run()
    done = _now()
    for _ in range(2):
        run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds, processor = np.diff([begin, ready, made, done], axis=0).T.tolist()
    return Start(*seconds, *processor, sum(processor), peak)


def _now() -> tuple[float, float]:
    """Seconds, and seconds of the processor that this process has used."""
    return time.perf_counter(), time.process_time()


def best(engine: str, file: Path, repeats: int, plan: bool) -> Start:
    """The fastest of some processes, and the least memory, after one that fills caches; `plan`: keep no plans."""
    environment = {"TILEWRIGHT_PLANS": "off"} if plan else {}
    kept = [Start(**alone(__file__, engine, file, environment)) for _ in range(repeats + 1)][1:]
    return Start(*map(min, zip(*map(astuple, kept), strict=True)))


def main() -> None:
    asked = parser("seconds and memory until the first result, beside onnxruntime")
    asked.add_argument("--repeats", type=int, default=3, help="processes of each (default: %(default)s)")
    asked.add_argument("--plan", action="store_true", help="have every process plan the network anew")
    options = asked.parse_args()
    if options.start:
        print(json.dumps(asdict(started(*options.start))))
        return
    parts = ("open", "session", "first")
    table = Table("network", "by", *(f"{part} s" for part in parts), *(f"{part} CPU" for part in parts), "CPU", "MiB")
    rows = []
    for name, file in files(options.networks):
        for engine in (options.device, ONNXRUNTIME):
            s = best(engine, file, options.repeats, options.plan)
            rows.append({"network": name, "by": engine, **asdict(s)})
            *seconds, peak = astuple(s)
            table.add_row(name, engine, *(f"{t:.3f}" for t in seconds), f"{peak / MIB:.0f}")
    show(table, rows, options.json)


if __name__ == "__main__":
    main()
