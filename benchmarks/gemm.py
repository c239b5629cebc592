"""Square matrix products in f32 beside NumPy: GFLOP/s of both, run in turns in one process.

    python benchmarks/gemm.py --device intel-cpu --tune 30s 512 1024 2048

tilewright's time is that of the device's work: the operands lie in device memory and each call is followed by waiting
for the device. NumPy uses the BLAS it was built with, on all cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.bench import interleaved, largest_difference

GEMM = """
op gemm(a[M,K], b[K,N]) -> c[M,N]:
    c[m,n] = sum(k) a[m,k] * b[k,n]
"""


def measure(size: int, device: tw.Device, tune: str | None, seconds: float) -> dict[str, float]:
    """GFLOP/s of tilewright and NumPy, their ratio and the largest difference for one size."""
    rng = np.random.default_rng(size)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    gemm = tw.op(GEMM)
    on_device = tuple(tw.asarray(x, device=device) for x in (a, b))
    if tune:
        gemm.tune(*on_device, budget=tune)
    difference = largest_difference([gemm(*on_device).numpy()], [a @ b])
    times = interleaved({"tilewright": lambda: gemm(*on_device).wait(), "numpy": lambda: a @ b}, seconds)
    rate = {name: 2e-9 * size**3 / statistics.median(t) for name, t in times.items()}
    return {"size": size, **rate, "ratio": rate["tilewright"] / rate["numpy"], "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description="f32 matrix products beside NumPy, in GFLOP/s")
    parser.add_argument("sizes", nargs="*", type=int, default=[512, 1024, 2048])
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--tune", metavar="BUDGET", help="tune each size first, for instance 30s")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to measure each size (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    device = tw.select_device(options.device)
    rows = [measure(size, device, options.tune, options.seconds) for size in options.sizes]
    if options.json:
        json.dump({"device": device.name, "identity": device.identity, "gemm": rows}, sys.stdout, indent=2)
        print()
        return
    table = Table("size", "tilewright GFLOP/s", "NumPy GFLOP/s", "ratio", "difference", title=f"GEMM on {device.name}")
    for r in rows:
        figures = (f"{r['tilewright']:.1f}", f"{r['numpy']:.1f}", f"{r['ratio']:.2f}", f"{r['difference']:.1e}")
        table.add_row(f"{r['size']}", *figures)
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
