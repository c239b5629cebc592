"""Quantised numbers: to and from integers.

    q = saturate(round(x / scale) + zero_point)          x = (q - zero_point) * scale

Halves round to even. Quotients are rounded to the scale's type, as ONNX says; they are computed in f64, whose second
rounding changes nothing for f32 and shorter types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.language import program
from tilewright.ops.operator import Application, Compute, Operand, operator

STORED = (DType.I8, DType.U8, DType.I16, DType.U16)
"""Types to quantise to."""


def limits(dtype: DType) -> tuple[int, int]:
    """The lowest and the highest number of an integer type."""
    bits = 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.is_unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def saturated(value: str, dtype: DType) -> str:
    """A whole number in floats as an integer type, at its ends where it lies outside."""
    low, high = limits(dtype)
    return f"{dtype.value}(clamp({value}, {low}, {high}))"


# --- to and from integers ---------------------------------------------------------------------------------------------

LINEAR = """
op {name}(x[{sizes}], scale[{scale_sizes}]{zero}) -> y[{sizes}]:
    y[{at}] = {value}
"""


def _refuse_linear(attributes: Mapping[str, Any], opset: int) -> str | None:
    return "a negative block_size is not allowed" if int(attributes.get("block_size", 0)) < 0 else None


def _linear(app: Application, value: str) -> Compute:
    """A pointwise program over `x`, `scale` and `zero`, these per tensor, index of an axis or block."""
    x, scale, zero = app.input(0), app.input(1), app.optional(2)
    names = [f"i{d}" for d in range(x.rank)]
    at, place = ", ".join(names), ", ".join(_scale_place(app, x, scale, names))
    dims = ", ".join(map(str, scale.shape))
    if zero is not None and zero.shape != scale.shape and not (math.prod(zero.shape) == math.prod(scale.shape) == 1):
        raise UnsupportedError(f"its scale has shape {scale.shape} and its zero point {zero.shape}")
    text = LINEAR.format(
        name="quantise" if app.op == "QuantizeLinear" else "dequantise",
        sizes=", ".join(map(str, x.shape)),
        scale_sizes=dims,
        zero=f", zero[{dims}]" if zero else "",
        at=at,
        value=value.format(x=f"x[{at}]", scale=f"scale[{place}]", zero=f"zero[{place}]"),
    )
    shapes = {"x": x.shape, "scale": scale.shape, "zero": scale.shape, "y": x.shape}
    return program(app, text, shapes, {"x": 0, "scale": 1} | ({"zero": 2} if zero else {}))


def _scale_place(app: Application, x: Operand, scale: Operand, names: Sequence[str]) -> list[str]:
    """Where the scale of an element is read."""
    if math.prod(scale.shape) == 1:
        return ["0"] * scale.rank
    axis, block = app.integer("axis", 1), app.integer("block_size", 0)
    if not -x.rank <= axis < x.rank:
        raise UnsupportedError(f"axis {axis} is none of an input of rank {x.rank}")
    axis %= x.rank
    if not block and scale.shape == (x.shape[axis],):
        return [names[axis]]
    wanted = tuple(-(-n // block) if d == axis and block else n for d, n in enumerate(x.shape))
    if not block or scale.shape != wanted:
        raise UnsupportedError(f"a scale of shape {scale.shape} does not fit an input {x.shape} along axis {axis}")
    return [f"{name} / {block}" if d == axis else name for d, name in enumerate(names)]


@operator("QuantizeLinear", refuse=_refuse_linear)
def quantise(app: Application) -> Compute:
    """Whole multiples of the scale, counted from the zero point; the quotient has the type of `precision`."""
    dtype = app.outputs[0].dtype
    if dtype not in STORED:
        raise UnsupportedError(f"quantised to {dtype.value}")
    given = app.integer("precision", 0)
    precision = PRECISIONS.get(given) if given else app.input(1).dtype
    if precision is None or not precision.is_float:
        raise UnsupportedError(f"precision {given} is no type of floats here")
    x, scale = (f"{precision.value}({{{name}}})" for name in ("x", "scale"))
    quotient = f"{precision.value}(f64({x}) / f64({scale}))"
    zero = " + f32({zero})" if app.optional(2) else ""
    return _linear(app, saturated(f"f32(round({quotient})){zero}", dtype))


PRECISIONS = {1: DType.F32, 10: DType.F16, 11: DType.F64, 16: DType.BF16}
"""ONNX's numbers of element types."""


@operator("DequantizeLinear", refuse=_refuse_linear)
def dequantise(app: Application) -> Compute:
    """The floats that quantised numbers stand for; computed in f32 and rounded once."""
    x, dtype = app.input(0).dtype, app.outputs[0].dtype
    if x not in (*STORED, DType.I32):
        raise UnsupportedError(f"an input of {x.value} is not quantised")
    wide = "f32" if x is DType.I32 else "i32"
    whole = f"f32({wide}({{x}}) - {wide}({{zero}}))" if app.optional(2) else "f32({x})"
    return _linear(app, f"{dtype.value}({whole} * f32({{scale}}))")


DYNAMIC = """
op dynamic(x[K]) -> y[{dims}]:
    high = max(max(k) x[k], 0)
    low = min(min(k) x[k], 0)
    scale = where(high == low, f32(f64(1) / 255), f32(f64(high - low) / 255))
    zero = round(clamp(0 - f32(f64(low) / f64(scale)), 0, 255))
    y{value}
"""


@operator("DynamicQuantizeLinear", outputs=3)
def dynamic_quantise(app: Application) -> tuple[Compute, ...]:
    """Quantised to u8 over the range of what is there and zero; the scale and the zero point are outputs too."""
    shape = app.input(0).shape
    count = math.prod(shape)
    if not count:
        raise UnsupportedError("an input without elements has no range")
    values = (
        ("K", "[k] = u8(clamp(round(f32(f64(x[k]) / f64(scale))) + zero, 0, 255))", (count,)),
        ("", "[] = scale", ()),
        ("", "[] = u8(zero)", ()),
    )
    return tuple(
        program(app, DYNAMIC.format(dims=dims, value=value), {"x": (count,), "y": out}, {"x": 0}, output=position)
        for position, (dims, value, out) in enumerate(values[: len(app.outputs)])
    )
