"""The pointwise functions and operators of the language: arguments, type of the result, spelling in OpenCL C.

A spelling holds for scalars and for vectors of floats alike. ``{0}`` to ``{2}`` are the arguments, ``{t}`` the
result's type. max, min and their kin treat NaN as NumPy does (a NaN operand gives NaN), which OpenCL's fmax does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Result(Enum):
    """How a function's result type follows from its arguments'."""

    SAME = "same"
    """The promoted type of the arguments."""
    FLOAT = "float"
    """As SAME, but integers give f32."""
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

    def spelled(self, on_integers: bool) -> str:
        """The spelling for floats or for integers."""
        return self.integers if on_integers and self.integers else self.spelling

    @property
    def repeats(self) -> bool:
        """True if a spelling uses an argument twice, so that it must become a helper function in the source."""
        return any(text.count(f"{{{n}}}") > 1 for text in (self.spelling, self.integers) for n in range(self.arity))


_TABLE = (
    Function("add", 2, Result.SAME, "{0} + {1}", "sum"),
    Function("sub", 2, Result.SAME, "{0} - {1}", "difference"),
    Function("mul", 2, Result.SAME, "{0} * {1}", "product"),
    Function("div", 2, Result.FLOAT, "{0} / {1}", "quotient"),
    Function("neg", 1, Result.SAME, "-{0}", "negation"),
    Function(
        "floordiv",
        2,
        Result.SAME,
        "floor({0} / {1})",
        "quotient, rounded down",
        "({0} - ((({0} % {1}) + {1}) % {1})) / {1}",
    ),
    Function(
        "mod",
        2,
        Result.SAME,
        "{0} - {1} * floor({0} / {1})",
        "remainder with the sign of the divisor",
        "(({0} % {1}) + {1}) % {1}",
    ),
    Function("pow", 2, Result.FLOAT, "pow({0}, {1})", "power"),
    Function("max", 2, Result.SAME, "({0} < {1} || {1} != {1}) ? {1} : {0}", "larger; NaN if either is NaN"),
    Function("min", 2, Result.SAME, "({0} > {1} || {1} != {1}) ? {1} : {0}", "smaller; NaN if either is NaN"),
    Function("abs", 1, Result.SAME, "({0} < 0) ? -{0} : {0}", "absolute value"),
    Function("sign", 1, Result.SAME, "({0} > 0) ? ({t})(1) : (({0} < 0) ? ({t})(-1) : {0})", "-1, 0 or 1"),
    Function("exp", 1, Result.FLOAT, "exp({0})", "e to the power"),
    Function("exp2", 1, Result.FLOAT, "exp2({0})", "2 to the power"),
    Function("expm1", 1, Result.FLOAT, "expm1({0})", "exp(x) - 1, exact near 0"),
    Function("log", 1, Result.FLOAT, "log({0})", "natural logarithm"),
    Function("log2", 1, Result.FLOAT, "log2({0})", "logarithm to base 2"),
    Function("log1p", 1, Result.FLOAT, "log1p({0})", "log(1 + x), exact near 0"),
    Function("sqrt", 1, Result.FLOAT, "sqrt({0})", "square root"),
    Function("rsqrt", 1, Result.FLOAT, "({t})(1) / sqrt({0})", "1 / square root"),
    Function("sin", 1, Result.FLOAT, "sin({0})", "sine"),
    Function("cos", 1, Result.FLOAT, "cos({0})", "cosine"),
    Function("tan", 1, Result.FLOAT, "tan({0})", "tangent"),
    Function("atan", 1, Result.FLOAT, "atan({0})", "arc tangent"),
    Function("sinh", 1, Result.FLOAT, "sinh({0})", "hyperbolic sine"),
    Function("cosh", 1, Result.FLOAT, "cosh({0})", "hyperbolic cosine"),
    Function("tanh", 1, Result.FLOAT, "tanh({0})", "hyperbolic tangent"),
    Function("erf", 1, Result.FLOAT, "erf({0})", "error function"),
    Function("floor", 1, Result.FLOAT, "floor({0})", "largest integer not above"),
    Function("ceil", 1, Result.FLOAT, "ceil({0})", "smallest integer not below"),
    Function("round", 1, Result.FLOAT, "rint({0})", "nearest integer, ties to even"),
    Function("sigmoid", 1, Result.FLOAT, "({t})(1) / (({t})(1) + exp(-{0}))", "1 / (1 + exp(-x))"),
    Function("relu", 1, Result.SAME, "({0} < 0) ? ({t})(0) : {0}", "max(x, 0)"),
    Function("isnan", 1, Result.BOOL, "{0} != {0}", "true for NaN"),
    Function("lt", 2, Result.BOOL, "{0} < {1}", "less"),
    Function("le", 2, Result.BOOL, "{0} <= {1}", "less or equal"),
    Function("gt", 2, Result.BOOL, "{0} > {1}", "greater"),
    Function("ge", 2, Result.BOOL, "{0} >= {1}", "greater or equal"),
    Function("eq", 2, Result.BOOL, "{0} == {1}", "equal"),
    Function("ne", 2, Result.BOOL, "{0} != {1}", "not equal"),
    Function("and", 2, Result.BOOL, "{0} && {1}", "both"),
    Function("or", 2, Result.BOOL, "{0} || {1}", "either"),
    Function("not", 1, Result.BOOL, "!{0}", "negated truth"),
    Function("where", 3, Result.WHERE, "{0} ? {1} : {2}", "second where the first holds, else third"),
)

FUNCTIONS = {f.name: f for f in _TABLE}
"""Every pointwise function by name; operators appear under their word (`add` for `+`)."""

OPERATOR_SIGNS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
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
