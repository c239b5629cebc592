"""Single kernels beside cuBLAS and cuDNN (through PyTorch) on a GPU: square products, and a 3×3 convolution.

Times are those of device events, ours and the peer's in turns. Errors are against the same product of the same numbers
in f64, by PyTorch on the GPU where it is there, else by NumPy for some rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import ml_dtypes
import numpy as np
from figures import timing
from gpu_networks import Options, Skip, reason, say
from gpu_report import OURS, KernelRow

import tilewright as tw
from tilewright import torch_peer
from tilewright.bench import in_turns

CUBLAS, CUDNN = "cuBLAS", "cuDNN"
GEMM = "op gemm(a[M,K], b[K,N]) -> c[M,N]:\n    c[m,n] = sum(k) a[m,k] * b[k,n]"
CONV_FIRST = (
    "op conv(x[N,C,H,W], w[O,C,3,3]) -> y[N,O,H,W]:\n    y[n,o,p,q] = sum(c,r,s) x[n,c,p+r-1,q+s-1] * w[o,c,r,s]"
)
CONV_LAST = (
    "op conv(x[N,H,W,C], w[O,3,3,C]) -> y[N,H,W,O]:\n    y[n,p,q,o] = sum(r,s,c) x[n,p+r-1,q+s-1,c] * w[o,r,s,c]"
)
STORED: Mapping[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
ROWS_WITHOUT_TORCH = 64
"""Rows of a product that NumPy computes in f64 where PyTorch cannot."""


@dataclass(frozen=True)
class Case:
    """A kernel with its inputs, the same in PyTorch, and its product in f64."""

    name: str
    precision: str
    text: str
    arrays: Mapping[str, np.ndarray]
    peer: str
    torch: Callable[[Any, Sequence[Any]], Any]
    """From the module torch and the inputs on the device, in our order, to our output's layout."""
    operations: float


def gemm_case(n: int, precision: str) -> Case:
    """A product of n×n matrices of standard normal numbers."""
    arrays = {name: _stored(a, precision) for name, a in zip("ab", _matrices(n), strict=True)}
    return Case(f"GEMM {n}", precision, GEMM, arrays, CUBLAS, lambda torch, x: torch.matmul(*x), 2.0 * n**3)


@lru_cache(maxsize=1)
def _matrices(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two n×n matrices; drawing the largest takes as long as measuring."""
    rng = np.random.default_rng(n)
    return rng.standard_normal((n, n), np.float32), rng.standard_normal((n, n), np.float32)


def conv_case(channels_last: bool, precision: str, batch: int = 16, channels: int = 64, size: int = 56) -> Case:
    """A 3×3 convolution, padded by 1, with as many channels out as in; the layout is that of the memory on both sides.

    The weights are inputs like the images, so that preparing them is part of every run.
    """
    rng = np.random.default_rng(7)
    x = rng.standard_normal((batch, channels, size, size), np.float32)
    w = rng.standard_normal((channels, channels, 3, 3), np.float32)
    if channels_last:
        x, w = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, w))

    def by_torch(torch: Any, inputs: Sequence[Any]) -> Any:
        if not channels_last:
            return torch.nn.functional.conv2d(*inputs, padding=1)
        images, weights = (t.permute(0, 3, 1, 2) for t in inputs)  # views: channels last in memory
        return torch.nn.functional.conv2d(images, weights, padding=1).permute(0, 2, 3, 1)

    arrays = {"x": _stored(x, precision), "w": _stored(w, precision)}
    text, layout = (CONV_LAST, "NHWC") if channels_last else (CONV_FIRST, "NCHW")
    name = f"conv 3×3 {channels}→{channels} {size}×{size} b{batch} {layout}"
    operations = 2.0 * batch * channels * channels * 9 * size * size
    return Case(name, precision, text, arrays, CUDNN, by_torch, operations)


def _stored(array: np.ndarray, precision: str) -> np.ndarray:
    return array.astype(STORED.get(precision, np.float32))


def kernel_rows(options: Options, sizes: Sequence[int], skip: Skip) -> Iterator[KernelRow]:
    """A row for every kernel that can be measured; ``skip`` is told what cannot, and why."""
    with_torch = options.peers and torch_peer.has_cuda() and options.device.kind == "gpu"
    made = [(partial(gemm_case, n), f"GEMM {n}") for n in sizes]
    made += [(partial(conv_case, channels_last), "convolution") for channels_last in (False, True)]
    for make, what in made:
        for precision in options.precisions:
            try:
                case = make(precision)
                if (precision, case.name) in options.known:
                    continue
                row = measure(case, options, with_torch)
            except Exception as error:  # what one kernel cannot do must not end the measuring of the others
                skip(f"{what} {precision}: {reason(error)}")
                continue
            say(f"{row.kernel} {precision}: {shown(row)}")
            yield row


def shown(row: KernelRow) -> str:
    """A row in a few words, while the others are under way."""
    times = ", ".join(f"{name} {t.median:.3f} ms" for name, t in row.device.items())
    return times if row.ratio is None else f"{times}, ratio {row.ratio:.2f}"


def measure(case: Case, options: Options, with_torch: bool) -> KernelRow:
    """Time one kernel in turns with its peer and compare both with the product in f64."""
    op = op_of(case.text, case.precision)
    feeds = {name: tw.asarray(a, device=options.device) for name, a in case.arrays.items()}
    if options.tune:
        op.tune(*feeds.values(), budget=options.tune)
    result = op(*feeds.values()).numpy()
    plan, buffers = op.plan(*feeds.values()), {name: a.buffer for name, a in feeds.items()}
    timers: dict[str, Callable[[], float]] = {OURS: lambda: plan.time(buffers, 1)[0]}
    if with_torch:
        torch_peer.set_precision(case.precision)
        torch = torch_peer.torch_module()
        inputs = [torch_peer.on_device(a, "cuda") for a in case.arrays.values()]
        timers[case.peer] = torch_timer(torch, lambda: case.torch(torch, inputs))
        errors = torch_errors(case, torch, inputs, result)
    else:
        errors = numpy_errors(case, result)
    return KernelRow(
        case.name,
        case.precision,
        {name: timing(t) for name, t in in_turns(timers, options.seconds, burst=4).items()},
        case.operations,
        errors,
        "; ".join(f"{c.choice.family} {c.choice.configuration} ({c.choice.origin})" for c in plan.calls),
        options.date,
    )


def op_of(text: str, precision: str) -> tw.Op:
    """The op of a text; of f16 and bf16 the arrays' types say all, TF32 has to be allowed."""
    return tw.op(text, precision=precision) if precision == "tf32" else tw.op(text)


def torch_timer(torch: Any, function: Callable[[], object]) -> Callable[[], float]:
    """The seconds of a call by device events, after another one that keeps the device from waiting for the host."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        function()
        first.record()
        function()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e-3

    return run


def torch_errors(case: Case, torch: Any, inputs: Sequence[Any], result: np.ndarray) -> dict[str, float]:
    """The largest errors of ours and the peer, as a part of the largest element of PyTorch's product in f64."""
    reference = case.torch(torch, [x.double() for x in inputs])
    largest = reference.abs().max()
    results = {OURS: torch_peer.on_device(result, inputs[0].device), case.peer: case.torch(torch, inputs)}
    return {name: float((y.double() - reference).abs().max() / largest) for name, y in results.items()}


def numpy_errors(case: Case, result: np.ndarray) -> dict[str, float]:
    """The largest error of ours in the first rows of a product of matrices by NumPy; nothing for other kernels."""
    if case.text != GEMM:
        return {}
    a, b = (x.astype(np.float64) for x in case.arrays.values())
    reference = a[:ROWS_WITHOUT_TORCH] @ b
    difference = np.abs(result[:ROWS_WITHOUT_TORCH].astype(np.float64) - reference)
    return {OURS: float(difference.max() / np.abs(reference).max())}
