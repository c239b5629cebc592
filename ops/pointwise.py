"""Pointwise operators: each output element depends on one element of each input, with NumPy broadcasting.

Formulas are over `a`, `b`, `c`, ... and become one-line programs; inputs that are known scalars are written into them.
"""

from __future__ import annotations

from typing import Any

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.integers import quotient, rounded_power, whole_power
from tilewright.ops.language import literal, pointwise, program
from tilewright.ops.operator import Application, Compute, operator

UNARY = {
    "Abs": "abs(a)",
    "Acos": "acos(a)",
    "Acosh": "acosh(a)",
    "Asin": "asin(a)",
    "Asinh": "asinh(a)",
    "Atan": "atan(a)",
    "Atanh": "atanh(a)",
    "Ceil": "ceil(a)",
    "Cos": "cos(a)",
    "Cosh": "cosh(a)",
    "Erf": "erf(a)",
    "Exp": "exp(a)",
    "Floor": "floor(a)",
    "HardSwish": "a * max(0, min(1, a * 0.16666666666666666 + 0.5))",
    "Identity": "a",
    "IsNaN": "isnan(a)",
    "Log": "log(a)",
    "Mish": "a * tanh(max(a, 0) + log1p(exp(-abs(a))))",
    "Neg": "-a",
    "Not": "not a",
    "Reciprocal": "1 / a",
    "Relu": "relu(a)",
    "Round": "round(a)",
    "Sigmoid": "sigmoid(a)",
    "Sign": "sign(a)",
    "Sin": "sin(a)",
    "Sinh": "sinh(a)",
    "Softplus": "max(a, 0) + log1p(exp(-abs(a)))",
    "Softsign": "a / (1 + abs(a))",
    "Sqrt": "sqrt(a)",
    "Tan": "tan(a)",
    "Tanh": "tanh(a)",
}
"""Formulas of operators without attributes."""

WITH_ATTRIBUTES = {
    "Celu": ("where(a < 0, {alpha} * expm1(a / {alpha}), a)", {"alpha": 1.0}),
    "Elu": ("where(a < 0, {alpha} * expm1(a), a)", {"alpha": 1.0}),
    "HardSigmoid": ("max(0, min(1, {alpha} * a + {beta}))", {"alpha": 0.2, "beta": 0.5}),
    "LeakyRelu": ("where(a < 0, {alpha} * a, a)", {"alpha": 0.01}),
    "Selu": (
        "{gamma} * where(a < 0, {alpha} * expm1(a), a)",
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    ),
    "Shrink": ("where(a < -{lambd}, a + {bias}, where(a > {lambd}, a - {bias}, 0))", {"lambd": 0.5, "bias": 0.0}),
    "Swish": ("a * sigmoid({alpha} * a)", {"alpha": 1.0}),
    "ThresholdedRelu": ("where(a > {alpha}, a, 0)", {"alpha": 1.0}),
}
"""Formulas with float attributes, and the attributes' defaults."""

BINARY = {
    "Add": "a + b",
    "And": "a and b",
    "Equal": "a == b",
    "Greater": "a > b",
    "GreaterOrEqual": "a >= b",
    "Less": "a < b",
    "LessOrEqual": "a <= b",
    "Mul": "a * b",
    "Or": "a or b",
    "Sub": "a - b",
    "Xor": "a != b",
}
"""Formulas of operators with two inputs."""

VARIADIC = {"Max": "max({0}, {1})", "Min": "min({0}, {1})", "Sum": "{0} + {1}", "Mean": "{0} + {1}"}
"""How one more input joins what is there."""


@operator(*UNARY, pointwise=True)
def unary(app: Application) -> Compute:
    """Operators of one input without attributes."""
    return pointwise(app, UNARY[app.op], app.inputs[:1])


KEPT = """
op kept() -> y[{sizes}]:
    y[{at}] = true
"""


@operator("Dropout", host=(1, 2), outputs=2)
def dropout(app: Application) -> tuple[Compute, ...]:
    """Nothing, in inference and where nothing is to be dropped; the mask of what is kept is all true."""
    mode, ratio = app.known(2), app.known(1)
    trains = mode is not None and bool(mode.reshape(-1)[0])
    if trains and (ratio is None or float(ratio.reshape(-1)[0]) != 0):
        raise UnsupportedError("dropping elements at random (training_mode) is not supported")
    shape = app.input(0).shape
    made = [pointwise(app, "a", app.inputs[:1])]
    if len(app.outputs) > 1:
        at = ", ".join(f"i{d}" for d in range(len(shape)))
        text = KEPT.format(sizes=", ".join(map(str, shape)), at=at)
        made.append(program(app, text, {"y": shape}, {}, output=1))
    return tuple(made)


@operator(*WITH_ATTRIBUTES, pointwise=True)
def with_attributes(app: Application) -> Compute:
    """Operators of one input with float attributes."""
    formula, defaults = WITH_ATTRIBUTES[app.op]
    values = {name: literal(app.number(name, default)) for name, default in defaults.items()}
    return pointwise(app, formula.format(**values), app.inputs[:1])


def _refuse_old_broadcast(attributes: Any, opset: int) -> str | None:
    if opset < 7 and attributes.get("broadcast"):
        return "broadcasting along an axis (before opset 7) is not supported"
    return None


@operator(*BINARY, pointwise=True, refuse=_refuse_old_broadcast)
def binary(app: Application) -> Compute:
    """Operators of two inputs."""
    return pointwise(app, BINARY[app.op], app.inputs)


PER_CHANNEL = """
op prelu_per_channel(a, b) -> y[{sizes}]:
    y[{at}] = where(a[{at}] < 0, a[{at}] * b[{channel}], a[{at}])
"""


@operator("PRelu", pointwise=True)
def prelu(app: Application) -> Compute:
    """Its slopes broadcast to the input; before opset 7 a list of them belongs to the channels, dimension 1."""
    x, slope = app.input(0), app.input(1)
    if app.opset >= 7 or slope.rank != 1 or slope.shape == (1,) or x.rank < 2:
        return pointwise(app, "where(a < 0, a * b, a)", app.inputs)
    at = [f"i{d}" for d in range(x.rank)]
    text = PER_CHANNEL.format(sizes=", ".join(map(str, x.shape)), at=", ".join(at), channel=at[1])
    return program(app, text, {"a": x.shape, "b": slope.shape, "y": x.shape}, {"a": 0, "b": 1})


@operator("Div", pointwise=True, refuse=_refuse_old_broadcast)
def divide(app: Application) -> Compute:
    """Quotient; for integers it is cut towards zero."""
    dtype = app.outputs[0].dtype
    return pointwise(app, "a / b" if dtype.is_float else quotient(dtype), app.inputs)


@operator("Mod", pointwise=True)
def modulo(app: Application) -> Compute:
    """Remainder with the divisor's sign, or (``fmod``) with the dividend's, as NumPy's functions of these names."""
    return pointwise(app, "fmod(a, b)" if app.integer("fmod", 0) else "a % b", app.inputs)


POWERS = {1: "a", 2: "a * a", 3: "a * a * a", 0.5: "sqrt(a)", -1: "1 / a", -0.5: "rsqrt(a)"}
"""Formulas of the usual exponents."""


@operator("Pow", pointwise=True, refuse=_refuse_old_broadcast)
def power(app: Application) -> Compute:
    """``a ** b`` in the type of `a`; the usual constant exponents become products and roots."""
    base, exponent = app.input(0).dtype, app.input(1)
    known = exponent.scalar
    if base.is_float:
        return pointwise(app, POWERS.get(float(known), "pow(a, b)") if known is not None else "pow(a, b)", app.inputs)
    if known in {1, 2, 3}:
        return pointwise(app, POWERS[known], app.inputs)
    if exponent.dtype.is_float:
        return pointwise(app, rounded_power(base), app.inputs)
    return pointwise(app, whole_power(base, exponent.dtype), app.inputs)


@operator(*VARIADIC, pointwise=True)
def variadic(app: Application) -> Compute:
    """Operators of any number of inputs."""
    if len(app.inputs) > 26:
        raise UnsupportedError(f"{len(app.inputs)} inputs are more than the 26 supported")
    names = "abcdefghijklmnopqrstuvwxyz"[: len(app.inputs)]
    formula = names[0]
    for name in names[1:]:
        formula = VARIADIC[app.op].format(formula, name)
    if app.op == "Mean":
        formula = f"({formula}) / {len(names)}"
    return pointwise(app, formula, app.inputs)


@operator("Clip", pointwise=True)
def clip(app: Application) -> Compute:
    """``min(max(a, low), high)``; limits are attributes before opset 11 and may be left out."""
    if app.opset >= 11:
        low, high = ("b" if app.optional(1) else None), ("c" if app.optional(2) else None)
        inputs = (*app.inputs, None, None)[:3]
    else:
        low = literal(app.number("min", 0.0)) if "min" in app.attributes else None
        high = literal(app.number("max", 0.0)) if "max" in app.attributes else None
        inputs = app.inputs[:1]
    formula = f"max(a, {low})" if low else "a"
    return pointwise(app, f"min({formula}, {high})" if high else formula, inputs)


@operator("Where", pointwise=True)
def where(app: Application) -> Compute:
    """``b`` where ``a`` holds, else ``c``."""
    kind = app.outputs[0].dtype.value
    return pointwise(app, f"where(a, {kind}(b), {kind}(c))", app.inputs)


@operator("Gelu", pointwise=True)
def gelu(app: Application) -> Compute:
    """Gaussian error linear unit, exact or by tanh."""
    if app.attributes.get("approximate", "none") == "tanh":
        return pointwise(app, "0.5 * a * (1 + tanh(0.7978845608028654 * (a + 0.044715 * a * a * a)))", app.inputs)
    return pointwise(app, "0.5 * a * (1 + erf(a * 0.7071067811865476))", app.inputs)


@operator("IsInf", pointwise=True)
def is_infinite(app: Application) -> Compute:
    """True for infinities of the wanted signs."""
    signs = {"detect_positive": "inf", "detect_negative": "-inf"}
    wanted = [f"a == {value}" for name, value in signs.items() if app.integer(name, 1)]
    return pointwise(app, " or ".join(wanted) or "a != a and a == a", app.inputs)


@operator("Cast", "CastLike", pointwise=True)
def cast(app: Application) -> Compute:
    """Conversion to the output's element type, by C's rules."""
    target = app.outputs[0].dtype
    return pointwise(app, "a != 0" if target is DType.BOOL else f"{target.value}(a)", app.inputs[:1])
