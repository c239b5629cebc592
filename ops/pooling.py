"""Pooling: largest, mean or p-norm over windows, and over whole images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilewright.ops.convolution import Window, window, window_names
from tilewright.ops.language import literal, program
from tilewright.ops.operator import Application, Compute, operator

POOL = """
op pool(x[N, C, {sizes}]{pad}) -> y[N, C, {out}]:
    y[n, c, {at}] = {value}
"""


def _refuse(attributes: Mapping[str, Any], opset: int) -> str | None:
    return "column-major indices are not supported" if attributes.get("storage_order") else None


def _frame(app: Application) -> Window:
    return window(app, app.integers("kernel_shape") or ())


def _pool(app: Application, frame: Window, value: str, pad: str = "") -> Compute:
    names = window_names(frame)
    text = POOL.format(**names, value=value.format(**names), pad=f" pad {pad}" if pad else "")
    return program(app, text, {"x": app.input(0).shape, "y": app.outputs[0].shape}, {"x": 0})


@operator("MaxPool", refuse=_refuse)
def max_pool(app: Application) -> Compute:
    """Largest element of each window; pads never win."""
    return _pool(app, _frame(app), "max({bounded}) x[n, c, {reach}]", "-inf")


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
