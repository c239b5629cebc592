"""What it costs to hand arrays to a network: milliseconds of whole runs on images of 64x3x224x224.

    python benchmarks/transfers.py --device nvidia

*copy* is one array to the device, by the driver from ordinary memory and by way of pinned memory. The others are runs
of a pooling over it: its kernels alone, with a NumPy array in and out, and with NumPy arrays in and outputs that stay
on the device, one run after the other with one wait at the end, where copies and kernels overlap.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.runtime import Context, context
from tilewright.runtime.transfers import Transfers

SHAPE = (64, 3, 224, 224)
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[64, 3, 224, 224] x) => (float[64, 3, 28, 28] y) {
    a = MaxPool <kernel_shape = [15, 15], pads = [7, 7, 7, 7], strides = [1, 1]> (x)
    b = MaxPool <kernel_shape = [15, 15], pads = [7, 7, 7, 7], strides = [1, 1]> (a)
    y = MaxPool <kernel_shape = [8, 8], strides = [8, 8]> (b)
}"""
TRAIN = 10
"""Runs one after the other with one wait at the end."""


def measure(device: tw.Device, repeats: int) -> dict[str, float]:
    """Milliseconds by way, medians of samples taken in turns."""
    ctx = context(device)
    session = tw.InferenceSession(onnx.parser.parse_model(TEXT), device=device, store=False)
    x = np.random.default_rng(0).random(SHAPE, np.float32)
    on_device = tw.asarray(x, device)

    def train() -> object:
        return [session.run_on_device(None, {"x": x}) for _ in range(TRAIN)][-1]

    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "copy, by the driver": (1, _copy(ctx, True, x)),
        "copy, by way of pinned memory": (1, _copy(ctx, False, x)),
        "run, array on the device": (1, lambda: session.run_on_device(None, {"x": on_device})),
        "run, NumPy in and out": (1, lambda: session.run(None, {"x": x})),
        "run, one after the other, NumPy in": (TRAIN, train),
    }
    samples: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 2):
        for way, (per, work) in ways.items():
            ctx.finish()
            start = time.perf_counter()
            kept = work()
            ctx.finish()
            if turn >= 2:
                samples[way].append((time.perf_counter() - start) * 1e3 / per)
            del kept
    return {way: statistics.median(found) for way, found in samples.items()}


def _copy(ctx: Context, by_driver: bool, x: np.ndarray) -> Callable[[], object]:
    transfers = Transfers(ctx._context, ctx._queue, by_driver, ctx._synchronising)
    buffer = ctx.allocate(x.nbytes)
    return lambda: transfers.write(buffer, x)


def main() -> None:
    parser = argparse.ArgumentParser(description="milliseconds of handing arrays to a network")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--repeats", type=int, default=10, help="samples of each way (default: %(default)s)")
    options = parser.parse_args()
    device = tw.select_device(options.device)
    table = Table("way", "ms", title=f"{' x '.join(map(str, SHAPE))} in f32 on {device.name}")
    for way, milliseconds in measure(device, options.repeats).items():
        table.add_row(way, f"{milliseconds:.3f}")
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
