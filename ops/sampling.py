"""Reading images between their pixels: GridSample, deformable convolution, and the grids of AffineGrid.

Where to read comes from a tensor of positions in pixels, made by a Program of its own. From these, an element is the
sum over the neighbours of its position, with a weight per axis that depends on the distance; neighbours are gathered at
indices that are computed from positions, and read 0 outside the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.expansion import Expanding, Inner
from tilewright.ops.language import literal, program
from tilewright.ops.operator import Application, Compute, Expansion, operator

LINEAR = "def weight(tap, at) = where(tap == 0, 1 - (at - floor(at)), at - floor(at))\n"
"""Weights of the neighbours 0 and 1 beyond the position rounded down."""

CUBIC = """
def near(t) = ((1.25 * t) - 2.25) * t * t + 1
def far(t) = ((-0.75 * t + 3.75) * t - 6) * t + 3
def cubic(t) = where(t <= 1, near(t), far(t))
def weight(tap, at) = cubic(abs(at - floor(at) - tap + 1))
"""
"""Weights of four neighbours, the second at the position rounded down: Keys' kernel with a = -0.75."""


def computing(dtype: DType) -> DType:
    """The type in which positions and weights are computed."""
    return DType.F64 if dtype is DType.F64 else DType.F32


def names(letter: str, rank: int) -> list[str]:
    """Indices of one kind, one per axis."""
    return [f"{letter}{d}" for d in range(rank)]


def between(
    places: Sequence[str],
    sizes: Sequence[int],
    taps: int,
    first: int,
    channel: str,
    inside: Callable[[str, int], str] = lambda read, size: read,
) -> str:
    """The sum of weighted neighbours of a position, of which there are `taps` per axis of an image `x`.

    The first of them lies `first` before the position rounded down; `inside` brings an index into an axis.
    """
    index = names("a", len(places))
    weights = " * ".join(f"weight({a}, {p})" for a, p in zip(index, places, strict=True))
    reads = [inside(f"i32(floor({p})) + {a} - {first}", n) for a, p, n in zip(index, places, sizes, strict=True)]
    return f"(sum({', '.join(f'{a}: {taps}' for a in index)}) {weights} * x[{channel}, {', '.join(reads)}])"


# --- grids ------------------------------------------------------------------------------------------------------------


def _mode(attributes: Mapping[str, Any]) -> str:
    """The interpolation; opset 16 has other names for it."""
    mode = str(attributes.get("mode", "linear"))
    return {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)


@operator("GridSample")
def grid_sample(app: Application) -> Expansion:
    """Images read at the positions of a grid, given from -1 to 1."""
    x, grid, y = app.input(0), app.input(1), app.outputs[0]
    mode, rank = _mode(app.attributes), x.rank - 2
    if mode != "nearest" and not x.dtype.is_float:
        raise UnsupportedError(f"interpolation between {x.dtype.value} is not supported")
    if any(n == 0 for n in x.shape[2:]):
        raise UnsupportedError("there is nothing to read in an image without pixels")
    work = Expanding(app)
    image, given = Inner(0, x.dtype, x.shape), Inner(1, grid.dtype, grid.shape)
    at = work.link(_pixels(app, mode), {"g": given}, "pixels", computing(grid.dtype), grid.shape, REFLECTED)
    out = names("o", rank)
    places = [f"at[n, {', '.join(out)}, {rank - 1 - d}]" for d in range(rank)]
    pads = str(app.attributes.get("padding_mode", "zeros"))
    corners = bool(app.integer("align_corners", 0))
    if mode == "nearest":
        reads = [_inside(f"i32({p})", n, pads, corners) for p, n in zip(places, x.shape[2:], strict=True)]
        value, functions = f"x[n, c, {', '.join(reads)}]", ""
    else:
        taps, first, functions = (2, 0, LINEAR) if mode == "linear" else (4, 1, CUBIC)
        value = between(places, x.shape[2:], taps, first, "n, c", lambda read, n: _inside(read, n, pads, corners))
    body = f"y[n, c, {', '.join(out)}] = {value}"
    work.link(body, {"x": image, "at": at}, 0, y.dtype, y.shape, functions)
    return work.finished()


REFLECTED = "def reflected(u, first, span) = first + span - abs(abs(u - first) % (2 * span) - span)\n"
"""A position thrown back at both ends of a line of this length, as often as it takes."""


def _pixels(app: Application, mode: str) -> str:
    """Positions in pixels, one of the image's axes after the other, the last one first as in the grid.

    Where the border is repeated, positions may lie outside: neighbours are brought in one by one, as PyTorch does it.
    """
    sizes, corners = app.input(0).shape[2:][::-1], bool(app.integer("align_corners", 0))
    pads, out = str(app.attributes.get("padding_mode", "zeros")), ", ".join(names("o", len(sizes)))
    values = []
    for k, n in enumerate(sizes):
        read = f"g[n, {out}, {k}]"
        value = f"(({read} + 1) * {(n - 1) / 2})" if corners else f"((({read} + 1) * {n} - 1) / 2)"
        value = f"round({value})" if mode == "nearest" else value
        if pads == "reflection":
            span = n - 1 if corners else n
            value = f"reflected({value}, {'0' if corners else '(-0.5)'}, {span})" if span else "0"
        values.append(value)
    chosen = values[-1]
    for k, value in reversed(list(enumerate(values[:-1]))):
        chosen = f"where(k == {k}, {value}, {chosen})"
    return f"y[n, {out}, k] = {chosen}"


def _inside(read: str, size: int, pads: str, corners: bool) -> str:
    """A pixel's index, brought into the image where pads are its border or its reflection."""
    if pads == "border":
        return f"clamp({read}, 0, {size - 1})"
    if pads != "reflection":
        return read
    if not corners:
        return f"min(({read}) % {2 * size}, {2 * size - 1} - ({read}) % {2 * size})"
    period = 2 * (size - 1)
    return f"min(({read}) % {period}, {period} - ({read}) % {period})" if period else "0"


AFFINE = """
op affine(t[N, {rank}, {columns}]) -> y[N, {sizes}, {rank}]:
    y[n, {at}, k] = {value}
"""


@operator("AffineGrid", host=(1,))
def affine_grid(app: Application) -> Compute:
    """Positions from -1 to 1 of every pixel of an image, moved by a matrix per image."""
    theta, sizes = app.input(0), app.outputs[0].shape[1:-1]
    rank = len(sizes)
    terms = [f"t[n, k, {rank}]"]
    for d, n in enumerate(sizes):
        o = f"o{d}"
        if not app.integer("align_corners", 0):
            place = f"((2 * {o} + 1) * {literal(1 / n)} - 1)"
        else:
            place = f"({o} * {literal(2 / (n - 1))} - 1)" if n > 1 else "(-1)"
        terms.append(f"t[n, k, {rank - 1 - d}] * {place}")
    text = AFFINE.format(
        rank=rank,
        columns=rank + 1,
        sizes=", ".join(map(str, sizes)),
        at=", ".join(names("o", rank)),
        value=" + ".join(terms),
    )
    shape = app.outputs[0].shape
    return program(app, text, {"t": theta.shape, "y": shape}, {"t": 0})


# --- deformable convolution -------------------------------------------------------------------------------------------


@operator("DeformConv")
def deformable_convolution(app: Application) -> Expansion:
    """Convolution whose taps are moved by offsets that are data, and weighed by a mask."""
    x, w, y = app.input(0), app.input(1), app.outputs[0]
    rank, groups, parts = x.rank - 2, app.integer("group", 1), app.integer("offset_group", 1)
    if x.shape[1] % parts or x.shape[1] != w.shape[1] * groups:
        raise UnsupportedError(f"{x.shape[1]} channels do not divide into {parts} offset groups and {groups} groups")
    kernel, out = w.shape[2:], y.shape[2:]
    taps, at = names("r", rank), names("o", rank)
    work, dtype = Expanding(app), computing(x.dtype)
    offsets = Inner(2, app.input(2).dtype, (x.shape[0], parts, *kernel, rank, *out))
    place = f"g, {', '.join(taps)}, {{}}{', '.join(at)}"
    body = f"y[n, {place.format('k, ')}] = {_moved(app, rank)} + d[n, {place.format('k, ')}]"
    places = work.link(body, {"d": offsets}, "places", dtype, offsets.shape)
    reads = [f"at[n, {place.format(f'{d}, ')}]" for d in range(rank)]
    value = between(reads, x.shape[2:], 2, 0, "n, g, c")
    operands = {"x": Inner(0, x.dtype, (x.shape[0], parts, x.shape[1] // parts, *x.shape[2:])), "at": places}
    if app.optional(4):
        operands["m"] = Inner(4, app.input(4).dtype, (x.shape[0], parts, *kernel, *out))
        value = f"m[n, {place.format('')}] * {value}"
    shape = (x.shape[0], parts, x.shape[1] // parts, *kernel, *out)
    body = f"y[n, g, c, {', '.join(taps)}, {', '.join(at)}] = {value}"
    columns = work.link(body, operands, "columns", dtype, shape, LINEAR)
    filters = w.shape[0] // groups
    operands = {
        "x": columns.seen(x.shape[0], groups, w.shape[1], *kernel, *out),
        "w": Inner(1, w.dtype, (groups, filters, *w.shape[1:])),
    }
    if app.optional(3):
        operands["b"] = Inner(3, app.input(3).dtype, (groups, filters))
    total = (
        f"(sum(c, {', '.join(taps)}) x[n, g, c, {', '.join(taps)}, {', '.join(at)}] * w[g, o, c, {', '.join(taps)}])"
    )
    body = f"y[n, g, o, {', '.join(at)}] = {total}{' + b[g, o]' if 'b' in operands else ''}"
    work.link(body, operands, 0, y.dtype, (x.shape[0], groups, filters, *out))
    return work.finished()


def _moved(app: Application, rank: int) -> str:
    """Where tap r of output o lies along axis k without its offset."""
    strides, dilations = app.integers("strides") or (1,) * rank, app.integers("dilations") or (1,) * rank
    pads = app.integers("pads") or (0,) * (2 * rank)
    lines = [f"(o{d} * {strides[d]} + r{d} * {dilations[d]} - {pads[d]})" for d in range(rank)]
    chosen = lines[-1]
    for d in reversed(range(rank - 1)):
        chosen = f"where(k == {d}, {lines[d]}, {chosen})"
    return chosen
