"""Speed over sizes: operations beside the device's roofline, and a network's time over its batch; a picture of both.

    python benchmarks/sizes.py --device intel-cpu --plot build/sizes.png --json build/sizes.json
    python benchmarks/sizes.py --network resnet18 --batches 1,2,4,8,16,32,64

Sizes are powers of two, their neighbours, primes and multiples of small numbers: a cliff between them shows as a dip.
Each size is measured in turns with a kernel of multiply-adds in registers on the same device, so that the limit is that
of the same minute; the memory's part of the roofline is the one measured once per device. Without a tuning database:
these are the families' own choices. The convolution is the ancestor's example, 64 to 64 channels, 3×3 on 56×56, with
channels first and last, beside oneDNN (through PyTorch, where it is installed).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import COLOURS, markdown, numbers
from gemm import GEMM, multiply_add_limit
from gpu_kernels import CONV_FIRST, CONV_LAST
from models import default_folder, source

import tilewright as tw
from tilewright.bench import interleaved
from tilewright.feeds import network_feeds
from tilewright.runtime.roofline import device_limits

AT_LEAST = 4e-3
"""Seconds of calls that are waited for together."""
OURS, LIMIT = "tilewright", "limit"
ADD = "op add(x[N], y[N]) -> z[N]:\n    z[n] = x[n] + y[n]"
SQUARE = (61, 64, 67, 96, 127, 128, 131, 192, 255, 256, 257, 333, 384, 509, 512, 521, 640, 768, 1000, 1021, 1024, 1031)
IMAGES = (7, 8, 13, 14, 15, 17, 27, 28, 29, 31, 32, 37, 55, 56, 57, 61, 64, 67)
LENGTHS = (10_007, 16_384, 65_536, 99_991, 250_007, 262_144, 1_000_003, 1_048_576, 3_000_017, 8_388_608)


@dataclass(frozen=True)
class Series:
    """An operation over one size."""

    name: str
    text: str
    sizes: Sequence[int]
    shapes: Callable[[int], tuple[tuple[int, ...], ...]]
    operations: Callable[[int], float]
    """Floating-point operations, a multiply-add counted as two."""
    nbytes: Callable[[int], float]
    """Read and written at least."""


SERIES = (
    Series("GEMM n×n×n", GEMM, SQUARE, lambda n: ((n, n), (n, n)), lambda n: 2.0 * n**3, lambda n: 12.0 * n**2),
    Series(
        "3×3 convolution, 64 channels, n×n",
        CONV_LAST,
        IMAGES,
        lambda n: ((1, n, n, 64), (64, 3, 3, 64)),
        lambda n: 2.0 * 9 * 64 * 64 * n**2,
        lambda n: 4.0 * (2 * 64 * n**2 + 9 * 64**2),
    ),
    Series("addition of n", ADD, LENGTHS, lambda n: ((n,), (n,)), lambda n: 1.0 * n, lambda n: 12.0 * n),
)


@dataclass(frozen=True)
class Point:
    """One size of one series: seconds, and the rates of what was computed and of the limit at that time."""

    series: str
    size: int
    seconds: float
    gflops: float
    limit: float
    """GFLOP/s that the roofline allows: operations over the time of its longer part."""

    @property
    def share(self) -> float:
        """Of the limit; above 1 where fewer operations are done than counted (Winograd)."""
        return self.gflops / self.limit


def measure(series: Series, size: int, device: tw.Device, seconds: float) -> Point:
    """One size in turns with multiply-adds alone."""
    rng = np.random.default_rng(size)
    arrays = [tw.asarray(rng.standard_normal(s, np.float32), device=device) for s in series.shapes(size)]
    op = tw.op(series.text)
    op(*arrays).wait()
    alone, operations = multiply_add_limit(device)
    together = calls_together(lambda: op(*arrays).wait())

    def run() -> None:
        for _ in range(together - 1):
            op(*arrays)
        op(*arrays).wait()

    times = interleaved({OURS: run, LIMIT: alone}, seconds)
    took = statistics.median(times[OURS]) / together
    rate = operations / statistics.median(times[LIMIT])
    done, moved = series.operations(size), series.nbytes(size)
    least = max(done / rate, moved / device_limits(device).bandwidth(int(moved)))
    return Point(series.name, size, took, 1e-9 * done / took, 1e-9 * done / least)


def calls_together(run: Callable[[], object]) -> int:
    """Calls after which waiting for the device and coming back costs little beside what they do."""
    once = min(interleaved({OURS: run}, 0.02)[OURS])
    return max(1, math.ceil(AT_LEAST / once))


def convolutions(device: tw.Device, seconds: float, batch: int = 16) -> dict[str, float]:
    """Milliseconds of the ancestor's example by layout, and of oneDNN's."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((batch, 64, 56, 56), np.float32)
    weights = rng.standard_normal((64, 64, 3, 3), np.float32)
    run: dict[str, Callable[[], object]] = {}
    for name, text, order in (("NCHW", CONV_FIRST, (0, 1, 2, 3)), ("NHWC", CONV_LAST, (0, 2, 3, 1))):
        op = tw.op(text)
        x, w = (tw.asarray(np.ascontiguousarray(a.transpose(order)), device=device) for a in (first, weights))
        run[name] = lambda op=op, x=x, w=w: op(x, w).wait()  # type: ignore[misc]
    times = interleaved({**run, **_onednn(first, weights)}, seconds)
    return {name: 1e3 * statistics.median(t) for name, t in times.items()}


def _onednn(x: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> dict[str, Callable[[], object]]:
    """PyTorch's convolution on the CPU in both layouts, where it is installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    made = {}
    for name, form in (("oneDNN NCHW", torch.contiguous_format), ("oneDNN NHWC", torch.channels_last)):
        a, w = (torch.from_numpy(t).to(memory_format=form) for t in (x, weights))
        made[name] = lambda a=a, w=w: torch.nn.functional.conv2d(a, w, padding=1)
    return made


def batches(network: Path, device: tw.Device, sizes: Sequence[int], seconds: float) -> Iterator[tuple[int, float]]:
    """A network's seconds per run for each batch."""
    session = tw.InferenceSession(network, device, store=False)
    for size in sizes:
        feeds = network_feeds(session.get_inputs(), (), size)
        times = interleaved({OURS: lambda feeds=feeds: session.run(None, feeds)}, seconds)  # type: ignore[misc]
        yield size, statistics.median(times[OURS])


def plot(points: Sequence[Point], over_batch: Mapping[int, float], title: str, file: Path) -> None:
    """A panel per series, ours as dots and the roofline as a line; and time per image over the batch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(p.series for p in points))
    count = len(names) + bool(over_batch)
    picture = Figure(figsize=(4.6 * count, 3.8), layout="constrained")
    FigureCanvasAgg(picture)
    panels = list(picture.subplots(1, count, squeeze=False)[0])
    for axes, name in zip(panels, names, strict=False):
        found = sorted((p for p in points if p.series == name), key=lambda p: p.size)
        sizes = [p.size for p in found]
        axes.plot(sizes, [p.limit for p in found], color="black", linewidth=1, label="roofline")
        axes.plot(sizes, [p.gflops for p in found], "o-", color=COLOURS[0], markersize=3.5, linewidth=1, label=OURS)
        axes.set(title=name, xscale="log", xlabel="n", ylabel="GFLOP/s", ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)
    if over_batch:
        axes = panels[-1]
        each = [1e3 * seconds / size for size, seconds in over_batch.items()]
        axes.plot(list(over_batch), each, "o-", color=COLOURS[0], markersize=4)
        axes.set(title="network, time per image", xscale="log", xlabel="batch", ylabel="ms per image", ylim=(0, None))
        axes.set_xticks(list(over_batch), [str(n) for n in over_batch])
        axes.minorticks_off()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    picture.suptitle(title, fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="speed over sizes and batches, beside the roofline")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--network", default="resnet18", help="a name in the folder of models (default: %(default)s)")
    parser.add_argument("--batches", type=numbers, default=(1, 2, 4, 8, 16, 32, 64), help="default: 1,2,4,...,64")
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder of ONNX files")
    parser.add_argument("--seconds", type=float, default=0.5, help="time to measure each size (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the picture there (needs matplotlib)")
    given = parser.parse_args()
    device = tw.select_device(given.device)
    points = [measure(series, size, device, given.seconds) for series in SERIES for size in series.sizes]
    rows = [[p.series, str(p.size), f"{1e6 * p.seconds:.0f}", f"{p.gflops:.1f}", f"{p.share:.2f}"] for p in points]
    print(markdown(("operation", "n", "us", "GFLOP/s", "of the roofline"), rows))
    layouts = convolutions(device, 4 * given.seconds)
    print(markdown(("64 to 64, 3×3, 56×56, batch 16", "ms"), [[name, f"{ms:.2f}"] for name, ms in layouts.items()]))
    over_batch: dict[int, float] = {}
    if given.models is not None:
        network = source(given.network, given.models).file
        over_batch = dict(batches(network, device, given.batches, given.seconds))
        shown = [[str(n), f"{1e3 * s:.2f}", f"{1e3 * s / n:.2f}"] for n, s in over_batch.items()]
        print(markdown((f"{given.network}: batch", "ms", "ms per image"), shown))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        made = {"device": device.identity, "points": [asdict(p) for p in points], "layouts": layouts}
        given.json.write_text(json.dumps({**made, "batches": over_batch}, indent=1) + "\n", encoding="utf-8")
    if given.plot:
        plot(points, over_batch, f"{device.name}, {device.opencl_name}", given.plot)


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        raise SystemExit(f"error: {error}") from None
