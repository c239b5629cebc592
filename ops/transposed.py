"""Transposed convolution, the gradient of a convolution with respect to its input, and sums of columns (Col2Im).

Output position p = s*q + f (stride s, phase f) reads x[h] with weight r where p + pad = s*h + r. With weights sorted by
phase, v[j, f] = w[s*j + f + pad], that is h = q - j: a convolution for every phase, all in one program. Outputs that
the stride does not divide are cut out of larger ones. Where the kernel is dilated as well, h = (p + pad - d*r) / s is
read where it is a whole number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.errors import UnsupportedError
from tilewright.ops.expansion import Expanding, Inner
from tilewright.ops.operator import Application, Expansion, Operand, operator


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


@dataclass(frozen=True)
class Transposed:
    """What a transposed convolution is made of; channels are seen as (group, channel within it)."""

    app: Application
    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]

    @property
    def weights(self) -> Operand:
        """(channel, filter within its group, kernel...)"""
        return self.app.input(1)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the kernel."""
        return self.weights.shape[2:]

    @property
    def image(self) -> Inner:
        """The input as (image, group, channel, positions...)."""
        x = self.app.input(0)
        return Inner(0, x.dtype, (x.shape[0], self.groups, x.shape[1] // self.groups, *x.shape[2:]))

    @property
    def grouped(self) -> Inner:
        """The weights as (group, channel, filter, kernel...)."""
        w = self.weights
        return Inner(1, w.dtype, (self.groups, w.shape[0] // self.groups, *w.shape[1:]))

    @property
    def bias(self) -> dict[str, Inner]:
        """The bias by group and filter, if there is one."""
        b = self.app.optional(2)
        return {"b": Inner(2, b.dtype, (self.groups, self.weights.shape[1]))} if b else {}

    def shape(self, *positions: int) -> tuple[int, ...]:
        """Sizes of an output with these positions."""
        return self.image.shape[0], self.groups, self.weights.shape[1], *positions


@operator("ConvTranspose")
def transposed_convolution(app: Application) -> Expansion:
    """With optional bias, of any stride, dilation, padding and grouping."""
    x, w = app.input(0), app.input(1)
    rank, groups = x.rank - 2, app.integer("group", 1)
    if rank < 1 or groups < 1 or x.shape[1] % groups or x.shape[1] != w.shape[0]:
        raise UnsupportedError(f"an input {x.shape} and weights {w.shape} do not divide into {groups} groups")
    strides, dilations = app.integers("strides") or (1,) * rank, app.integers("dilations") or (1,) * rank
    begins = _begins(app, w.shape[2:], strides, dilations)
    made = Transposed(app, groups, strides, dilations, tuple(begins))
    if any(s > 1 and d > 1 for s, d in zip(strides, dilations, strict=True)):
        return _by_quotients(made)
    return _by_phases(made)


def _by_phases(made: Transposed) -> Expansion:
    work, y = Expanding(made.app), made.app.outputs[0]
    steps = zip(made.kernel, made.strides, made.dilations, made.begins, strict=True)
    axes = [_phases(k, s, d, b) for k, s, d, b in steps]
    count = range(len(axes))
    taps = ", ".join(f"j{d}" for d in count)
    reach = ", ".join(a.reach(f"q{d}", f"j{d}") for d, a in enumerate(axes))
    read = ", ".join(f"j{d}, f{d}" for d in count)
    at = ", ".join(f"q{d}, f{d}" for d in count)
    body = (
        f"y[n, g, o, {at}] = (sum(c, {taps}) x[n, g, c, {reach}] * v[g, o, c, {read}]){' + b[g, o]' * bool(made.bias)}"
    )
    operands = {"x": made.image, "v": _by_phase(made, work, axes)} | made.bias
    pairs = tuple(n for o, s in zip(y.shape[2:], made.strides, strict=True) for n in (-(-o // s), s))
    rounded = tuple(q * s for q, s in zip(pairs[::2], pairs[1::2], strict=True))
    if rounded == y.shape[2:]:
        work.link(body, operands, 0, y.dtype, made.shape(*pairs))
        return work.finished()
    whole = work.link(body, operands, "rounded up", y.dtype, made.shape(*pairs)).seen(*y.shape[:2], *rounded)
    index = ", ".join(f"p{d}" for d in count)
    work.link(f"y[n, o, {index}] = x[n, o, {', '.join(f'p{d} + 0' for d in count)}]", {"x": whole}, 0, y.dtype, y.shape)
    return work.finished()


def _by_phase(made: Transposed, work: Expanding, axes: list[Phases]) -> Inner:
    """Weights (group, filter, channel, then j and phase per axis)."""
    known = made.weights.value
    if known is not None:
        return work.constant("v", _sorted(known.reshape(made.grouped.shape).swapaxes(1, 2), axes))
    index = ", ".join(f"j{d}, f{d}" for d in range(len(axes)))
    places = []
    for d, (axis, begin) in enumerate(zip(axes, made.begins, strict=True)):
        phased = f"{axis.stride} * (j{d} + {axis.first}) + f{d} + {begin}" if axis.stride > 1 else f"j{d} + f{d}"
        places.append(phased)
    groups, channels, filters = made.grouped.shape[:3]
    shape = (groups, filters, channels, *(n for a in axes for n in a.weights.shape))
    body = f"y[g, o, c, {index}] = w[g, c, o, {', '.join(places)}]"
    return work.link(body, {"w": made.grouped}, "v", made.weights.dtype, shape)


def _by_quotients(made: Transposed) -> Expansion:
    work, y = Expanding(made.app), made.app.outputs[0]
    count = range(len(made.kernel))
    at, taps = ", ".join(f"p{d}" for d in count), ", ".join(f"r{d}" for d in count)
    value, whole = _quotients(made.strides, made.dilations, made.begins)
    total = f"sum(c, {taps}) where({whole}, x[n, g, c, {value}], 0) * w[g, c, o, {taps}]"
    body = f"y[n, g, o, {at}] = ({total}){' + b[g, o]' * bool(made.bias)}"
    operands = {"x": made.image, "w": made.grouped} | made.bias
    work.link(body, operands, 0, y.dtype, made.shape(*y.shape[2:]))
    return work.finished()


def _quotients(strides: tuple[int, ...], dilations: tuple[int, ...], begins: tuple[int, ...]) -> tuple[str, str]:
    """The input positions that tap r adds to output p, and the condition that they are whole numbers."""
    reaches = [f"(p{d} + {b} - r{d} * {dilations[d]})" for d, b in enumerate(begins)]
    value = ", ".join(f"{reach} / {s}" for reach, s in zip(reaches, strides, strict=True))
    whole = " and ".join(f"{reach} % {s} == 0" for reach, s in zip(reaches, strides, strict=True))
    return value, whole


@operator("Col2Im", host=(1, 2))
def sum_of_columns(app: Application) -> Expansion:
    """Images from their windows, which lie side by side as columns; where windows overlap they add up."""
    x, y, sizes = app.input(0), app.outputs[0], app.known(2)
    assert sizes is not None
    block = tuple(int(n) for n in sizes)
    rank = len(block)
    strides, dilations = app.integers("strides") or (1,) * rank, app.integers("dilations") or (1,) * rank
    pads = app.integers("pads") or (0,) * (2 * rank)
    steps = zip(y.shape[2:], block, strides, dilations, pads[:rank], pads[rank:], strict=True)
    windows = tuple((n + b + e - d * (k - 1) - 1) // s + 1 for n, k, s, d, b, e in steps)
    value, whole = _quotients(strides, dilations, pads[:rank])
    at = ", ".join(f"p{d}" for d in range(rank))
    taps = ", ".join(f"r{d}" for d in range(rank))
    bounded = ", ".join(f"r{d}: {k}" for d, k in enumerate(block))
    body = f"y[n, c, {at}] = sum({bounded}) where({whole}, x[n, c, {taps}, {value}], 0)"
    work = Expanding(app)
    columns = Inner(0, x.dtype, (x.shape[0], y.shape[1], *block, *windows))
    work.link(body, {"x": columns}, 0, y.dtype, y.shape)
    return work.finished()


def _sorted(weights: np.ndarray, axes: list[Phases]) -> np.ndarray:
    """Weights (group, filter, channel, kernel...) with each kernel axis as (j, phase), zero where there is none."""
    result = weights
    for d, axis in enumerate(axes):
        at = 3 + 2 * d
        moved = np.take(result, np.maximum(axis.weights, 0), axis=at)
        mask = (axis.weights >= 0).reshape((1,) * at + axis.weights.shape + (1,) * (moved.ndim - at - 2))
        result = np.where(mask, moved, 0).astype(weights.dtype)
    return np.ascontiguousarray(result)
