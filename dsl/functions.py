"""The pointwise functions and operators of the language: arguments, type of the result, spelling in OpenCL C.

A spelling holds for scalars and for vectors alike. ``{0}`` to ``{2}`` are the arguments; ``<1.5>`` is a constant of the
result's type. Type names: ``{t}`` the result's, ``{n}`` int as wide as it. Bits: ``{T}(...)``, ``{U}(...)`` and
``{I}(...)`` see a value as the result's type, unsigned or signed; ``{bits}`` is the number of bits, ``{magnitude}`` all
but the sign's. A spelling with `return` is the body of a helper function whose arguments are ``a``, ``b``, ``c``.

max, min and their kin treat NaN as NumPy does (a NaN operand gives NaN), which OpenCL's fmax does not. Integers wrap:
sums, differences and products are computed unsigned, because C leaves the overflow of signed ones undefined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from tilewright.dsl.dtypes import DType


class Result(Enum):
    """How a function's result type follows from its arguments'."""

    SAME = "same"
    """The promoted type of the arguments."""
    FLOAT = "float"
    """As SAME, but integers give f32."""
    INTEGER = "integer"
    """As SAME, for integers alone; of truth values alone it is a truth value."""
    BOOL = "bool"
    WHERE = "where"
    """The promoted type of the last two arguments."""


@dataclass(frozen=True)
class Function:
    """One pointwise function."""

    name: str
    arity: int
    result: Result
    spelling: str
    meaning: str
    integers: str = ""
    """The spelling for integers where it differs."""
    unsigned: str = ""
    """The spelling for unsigned integers where it differs from that."""
    fast: str = ""
    """The spelling for floats where NaN, infinities and the last bits do not matter."""
    defaults: tuple[float, ...] = ()
    """What the last arguments are where they are left out."""
    by_lane: bool = False
    """True if vectors are computed lane by lane."""

    def spelled(self, dtype: DType, fast: bool = False) -> str:
        """The spelling for arguments of a type; with `fast`, one that may give up NaN, infinities and last bits."""
        if dtype.is_float:
            return self.fast if fast and self.fast else self.spelling
        if dtype.is_unsigned and self.unsigned:
            return self.unsigned
        return self.integers or self.spelling

    @property
    def least(self) -> int:
        """The smallest number of arguments."""
        return self.arity - len(self.defaults)

    def needs_helper(self, spelling: str) -> bool:
        """True if a spelling is a function's body or uses an argument twice, and so must become a helper function."""
        return "return" in spelling or any(spelling.count(f"{{{n}}}") > 1 for n in range(self.arity))


_f = Function
_SAME, _FLOAT, _INTEGER, _BOOL = Result.SAME, Result.FLOAT, Result.INTEGER, Result.BOOL

# A divisor that would trap (0, and -1 with the smallest dividend) is replaced by 1 and its result chosen afterwards.
_SAFE = "const {t} d = (b == <0> || b == <-1>) ? <1> : b; const {t} r = a % d; "
_UNSIGNED = "const {t} d = (b == <0>) ? <1> : b; return (b == <0>) ? <0> : (a %s d);"
_FLOOR_INTEGERS = (
    _SAFE + "const {t} q = a / d - ((r != <0> && (r < <0>) != (d < <0>)) ? <1> : <0>); "
    "return (b == <0>) ? <0> : ((b == <-1>) ? {T}(<0u> - {U}(a)) : q);"
)
_MOD_INTEGERS = (
    _SAFE + "return (b == <0> || b == <-1>) ? <0> : ((r != <0> && (r < <0>) != (d < <0>)) ? ({t})(r + d) : r);"
)
_FMOD_INTEGERS = _SAFE + "return (b == <0> || b == <-1>) ? <0> : r;"
# The quotient of a - mod(a, b), which divides almost evenly, is within one rounding of the whole number wanted.
_FLOOR_FLOATS = (
    "const {t} m = fmod(a, b); const {t} q = (a - m) / b - (((m != <0>) && ((b < <0>) != (m < <0>))) ? <1> : <0>); "
    "const {t} f = floor(q); const {t} n = (q - f > <0.5>) ? f + <1> : f; "
    "return (b == <0>) ? a / b : ((q == <0>) ? copysign(<0>, a / b) : n);"
)
_MOD_FLOATS = "const {t} m = fmod(a, b); return (m == <0>) ? copysign(<0>, b) : (((b < <0>) != (m < <0>)) ? m + b : m);"
# Unsigned, because the magnitude of a type's smallest value is none of its values; Euclid's algorithm.
_MAGNITUDES = (
    "ulong p = (a < <0>) ? (ulong)0 - (ulong)a : (ulong)a; ulong q = (b < <0>) ? (ulong)0 - (ulong)b : (ulong)b; "
)
_EUCLID = "while (q != 0) {{ const ulong r = p % q; p = q; q = r; }} "
_LOG1P_EXP = "log1p(exp({T}({U}(%s) | ~({magnitude}))))"
"""log(1 + exp(-|x|))."""
_SOFTPLUS = "((a > <0>) ? a : <0>) + " + _LOG1P_EXP % "a"

_ARITHMETIC = (
    _f("add", 2, _SAME, "{0} + {1}", "sum", "{T}({U}({0}) + {U}({1}))"),
    _f("sub", 2, _SAME, "{0} - {1}", "difference", "{T}({U}({0}) - {U}({1}))"),
    _f("mul", 2, _SAME, "{0} * {1}", "product", "{T}({U}({0}) * {U}({1}))"),
    _f("div", 2, _FLOAT, "{0} / {1}", "quotient"),
    _f("neg", 1, _SAME, "-{0}", "negation", "{T}(<0u> - {U}({0}))"),
    _f(
        "floordiv", 2, _SAME, _FLOOR_FLOATS, "quotient, rounded down; 0 for a division of integers by 0",
        _FLOOR_INTEGERS, _UNSIGNED % "/", "floor({0} / {1})",
    ),
    _f(
        "mod", 2, _SAME, _MOD_FLOATS, "remainder with the sign of the divisor; 0 for integers mod 0",
        _MOD_INTEGERS, _UNSIGNED % "%", "{0} - {1} * floor({0} / {1})",
    ),
    _f(
        "fmod", 2, _SAME, "fmod({0}, {1})", "remainder with the sign of the dividend",
        _FMOD_INTEGERS, _UNSIGNED % "%",
    ),
    _f("pow", 2, _FLOAT, "pow({0}, {1})", "power"),
    _f("square", 1, _SAME, "{0} * {0}", "x * x", "{T}({U}({0}) * {U}({0}))"),
    _f("reciprocal", 1, _FLOAT, "<1> / {0}", "1 / x"),
    _f(
        "max", 2, _SAME, "({0} < {1} || {1} != {1}) ? {1} : {0}", "larger; NaN if either is NaN",
        "({0} < {1}) ? {1} : {0}", fast="fmax({0}, {1})",
    ),
    _f(
        "min", 2, _SAME, "({0} > {1} || {1} != {1}) ? {1} : {0}", "smaller; NaN if either is NaN",
        "({0} > {1}) ? {1} : {0}", fast="fmin({0}, {1})",
    ),
    _f(
        "fmax", 2, _SAME, "({0} < {1} || {0} != {0}) ? {1} : {0}", "larger; a NaN gives way to the other",
        "({0} < {1}) ? {1} : {0}", fast="fmax({0}, {1})",
    ),
    _f(
        "fmin", 2, _SAME, "({0} > {1} || {0} != {0}) ? {1} : {0}", "smaller; a NaN gives way to the other",
        "({0} > {1}) ? {1} : {0}", fast="fmin({0}, {1})",
    ),
    _f(
        "abs", 1, _SAME, "{T}({U}({0}) & {magnitude})", "absolute value",
        "({0} < <0>) ? {T}(<0u> - {U}({0})) : {0}",
    ),
    _f("sign", 1, _SAME, "({0} > <0>) ? <1> : (({0} < <0>) ? <-1> : {0})", "-1, 0 or 1"),
    _f("heaviside", 2, _SAME, "({0} < <0>) ? <0> : (({0} > <0>) ? <1> : (({0} == <0>) ? {1} : {0}))",
       "0 below 0, 1 above, the second argument at 0"),
    _f("copysign", 2, _FLOAT, "{T}(({U}({0}) & {magnitude}) | ({U}({1}) & ~({magnitude})))",
       "the first with the second's sign"),
    _f("nextafter", 2, _FLOAT, "nextafter({0}, {1})", "the next float towards the second"),
    _f("ldexp", 2, _FLOAT, "ldexp({0}, convert_{n}(clamp({1}, <-5000>, <5000>)))", "a * 2^b for a whole b"),
    _f("hypot", 2, _FLOAT, "hypot({0}, {1})", "sqrt(a^2 + b^2) without overflow"),
)  # fmt: skip

_BITS = (
    _f("bitand", 2, _INTEGER, "{0} & {1}", "bitwise and"),
    _f("bitor", 2, _INTEGER, "{0} | {1}", "bitwise or"),
    _f("bitxor", 2, _INTEGER, "{0} ^ {1}", "bitwise exclusive or"),
    _f("bitnot", 1, _INTEGER, "~{0}", "all bits inverted"),
    _f(
        "shl", 2, _INTEGER, "({1} < <0> || {1} >= <{bits}>) ? <0> : {T}({U}({0}) << ({1} & <{mask}>))",
        "bits moved up; 0 where nothing is left",
    ),
    _f(
        "shr", 2, _INTEGER,
        "({1} < <0> || {1} >= <{bits}>) ? (({0} < <0>) ? ({t})(~<0>) : <0>) : ({t})({0} >> ({1} & <{mask}>))",
        "bits moved down, the sign repeated",
    ),
    _f("gcd", 2, _INTEGER, _MAGNITUDES + _EUCLID + "return ({t})p;", "greatest common divisor", by_lane=True),
    _f(
        "lcm", 2, _INTEGER, _MAGNITUDES + "const ulong x = p, y = q; " + _EUCLID +
        "return (p == 0) ? <0> : ({t})(x / p * y);", "least common multiple", by_lane=True,
    ),
)  # fmt: skip

_EXPONENTIAL = (
    _f("exp", 1, _FLOAT, "exp({0})", "e to the power"),
    _f("exp2", 1, _FLOAT, "exp2({0})", "2 to the power"),
    _f("expm1", 1, _FLOAT, "expm1({0})", "exp(x) - 1, exact near 0"),
    _f("log", 1, _FLOAT, "log({0})", "natural logarithm"),
    _f("log2", 1, _FLOAT, "log2({0})", "logarithm to base 2"),
    _f("log10", 1, _FLOAT, "log10({0})", "logarithm to base 10"),
    _f("log1p", 1, _FLOAT, "log1p({0})", "log(1 + x), exact near 0"),
    _f(
        "logaddexp", 2, _FLOAT,
        "const {t} d = a - b; return (a == b) ? a + <0.69314718055994531> : ((a > b) ? a : b) + " + _LOG1P_EXP % "d" +
        ";", "log(exp(a) + exp(b))",
    ),
    _f(
        "logaddexp2", 2, _FLOAT,
        "const {t} d = a - b; return (a == b) ? a + <1> : ((a > b) ? a : b) + "
        "<1.4426950408889634> * log1p(exp2({T}({U}(d) | ~({magnitude}))));", "log2(2^a + 2^b)",
    ),
    _f("sqrt", 1, _FLOAT, "sqrt({0})", "square root"),
    _f("rsqrt", 1, _FLOAT, "<1> / sqrt({0})", "1 / square root"),
    _f("cbrt", 1, _FLOAT, "cbrt({0})", "cube root"),
)  # fmt: skip

_TRIGONOMETRIC = (
    _f("sin", 1, _FLOAT, "sin({0})", "sine"),
    _f("cos", 1, _FLOAT, "cos({0})", "cosine"),
    _f("tan", 1, _FLOAT, "tan({0})", "tangent"),
    _f("asin", 1, _FLOAT, "asin({0})", "arc sine"),
    _f("acos", 1, _FLOAT, "acos({0})", "arc cosine"),
    _f("atan", 1, _FLOAT, "atan({0})", "arc tangent"),
    _f("atan2", 2, _FLOAT, "atan2({0}, {1})", "angle of the point (b, a)"),
    _f("sinh", 1, _FLOAT, "sinh({0})", "hyperbolic sine"),
    _f("cosh", 1, _FLOAT, "cosh({0})", "hyperbolic cosine"),
    _f("tanh", 1, _FLOAT, "tanh({0})", "hyperbolic tangent"),
    _f("asinh", 1, _FLOAT, "asinh({0})", "inverse hyperbolic sine"),
    _f("acosh", 1, _FLOAT, "acosh({0})", "inverse hyperbolic cosine"),
    _f("atanh", 1, _FLOAT, "atanh({0})", "inverse hyperbolic tangent"),
    _f("deg2rad", 1, _FLOAT, "{0} * <0.017453292519943295>", "degrees to radians"),
    _f("rad2deg", 1, _FLOAT, "{0} * <57.295779513082321>", "radians to degrees"),
)

_ROUNDING = (
    _f("floor", 1, _SAME, "floor({0})", "largest whole number not above", "{0}"),
    _f("ceil", 1, _SAME, "ceil({0})", "smallest whole number not below", "{0}"),
    _f("trunc", 1, _SAME, "trunc({0})", "whole part", "{0}"),
    _f("round", 1, _SAME, "rint({0})", "nearest whole number, ties to even", "{0}"),
)

_SPECIAL = (
    _f("erf", 1, _FLOAT, "erf({0})", "error function"),
    _f("erfc", 1, _FLOAT, "erfc({0})", "1 - erf(x), exact for large x"),
    _f("lgamma", 1, _FLOAT, "lgamma({0})", "logarithm of |gamma(x)|"),
    _f("tgamma", 1, _FLOAT, "tgamma({0})", "gamma function"),
)

# Activations of neural networks. Those with one exponential stay finite wherever the result is.
_ACTIVATIONS = (
    _f("relu", 1, _SAME, "({0} < <0>) ? <0> : {0}", "max(x, 0)"),
    _f("relu6", 1, _SAME, "({0} < <0>) ? <0> : (({0} > <6>) ? <6> : {0})", "min(max(x, 0), 6)"),
    _f("sigmoid", 1, _FLOAT, "<1> / (<1> + exp(-{0}))", "1 / (1 + exp(-x))"),
    _f("silu", 1, _FLOAT, "{0} / (<1> + exp(-{0}))", "x * sigmoid(x)"),
    _f("softplus", 1, _FLOAT, f"return {_SOFTPLUS};", "log(1 + exp(x))"),
    _f("mish", 1, _FLOAT, f"return a * tanh({_SOFTPLUS});", "x * tanh(softplus(x))"),
    _f("gelu", 1, _FLOAT, "<0.5> * {0} * (<1> + erf({0} * <0.70710678118654752>))", "x times the normal distribution"),
    _f("gelu_tanh", 1, _FLOAT,
       "{0} / (<1> + exp(<-1.5957691216057308> * ({0} + <0.044715> * {0} * {0} * {0})))",
       "gelu with tanh in place of erf"),
    _f("elu", 2, _FLOAT, "({0} > <0>) ? {0} : {1} * expm1({0})", "x, below 0 alpha * (exp(x) - 1); alpha 1",
       defaults=(1.0,)),
    _f("celu", 2, _FLOAT, "({0} > <0>) ? {0} : {1} * expm1({0} / {1})",
       "x, below 0 alpha * (exp(x / alpha) - 1); alpha 1", defaults=(1.0,)),
    _f("selu", 1, _FLOAT,
       "<1.0507009873554805> * (({0} > <0>) ? {0} : <1.6732632423543772> * expm1({0}))", "elu that keeps the variance"),
    _f("leaky_relu", 2, _FLOAT, "({0} < <0>) ? {1} * {0} : {0}", "x, below 0 alpha * x; alpha 0.01", defaults=(0.01,)),
    _f("hardsigmoid", 3, _FLOAT, "const {t} y = b * a + c; return (y < <0>) ? <0> : ((y > <1>) ? <1> : y);",
       "alpha * x + beta within 0 and 1; alpha 1/6, beta 0.5", defaults=(1 / 6, 0.5)),
    _f("hardswish", 1, _FLOAT,
       "const {t} y = a * <0.16666666666666667> + <0.5>; return a * ((y < <0>) ? <0> : ((y > <1>) ? <1> : y));",
       "x * hardsigmoid(x)"),
    _f("softsign", 1, _FLOAT, "{0} / (<1> + {T}({U}({0}) & {magnitude}))", "x / (1 + |x|)"),
)  # fmt: skip

_CHOICE = (
    _f("isnan", 1, _BOOL, "{0} != {0}", "true for NaN"),
    _f("isinf", 1, _BOOL, "{T}({U}({0}) & {magnitude}) == (INFINITY)", "true for infinities", "{0} != {0}"),
    _f("isfinite", 1, _BOOL, "({0} - {0}) == <0>", "false for NaN and infinities", "{0} == {0}"),
    _f("signbit", 1, _BOOL, "{I}({0}) < 0", "true for what has a minus sign, -0 too", "{0} < <0>"),
    _f("lt", 2, _BOOL, "{0} < {1}", "less"),
    _f("le", 2, _BOOL, "{0} <= {1}", "less or equal"),
    _f("gt", 2, _BOOL, "{0} > {1}", "greater"),
    _f("ge", 2, _BOOL, "{0} >= {1}", "greater or equal"),
    _f("eq", 2, _BOOL, "{0} == {1}", "equal"),
    _f("ne", 2, _BOOL, "{0} != {1}", "not equal"),
    _f("and", 2, _BOOL, "{0} && {1}", "both"),
    _f("or", 2, _BOOL, "{0} || {1}", "either"),
    _f("not", 1, _BOOL, "!{0}", "negated truth"),
    _f("where", 3, Result.WHERE, "{0} ? {1} : {2}", "second where the first holds, else third"),
)

_GROUPS = (_ARITHMETIC, _BITS, _EXPONENTIAL, _TRIGONOMETRIC, _ROUNDING, _SPECIAL, _ACTIVATIONS, _CHOICE)

FUNCTIONS = {f.name: f for group in _GROUPS for f in group}
"""Every pointwise function by name; operators appear under their word (`add` for `+`)."""

COMPOSED = {
    "clamp": Function("clamp", 3, _SAME, "", "the first, at least the second, at most the third"),
    "hardtanh": Function("hardtanh", 3, _SAME, "", "clamp(x, -1, 1)", defaults=(-1, 1)),
    "xor": Function("xor", 2, _BOOL, "", "one of both"),
    "float_power": Function("float_power", 2, _FLOAT, "", "power in floats, of integers too"),
    "positive": Function("positive", 1, _SAME, "", "the argument itself"),
}
"""Functions that `values.py` makes of others; Programs do not hold them."""

ALIASES = {
    "abs": "absolute fabs",
    "acos": "arccos",
    "acosh": "arccosh",
    "add": "plus",
    "and": "logical_and",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "bitand": "bitwise_and",
    "bitnot": "bitwise_not invert bitwise_invert",
    "bitor": "bitwise_or",
    "bitxor": "bitwise_xor",
    "clamp": "clip",
    "deg2rad": "radians",
    "div": "divide true_divide",
    "eq": "equal",
    "floordiv": "floor_divide",
    "ge": "greater_equal",
    "gt": "greater",
    "le": "less_equal",
    "lt": "less",
    "max": "maximum",
    "min": "minimum",
    "mod": "remainder",
    "mul": "multiply",
    "ne": "not_equal",
    "neg": "negative",
    "not": "logical_not",
    "or": "logical_or",
    "pow": "power",
    "rad2deg": "degrees",
    "round": "rint",
    "shl": "left_shift",
    "shr": "right_shift",
    "sigmoid": "logistic",
    "silu": "swish",
    "sub": "subtract",
    "tgamma": "gamma",
    "trunc": "fix",
    "xor": "logical_xor",
}
"""Other names of functions, NumPy's first of all."""

SPOKEN = {**FUNCTIONS, **COMPOSED}
SPOKEN |= {alias: SPOKEN[name] for name, others in ALIASES.items() for alias in others.split()}
"""Every function that a text may call, by each of its names."""

OPERATOR_SIGNS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "floordiv": "//",
    "mod": "%",
    "bitand": "&",
    "bitor": "|",
    "shl": "<<",
    "shr": ">>",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "and": "and",
    "or": "or",
}
"""The infix sign of those functions that have one."""

CONSTANT = re.compile(r"<(-?[0-9][0-9.]*)(u?)>")
"""A constant in a spelling: its digits, and `u` for the unsigned type."""


def wrong_count(name: str, count: int) -> str:
    """Why a function cannot be called with so many arguments, or an empty string; max and min take any number."""
    f = SPOKEN[name]
    if f.name in ("max", "min"):
        return "" if count else f"{name}() has no arguments"
    if f.least <= count <= f.arity:
        return ""
    wanted = f"{f.least} to {f.arity}" if f.defaults else str(f.arity)
    return f"{name} takes {wanted} argument{'s' * (wanted != '1')}, found {count}"
