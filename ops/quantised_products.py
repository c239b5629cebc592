"""Products of quantised matrices and images: exact sums of integers, and these quantised again.

An i32 sum times its scale is computed in the scale's type, f32 as a rule, and becomes a whole number then. Sums that
f32 holds exactly are made in f32, in which devices are fastest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.convolution import Window, window
from tilewright.ops.language import program
from tilewright.ops.operator import Application, Compute, Operand, operator
from tilewright.ops.quantised import limits, saturated


def _is_zero(operand: Operand | None) -> bool:
    return operand is None or (operand.value is not None and not operand.value.any())


EXACT = 1 << 24
"""The whole number up to which all others are f32s."""


def _whole(read: str, zero: str, kind: str) -> str:
    """A quantised number without its zero point, exact in the type that the sum has."""
    number = f"i32({read}) - i32({zero})" if zero else read
    return f"{kind}({number})"


def _sum(kind: str, indices: str, a: str, b: str) -> str:
    """The exact sum of products as an i32, which keeps Winograd's tiles, whose sums are rounded, away from it."""
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
    low, high = limits(operand.dtype)
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
        self.constants: dict[str, np.ndarray] = {}
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

    def factor(self) -> str:
        """What a sum of QLinearMatMul is multiplied by."""
        known = _known_factor(self.app, (1, 4, 6))
        if known is None:
            scales = (self.read("scale_a", 1, "m"), self.read("scale_b", 4, "n"), self.read("scale_y", 6))
            return _factor(scales, self.app.input(1).dtype)
        place = _matrix_place(self.app.input(4), self.right, self.names, "n")
        self.constants["factor"] = known
        return f"factor[{place}]"

    def made(self, name: str, lines: Sequence[str]) -> Compute:
        """The program of these statements."""
        shapes = self.shapes | {n: c.shape for n, c in self.constants.items()}
        heads = ", ".join(f"{t}[{', '.join(map(str, shapes[t]))}]" for t in (*self.operands, *self.constants))
        text = f"op {name}({heads}) -> y[{', '.join(map(str, self.y.shape))}]:\n"
        text += "".join(f"    {line}\n" for line in lines)
        return program(self.app, text, shapes, self.operands, constants=self.constants)


@operator("MatMulInteger")
def matmul_integer(app: Application) -> Compute:
    """Products of 8-bit matrices, exact in i32; zero points per tensor, row or column."""
    p = _Product(app, 0, 1)
    total = p.total(2, 3)
    return p.made("matmul_integer", [f"y[{', '.join((*p.names, 'm', 'n'))}] = {total}"])


def _known_factor(app: Application, positions: tuple[int, int, int]) -> np.ndarray | None:
    """What an exact sum is multiplied by, as constant scales make it: of the shape of the second one."""
    a, b, y = (app.input(position) for position in positions)
    if a.value is None or b.value is None or y.value is None or a.value.size != 1 or y.value.size != 1:
        return None
    both = (a.value.astype(np.float64).reshape(()) * b.value.astype(np.float64)).astype(a.value.dtype)
    factor: np.ndarray = (both.astype(np.float64) / y.value.astype(np.float64).reshape(())).astype(a.value.dtype)
    return factor


def _factor(scales: tuple[str, str, str], dtype: DType) -> str:
    """What an exact sum is multiplied by: ``a * b / y``, rounded to the scales' type after each step."""
    a, b, y = scales
    return f"{dtype.value}(f64({dtype.value}(f64({a}) * f64({b}))) / f64({y}))"


def _rescaled(total: str, factor: str, zero: str, scales: DType, dtype: DType) -> str:
    """An exact sum as the output's integers: times its factor, rounded, the zero point added.

    By scales of f32 in f32, as onnxruntime does it; shorter scales multiply in f64, which they do not fill.
    """
    kind = "f32" if scales is DType.F32 else "f64"
    return saturated(f"round({kind}({total}) * {kind}({factor})){f' + {kind}({zero})' if zero else ''}", dtype)


@operator("QLinearMatMul")
def qlinear_matmul(app: Application) -> Compute:
    """Products of quantised matrices, quantised again; scales and zero points per tensor, row or column."""
    p = _Product(app, 0, 3)
    at = ", ".join((*p.names, "m", "n"))
    total = p.total(2, 5)
    value = _rescaled(f"t[{at}]", p.factor(), p.read("zero_y", 7), app.input(1).dtype, p.y.dtype)
    return p.made("qlinear_matmul", [f"t[{at}] = {total}", f"y[{at}] = {value}"])


# --- convolutions -----------------------------------------------------------------------------------------------------

CONVOLUTION = """
op {name}({heads}) -> y[{y}]:
{lines}
"""


@dataclass(frozen=True)
class _Form:
    """How a convolution's channels are seen: the sizes of its operands, and where channels are read and written."""

    image: tuple[int, ...]
    weights: tuple[int, ...]
    output: tuple[int, ...]
    filters: tuple[int, ...]
    """Of what there is per filter."""
    read: str
    filter: str
    """An output channel."""
    summed: tuple[str, ...] = ("c",)


def _form(image: tuple[int, ...], weights: tuple[int, ...], output: tuple[int, ...], groups: int) -> _Form:
    """All channels together, each by itself, or as (group, channel within it)."""
    channels, filters = image[1], weights[0]
    if groups == 1:
        return _Form(image, weights, output, (filters,), "c", "o")
    if channels == groups == filters:
        return _Form(image, (filters, *weights[2:]), output, (filters,), "o", "o", ())
    per = filters // groups
    return _Form(
        (image[0], groups, channels // groups, *image[2:]),
        (groups, per, *weights[1:]),
        (output[0], groups, per, *output[2:]),
        (groups, per),
        "g, c",
        "g, o",
    )


class _Convolution:
    """The text of a quantised convolution while it is put together."""

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
        self.form = _form(image.shape, weights.shape, y.shape, self.groups)
        self.frame: Window = window(app, weights.shape[2:])
        self.inside = self.frame.stays_inside(image.shape[2:], y.shape[2:])
        self.operands = {"x": x, "w": w}
        self.constants: dict[str, np.ndarray] = {}
        self.pad = ""
        self.shapes: dict[str, tuple[int, ...]] = {
            "x": self.form.image,
            "w": self.form.weights,
            "y": self.form.output,
        }

    @property
    def at(self) -> str:
        """Where an output is."""
        return ", ".join(("n", self.form.filter, *self.frame.at))

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
        self.shapes[name] = self.form.filters
        return f"{name}[{self.form.filter}]"

    def factor(self) -> str:
        """What a sum of QLinearConv is multiplied by."""
        known = _known_factor(self.app, (1, 4, 6))
        if known is None or known.size not in (1, self.filters):
            scales = (self.read("scale_x", 1), self.read("scale_w", 4, per_filter=True), self.read("scale_y", 6))
            return _factor(scales, self.app.input(1).dtype)
        self.constants["factor"] = known.reshape(1 if known.size == 1 else self.form.filters)
        return "factor[0]" if known.size == 1 else f"factor[{self.form.filter}]"

    def total(self, x_point: int, w_point: int) -> str:
        """The statement of the exact sum `t`. What lies in the frame stands for 0, not for what a stored 0 does.

        A zero point that is known is what reads in the frame give; else a tensor of ones says what lies inside.
        """
        f, kind = self.frame, self._sum_type(x_point, w_point)
        zero_x, zero_w = self.read("zero_x", x_point), self.read("zero_w", w_point, per_filter=True)
        reach = ", ".join(f.reach)
        image = _whole(f"x[n, {self.form.read}, {reach}]", zero_x, kind)
        if zero_x and not self.inside:
            zero = self.app.input(self.operands["zero_x"])
            if zero.scalar is not None:
                self.pad = f" pad {int(zero.scalar)}"
            else:
                self.constants["within"] = np.ones(self.app.input(self.operands["x"]).shape[2:], np.int32)
                image = f"{image} * within[{reach}]"
        summed = ", ".join((*self.form.summed, *f.taps))
        weights = _whole(f"w[{', '.join((self.form.filter, summed))}]", zero_w, kind)
        out = ", ".join(f"{p}: {n}" for p, n in zip(f.at, self.app.outputs[0].shape[2:], strict=True))
        total = _sum(kind, summed, image, weights)
        return f"t[n, {self.form.filter}, {out}] = {total}"

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
    return p.made("conv_integer", [total, f"y[{p.at}] = t[{p.at}]"])


@operator("QLinearConv")
def qlinear_convolution(app: Application) -> Compute:
    """Convolution of quantised images with an i32 bias, quantised again; scales of the weights per tensor or filter."""
    p = _Convolution(app, 0, 3)
    total = p.total(2, 5)
    bias = p.read("bias", 8, per_filter=True)
    whole = f"(t[{p.at}] + {bias})" if bias else f"t[{p.at}]"
    value = _rescaled(whole, p.factor(), p.read("zero_y", 7), app.input(1).dtype, app.outputs[0].dtype)
    return p.made("qlinear_conv", [total, f"y[{p.at}] = {value}"])
