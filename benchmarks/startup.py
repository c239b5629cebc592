"""From a file to the first result: seconds and the most memory of the host, beside onnxruntime, in fresh processes.

    python benchmarks/startup.py --device intel resnet50 mobilenet_v2

Every figure is from a process of its own, the fastest of some. *Open* imports the engine and opens the device,
*session* makes a session of the file, *first* runs it once with a batch of one; compiled kernels and the plan lie in
the cache on disk, unless `--plan` has it planned anew. Our sessions load programs and pack weights when they are first
run, onnxruntime's when they are made. *CPU* is the processor time of all three, by all threads, which says more than
seconds on a busy machine. *Peak* is the most memory the process ever held (resident, libraries included), after three
runs.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.table import Table
from starting import ONNXRUNTIME, alone, files, imported, parser, show

MIB = 1 << 20


@dataclass(frozen=True)
class Start:
    """One process; seconds and bytes."""

    open: float
    session: float
    first: float
    cpu: float
    peak: int


FIGURES = tuple(f.name for f in fields(Start))


def started(engine: str, file: str) -> Start:
    """Start in this process: ``engine`` is onnxruntime or the name of a device."""
    begin, cpu = time.perf_counter(), time.process_time()
    create = imported(engine)
    ready = time.perf_counter()
    run = create(file)
    made = time.perf_counter()
    run()
    first, used = time.perf_counter(), time.process_time()
    for _ in range(2):
        run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Start(ready - begin, made - ready, first - made, used - cpu, peak)


def best(engine: str, file: Path, repeats: int, plan: bool) -> Start:
    """The fastest of some processes, and the least memory, after one that fills caches; `plan`: keep no plans."""
    environment = {"TILEWRIGHT_PLANS": "off"} if plan else {}
    kept = [Start(**alone(__file__, engine, file, environment)) for _ in range(repeats + 1)][1:]
    return Start(*(min(getattr(s, name) for s in kept) for name in FIGURES))


def main() -> None:
    asked = parser("seconds and memory until the first result, beside onnxruntime")
    asked.add_argument("--repeats", type=int, default=3, help="processes of each (default: %(default)s)")
    asked.add_argument("--plan", action="store_true", help="have every process plan the network anew")
    options = asked.parse_args()
    if options.start:
        print(json.dumps(asdict(started(*options.start))))
        return
    table = Table("network", "by", "open s", "session s", "first s", "CPU s", "peak MiB")
    rows = []
    for name, file in files(options.networks):
        for engine in (options.device, ONNXRUNTIME):
            s = best(engine, file, options.repeats, options.plan)
            rows.append({"network": name, "by": engine, **asdict(s)})
            seconds = (f"{t:.3f}" for t in (s.open, s.session, s.first, s.cpu))
            table.add_row(name, engine, *seconds, f"{s.peak / MIB:.0f}")
    show(table, rows, options.json)


if __name__ == "__main__":
    main()
