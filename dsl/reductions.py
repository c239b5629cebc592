"""Reductions that are made of others: where the largest element lies, and the logarithm of a sum of exponentials.

    argmax(i,j) e      m = max(i,j) e;  min(i,j) where(e == m or isnan(e), position, size)
    logsumexp(i,j) e   m = max(i,j) e;  log(sum(i,j) exp(e - m)) + m, with 0 for an infinite m

Both use ``e`` twice, so it should be a read or little more (`is_cheap`); and exactly the same both times, or no element
would equal the largest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import (
    Call,
    Cast,
    Const,
    Expr,
    Index,
    IndexValue,
    Inside,
    Read,
    Reduce,
    children,
    substitute_indices,
    walk,
)
from tilewright.dsl.values import Kind, Value, cast, typed

LOCATIONS = {"argmax": "max", "argmin": "min"}
"""Kinds that give a place, with the kind whose value is looked for."""
MADE_OF_OTHERS = (*LOCATIONS, "logsumexp")

_EXACT = frozenset(("add", "sub", "mul", "neg", "abs", "where", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"))


def is_cheap(e: Expr) -> bool:
    """True for what may be written twice: a read, converted or compared, with nothing that rounds."""
    parts = list(walk(e))
    if len(parts) > 8 or sum(isinstance(n, Read) for n in parts) > 1:
        return False
    return all(
        isinstance(n, Read | Inside | Const | Cast | IndexValue)
        or (isinstance(n, Call) and n.function in _EXACT and (not n.dtype.is_float or len(children(n)) != 2))
        for n in parts
    )


def location(kind: str, indices: tuple[Index, ...], body: Value, fresh: Callable[[str], str]) -> Value:
    """The place of the first largest (argmax) or smallest element, counted through the indices, the last one fastest.

    A NaN counts as largest and as smallest. i64 where it is stored, computed in i32 where that is enough. Over nothing
    it is 0. ``fresh`` gives unused index names.
    """
    dtype = body.expr.dtype.accumulator
    count = math.prod(i.extent for i in indices)
    whole = DType.I32 if count < 2**31 else DType.I64
    if count == 0 or not indices:
        return typed(Const(0, whole), Kind(DType.I64))
    value = cast(body.expr, dtype)
    best = Reduce(LOCATIONS[kind], indices, value, dtype)
    again, places = _renamed(indices, fresh)
    here = substitute_indices(value, places)
    found: Expr = Call("eq", (here, best), DType.BOOL)
    if dtype.is_float:
        found = Call("or", (found, Call("isnan", (here,), DType.BOOL)), DType.BOOL)
    position = Affine()
    for i in again:
        position = position * i.extent + Affine.index(i.name)
    choice = Call("where", (found, IndexValue(position, whole), Const(count, whole)), whole)
    return typed(Reduce("min", again, choice, whole), Kind(DType.I64))


def logsumexp(indices: tuple[Index, ...], body: Value, fresh: Callable[[str], str]) -> Value:
    """``log(sum exp(e))`` without overflow; -inf over nothing."""
    storage = body.storage if body.storage.dtype.is_float else Kind(DType.F32)
    dtype = body.expr.dtype.accumulator if body.expr.dtype.is_float else DType.F32
    value = cast(body.expr, dtype)
    if not indices:
        return typed(value, storage)
    largest = Reduce("max", indices, value, dtype)
    finite = Call("isfinite", (largest,), DType.BOOL)
    shift = Call("where", (finite, largest, Const(0.0, dtype)), dtype)
    again, places = _renamed(indices, fresh)
    moved = Call("sub", (substitute_indices(value, places), shift), dtype)
    total = Reduce("sum", again, Call("exp", (moved,), dtype), dtype)
    return typed(Call("add", (Call("log", (total,), dtype), shift), dtype), storage)


def _renamed(indices: tuple[Index, ...], fresh: Callable[[str], str]) -> tuple[tuple[Index, ...], dict[str, Affine]]:
    """The same indices under other names, and what each old one becomes."""
    again = tuple(Index(fresh(i.name), i.extent) for i in indices)
    return again, {old.name: Affine.index(new.name) for old, new in zip(indices, again, strict=True)}
