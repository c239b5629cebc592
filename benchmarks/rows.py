"""Softmax, layer norm and batch moments: GB/s beside a plain copy of as many bytes, NumPy and PyTorch, run in turns.

    python benchmarks/rows.py --device intel-cpu --megabytes 64
    python benchmarks/rows.py --device nvidia --against torch

A rate counts every input element read once and every output element written once, whatever a program does; times are
those of the device's work, data lies in its memory. Peers that are not installed, or that cannot run on the device,
are left out. PyTorch runs on the GPU if it has one and the device is one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.bench import interleaved, largest_difference

COPY = "op copy(x[N]) -> y[N]:\n    y[n] = x[n]"
SOFTMAX = """
op softmax(x[R,K]) -> y[R,K]:
    m[r] = max(k) x[r,k]
    e[r,k] = exp(x[r,k] - m[r])
    y[r,k] = e[r,k] / sum(j) e[r,j]
"""
LAYER_NORM = """
op layer_norm(x[R,K], scale[K], bias[K]) -> y[R,K]:
    m[r] = (sum(k) x[r,k]) / K
    v[r] = (sum(k) (x[r,k] - m[r])^2) / K
    y[r,k] = (x[r,k] - m[r]) / sqrt(v[r] + 1e-5) * scale[k] + bias[k]
"""
MOMENTS = """
op moments(x[N,C,H,W]) -> m[C], v[C]:
    m[c] = (sum(n,h,w) x[n,c,h,w]) / (N * H * W)
    v[c] = (sum(n,h,w) (x[n,c,h,w] - m[c])^2) / (N * H * W)
"""
CHANNELS = """
op channel_softmax(x[N,C,H,W]) -> y[N,C,H,W]:
    m[n,h,w] = max(c) x[n,c,h,w]
    e[n,c,h,w] = exp(x[n,c,h,w] - m[n,h,w])
    y[n,c,h,w] = e[n,c,h,w] / sum(j) e[n,j,h,w]
"""
Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Case:
    """One program, the shape of its data (the first size grows with the bytes wanted), and the same in NumPy."""

    name: str
    text: str
    shape: tuple[int, ...]
    parameters: int
    """Vectors of the last size that it reads beside its data."""
    numpy: Callable[..., tuple[Array, ...]]
    torch: str
    """The same in PyTorch, as an expression in `torch`, `x` and, for those with parameters, `scale` and `bias`."""


def _softmax(x: Array, axis: int = 1) -> tuple[Array, ...]:
    e = np.exp(x - x.max(axis, keepdims=True))
    return (e / e.sum(axis, keepdims=True),)


def _layer_norm(x: Array, scale: Array, bias: Array) -> tuple[Array, ...]:
    d = x - x.mean(1, keepdims=True)
    return (d / np.sqrt((d * d).mean(1, keepdims=True) + np.float32(1e-5)) * scale + bias,)


def _moments(x: Array) -> tuple[Array, ...]:
    return x.mean((0, 2, 3)), x.var((0, 2, 3))


CASES = (
    Case("softmax over 4096", SOFTMAX, (1, 4096), 0, _softmax, "torch.softmax(x, 1)"),
    Case(
        "layer norm over 1024",
        LAYER_NORM,
        (1, 1024),
        2,
        _layer_norm,
        "torch.nn.functional.layer_norm(x, (x.shape[1],), scale, bias)",
    ),
    Case("moments over N,H,W", MOMENTS, (1, 512, 24, 24), 0, _moments, "torch.var_mean(x, (0, 2, 3), correction=0)"),
    Case("softmax over channels", CHANNELS, (1, 256, 32, 32), 0, _softmax, "torch.softmax(x, 1)"),
)


def _torch(case: Case, arrays: list[Array], device: tw.Device) -> Callable[[], object] | None:
    """A call of PyTorch that returns when its work is done; None without PyTorch or without the device."""
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    on_gpu = device.kind == "gpu"
    if on_gpu and not torch.cuda.is_available():
        return None
    given = [torch.from_numpy(a).to("cuda" if on_gpu else "cpu") for a in arrays]
    names = dict(zip(("x", "scale", "bias"), given, strict=False)) | {"torch": torch}
    code = compile(case.torch, case.name, "eval")

    def call() -> None:
        eval(code, names)
        if on_gpu:
            torch.cuda.synchronize()

    return call


def measure(case: Case, device: tw.Device, options: argparse.Namespace) -> dict[str, Any]:
    """GB/s of all peers, and the largest difference from NumPy."""
    rng = np.random.default_rng(0)
    rows = max(1, options.megabytes * 2**20 // (4 * math.prod(case.shape[1:])))
    shape = (rows, *case.shape[1:])
    arrays = [rng.standard_normal(shape, np.float32)]
    arrays += [rng.standard_normal(shape[-1], np.float32) for _ in range(case.parameters)]
    op, copy = tw.op(case.text), tw.op(COPY)
    given = tuple(tw.asarray(a, device=device) for a in arrays)
    if options.tune:
        op.tune(*given, budget=options.tune)
    found = op(*given)
    outputs = found if isinstance(found, tuple) else (found,)
    expected = case.numpy(*arrays)
    difference = largest_difference([o.numpy() for o in outputs], list(expected))
    moved = sum(a.nbytes for a in (*arrays, *expected))
    # The copy reads half of the bytes that the case moves, and writes as many.
    flat = tw.asarray(np.zeros(moved // 8, np.float32), device=device)
    calls: dict[str, Callable[[], object]] = {
        "tilewright": lambda: _wait(op(*given)),
        "copy": lambda: copy(flat).wait(),
    }
    if "numpy" in options.against:
        calls["numpy"] = lambda: case.numpy(*arrays)
    torch_call = _torch(case, arrays, device) if "torch" in options.against else None
    if torch_call is not None:
        calls["torch"] = torch_call
    times = interleaved(calls, options.seconds)
    rate = {name: 1e-9 * moved / statistics.median(t) for name, t in times.items()}
    best = {name: 1e-9 * moved / min(t) for name, t in times.items()}
    return {"case": case.name, "shape": shape, "bytes": moved, "median": rate, "best": best, "difference": difference}


def _wait(outputs: Any) -> None:
    for o in outputs if isinstance(outputs, tuple) else (outputs,):
        o.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="softmax, layer norm and moments in one kernel, in GB/s")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--against", default="numpy", help="peers: numpy, torch or both, with a comma between")
    parser.add_argument("--megabytes", type=int, default=256, help="size of the data (default: %(default)s)")
    parser.add_argument("--tune", metavar="BUDGET", help="tune each case first, for instance 30s")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to measure each case (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON there too")
    options = parser.parse_args()
    device = tw.select_device(options.device)
    results = [measure(case, device, options) for case in CASES]
    peers = list(dict.fromkeys(name for r in results for name in r["median"]))
    table = Table("case", "shape", *(f"{name} GB/s" for name in peers), "of a copy", title=f"Rows on {device.name}")
    for r in results:
        rates = [f"{r['median'][name]:.1f}" if name in r["median"] else "" for name in peers]
        share = f"{r['median']['tilewright'] / r['median']['copy']:.2f}"
        table.add_row(r["case"], "x".join(map(str, r["shape"])), *rates, share)
    Console().print(table)
    whole = {"device": device.name, "identity": device.identity, "rows": results}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(whole, file, indent=2)
    else:
        print(json.dumps(whole))


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
