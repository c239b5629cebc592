"""Operators that move elements: views where strides can say it, copies by index arithmetic where not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tilewright.errors import UnsupportedError
from tilewright.ops.language import literal, pad_literal, program
from tilewright.ops.operator import (
    Application,
    Compute,
    Join,
    Operand,
    Permuted,
    Reshaped,
    Result,
    Sliced,
    View,
    Views,
    operator,
)


@operator("Reshape", "Flatten", "Squeeze", "Unsqueeze", host=(1,))
def reshape(app: Application) -> Views:
    """The same elements under the output's shape; ValueError if there are more or fewer."""
    shape, wanted = app.input(0).shape, app.outputs[0].shape
    if math.prod(shape) != math.prod(wanted):
        raise ValueError(f"{math.prod(shape)} elements {shape} cannot have the sizes {wanted}")
    return Views(((Reshaped(app.outputs[0].shape),),))


@operator("Transpose")
def transpose(app: Application) -> Views:
    """Dimensions in another order."""
    rank = app.input(0).rank
    return Views(((Permuted(app.integers("perm") or tuple(reversed(range(rank)))),),))


@operator("Concat")
def concat(app: Application) -> Join:
    """Inputs side by side."""
    return Join(app.integer("axis", 0) % app.input(0).rank)


def _one_axis(shape: tuple[int, ...], axis: int, start: int, size: int, step: int = 1) -> Sliced:
    def at(default: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*default[:axis], value, *default[axis + 1 :])

    rank = len(shape)
    return Sliced(at((0,) * rank, start), at((1,) * rank, step), at(shape, size))


@operator("Split", host=(1,), outputs=1 << 16)
def split(app: Application) -> Views:
    """Consecutive parts along an axis."""
    shape = app.input(0).shape
    axis = app.integer("axis", 0) % len(shape)
    views: list[tuple[View, ...]] = []
    start = 0
    for output in app.outputs:
        views.append((_one_axis(shape, axis, start, output.shape[axis]),))
        start += output.shape[axis]
    return Views(tuple(views))


@operator("Slice", host=(1, 2, 3, 4))
def slice_(app: Application) -> Result:
    """A range with steps per axis; negative steps run backwards and are copied."""
    shape = app.input(0).shape
    starts, steps = [0] * len(shape), [1] * len(shape)
    for axis, written, step in _ranges(app):
        n = shape[axis]
        start = written + n if written < 0 else written
        starts[axis] = min(max(start, 0), n if step > 0 else n - 1)
        steps[axis] = step
    if all(s > 0 for s in steps):
        return Views(((Sliced(tuple(starts), tuple(steps), app.outputs[0].shape),),))
    at = ", ".join(f"i{d} * {k} + {s}" for d, (s, k) in enumerate(zip(starts, steps, strict=True)))
    return _copy(app, at)


def _ranges(app: Application) -> list[tuple[int, int, int]]:
    """(axis, start, step) for each sliced axis."""
    rank = app.input(0).rank
    if app.opset < 10:
        starts = app.integers("starts") or ()
        axes = app.integers("axes") or tuple(range(len(starts)))
        return [(a % rank, s, 1) for a, s in zip(axes, starts, strict=True)]
    first, listed, steps = app.known(1), app.known(3), app.known(4)
    assert first is not None
    numbers = [int(s) for s in first]
    axes = tuple(range(len(numbers))) if listed is None else tuple(int(a) % rank for a in listed)
    strides = [1] * len(numbers) if steps is None else [int(s) for s in steps]
    return list(zip(axes, numbers, strides, strict=True))


COPY = """
op copy(x[{sizes}]{pad}) -> y[{out_sizes}]:
    y[{out}] = x[{at}]
"""


def _copy(
    app: Application,
    at: str,
    pad: str = "",
    out: str = "",
    shape: tuple[int, ...] | None = None,
    out_shape: tuple[int, ...] | None = None,
) -> Compute:
    """``y[out] = x[at]``, with x and y seen under other shapes where given."""
    shape = app.input(0).shape if shape is None else shape
    out_shape = app.outputs[0].shape if out_shape is None else out_shape
    text = COPY.format(
        sizes=", ".join(map(str, shape)),
        out_sizes=", ".join(map(str, out_shape)),
        pad=f" pad {pad}" if pad else "",
        out=out or ", ".join(f"i{d}" for d in range(len(out_shape))),
        at=at,
    )
    return program(app, text, {"x": shape, "y": out_shape}, {"x": 0})


@operator("Expand", host=(1,))
def expand(app: Application) -> Compute:
    """Dimensions of size 1 repeated."""
    shape, out = app.input(0).shape, app.outputs[0].shape
    skipped = len(out) - len(shape)
    return _copy(app, ", ".join("0" if n == 1 else f"i{d + skipped}" for d, n in enumerate(shape)))


def _refuse_pad(attributes: Mapping[str, Any], opset: int) -> str | None:
    mode = attributes.get("mode", "constant")
    return None if mode in {"constant", *FRAMES} else f"mode {mode!r} is not supported"


WIDE_FRAMES = {
    "reflect": "min(({i} - {begin}) % {period}, {period} - ({i} - {begin}) % {period})",
    "edge": "clamp({i} - {begin}, 0, {last})",
    "wrap": "({i} - {begin}) % {size}",
}
"""Where every element of an axis comes from, for frames of any width."""

FRAMES = {
    "reflect": ("{begin} - {i}", "{twice_last} - ({i} - {begin})"),
    "edge": ("0", "{last}"),
    "wrap": ("{i} - {begin} + {size}", "{i} - {begin} - {size}"),
}
"""Where the elements in front of an axis and behind it come from, for each mode of padding that repeats elements."""


FRAMED = """
op pad(x[{sizes}]{value}) -> y[{out_sizes}]:
    y[{out}] = where(inside(x[{at}]), x[{at}], {otherwise})
"""

EXACT_PAD = 1 << 24
"""Integers up to which a header's `pad` is exact in every type."""


@operator("Pad", host=(1, 3), refuse=_refuse_pad)
def pad(app: Application) -> Compute:
    """A frame of constant or repeated elements; negative pads crop."""
    rank, value = app.input(0).rank, app.optional(2)
    begins = [0] * rank
    listed, axes = app.known(1), app.known(3)
    pads = (app.integers("pads") or ()) if listed is None else tuple(int(p) for p in listed)
    for position, axis in enumerate(range(rank) if axes is None else axes):
        begins[int(axis) % rank] = pads[position]
    mode = app.attributes.get("mode", "constant")
    if mode != "constant":
        return _framed(app, str(mode), begins)
    at = ", ".join(f"i{d} - ({b})" for d, b in enumerate(begins))
    if value is None:
        return _copy(app, at, pad_literal(app.number("value", 0.0)))
    if value.value is not None:
        number = value.value.reshape(-1)[0].item()
        if app.input(0).dtype.is_float or abs(number) <= EXACT_PAD:
            return _copy(app, at, pad_literal(number if app.input(0).dtype.is_float else int(number)))
    return _framed_by(app, at, value)


def _framed_by(app: Application, at: str, value: Operand) -> Compute:
    """A frame of a number that only the device knows, or that a header cannot hold."""
    x, y = app.input(0).shape, app.outputs[0].shape
    text = FRAMED.format(
        sizes=", ".join(map(str, x)),
        out_sizes=", ".join(map(str, y)),
        out=", ".join(f"i{d}" for d in range(len(y))),
        at=at,
        value=f", value[{', '.join(map(str, value.shape))}]",
        otherwise=f"value[{', '.join('0' for _ in value.shape)}]",
    )
    return program(app, text, {"x": x, "value": value.shape, "y": y}, {"x": 0, "value": 2})


def _framed(app: Application, mode: str, begins: list[int]) -> Compute:
    """Axis after axis: elements before, within and behind what is there."""
    shape, out = app.input(0).shape, app.outputs[0].shape
    widths = [max(b, o - n - b) for n, o, b in zip(shape, out, begins, strict=True)]
    if any(width > (n if mode == "wrap" else n - 1) for width, n in zip(widths, shape, strict=True)):
        return _copy(app, ", ".join(map(_wide_frame(mode), range(len(shape)), shape, begins)))
    axes = [d for d in range(len(shape)) if out[d] != shape[d] or begins[d]] or [0]
    names = [f"i{d}" for d in range(len(shape))]
    sizes = list(shape)
    lines, source = [], "x"
    for number, d in enumerate(axes):
        target = "y" if number == len(axes) - 1 else f"t{d}"
        sizes[d] = out[d]
        lines.append(
            f"    {target}[{_bounded(names, sizes)}] = {_framed_axis(mode, source, names, d, shape[d], begins[d])}"
        )
        source = target
    text = f"op frame(x[{', '.join(map(str, shape))}]) -> y[{', '.join(map(str, out))}]:\n" + "\n".join(lines) + "\n"
    return program(app, text, {"x": shape, "y": out}, {"x": 0})


def _wide_frame(mode: str) -> Callable[[int, int, int], str]:
    def place(d: int, size: int, begin: int) -> str:
        if size == 0:
            raise UnsupportedError(f"mode {mode!r} has nothing to repeat along a dimension of size 0")
        period = max(2 * (size - 1), 1)
        return WIDE_FRAMES[mode].format(i=f"i{d}", begin=f"({begin})", size=size, last=size - 1, period=period)

    return place


def _bounded(names: list[str], sizes: list[int]) -> str:
    return ", ".join(f"{name}: {n}" for name, n in zip(names, sizes, strict=True))


def _framed_axis(mode: str, source: str, names: list[str], d: int, size: int, begin: int) -> str:
    def read(place: str) -> str:
        return f"{source}[{', '.join(place if n == d else f'{name} + 0' for n, name in enumerate(names))}]"

    holes = {"i": names[d], "begin": begin, "size": size, "last": size - 1, "twice_last": 2 * (size - 1)}
    before, behind = (read(place.format(**holes)) for place in FRAMES[mode])
    inside = read(f"{names[d]} - ({begin})")
    return f"where({names[d]} < {begin}, {before}, where({names[d]} >= {begin + size}, {behind}, {inside}))"


@operator("Tile", host=(1,))
def tile(app: Application) -> Compute:
    """The input repeated along each axis: seen as (repeat, position) pairs."""
    shape, repeats = app.input(0).shape, app.known(1)
    assert repeats is not None
    pairs = tuple(n for r, s in zip(repeats, shape, strict=True) for n in (int(r), s))
    out = ", ".join(f"r{d}, i{d}" for d in range(len(shape)))
    return _copy(app, ", ".join(f"i{d}" for d in range(len(shape))), out=out, out_shape=pairs)


@operator("DepthToSpace")
def depth_to_space(app: Application) -> Compute:
    """Channels become blocks of pixels."""
    n, c, h, w = app.input(0).shape
    b = app.integer("blocksize", 1)
    if app.attributes.get("mode", "DCR") == "DCR":
        shape, at = (n, b, b, c // (b * b), h, w), "n, i, j, c, h, w"
    else:
        shape, at = (n, c // (b * b), b, b, h, w), "n, c, i, j, h, w"
    return _copy(app, at, out="n, c, h, i, w, j", shape=shape, out_shape=(n, c // (b * b), h, b, w, b))


@operator("SpaceToDepth")
def space_to_depth(app: Application) -> Compute:
    """Blocks of pixels become channels."""
    n, c, h, w = app.input(0).shape
    b = app.integer("blocksize", 1)
    shape = (n, c, h // b, b, w // b, b)
    if app.attributes.get("mode", "DCR") == "DCR":
        out_shape, out = (n, b, b, c, h // b, w // b), "n, i, j, c, h, w"
    else:
        out_shape, out = (n, c, b, b, h // b, w // b), "n, c, i, j, h, w"
    return _copy(app, "n, c, h, i, w, j", out=out, shape=shape, out_shape=out_shape)


FILLED = """
op filled() -> y[{sizes}]:
    y[{at}] = {value}
"""


def _filled(app: Application, value: str) -> Compute:
    """A tensor that follows from its indices alone."""
    shape = app.outputs[0].shape
    at = ", ".join(f"i{d}" for d in range(len(shape)))
    return program(app, FILLED.format(sizes=", ".join(map(str, shape)), at=at, value=value), {"y": shape}, {})


@operator("EyeLike")
def eye_like(app: Application) -> Compute:
    """1 on a diagonal of a matrix of the input's sizes, else 0."""
    return _filled(app, f"where(i1 - i0 == {literal(app.integer('k', 0))}, 1, 0)")


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(app: Application) -> Compute:
    """The same element everywhere."""
    value = app.attributes.get("value")
    number = 0 if value is None else value.reshape(-1)[0].item()
    return _filled(app, f"{app.outputs[0].dtype.value}({literal(number)})")


@operator("Range", host=(0, 1, 2))
def range_(app: Application) -> Compute:
    """Evenly spaced numbers from a start on."""
    start, step = app.known(0), app.known(2)
    assert start is not None
    assert step is not None
    kind = app.outputs[0].dtype.value
    first, by = (f"{kind}({literal(a.reshape(-1)[0].item())})" for a in (start, step))
    return _filled(app, f"{first} + {kind}(i0) * {by}")


ONE_HOT = """
op one_hot(at[{places}], values[2]) -> y[{out_sizes}]:
    y[{out}] = where(where({element} < 0, {element} + {depth}, {element}) == k, values[1], values[0])
"""


@operator("OneHot", host=(1,))
def one_hot(app: Application) -> Compute:
    """A new axis that holds the second value at the given position and the first elsewhere."""
    indices, out = app.input(0), app.outputs[0].shape
    axis = app.integer("axis", -1) % len(out)
    at = [f"i{d}" for d in range(indices.rank)]
    text = ONE_HOT.format(
        places=", ".join(map(str, indices.shape)),
        out_sizes=", ".join(map(str, out)),
        out=", ".join([*at[:axis], "k", *at[axis:]]),
        element=f"at[{', '.join(at)}]",
        depth=out[axis],
    )
    return program(app, text, {"at": indices.shape, "values": (2,), "y": out}, {"at": 0, "values": 2})


TRILU = """
op trilu(x[{sizes}]) -> y[{sizes}]:
    y[{at}] = where({column} - {row} {sign} {k}, x[{at}], 0)
"""


@operator("Trilu", host=(1,))
def trilu(app: Application) -> Compute:
    """The upper or lower triangle of each matrix, zero elsewhere."""
    shape, k = app.input(0).shape, app.known(1)
    names = [f"i{d}" for d in range(len(shape))]
    text = TRILU.format(
        sizes=", ".join(map(str, shape)),
        at=", ".join(names),
        column=names[-1],
        row=names[-2],
        sign=">=" if app.integer("upper", 1) else "<=",
        k=literal(0 if k is None else int(k.reshape(-1)[0])),
    )
    return program(app, text, {"x": shape, "y": shape}, {"x": 0})
