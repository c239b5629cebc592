"""Operators on the bits of integers, and the formulas of integer quotients and powers."""

from __future__ import annotations

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.language import pointwise
from tilewright.ops.operator import Application, Compute, operator

BITWISE = {"BitwiseAnd": "a & b", "BitwiseOr": "a | b", "BitwiseXor": "bitxor(a, b)", "BitwiseNot": "~a"}


@operator(*BITWISE, pointwise=True)
def bitwise(app: Application) -> Compute:
    """Bit by bit."""
    return pointwise(app, BITWISE[app.op], app.inputs)


@operator("BitShift", pointwise=True)
def bit_shift(app: Application) -> Compute:
    """Bits moved up (LEFT) or down (RIGHT); a shift by the width or more leaves 0."""
    direction = str(app.attributes.get("direction", ""))
    if direction not in {"LEFT", "RIGHT"}:
        raise UnsupportedError(f"direction {direction!r} is neither 'LEFT' nor 'RIGHT'")
    return pointwise(app, "a << b" if direction == "LEFT" else "a >> b", app.inputs)


@operator("BitCast", pointwise=True)
def bit_cast(app: Application) -> Compute:
    """The same bits as another integer type of the same width: what a conversion of integers keeps."""
    source, target = app.input(0).dtype, app.outputs[0].dtype
    if source is not target and (target is DType.BOOL or source.is_float or target.is_float):
        raise UnsupportedError(f"bits of {source.value} are not read as {target.value} on the device")
    return pointwise(app, f"{target.value}(a)", app.inputs)


def quotient(dtype: DType) -> str:
    """``a / b`` of integers, cut towards zero: what is left over is taken off first, so the division is exact."""
    return "a // b" if dtype.is_unsigned else "(a - fmod(a, b)) // b"


SQUARINGS = 6
"""Bits of an exponent: from 64 on, a power of anything but -1, 0 and 1 is past 64 bits."""


def whole_power(base: DType, exponent: DType) -> str:
    """``a ^ b`` of integers, exact wherever the result fits its type; negative powers are cut towards zero.

    By repeated squaring (Knuth, The Art of Computer Programming 2, section 4.6.3), one factor per bit of the exponent.
    """
    n, x = "where(b < 64, b, 62 + (b & 1))", f"{base.value}(a)"
    factors, power = [], x
    for bit in range(SQUARINGS):
        factors.append(f"where((({n}) >> {bit}) & 1 == 1, {power}, {base.value}(1))")
        power = f"square({power})"
    product = " * ".join(factors)
    if exponent.is_unsigned:
        return product
    one = f"where(b & 1 == 1, {x}, {base.value}(1))"
    return f"where(b < 0, where({x} * {x} == 1, {one}, {base.value}(0)), {product})"


def rounded_power(base: DType) -> str:
    """``a ^ b`` of an integer by a float, cut towards zero.

    What is a whole number within the 16 units in the last place that OpenCL allows `pow` is that number: 9 ^ 0.5 is 3,
    though NVIDIA's `pow` gives a little less.
    """
    power = "pow(f64(a), f64(b))"
    is_whole = f"abs({power} - round({power})) <= {16 * 2.0**-52} * abs({power})"
    return f"{base.value}(where({is_whole}, round({power}), {power}))"
