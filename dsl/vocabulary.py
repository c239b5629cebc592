"""The words of the language, and which constants a parameter takes."""

from __future__ import annotations

import math

from tilewright.dsl.diagnostics import Problem
from tilewright.dsl.dtypes import DType
from tilewright.dsl.functions import OPERATOR_SIGNS, SPOKEN
from tilewright.dsl.syntax import Name

SCANS = {"cumsum": "sum", "cumprod": "prod", "cummax": "max", "cummin": "min"}
"""The kinds of running reduction, with the kind of each."""
REDUCTIONS = ("sum", "prod", "max", "min", "mean", "any", "all", "argmax", "argmin", "logsumexp", *SCANS)
"""The kinds of reduction; `max` and `min` with two or more arguments are pointwise functions."""
PREFIX_REDUCTIONS = ("sum", "prod", "max", "min", "any", "all")
"""The kinds whose index may have an end: `sum(j <= k)`."""
PREFIXES = ("lt", "le", "gt", "ge")
SIZE_OPERATIONS = ("add", "sub", "mul", "div", "floordiv", "mod", "neg", "pow")
"""Operators on sizes; `/` rounds down there."""
INDEX_OPERATIONS = (*SIZE_OPERATIONS, "bitand", "bitor", "shl", "shr")
"""Operators of integers in index expressions; `/` rounds down there."""
DTYPES = {d.value: d for d in DType}
PARAMETER_TYPES = ("int", "bool", "f16", "bf16", "f32", "f64")
RESERVED = frozenset(("op", "and", "or", "not", "true", "false", "inf", "nan", "inside", "device"))
BUILT_IN = frozenset((*SPOKEN, *REDUCTIONS, *DTYPES, "inside", "index"))
"""Everything that can be called."""
PRIMITIVES = frozenset((*OPERATOR_SIGNS, "neg", "not", "pow", "where", "inside", "index", *REDUCTIONS, *DTYPES))
"""What a text cannot define anew: the operators' words, reductions, conversions."""


def own(function: str) -> str:
    """What a checked tree calls a function of the text itself, which may have the name of a built-in one."""
    return f"def {function}"


def wrong_constant(value: object, kind: str) -> str:
    """Why `value` cannot be a parameter of type `kind`, or an empty string."""
    if kind == "bool":
        return "" if isinstance(value, bool) else "is not true or false"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "is not a number"
    if kind == "int":
        if not isinstance(value, int):
            return "is not an integer"
        return "" if -(2**63) <= value < 2**63 else "does not fit in 64 bits"
    return "" if isinstance(value, float) or math.isfinite(value) else "is not finite"


def usable(name: Name) -> None:
    """Reject a name that is a word of the language; raises Problem."""
    if name.text in RESERVED:
        raise Problem(name.at, f"'{name.text}' is a word of the language; choose another name")
