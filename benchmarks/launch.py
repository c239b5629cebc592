"""What a kernel launch costs from Python: microseconds per kernel over a list of tiny ones.

    python benchmarks/launch.py --device nvidia

*host* is the time until the call returns, *total* until the device is done. The first two rows start the same prepared
launches: as pyopencl does it, and as tilewright does it. The others run a network of as many launches (poolings of a
tiny image), arrays on the device, and with NumPy arrays in and out. Times are medians of the runs, taken in turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.dsl.lowering import Launch
from tilewright.runtime import BoundLaunch, Context, context, launching

PROGRAMS = 10
"""Different kernels in the list, as in a network."""
ITEMS, GROUP = 256, 64


@dataclass(frozen=True)
class Row:
    """One way to launch."""

    way: str
    host: float
    """Microseconds per kernel until the call returns."""
    total: float
    """Microseconds per kernel until the device is done."""


def tiny_launches(ctx: Context, count: int) -> list[BoundLaunch]:
    """Launches of small kernels that add three arrays into a fourth."""
    memory = [ctx.allocate(4 * ITEMS) for _ in range(64)]
    found = []
    for n in range(count):
        kernel = f"add_{n % PROGRAMS}"
        source = f"""
        __kernel void {kernel}(__global const float* a, __global const float* b, __global const float* c,
                               __global float* y) {{
            size_t i = get_global_id(0);
            y[i] = a[i] + b[i] + c[i];
        }}"""
        launch = Launch(kernel, source, (ITEMS,), (GROUP,), ("a", "b", "c", "y"), ("y",))
        found.append(ctx.bind(launch, {a: memory[(3 * n + d) % 64] for d, a in enumerate(launch.arguments)}))
    return found


def chain(count: int) -> onnx.ModelProto:
    """A network of `count` launches on an image of 8x8."""
    pool = "MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1]>"
    names = ["x", *(f"t{n}" for n in range(count - 1)), "y"]
    lines = "\n".join(f"{b} = {pool}({a})" for a, b in itertools.pairwise(names))
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {{\n{lines}\n}}'
    return onnx.parser.parse_model(text)


def measure(device: tw.Device, count: int, repeats: int) -> list[Row]:
    """All ways in turns."""
    ctx = context(device)
    launches = tiny_launches(ctx, count)
    calls = [launch.call for launch in launches]
    old = launching.Launcher(ctx._queue, direct=False)
    old_calls = [old.call(launch.kernel, launch.global_size, launch.local_size) for launch in launches]
    session = tw.InferenceSession(chain(count), device=device, store=False)
    kernels = session.plan().kernels
    x = np.random.default_rng(0).random((1, 4, 8, 8), np.float32)
    on_device = tw.asarray(x, device)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "launches, by pyopencl": (count, lambda: old.start(old_calls)),
        "launches, by tilewright": (count, lambda: ctx._launcher.start(calls)),
        "network, arrays on the device": (kernels, lambda: session.run_on_device(None, {"x": on_device})),
        "network, NumPy in and out": (kernels, lambda: session.run(None, {"x": x})),
    }
    samples: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(repeats + 2):
        for way, (per, work) in ways.items():
            ctx.finish()
            start = time.perf_counter()
            kept = work()
            returned = time.perf_counter()
            ctx.finish()
            done = time.perf_counter()
            del kept
            if turn >= 2:
                samples[way].append(((returned - start) * 1e6 / per, (done - start) * 1e6 / per))
    return [
        Row(way, statistics.median(h for h, _ in found), statistics.median(t for _, t in found))
        for way, found in samples.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="microseconds per kernel launch")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--launches", type=int, default=100, help="kernels in the list (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=50, help="runs of each way (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    device = tw.select_device(options.device)
    rows = measure(device, options.launches, options.repeats)
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=2)
        print()
        return
    table = Table("way", "host µs", "total µs", title=f"per kernel of {options.launches}, on {device.name}")
    for row in rows:
        table.add_row(row.way, f"{row.host:.2f}", f"{row.total:.2f}")
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
