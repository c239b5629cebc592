"""Square matrix products in f32 beside NumPy, PyTorch and the multiply-add limit: GFLOP/s, in turns in one process.

    python benchmarks/gemm.py --device intel-cpu --tune 30s 512 1024 2048

tilewright's time is that of the device's work: the operands lie in device memory and each call is followed by waiting
for the device. NumPy uses the BLAS it was built with and PyTorch (where it is installed) its own, oneDNN or MKL, on all
cores. The limit is what a kernel of multiply-adds in registers reaches on the same device at the same time. Each turn
is a quarter of a second of calls and four more, of which three are counted: the others' threads spin that long.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from figures import figure
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.bench import interleaved, largest_difference
from tilewright.runtime import context
from tilewright.runtime.roofline import multiply_adds

GEMM = """
op gemm(a[M,K], b[K,N]) -> c[M,N]:
    c[m,n] = sum(k) a[m,k] * b[k,n]
"""
OURS, LIMIT = "tilewright", "limit"
BURST, SETTLING = 4, 0.25


def multiply_add_limit(device: tw.Device) -> tuple[Callable[[], object], float]:
    """A function that runs multiply-adds alone and waits, and how many operations that is."""
    ctx = context(device)
    bound, operations = multiply_adds(ctx)

    def run() -> None:
        ctx.enqueue([bound])
        ctx.finish()

    return run, operations


def _torch(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> dict[str, Callable[[], object]]:
    """PyTorch's product on the CPU, where it is installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return {"pytorch": lambda: torch.matmul(x, y)}


def measure(size: int, device: tw.Device, tune: str | None, seconds: float) -> dict[str, float]:
    """GFLOP/s by runner and the largest difference from NumPy for one size."""
    rng = np.random.default_rng(size)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    gemm = tw.op(GEMM)
    on_device = tuple(tw.asarray(x, device=device) for x in (a, b))
    if tune:
        gemm.tune(*on_device, budget=tune)
    difference = largest_difference([gemm(*on_device).numpy()], [a @ b])
    limit, operations = multiply_add_limit(device)
    functions: dict[str, Callable[[], object]] = {OURS: lambda: gemm(*on_device).wait(), "numpy": lambda: a @ b}
    times = interleaved({**functions, **_torch(a, b), LIMIT: limit}, seconds, burst=BURST, settling=SETTLING)
    rates = {
        name: 1e-9 * (operations if name == LIMIT else 2.0 * size**3) / statistics.median(t)
        for name, t in times.items()
    }
    return {"size": size, **rates, "ratio": rates[OURS] / rates["numpy"], "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description="f32 matrix products beside NumPy and PyTorch, in GFLOP/s")
    parser.add_argument("sizes", nargs="*", type=int, default=[512, 1024, 2048])
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--tune", metavar="BUDGET", help="tune each size first, for instance 30s")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to measure each size (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    device = tw.select_device(options.device)
    rows = [measure(size, device, options.tune, options.seconds) for size in options.sizes]
    if options.json:
        json.dump({"device": device.name, "identity": device.identity, "gemm": rows}, sys.stdout, indent=2)
        print()
        return
    columns = ("size", "ours", "NumPy", "PyTorch", "limit", "of limit", "x NumPy", "error")
    table = Table(*columns, title=f"GEMM on {device.name}, GFLOP/s")
    for r in rows:
        rates = [figure(r.get(name), 1) for name in (OURS, "numpy", "pytorch", LIMIT)]
        ratios = (f"{r[OURS] / r[LIMIT]:.2f}", f"{r['ratio']:.2f}", f"{r['difference']:.1e}")
        table.add_row(f"{r['size']}", *rates, *ratios)
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
