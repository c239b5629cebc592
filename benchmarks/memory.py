"""Programs that are bound by memory, beside a plain copy and PyTorch: GB/s, run in turns in one process.

    python benchmarks/memory.py --device intel-cpu --elements 16Mi --json memory.json
    python benchmarks/memory.py --device nvidia --against torch --tune 20

Bytes are those of the definition: each input read once, each output written once. The *copy* is the driver's own
(clEnqueueCopyBuffer), on CPUs the faster of that and `numpy.copyto` in two threads; it reads and writes the same bytes
as `copy` in the table. On GPUs all times are those of device events, PyTorch's by CUDA events; on CPUs wall times of
launching and waiting. Ratios are medians of the ratios within each round.

A scan of one long row reads its input twice (sums of its parts first), so that 2/3 of the copy is its most.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.bench import largest_difference
from tilewright.runtime import context
from tilewright.runtime.discovery import handle_of

Arrays = Mapping[str, np.ndarray]
Timer = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """A program with its shapes for a number of elements, and the same in NumPy and PyTorch."""

    name: str
    text: str
    shapes: Callable[[int], dict[str, tuple[int, ...]]]
    numpy: Callable[..., Any]
    """The outputs in float64 from the inputs in order."""
    torch: Callable[..., Any]
    """The outputs from a module (torch) and the inputs in order."""


def _side(n: int) -> int:
    return max(64, math.isqrt(n) // 64 * 64)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _layer_norm(x: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * g + b


CASES = (
    Case(
        "copy",
        "op copy(x[N]) -> y[N]:\n    y[n] = x[n]",
        lambda n: {"x": (n,)},
        lambda x: x,
        lambda torch, x: x.clone(),
    ),
    Case(
        "add",
        "op add(x[N], z[N]) -> y[N]:\n    y[n] = x[n] + z[n]",
        lambda n: {"x": (n,), "z": (n,)},
        lambda x, z: x + z,
        lambda torch, x, z: x + z,
    ),
    Case(
        "bias + relu",
        "op bias_relu(x[N,C,H,W], b[C]) -> y[N,C,H,W]:\n    y[n,c,h,w] = relu(x[n,c,h,w] + b[c])",
        lambda n: {"x": (max(1, n // (64 * 3136)), 64, 56, 56), "b": (64,)},
        lambda x, b: np.maximum(x + b[:, None, None], 0),
        lambda torch, x, b: torch.relu_(x + b[:, None, None]),
    ),
    Case(
        "row sums, 4096",
        "op row_sums(x[R,K]) -> y[R]:\n    y[r] = sum(k) x[r,k]",
        lambda n: {"x": (max(1, n // 4096), 4096)},
        lambda x: x.sum(1),
        lambda torch, x: x.sum(1),
    ),
    Case(
        "column sums, 1024",
        "op column_sums(x[R,K]) -> y[K]:\n    y[k] = sum(r) x[r,k]",
        lambda n: {"x": (max(1, n // 1024), 1024)},
        lambda x: x.sum(0),
        lambda torch, x: x.sum(0),
    ),
    Case(
        "sum of all",
        "op total(x[N]) -> y[1]:\n    y[0] = sum(n) x[n]",
        lambda n: {"x": (n,)},
        lambda x: x.sum(keepdims=True),
        lambda torch, x: x.sum(0, keepdim=True),
    ),
    Case(
        "channel moments",
        "op moments(x[N,C,H,W]) -> s[C], q[C]:\n    s[c] = sum(n,h,w) x[n,c,h,w]\n    q[c] = sum(n,h,w) x[n,c,h,w]^2",
        lambda n: {"x": (max(1, n // (512 * 576)), 512, 24, 24)},
        lambda x: (x.sum((0, 2, 3)), (x**2).sum((0, 2, 3))),
        lambda torch, x: torch.var_mean(x, dim=(0, 2, 3)),
    ),
    Case(
        "softmax, 4096",
        "op softmax(x[R,K]) -> y[R,K]:\n    m[r] = max(k) x[r,k]\n    e[r,k] = exp(x[r,k] - m[r])\n"
        "    y[r,k] = e[r,k] / sum(j) e[r,j]",
        lambda n: {"x": (max(1, n // 4096), 4096)},
        _softmax,
        lambda torch, x: torch.softmax(x, 1),
    ),
    Case(
        "layer norm, 1024",
        "op layer_norm(x[R,K], g[K], b[K]) -> y[R,K]:\n    m[r] = (sum(k) x[r,k]) / K\n"
        "    v[r] = (sum(k) (x[r,k] - m[r])^2) / K\n"
        "    y[r,k] = (x[r,k] - m[r]) * rsqrt(v[r] + 1e-5) * g[k] + b[k]",
        lambda n: {"x": (max(1, n // 1024), 1024), "g": (1024,), "b": (1024,)},
        _layer_norm,
        lambda torch, x, g, b: torch.nn.functional.layer_norm(x, (1024,), g, b),
    ),
    Case(
        "transpose",
        "op transpose(x[M,N]) -> y[N,M]:\n    y[n,m] = x[m,n]",
        lambda n: {"x": (_side(n), _side(n))},
        lambda x: x.T,
        lambda torch, x: x.t().contiguous(),
    ),
    Case(
        "NCHW to NHWC",
        "op channels_last(x[N,C,H,W]) -> y[N,H,W,C]:\n    y[n,h,w,c] = x[n,c,h,w]",
        lambda n: {"x": (max(1, n // (64 * 3136)), 64, 56, 56)},
        lambda x: x.transpose(0, 2, 3, 1),
        lambda torch, x: x.permute(0, 2, 3, 1).contiguous(),
    ),
    Case(
        "cumsum, rows of 4096",
        "op cumsum(x[R,K]) -> y[R,K]:\n    y[r,k] = sum(j <= k) x[r,j]",
        lambda n: {"x": (max(1, n // 4096), 4096)},
        lambda x: x.cumsum(1),
        lambda torch, x: x.cumsum(1),
    ),
    Case(
        "cumsum, one row",
        "op cumsum(x[N]) -> y[N]:\n    y[n] = sum(j <= n) x[j]",
        lambda n: {"x": (n,)},
        lambda x: x.cumsum(0),
        lambda torch, x: x.cumsum(0),
    ),
)


# --- timers: each call gives the seconds of one run -------------------------------------------------------------------


def driver_copy(device: tw.Device, nbytes: int) -> Timer:
    """clEnqueueCopyBuffer of `nbytes` bytes on the device: by event on GPUs, else by the clock."""
    import pyopencl as cl

    ctx = cl.Context([handle_of(device)])
    queue = cl.CommandQueue(ctx, properties=cl.command_queue_properties.PROFILING_ENABLE)
    source, target = (cl.Buffer(ctx, cl.mem_flags.READ_WRITE, nbytes) for _ in range(2))
    cl.enqueue_fill_buffer(queue, source, np.float32(1), 0, nbytes)
    queue.finish()

    def run() -> float:
        start = time.perf_counter()
        event = cl.enqueue_copy(queue, target, source)
        event.wait()
        wall = time.perf_counter() - start
        return (event.profile.end - event.profile.start) * 1e-9 if device.kind == "gpu" else wall

    return run


def numpy_copy(nbytes: int, threads: int) -> Timer:
    """`numpy.copyto` of `nbytes` bytes, a part in each thread."""
    source, target = np.ones(nbytes // 4, np.float32), np.empty(nbytes // 4, np.float32)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    pool = ThreadPoolExecutor(threads)

    def run() -> float:
        start = time.perf_counter()
        list(pool.map(lambda part: np.copyto(*part), parts))
        return time.perf_counter() - start

    return run


def torch_timer(case: Case, arrays: Arrays, on_gpu: bool) -> Timer:
    """PyTorch's counterpart: by CUDA events on GPUs, else by the clock."""
    import torch

    place = "cuda" if on_gpu else "cpu"
    inputs = [torch.from_numpy(np.array(a)).to(place) for a in arrays.values()]

    def run() -> float:
        if not on_gpu:
            start = time.perf_counter()
            case.torch(torch, *inputs)
            return time.perf_counter() - start
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        case.torch(torch, *inputs)
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e-3

    return run


def rounds(timers: Mapping[str, Timer], count: int) -> dict[str, list[float]]:
    """Seconds of each, `count` rounds in turns (the median of three within a round), after two that do not count."""
    for timer in timers.values():
        timer(), timer()
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(count):
        for name, timer in timers.items():
            found[name].append(statistics.median(timer() for _ in range(3)))
    return found


# --- one program ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What is asked for on the command line."""

    device: tw.Device
    elements: int
    rounds: int
    tune: float | None
    torch: bool


def copies(options: Options, nbytes: int) -> dict[str, Timer]:
    """The plain copies that results are related to."""
    found = {"driver copy": driver_copy(options.device, nbytes)}
    if options.device.kind == "cpu":
        found["numpy copy"] = numpy_copy(nbytes, 2)
    return found


def measure(case: Case, options: Options, plain: Mapping[str, Timer], copied: int) -> dict[str, Any]:
    """GB/s of tilewright, the copy and PyTorch, and their ratios, for one program."""
    rng = np.random.default_rng(1)
    arrays = {name: rng.random(shape, np.float32) for name, shape in case.shapes(options.elements).items()}
    op = tw.op(case.text)
    feeds = {name: tw.asarray(a, device=options.device) for name, a in arrays.items()}
    if options.tune:
        op.tune(**feeds, budget=options.tune)
    results = op(**feeds)
    results = [r.numpy() for r in (results if isinstance(results, tuple) else (results,))]
    expected = case.numpy(*(a.astype(np.float64) for a in arrays.values()))
    expected = expected if isinstance(expected, tuple) else (expected,)
    difference = largest_difference(results, list(expected))
    nbytes = sum(a.nbytes for a in arrays.values()) + sum(r.nbytes for r in results)
    del results, expected
    plan, ctx = op.plan(**feeds), context(options.device)
    buffers = {name: ctx.allocate(a.nbytes) for name, a in arrays.items()}
    for name, buffer in buffers.items():
        ctx.write(buffer, arrays[name])
    timers: dict[str, Timer] = {**plain, "tilewright": lambda: plan.time(buffers, 1)[0]}
    if options.torch:
        timers["torch"] = torch_timer(case, arrays, options.device.kind == "gpu")
    times = rounds(timers, options.rounds)
    copy = [min(times[name][n] for name in plain) for n in range(options.rounds)]
    ratios = [nbytes / ours / (copied / theirs) for ours, theirs in zip(times["tilewright"], copy, strict=True)]
    row: dict[str, Any] = {
        "name": case.name,
        "bytes": nbytes,
        "gbytes_per_second": 1e-9 * nbytes / statistics.median(times["tilewright"]),
        "copy": 1e-9 * copied / statistics.median(copy),
        "ratio": statistics.median(ratios),
        "difference": difference,
        "milliseconds": 1e3 * statistics.median(times["tilewright"]),
        "stages": [f"{c.choice.family}: {c.choice.configuration} ({c.choice.origin})" for c in plan.calls],
    }
    if options.torch:
        row["torch"] = 1e-9 * nbytes / statistics.median(times["torch"])
        row["of_torch"] = statistics.median(a / b for a, b in zip(times["torch"], times["tilewright"], strict=True))
    return row


def elements(text: str) -> int:
    """A number such as 65536, 64Ki or 16Mi."""
    found = re.fullmatch(r"(\d+)(Ki|Mi|Gi)?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 65536, 64Ki or 16Mi")
    return int(found[1]) << {None: 0, "Ki": 10, "Mi": 20, "Gi": 30}[found[2]]


def shown(rows: list[dict[str, Any]], device: tw.Device) -> Table:
    """The table that is printed."""
    table = Table("program", "ms", "GB/s", "copy GB/s", "of copy", title=f"Memory on {device.name}")
    with_torch = any("torch" in r for r in rows)
    for name in (*(("torch GB/s", "of torch") if with_torch else ()), "difference", "family"):
        table.add_column(name)
    for r in rows:
        peer = (f"{r['torch']:.0f}", f"{r['of_torch']:.2f}") if with_torch else ()
        families = " + ".join(stage.partition(":")[0] for stage in r["stages"])
        figures = (f"{r['milliseconds']:.3f}", f"{r['gbytes_per_second']:.1f}", f"{r['copy']:.1f}", f"{r['ratio']:.2f}")
        table.add_row(r["name"], *figures, *peer, f"{r['difference']:.1e}", families)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="programs bound by memory, in GB/s")
    parser.add_argument("names", nargs="*", help="those whose name holds one of these (default: all)")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--elements", type=elements, help="f32 elements per program: 64Mi (default on GPUs) or 16Mi")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of measuring (default: %(default)s)")
    parser.add_argument("--tune", type=float, metavar="SECONDS", help="tune each program first")
    parser.add_argument("--db", type=Path, metavar="FILE", help="the tuning database (default: the user's own)")
    parser.add_argument("--against", choices=("torch",), help="a peer to run beside")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    given = parser.parse_args()
    if given.db:
        os.environ["TILEWRIGHT_DB"] = str(given.db)
    device = tw.select_device(given.device)
    if given.against and importlib.util.find_spec("torch") is None:
        parser.error("torch is not installed")
    count = given.elements or (64 << 20 if device.kind == "gpu" else 16 << 20)
    options = Options(device, count, given.rounds, given.tune, given.against == "torch")
    copied = 8 * count
    plain = copies(options, 4 * count)
    chosen = [c for c in CASES if not given.names or any(name in c.name for name in given.names)]
    rows = [measure(case, options, plain, copied) for case in chosen]
    Console(width=140).print(shown(rows, device))
    if given.json:
        result = {"device": device.name, "identity": device.identity, "elements": count, "programs": rows}
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
