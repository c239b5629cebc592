"""Transposed convolution: the gradient of a convolution with respect to its input, used to enlarge images.

Output position p = s*q + f (stride s, phase f) reads x[h] with weight r where p + pad = s*h + r. With weights sorted by
phase, v[j, f] = w[s*j + f + pad], that is h = q - j: a convolution for every phase, all in one program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.errors import UnsupportedError
from tilewright.ops.language import program
from tilewright.ops.operator import Application, Compute, operator

TRANSPOSED = """
op transposed(x[N, G, C, {sizes}], v[G, O, C, {taps_and_phases}]{bias}) -> y[N, G, O, {out}]:
    y[n, g, o, {at}] = (sum(c, {taps}) x[n, g, c, {reach}] * v[g, o, c, {read}]){plus}
"""


@dataclass(frozen=True)
class Phases:
    """One axis: which weights each phase has."""

    stride: int
    dilation: int
    first: int
    """The smallest j of any phase."""
    weights: np.ndarray
    """(j, phase): position in the original weights, -1 where there is none."""

    def reach(self, place: str, tap: str) -> str:
        """The input position of a tap."""
        return f"{place} - ({self.dilation} * {tap}) - ({self.first})"


def _phases(kernel: int, stride: int, dilation: int, begin: int) -> Phases:
    if stride == 1:  # x[p + pad - d*r]
        return Phases(1, dilation, -begin, np.arange(kernel)[:, None])
    first = -((stride - 1 + begin) // stride)
    last = (kernel - 1 - begin) // stride
    at = stride * np.arange(first, last + 1)[:, None] + np.arange(stride)[None, :] + begin
    return Phases(stride, 1, first, np.where((at >= 0) & (at < kernel), at, -1))


def _refuse(attributes: Mapping[str, Any], opset: int) -> str | None:
    strides, dilations = attributes.get("strides", (1,)), attributes.get("dilations", (1,))
    if any(s > 1 for s in strides) and any(d > 1 for d in dilations):
        return "strides together with dilations are not supported"
    return None


def _begins(
    app: Application, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> list[int]:
    """What is cut off in front of each axis."""
    mode, rank = app.attributes.get("auto_pad", "NOTSET"), len(kernel)
    if mode == "NOTSET" and app.integers("output_shape") is None:
        return list((app.integers("pads") or (0,) * rank)[:rank])
    if mode == "VALID":
        return [0] * rank
    extra = app.integers("output_padding") or (0,) * rank
    sizes, out = app.input(0).shape[2:], app.outputs[0].shape[2:]
    total = [
        s * (n - 1) + e + (k - 1) * d + 1 - o
        for n, o, s, e, k, d in zip(sizes, out, strides, extra, kernel, dilations, strict=True)
    ]
    return [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total]


@operator("ConvTranspose", host=(1,), refuse=_refuse)
def transposed_convolution(app: Application) -> Compute:
    """With constant weights and optional bias."""
    x, y, weights = app.input(0), app.outputs[0], app.known(1)
    assert weights is not None
    kernel, rank, groups = weights.shape[2:], weights.ndim - 2, app.integer("group", 1)
    strides, dilations = app.integers("strides") or (1,) * rank, app.integers("dilations") or (1,) * rank
    if any(o % s for o, s in zip(y.shape[2:], strides, strict=True)):
        raise UnsupportedError(
            f"an output of {y.shape[2:]} with strides {strides}, which do not divide it, is not supported"
        )
    begins = _begins(app, kernel, strides, dilations)
    axes = [_phases(k, s, d, b) for k, s, d, b in zip(kernel, strides, dilations, begins, strict=True)]
    v = _sorted(weights.reshape(groups, -1, *weights.shape[1:]).swapaxes(1, 2), axes)
    bias = app.optional(2)
    steps = range(rank)
    text = TRANSPOSED.format(
        sizes=", ".join(f"H{d}" for d in steps),
        taps_and_phases=", ".join(f"{a.weights.shape[0]}, {a.stride}" for a in axes),
        bias=", b[G, O]" if bias else "",
        out=", ".join(f"Q{d}, {a.stride}" for d, a in enumerate(axes)),
        at=", ".join(f"q{d}, f{d}" for d in steps),
        taps=", ".join(f"j{d}" for d in steps),
        reach=", ".join(a.reach(f"q{d}", f"j{d}") for d, a in enumerate(axes)),
        read=", ".join(f"j{d}, f{d}" for d in steps),
        plus=" + b[g, o]" if bias else "",
    )
    filters = weights.shape[1]
    pairs = tuple(n for o, s in zip(y.shape[2:], strides, strict=True) for n in (o // s, s))
    shapes = {
        "x": (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]),
        "v": v.shape,
        "b": (groups, filters),
        "y": (x.shape[0], groups, filters, *pairs),
    }
    return program(app, text, shapes, {"x": 0} | ({"b": 2} if bias else {}), constants={"v": v})


def _sorted(weights: np.ndarray, axes: list[Phases]) -> np.ndarray:
    """Weights (group, filter, channel, kernel...) with each kernel axis as (j, phase), zero where there is none."""
    result = weights
    for d, axis in enumerate(axes):
        at = 3 + 2 * d
        moved = np.take(result, np.maximum(axis.weights, 0), axis=at)
        mask = (axis.weights >= 0).reshape((1,) * at + axis.weights.shape + (1,) * (moved.ndim - at - 2))
        result = np.where(mask, moved, 0).astype(weights.dtype)
    return np.ascontiguousarray(result)
