"""Products and convolutions for the tests of the `wgmma` family, with their float64 results."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from running import laid_out, values
from targets import GPU

from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.runtime.nvidia import matrix_unit

H100 = replace(GPU, compute_units=132, local_memory=227 << 10, matrix=matrix_unit((9, 0)))
"""A device with the instructions, as far as the generator is concerned."""

TOLERANCES = {"fp16": 1.2e-3, "bf16": 9e-3, "tf32": 1.2e-3, "fp32": 6e-7}
"""Error allowed per kind of products, relative to the product of magnitudes; outputs are of the operands' type."""
TYPES = {"fp16": "f16", "bf16": "bf16", "tf32": "f32", "fp32": "f32"}


@dataclass(frozen=True)
class Case:
    """A program, its inputs, and for each output element the exact result and the result of all magnitudes."""

    kind: str
    program: Program
    arrays: dict[str, np.ndarray]
    expected: np.ndarray
    magnitude: np.ndarray

    def check(self, found: np.ndarray, place: str) -> None:
        """Assert that a result is as exact as the kind of products allows."""
        error = np.abs(found.astype(np.float64) - self.expected) / np.maximum(self.magnitude, 1e-30)
        worst = float(error.max(initial=0))
        assert worst <= TOLERANCES[self.kind], f"{place}: off by {worst:.1e}"


def _policy(kind: str) -> str:
    return "\n    precision tf32" if kind == "tf32" else ""


def gemm(kind: str, m: int, n: int, k: int, a: str = "m,k", b: str = "k,n", batch: int = 0, seed: int = 0) -> Case:
    """``relu(a @ b + bias)``, each matrix stored as its indices say; `batch` products of their own if not 0."""
    t, group = TYPES[kind], "g," if batch else ""
    sizes = {"m": m, "n": n, "k": k, "g": batch}
    text = (
        f"op gemm(a[{(group + a).upper()}]: {t}, b[{(group + b).upper()}]: {t}, bias[N])"
        f" -> c[{group.upper()}M,N]: {t}:\n"
        f"    c[{group}m,n] = relu(sum(k) f32(a[{group}{a}]) * f32(b[{group}{b}]) + bias[n]){_policy(kind)}"
    )
    shapes = {
        "a": tuple(sizes[i] for i in (group + a).split(",")),
        "b": tuple(sizes[i] for i in (group + b).split(",")),
        "bias": (n,),
    }
    program = parse_op(text).specialise(shapes)
    arrays = values(program, seed)
    left, right, bias = (arrays[name].astype(np.float64) for name in ("a", "b", "bias"))
    left = left if a == "m,k" else left.swapaxes(-1, -2)
    right = right if b == "k,n" else right.swapaxes(-1, -2)
    magnitude = np.abs(left) @ np.abs(right) + np.abs(bias)
    return Case(kind, program, arrays, np.maximum(left @ right + bias, 0), magnitude)


_CONVOLUTION = """
op conv(x[N,C,H,W]: {t}, w[O,C,R,S]: {t}, b[O], z[N,O,P,Q]: {t}; step: int, pad: int) -> y[N,O,P,Q]: {t}:
    P = (H + 2*pad - R) / step + 1
    Q = (W + 2*pad - S) / step + 1
    y[n,o,p,q] = relu(b[o] + f32(z[n,o,p,q])
        + sum(c,r,s) f32(x[n,c, p*step+r-pad, q*step+s-pad]) * f32(w[o,c,r,s])){policy}
"""


def convolution(
    kind: str, n: int, c: int, size: int, o: int, window: int, step: int, pad: int, layout: str = "last", seed: int = 0
) -> Case:
    """A square convolution with bias, residual and relu."""
    out = (size + 2 * pad - window) // step + 1
    text = _CONVOLUTION.format(t=TYPES[kind], policy=_policy(kind))
    shapes = {"x": (n, c, size, size), "w": (o, c, window, window), "b": (o,), "z": (n, o, out, out)}
    program = laid_out(parse_op(text).specialise(shapes, parameters={"step": step, "pad": pad}), layout)
    arrays = values(program, seed)
    x, w, b, z = (arrays[name].astype(np.float64) for name in ("x", "w", "b", "z"))
    exact = _convolved(x, w, step, pad, out) + b[:, None, None] + z
    magnitude = _convolved(np.abs(x), np.abs(w), step, pad, out) + np.abs(b)[:, None, None] + np.abs(z)
    return Case(kind, program, arrays, np.maximum(exact, 0), magnitude)


def _convolved(x: np.ndarray, w: np.ndarray, step: int, pad: int, out: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y = np.zeros((x.shape[0], w.shape[0], out, out))
    reach = (out - 1) * step + 1
    for r in range(w.shape[2]):
        for s in range(w.shape[3]):
            y += np.einsum("nchw,oc->nohw", x[:, :, r : r + reach : step, s : s + reach : step], w[:, :, r, s])
    return y
