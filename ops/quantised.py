"""Quantised numbers: to and from integers, and products of quantised matrices and images.

    q = saturate(round(x / scale) + zero_point)          x = (q - zero_point) * scale

Halves round to even. Products are exact in i32; what is computed from them in floats is rounded as ONNX says: quotients
to the scale's type (they are computed in f64, whose second rounding changes nothing for f32 and shorter types), an i32
sum times its scale not before it is rounded to a whole number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.convolution import Window, window
from tilewright.ops.language import program
from tilewright.ops.operator import Application, Compute, Operand, operator

STORED = (DType.I8, DType.U8, DType.I16, DType.U16)
"""Types to quantise to."""


def _limits(dtype: DType) -> tuple[int, int]:
    bits = 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.is_unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _saturated(value: str, dtype: DType) -> str:
    """A whole number in floats as an integer type, at its ends where it lies outside."""
    low, high = _limits(dtype)
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
    return _linear(app, _saturated(f"f32(round({quotient})){zero}", dtype))


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


# --- products ---------------------------------------------------------------------------------------------------------


def _is_zero(operand: Operand | None) -> bool:
    return operand is None or (operand.value is not None and not operand.value.any())


EXACT = 1 << 24
"""The whole number up to which all others are f32s."""


def _whole(read: str, zero: str, kind: str) -> str:
    """A quantised number without its zero point, exact in the type that the sum has."""
    number = f"i32({read}) - i32({zero})" if zero else read
    return f"{kind}({number})"


def _sum(kind: str, indices: str, a: str, b: str) -> str:
    """The sum of products as an i32."""
    total = f"sum({indices}) {a} * {b}"
    return f"i32({total})" if kind == "f32" else total


def _sum_type(app: Application, left: tuple[int, int], right: tuple[int, int], axes: tuple[int, ...]) -> str:
    """f32 where no sum of these products can leave the whole numbers that it holds, else i32.

    Operands come with their zero points' positions; ``axes`` are those of the right one that are summed. The sum of
    magnitudes bounds every partial sum in any order, so that arithmetic in f32, in which devices are fastest, is exact.
    """
    factor = int(_magnitudes(app, *left).max(initial=0))
    found = _magnitudes(app, *right)
    each = np.broadcast_to(found, app.input(right[0]).shape).sum(axes, dtype=np.int64) if found.size > 1 else None
    count = math.prod(app.input(right[0]).shape[a] for a in axes)
    most = int(each.max(initial=0)) if each is not None else int(found.max(initial=0)) * count
    return "f32" if factor * most < EXACT else "i32"


def _magnitudes(app: Application, position: int, zero: int) -> np.ndarray:
    """Bounds of the magnitudes of quantised numbers without their zero points: one each if they are known, else one."""
    operand, point = app.input(position), app.optional(zero)
    low, high = _limits(operand.dtype)
    known = np.zeros(1, np.int64) if point is None else point.value
    if known is None:
        return np.array([high - low], np.int64)
    zeros = known.astype(np.int64)
    if operand.value is None:
        return np.array([max(high - zeros.min(initial=high), zeros.max(initial=low) - low)], np.int64)
    numbers = operand.value.astype(np.int64)
    apart = zeros.reshape(()) if zeros.size == 1 else np.int64(0)
    more = 0 if zeros.size == 1 else np.abs(zeros).max(initial=0)
    bounds: np.ndarray = np.abs(numbers - apart) + more
    return bounds


def _matrix_place(operand: Operand, matrix: Operand, names: list[str], along: str) -> str:
    """Where a scale or zero point of a matrix's rows (along `m`) or columns (`n`) is read; UnsupportedError if nowhere.

    It is one number, one per row or column, or has the matrix's rank and size 1 where it repeats.
    """
    if math.prod(operand.shape) == 1:
        return ", ".join(["0"] * operand.rank)
    size = matrix.shape[-2 if along == "m" else -1]
    if operand.shape == (size,):
        return along
    places = [*names[len(names) - (operand.rank - 2) :], *(("m", "0") if along == "m" else ("0", "n"))]
    last = (size, 1) if along == "m" else (1, size)
    if operand.rank != matrix.rank or operand.shape[-2:] != last or operand.shape[:-2] != matrix.shape[:-2]:
        raise UnsupportedError(f"scales or zero points of shape {operand.shape} do not fit a matrix {matrix.shape}")
    return ", ".join("0" if n == 1 else place for n, place in zip(operand.shape, places, strict=True))


class _Product:
    """The text of a product of quantised matrices while it is put together: operands, shapes and their places."""

    def __init__(self, app: Application, a: int, b: int) -> None:
        self.app = app
        self.left, self.right, self.y = app.input(a), app.input(b), app.outputs[0]
        if self.left.rank < 2 or self.right.rank < 2:
            raise UnsupportedError("quantised vectors are not supported")
        self.names = [f"i{d}" for d in range(self.y.rank - 2)]
        self.operands = {"a": a, "b": b}
        self.shapes = {"a": self.left.shape, "b": self.right.shape, "y": self.y.shape}

    def read(self, name: str, position: int, along: str = "") -> str:
        """A read of a scale or zero point, per row (`m`), column (`n`) or tensor; empty for zero points of 0."""
        operand = self.app.optional(position)
        if operand is None or (name.startswith("zero") and _is_zero(operand)):
            return ""
        matrix = {"m": self.left, "n": self.right, "": self.y}[along]
        if not along and math.prod(operand.shape) != 1:
            raise UnsupportedError(f"an output's scale or zero point of shape {operand.shape} is not supported")
        place = _matrix_place(operand, matrix, self.names, along or "m")
        self.operands[name], self.shapes[name] = position, operand.shape
        return f"{name}[{place}]"

    def batch(self, operand: Operand) -> str:
        """Indices of an operand before its matrices; size 1 repeats."""
        sizes = operand.shape[:-2]
        names = self.names[len(self.names) - len(sizes) :]
        return "".join("0, " if n == 1 else f"{name}, " for name, n in zip(names, sizes, strict=True))

    def total(self, zero_a: int, zero_b: int) -> str:
        """The exact sum of products; zero points by position."""
        kind = _sum_type(self.app, (self.operands["a"], zero_a), (self.operands["b"], zero_b), (self.right.rank - 2,))
        a = _whole(f"a[{self.batch(self.left)}m, k]", self.read("zero_a", zero_a, "m"), kind)
        b = _whole(f"b[{self.batch(self.right)}k, n]", self.read("zero_b", zero_b, "n"), kind)
        return _sum(kind, "k", a, b)

    def made(self, name: str, lines: Sequence[str]) -> Compute:
        """The program of these statements."""
        heads = ", ".join(f"{t}[{', '.join(map(str, self.shapes[t]))}]" for t in self.operands)
        text = f"op {name}({heads}) -> y[{', '.join(map(str, self.y.shape))}]:\n"
        return program(self.app, text + "".join(f"    {line}\n" for line in lines), self.shapes, self.operands)


@operator("MatMulInteger")
def matmul_integer(app: Application) -> Compute:
    """Products of 8-bit matrices, exact in i32; zero points per tensor, row or column."""
    p = _Product(app, 0, 1)
    total = p.total(2, 3)
    return p.made("matmul_integer", [f"y[{', '.join((*p.names, 'm', 'n'))}] = {total}"])


def _rescaled(total: str, scales: tuple[str, str, str], zero: str, types: tuple[DType, DType]) -> str:
    """An exact sum as the output's integers: times ``a * b / y`` in the scales' type, rounded, the zero point added."""
    scale, out = types
    a, b, y = scales
    factor = f"{scale.value}(f64({scale.value}(f64({a}) * f64({b}))) / f64({y}))"
    return _saturated(f"round(f64({total}) * f64({factor})){f' + f64({zero})' if zero else ''}", out)


@operator("QLinearMatMul")
def qlinear_matmul(app: Application) -> Compute:
    """Products of quantised matrices, quantised again; scales and zero points per tensor, row or column."""
    p = _Product(app, 0, 3)
    at = ", ".join((*p.names, "m", "n"))
    total = p.total(2, 5)
    scales = (p.read("scale_a", 1, "m"), p.read("scale_b", 4, "n"), p.read("scale_y", 6))
    value = _rescaled(f"t[{at}]", scales, p.read("zero_y", 7), (app.input(1).dtype, p.y.dtype))
    return p.made("qlinear_matmul", [f"t[{at}] = {total}", f"y[{at}] = {value}"])


# --- convolutions -----------------------------------------------------------------------------------------------------

CONVOLUTION = """
op {name}({heads}) -> y[{y}]:
{lines}
"""


class _Convolution:
    """The text of a quantised convolution while it is put together; channels are (group, channel within it)."""

    def __init__(self, app: Application, x: int, w: int) -> None:
        self.app = app
        image, weights, y = app.input(x), app.input(w), app.outputs[0]
        self.groups = app.integer("group", 1)
        channels, filters = image.shape[1], weights.shape[0]
        if image.rank < 3 or self.groups < 1 or channels != weights.shape[1] * self.groups or filters % self.groups:
            raise UnsupportedError(
                f"an input {image.shape} and weights {weights.shape} do not fit {self.groups} groups"
            )
        self.filters = filters
        self.frame: Window = window(app, weights.shape[2:])
        self.inside = self.frame.stays_inside(image.shape[2:], y.shape[2:])
        per = filters // self.groups
        self.operands = {"x": x, "w": w}
        self.constants: dict[str, np.ndarray] = {}
        self.pad = ""
        self.shapes: dict[str, tuple[int, ...]] = {
            "x": (image.shape[0], self.groups, channels // self.groups, *image.shape[2:]),
            "w": (self.groups, per, *weights.shape[1:]),
            "y": (y.shape[0], self.groups, per, *y.shape[2:]),
        }

    def read(self, name: str, position: int, per_filter: bool = False) -> str:
        """A read of a scale, bias or zero point, of one number or one per filter; empty for zero points of 0."""
        operand = self.app.optional(position)
        if operand is None or (name.startswith("zero") and _is_zero(operand)):
            return ""
        self.operands[name] = position
        if math.prod(operand.shape) == 1:
            self.shapes[name] = (1,)
            return f"{name}[0]"
        if not per_filter or operand.shape != (self.filters,):
            raise UnsupportedError(f"a scale or zero point of shape {operand.shape} is not supported")
        self.shapes[name] = self.shapes["w"][:2]
        return f"{name}[g, o]"

    def total(self, x_point: int, w_point: int) -> str:
        """The statement of the exact sum `t`. What lies in the frame stands for 0, not for what a stored 0 does.

        A zero point that is known is what reads in the frame give; else a tensor of ones says what lies inside.
        """
        f, kind = self.frame, self._sum_type(x_point, w_point)
        zero_x, zero_w = self.read("zero_x", x_point), self.read("zero_w", w_point, per_filter=True)
        taps, reach = ", ".join(f.taps), ", ".join(f.reach)
        image = _whole(f"x[n, g, c, {reach}]", zero_x, kind)
        if zero_x and not self.inside:
            zero = self.app.input(self.operands["zero_x"])
            if zero.scalar is not None:
                self.pad = f" pad {int(zero.scalar)}"
            else:
                self.constants["within"] = np.ones(self.shapes["x"][3:], np.int32)
                image = f"{image} * within[{reach}]"
        weights = _whole(f"w[g, o, c, {taps}]", zero_w, kind)
        out = ", ".join(f"{p}: {n}" for p, n in zip(f.at, self.shapes["y"][3:], strict=True))
        return f"t[n, g, o, {out}] = {_sum(kind, f'c, {taps}', image, weights)}"

    def _sum_type(self, x_point: int, w_point: int) -> str:
        axes = tuple(range(1, self.app.input(self.operands["w"]).rank))
        return _sum_type(self.app, (self.operands["x"], x_point), (self.operands["w"], w_point), axes)

    def made(self, name: str, lines: Sequence[str]) -> Compute:
        """The program of these statements."""
        shapes = self.shapes | {n: c.shape for n, c in self.constants.items()}
        text = CONVOLUTION.format(
            name=name,
            heads=", ".join(self._head(t, shape) for t, shape in shapes.items() if t != "y"),
            y=", ".join(map(str, self.shapes["y"])),
            lines="\n".join(f"    {line}" for line in lines),
        )
        return program(self.app, text, shapes, self.operands, constants=self.constants)

    def _head(self, name: str, shape: tuple[int, ...]) -> str:
        return f"{name}[{', '.join(map(str, shape))}]{self.pad if name == 'x' else ''}"


@operator("ConvInteger")
def convolution_integer(app: Application) -> Compute:
    """Convolution of 8-bit images, exact in i32; the weights' zero point is one number or one per filter."""
    p = _Convolution(app, 0, 1)
    total = p.total(2, 3)
    at = f"n, g, o, {', '.join(p.frame.at)}"
    return p.made("conv_integer", [total, f"y[{at}] = t[{at}]"])


@operator("QLinearConv")
def qlinear_convolution(app: Application) -> Compute:
    """Convolution of quantised images with an i32 bias, quantised again; scales of the weights per tensor or filter."""
    p = _Convolution(app, 0, 3)
    total = p.total(2, 5)
    bias = p.read("bias", 8, per_filter=True)
    at = f"n, g, o, {', '.join(p.frame.at)}"
    whole = f"(t[{at}] + {bias})" if bias else f"t[{at}]"
    scales = (p.read("scale_x", 1), p.read("scale_w", 4, per_filter=True), p.read("scale_y", 6))
    value = _rescaled(whole, scales, p.read("zero_y", 7), (app.input(1).dtype, app.outputs[0].dtype))
    return p.made("qlinear_conv", [total, f"y[{at}] = {value}"])
