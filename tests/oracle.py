"""What families are compared with: programs evaluated in float64, and a few operators written out in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from interpret import interpret
from numpy.lib.stride_tricks import sliding_window_view

from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Expr, IndexValue, Inside, Program, Tensor, transform

_WIDE = {DType.F16: DType.F64, DType.BF16: DType.F64, DType.F32: DType.F64}


def widened(program: Program) -> Program:
    """The same program with all floating-point values as f64."""

    def node(e: Expr) -> Expr:
        return e if isinstance(e, Inside | IndexValue) else replace(e, dtype=_WIDE.get(e.dtype, e.dtype))

    def tensors(group: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(t, dtype=_WIDE.get(t.dtype, t.dtype)) for t in group)

    return replace(
        program,
        inputs=tensors(program.inputs),
        outputs=tensors(program.outputs),
        intermediates=tensors(program.intermediates),
        statements=tuple(replace(s, value=transform(s.value, node)) for s in program.statements),
    )


def reference(program: Program, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs in float64."""
    written = interpret(widened(program), arrays)
    return {t.name: written[t.name] for t in program.outputs}


def depthwise(x: np.ndarray, w: np.ndarray, stride: int, pad: int) -> np.ndarray:
    """``y[n,c,p,q]`` from ``x[n,c,h,w]`` and one filter ``w[c,r,s]`` per channel, zeros around the image."""
    around = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(around, w.shape[1:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("ncpqrs,crs->ncpq", windows, w.astype(np.float64))


def max_pool(x: np.ndarray, size: int, stride: int, pad: int) -> np.ndarray:
    """The largest of each ``size`` x ``size`` window, with NaN where the window holds one."""
    around = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
    return sliding_window_view(around, (size, size), axis=(2, 3))[:, :, ::stride, ::stride].max((4, 5))
