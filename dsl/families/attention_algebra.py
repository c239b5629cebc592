"""Products of floats taken apart, and what masks tell about keys: algebra on the expressions of `attention_form.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Call, Const, Expr, position

KEY = "~key"
"""Name of the summed index."""

ONE = Const(1.0, DType.F32)


def factors(e: Expr) -> list[tuple[Expr, bool]]:
    """The factors of a product of floats; True marks those it is divided by."""
    match e:
        case Call(function="mul", args=(a, b)) if e.dtype.is_float:
            return [*factors(a), *factors(b)]
        case Call(function="div", args=(a, b)) if e.dtype.is_float:
            return [*factors(a), *((f, not inverse) for f, inverse in factors(b))]
        case _:
            return [(e, False)]


def unguarded(parts: list[tuple[Expr, bool]]) -> tuple[list[tuple[Expr, bool]], bool]:
    """The factors, with ``where(isnan(p), 0, p)`` as p's own; True if there was one.

    A weight is NaN exactly where the sum of its row's exponentials is, and then all of the row are.
    """
    result, guarded = [], False
    for f, inverse in parts:
        match f:
            case Call(function="where", args=(Call(function="isnan", args=(tested,)), Const(value=0), p)) if (
                tested == p and not inverse
            ):
                result += factors(p)
                guarded = True
            case _:
                result.append((f, inverse))
    return result, guarded


def product(parts: Sequence[tuple[Expr, bool]]) -> Expr:
    """The factors multiplied, then divided by those that are inverse."""
    first, *rest = [f for f, inverse in parts if not inverse] or [ONE]
    whole = first
    for f in rest:
        whole = Call("mul", (whole, f), DType.F32)
    for f in (f for f, inverse in parts if inverse):
        whole = Call("div", (whole, f), DType.F32)
    return whole


def scaled(e: Expr) -> tuple[Expr, float]:
    """(x, f) where `e` is x times the constant f."""
    match e:
        case Call(function="mul", args=(x, Const(value=f))) | Call(function="mul", args=(Const(value=f), x)):
            inner, factor = scaled(x)
            return inner, factor * float(f)
        case Call(function="div", args=(x, Const(value=f))) if f:
            inner, factor = scaled(x)
            return inner, factor / float(f)
        case _:
            return e, 1.0


# --- masks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """Keys outside of these have a score of -inf, whatever is read: each expression is linear in rows and batch."""

    last: tuple[Affine, ...] = ()
    """No key beyond any of these counts."""
    first: tuple[Affine, ...] = ()
    """No key before any of these counts."""


def bounds_of(score: Expr) -> Bounds:
    """What the scores' form tells about keys that are masked: ``where(j <= i, s, -inf)``."""
    last: list[Affine] = []
    first: list[Affine] = []
    e, factor = scaled(score)
    while isinstance(e, Call) and e.function == "where" and factor > 0:
        condition, yes, no = e.args
        if no == Const(-math.inf, no.dtype):
            e, holds = yes, True
        elif yes == Const(-math.inf, yes.dtype):
            e, holds = no, False
        else:
            break
        for below in _never_positive(condition, holds):
            c = below.coefficient(KEY)
            rest = below.without(KEY)
            if c == 1:
                last.append(rest * -1)
            elif c == -1:
                first.append(rest)
        e, factor = scaled(e)
    return Bounds(tuple(last), tuple(first))


def captured(e: Expr, holds: bool) -> bool:
    """Whether the bounds of a mask with this condition tell all of it: no key within them is masked."""
    if isinstance(e, Const):
        return bool(e.value) is holds
    if not isinstance(e, Call):
        return False
    if e.function == "not":
        return captured(e.args[0], not holds)
    if e.function == ("and" if holds else "or"):
        return all(captured(part, holds) for part in e.args)
    found = _never_positive(e, holds)
    return len(found) == 1 and abs(found[0].coefficient(KEY)) == 1 and not found[0].bends(KEY)


def _never_positive(e: Expr, holds: bool) -> list[Affine]:
    """Index expressions that are at most 0 wherever the condition holds (or does not)."""
    if not isinstance(e, Call):
        return []
    if e.function == "not":
        return _never_positive(e.args[0], not holds)
    if e.function == ("and" if holds else "or"):
        return [a for part in e.args for a in _never_positive(part, holds)]
    if e.function not in ("lt", "le", "gt", "ge") or any(a.dtype.is_float for a in e.args):
        return []
    function = e.function if holds else {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[e.function]
    left, right = (position(a) for a in e.args)
    difference = left + right * -1 if function in ("lt", "le") else right + left * -1
    if not difference.is_linear:
        return []
    return [difference + (1 if function in ("lt", "gt") else 0)]
