"""Precision policies: what the products of contractions are computed from.

fp32    the f32 factors as they are
tf32    f32 factors may be cut or rounded to TF32's 10 bits of mantissa, by devices with instructions for that; it is a
        permission (`Program.precision`), which other devices do not use
fp16    f32 factors are rounded to f16, on every device: the conversions are part of the program
bf16    the same with bf16

Sums are accumulated in f32 under all of them, and everything but contractions stays as it is. A contraction is a sum of
products of which two factors run over different indices: matrix products, convolutions, attention scores; not a sum of
squares, whose rounding would cost a variance its digits.

f16 and bf16 have no more bits of mantissa than TF32, and no larger exponents: instructions for TF32 multiply rounded
factors exactly. Programs whose factors were rounded here therefore allow them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations

from tilewright.dsl.diagnostics import listed
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import (
    Call,
    Cast,
    Expr,
    Program,
    Read,
    Reduce,
    Statement,
    free_indices,
    reads,
    transform,
    walk,
)
from tilewright.dsl.target import Target
from tilewright.errors import InputError

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
ROUNDED_TO = {"fp16": DType.F16, "bf16": DType.BF16}
"""The element type of the policies that round."""


def known(name: str) -> str:
    """The name of a policy; InputError for any other."""
    if name not in PRECISIONS:
        raise InputError(f"a precision is {listed(PRECISIONS)}, not {name!r}")
    return name


def has_tf32(target: Target) -> bool:
    """Whether a device has instructions for TF32; others compute tf32 as fp32."""
    return target.matrix is not None and any(i.products == "tf32" for i in target.matrix.instructions)


def common(*flags: str) -> str:
    """The more precise of several programs' `precision`."""
    return "tf32" if all(flag == "tf32" for flag in flags) else "fp32"


def composed(*programs: Program) -> str:
    """The `precision` of programs made one: tf32 if all that contract allow it."""
    if all(p.precision == "fp32" for p in programs):
        return "fp32"
    return common(*(p.precision for p in programs if contracts(p.statements)))


def allowing_tf32(program: Program) -> Program:
    """The program with TF32 allowed where it contracts what is stored in f32; others keep their signature."""
    stored = {r.dtype for s in program.statements for f in factors(s) for r in reads(f)}
    return replace(program, precision="tf32") if DType.F32 in stored else program


def contracts(statements: Iterable[Statement]) -> bool:
    """Whether there is a contraction among the statements."""
    return any(is_contraction(e) for s in statements for e in walk(s.value))


def factors(statement: Statement) -> list[Expr]:
    """The factors of all its contractions."""
    found = [e.body for e in walk(statement.value) if isinstance(e, Reduce) and is_contraction(e)]
    return [f for body in found for f in _factors(body)]


def rounded(statement: Statement, dtype: DType, stored: bool = True) -> Statement:
    """The statement with the f32 factors of its contractions rounded to `dtype`; what is rounded already stays.

    Without ``stored`` those factors stay, too, that are elements of a tensor as they lie in memory.
    """

    def round_factor(e: Expr) -> Expr:
        narrow = isinstance(e, Cast) and e.arg.dtype in (DType.F16, DType.BF16)
        if e.dtype is not DType.F32 or narrow or not reads(e) or (isinstance(e, Read) and not stored):
            return e
        return Cast(Cast(e, dtype), DType.F32)

    def change(e: Expr) -> Expr:
        if isinstance(e, Reduce) and is_contraction(e):
            return replace(e, body=_with_operands(e.body, round_factor, _is_matrix_product(e.body)))
        return e

    return replace(statement, value=transform(statement.value, change))


def is_contraction(e: Expr) -> bool:
    """Whether an expression is a sum of products of which two factors run over different indices."""
    if not isinstance(e, Reduce) or e.kind != "sum" or e.until is not None:
        return False
    return len({free_indices(f) for f in _factors(e.body) if reads(f)}) > 1


def _factors(e: Expr) -> list[Expr]:
    match e:
        case Call(function="mul"):
            return [f for a in e.args for f in _factors(a)]
        case Cast(arg=Call(function="mul")):
            return _factors(e.arg)
        case _:
            return [e]


def _is_matrix_product(e: Expr) -> bool:
    """Whether two factors of a product have an index of their own each."""
    used = {free_indices(f) for f in _factors(e) if reads(f)}
    return any(not (a <= b or b <= a) for a, b in combinations(used, 2))


def _with_operands(e: Expr, change: Callable[[Expr], Expr], is_matrix_product: bool) -> Expr:
    """A product with `change` applied to its operands: in ``(x * gate) * w``, a matrix product, ``x * gate`` is one."""
    match e:
        case Call(function="mul") if not is_matrix_product or _is_matrix_product(e):
            return replace(e, args=tuple(_with_operands(a, change, is_matrix_product) for a in e.args))
        case Cast(arg=Call(function="mul")) if not is_matrix_product or _is_matrix_product(e.arg):
            return replace(e, arg=_with_operands(e.arg, change, is_matrix_product))
        case _:
            return change(e)
