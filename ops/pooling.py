"""Pooling: largest, mean or p-norm over windows, and over whole images."""

from __future__ import annotations

import math

from tilewright.ops.convolution import Window, window, window_names
from tilewright.ops.expansion import Expanding, Inner
from tilewright.ops.language import literal, program
from tilewright.ops.operator import NOTHING, Application, Compute, Expansion, operator

POOL = """
op pool(x[N, C, {sizes}]{pad}) -> y[N, C, {out}]:
    y[n, c, {at}] = {value}
"""


def _frame(app: Application) -> Window:
    return window(app, app.integers("kernel_shape") or ())


def _pool(app: Application, frame: Window, value: str, pad: str = "") -> Compute:
    names = window_names(frame)
    text = POOL.format(**names, value=value.format(**names), pad=f" pad {pad}" if pad else "")
    return program(app, text, {"x": app.input(0).shape, "y": app.outputs[0].shape}, {"x": 0})


@operator("MaxPool", outputs=2)
def max_pool(app: Application) -> Compute | Expansion:
    """Largest element of each window, and where in the input it was; pads never win."""
    frame = _frame(app)
    if len(app.outputs) < 2 or app.outputs[1] is NOTHING:
        return _pool(app, frame, "max({bounded}) x[n, c, {reach}]", "-inf")
    return _with_places(app, frame)


def _with_places(app: Application, frame: Window) -> Expansion:
    """The largest elements, and the first of each window that equals its largest, counted through the whole input."""
    x, places = app.input(0), app.outputs[1]
    names = window_names(frame)
    work = Expanding(app)
    image = Inner(0, x.dtype, x.shape, "-inf")
    at, read = f"n, c, {names['at']}", f"x[n, c, {names['reach']}]"
    body = f"y[{at}] = max({names['bounded']}) {read}"
    found = work.link(body, {"x": image}, 0, x.dtype, places.shape)
    number = " + ".join(f"{r} * {math.prod(frame.kernel[d + 1 :])}" for d, r in enumerate(frame.taps))
    same = f"({read} == m[{at}] or isnan({read}))" if x.dtype.is_float else f"{read} == m[{at}]"
    is_largest = f"inside({read}) and {same}"
    first = f"k[{at}] = min({names['bounded']}) where({is_largest}, {number}, {frame.area})"
    total = f"(i64(n) * {x.shape[1]} + c) * {math.prod(x.shape[2:])}"
    for d, step in enumerate(_steps(app, x.shape[2:])):
        inner = math.prod(frame.kernel[d + 1 :])
        tap = f"k[{at}] // {inner} % {frame.kernel[d]} * {frame.dilations[d]}"
        total += f" + ({frame.at[d]} * {frame.strides[d]} + {tap} - {frame.begins[d]}) * {step}"
    work.link(f"{first}\ny[{at}] = {total}", {"x": image, "m": found}, 1, places.dtype, places.shape)
    return work.finished()


def _steps(app: Application, sizes: tuple[int, ...]) -> list[int]:
    """How far apart neighbours along each axis are in the count: the last axis fastest, or the first one."""
    first_is_fastest = bool(app.integer("storage_order", 0))
    return [math.prod(sizes[:d] if first_is_fastest else sizes[d + 1 :]) for d in range(len(sizes))]


@operator("AveragePool")
def average_pool(app: Application) -> Compute:
    """Mean of each window, over the elements of the image or (``count_include_pad``) of the padded image."""
    frame = _frame(app)
    total = "(sum({bounded}) x[n, c, {reach}])"
    return _pool(app, frame, f"{total} / {_divisor(app, frame)}")


def _divisor(app: Application, frame: Window) -> str:
    """How many elements each window counts."""
    sizes, out = app.input(0).shape[2:], app.outputs[0].shape[2:]
    if frame.stays_inside(sizes, out):
        return str(frame.area)
    if not app.integer("count_include_pad", 0):
        return "(sum({bounded}) inside(x[n, c, {reach}]))"
    pads = app.integers("pads") or (0,) * (2 * frame.rank)
    ends = [n + e for n, e in zip(sizes, pads[frame.rank :], strict=True)]
    if app.attributes.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"} or all(
        frame.last(d, out[d]) < ends[d] for d in range(frame.rank)
    ):
        return str(frame.area)
    # With ceil_mode the last windows leave even the padded image; what lies beyond does not count.
    factors = [
        f"(sum({tap}) where({reach} < {end}, 1.0, 0.0))"
        for tap, reach, end in zip(frame.bounded_taps, frame.reach, ends, strict=True)
    ]
    return "(" + " * ".join(factors) + ")"


@operator("LpPool")
def norm_pool(app: Application) -> Compute:
    """p-norm of each window."""
    p = app.integer("p", 2)
    total = f"(sum({{bounded}}) {_powered('x[n, c, {reach}]', p)})"
    return _pool(app, _frame(app), _root(total, p))


def _powered(value: str, p: int) -> str:
    return {1: f"abs({value})", 2: f"{value} * {value}"}.get(p, f"pow(abs({value}), {p})")


def _root(total: str, p: int) -> str:
    return {1: total, 2: f"sqrt({total})"}.get(p, f"pow({total}, {literal(1 / p)})")


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(app: Application) -> Compute:
    """One element per image and channel."""
    sizes = app.input(0).shape[2:]
    ones = (1,) * len(sizes)
    frame = Window(sizes, ones, ones, (0,) * len(sizes))
    if app.op == "GlobalMaxPool":
        value = "max({bounded}) x[n, c, {taps}]"
    elif app.op == "GlobalLpPool":
        p = app.integer("p", 2)
        value = _root(f"(sum({{bounded}}) {_powered('x[n, c, {taps}]', p)})", p)
    else:
        value = f"(sum({{bounded}}) x[n, c, {{taps}}]) / {frame.area}"
    return _pool(app, frame, value)
