"""Transposed convolution, the gradient of a convolution with respect to its input, and sums of columns (Col2Im).

Output position p reads x[h] with weight r where p + pad = s*h + r (stride s). Outputs with the same remainder of
p + pad by s, a phase, have the same weights: r = s*j + (p + pad) % s and h = (p + pad) / s - j for every j. So there
are s ordinary convolutions along an axis, each with every s-th weight, and all of them are one program: p is seen as
(q, phase), and no weight is multiplied with zeros. The phases' inputs are a step apart where p + pad passes a multiple
of s (`Phases`). Outputs that the stride does not divide are cut out of larger ones. Where the kernel is dilated as
well, h = (p + pad - d*r) / s is read where it is a whole number.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.errors import UnsupportedError
from tilewright.ops.expansion import Expanding, Inner
from tilewright.ops.operator import Application, Expansion, Operand, operator


@dataclass(frozen=True)
class Phases:
    """One axis: its outputs p as ``start + p = (q * halves + half) * each + phase``.

    All outputs with one q and `half` begin at the same input: ``q + half + first``, and the weights of tap j are
    ``stride * j + each * (halves - 1 - half) + phase``.
    """

    stride: int
    dilation: int
    taps: int
    """Weights of the phase that has most of them; those beyond the kernel are zeros."""
    first: int
    start: int
    """Outputs computed in front of the first one."""
    halves: int
    """2 if the second half of the phases begins one input later than the first, else 1."""
    count: int
    """Values of q."""

    @staticmethod
    def of(kernel: int, stride: int, dilation: int, begin: int, out: int) -> Phases:
        """The axis of a kernel with `begin` outputs cut off in front of `out`."""
        first, start = divmod(begin, stride)
        halves = 1
        if 2 * start == stride:
            start, halves = 0, 2
        return Phases(stride, dilation, -(-kernel // stride), first, start, halves, -(-(start + out) // stride))

    @property
    def each(self) -> int:
        """Phases of a half."""
        return self.stride // self.halves

    @property
    def computed(self) -> int:
        """Outputs that are computed."""
        return self.count * self.stride

    def sizes(self) -> tuple[int, ...]:
        """What the outputs are seen as; phases and halves only where there are several."""
        return self.count, *(n for n in (self.halves, self.each) if n > 1)

    def at(self, d: int) -> str:
        """The indices of `sizes`."""
        return ", ".join([f"q{d}", *([f"u{d}"] if self.halves > 1 else []), *([f"f{d}"] if self.each > 1 else [])])

    def reach(self, d: int) -> str:
        """The input position of a tap."""
        return f"q{d}{f' + u{d}' if self.halves > 1 else ''} - {self.dilation} * j{d} + ({self.first})"

    def weight(self, d: int) -> str:
        """The weight of a tap."""
        half = f" + {self.each} - {self.each} * u{d}" if self.halves > 1 else ""
        return f"{self.stride} * j{d}{half}{f' + f{d}' if self.each > 1 else ''}"


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
    steps = zip(made.kernel, made.strides, made.dilations, made.begins, y.shape[2:], strict=True)
    axes = [Phases.of(*step) for step in steps]
    taps = ", ".join(f"j{d}: {a.taps}" for d, a in enumerate(axes))
    reach = ", ".join(a.reach(d) for d, a in enumerate(axes))
    weight = ", ".join(a.weight(d) for d, a in enumerate(axes))
    at = ", ".join(a.at(d) for d, a in enumerate(axes))
    total = f"sum(c, {taps}) x[n, g, c, {reach}] * w[g, c, o, {weight}]"
    body = f"y[n, g, o, {at}] = ({total}){' + b[g, o]' * bool(made.bias)}"
    operands = {"x": made.image, "w": made.grouped} | made.bias
    shape = made.shape(*(n for a in axes for n in a.sizes()))
    computed = tuple(a.computed for a in axes)
    if computed == y.shape[2:]:
        work.link(body, operands, 0, y.dtype, shape)
        return work.finished()
    whole = work.link(body, operands, "all phases", y.dtype, shape).seen(*y.shape[:2], *computed)
    index = ", ".join(f"p{d}" for d in range(len(axes)))
    places = ", ".join(f"p{d} + {a.start}" for d, a in enumerate(axes))
    work.link(f"y[n, o, {index}] = x[n, o, {places}]", {"x": whole}, 0, y.dtype, y.shape)
    return work.finished()


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
