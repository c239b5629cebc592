"""Convolution of any rank, stride, dilation, padding and grouping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.errors import UnsupportedError
from tilewright.ops.language import program
from tilewright.ops.operator import Application, Compute, operator

CONVOLUTION = """
op conv(x[N, C, {sizes}], w[O, C, {kernel}]{bias}) -> y[N, O, {out}]:
    y[n, o, {at}] = (sum(c, {taps}) x[n, c, {reach}] * w[o, c, {taps}]){plus}
"""
"""Every output channel reads every input channel."""

DEPTHWISE = """
op depthwise(x[N, C, {sizes}], w[C, {kernel}]{bias}) -> y[N, C, {out}]:
    y[n, o, {at}] = (sum({taps}) x[n, o, {reach}] * w[o, {taps}]){plus}
"""
"""One input and one output channel per group."""

GROUPED = """
op grouped(x[N, G, C, {sizes}], w[G, O, C, {kernel}]{bias}) -> y[N, G, O, {out}]:
    y[n, g, o, {at}] = (sum(c, {taps}) x[n, g, c, {reach}] * w[g, o, c, {taps}]){plus}
"""
"""Channels seen as (group, channel within it)."""


@dataclass(frozen=True)
class Window:
    """A sliding window, per spatial dimension."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    """Pads in front; those behind follow from the output's size."""

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    @property
    def area(self) -> int:
        """Taps of one window."""
        return math.prod(self.kernel)

    @property
    def at(self) -> list[str]:
        """Names of the output's spatial indices."""
        return [f"p{d}" for d in range(self.rank)]

    @property
    def taps(self) -> list[str]:
        """Names of the window's own indices."""
        return [f"r{d}" for d in range(self.rank)]

    @property
    def bounded_taps(self) -> list[str]:
        """The window's own indices with their extents."""
        return [f"{r}: {k}" for r, k in zip(self.taps, self.kernel, strict=True)]

    @property
    def reach(self) -> list[str]:
        """Input position of each tap."""
        places = zip(self.at, self.strides, self.taps, self.dilations, self.begins, strict=True)
        return [f"{p} * {s} + {r} * {d} - {b}" for p, s, r, d, b in places]

    def last(self, d: int, out: int) -> int:
        """The farthest input position that windows of `out` many outputs touch in spatial dimension d."""
        return (out - 1) * self.strides[d] + (self.kernel[d] - 1) * self.dilations[d] - self.begins[d]

    def stays_inside(self, sizes: Sequence[int], out: Sequence[int]) -> bool:
        """True if no window leaves an input of these spatial sizes."""
        return not any(self.begins) and all(self.last(d, out[d]) < sizes[d] for d in range(self.rank))


def window(app: Application, kernel: tuple[int, ...]) -> Window:
    """The window that the attributes of a convolution or pooling describe; pads of SAME are worked out."""
    rank = len(kernel)
    strides = app.integers("strides") or (1,) * rank
    dilations = app.integers("dilations") or (1,) * rank
    mode = app.attributes.get("auto_pad", "NOTSET")
    sizes, out = app.input(0).shape[2:], app.outputs[0].shape[2:]
    if mode == "NOTSET":
        begins = (app.integers("pads") or (0,) * rank)[:rank]
    elif mode == "VALID":
        begins = (0,) * rank
    else:
        total = [
            max(0, (o - 1) * s + (k - 1) * d + 1 - n)
            for o, s, k, d, n in zip(out, strides, kernel, dilations, sizes, strict=True)
        ]
        begins = tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)
    return Window(kernel, strides, dilations, begins)


def window_names(w: Window) -> dict[str, str]:
    """The holes that every window template has."""
    return {
        "sizes": ", ".join(f"H{d}" for d in range(w.rank)),
        "kernel": ", ".join(f"R{d}" for d in range(w.rank)),
        "out": ", ".join(f"P{d}" for d in range(w.rank)),
        "at": ", ".join(w.at),
        "taps": ", ".join(w.taps),
        "bounded": ", ".join(w.bounded_taps),
        "reach": ", ".join(w.reach),
    }


@operator("Conv")
def convolution(app: Application) -> Compute:
    """Convolution with optional bias."""
    x, w, y = app.input(0), app.input(1), app.outputs[0]
    groups = app.integer("group", 1)
    if x.rank < 3:
        raise UnsupportedError(f"an input of rank {x.rank} has no spatial dimension")
    channels, filters = x.shape[1], w.shape[0]
    if groups < 1 or channels != w.shape[1] * groups or filters % groups:
        raise UnsupportedError(f"{channels} channels and weights {w.shape} do not divide into {groups} groups")
    frame = window(app, w.shape[2:])
    shapes = {"x": x.shape, "w": w.shape, "y": y.shape, "b": (filters,)}
    template, index, dims = CONVOLUTION, "o", "O"
    if groups > 1 and channels == groups == filters:
        template, dims = DEPTHWISE, "C"
        shapes["w"] = (filters, *frame.kernel)
    elif groups > 1:
        template, index, dims = GROUPED, "g, o", "G, O"
        shapes["x"] = (x.shape[0], groups, channels // groups, *x.shape[2:])
        shapes["w"] = (groups, filters // groups, *w.shape[1:])
        shapes["y"] = (y.shape[0], groups, filters // groups, *y.shape[2:])
        shapes["b"] = (groups, filters // groups)
    bias = app.optional(2)
    text = template.format(
        **window_names(frame), bias=f", b[{dims}]" if bias else "", plus=f" + b[{index}]" if bias else ""
    )
    operands = {"x": 0, "w": 1} | ({"b": 2} if bias else {})
    return program(app, text, shapes, operands)
