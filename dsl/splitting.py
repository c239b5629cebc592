"""Loops split so that quotients and remainders of their index become linear, and every family applies.

In ``y[h,w] = x[h / 2, w / 2]`` each loop is split in two, ``h = 2*h1 + h0``: then ``h / 2`` is ``h1`` and ``h % 2`` is
``h0``. The output is seen with one more dimension over the same memory; buffers do not change. It works where the
divisors divide the extents and the result is linear as a whole; else the program is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.compose import unused
from tilewright.dsl.program import (
    Call,
    Computed,
    Const,
    Expr,
    Index,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    all_indices,
    extents,
    is_linear,
    position,
    substitute_indices,
    transform,
    walk,
)

MOST = 16
"""Most splits of one program."""


def linearised(stage: Program) -> Program:
    """A stage without quotients and remainders of indices, by splitting loops; itself if that is not possible."""
    if all(is_linear(s.value) for s in stage.statements) or not _may_split(stage):
        return stage
    changed = stage
    for _ in range(MOST):
        if all(is_linear(s.value) for s in changed.statements):
            return changed
        found = max(_divisions(changed), key=lambda f: f[1], default=None)
        if found is None:
            return stage
        changed = _split(changed, *found)
    return stage


def _may_split(stage: Program) -> bool:
    """Whether nothing in the stage reads what it writes, and no reduction is a prefix."""
    written = {s.target for s in stage.statements}
    nodes = [n for s in stage.statements for n in walk(s.value)]
    return not any(
        (isinstance(n, Read | Inside) and n.tensor in written) or (isinstance(n, Reduce) and n.until is not None)
        for n in nodes
    )


def _divisions(program: Program) -> Iterator[tuple[str, int]]:
    """Indices that stand below a quotient or remainder, with the divisor where it divides the extent."""
    for s in program.statements:
        extent = extents(s)
        for atom in (a for n in walk(s.value) for a in _atoms(n)):
            match atom.expr:
                case Call(function="floordiv" | "mod", args=(IndexValue(index=a), Const(value=divisor))):
                    for name in a.names:
                        step = math.gcd(a.coefficient(name), int(divisor))
                        factor = int(divisor) // step
                        if not a.bends(name) and 1 < factor < extent[name] and extent[name] % factor == 0:
                            yield name, factor
                case _:
                    pass


def _atoms(e: Expr) -> tuple[Computed, ...]:
    index = e.index if isinstance(e, Read | Inside) else (e.index,) if isinstance(e, IndexValue) else ()
    return tuple(a for position in index for a in position.atoms if isinstance(a, Computed))


def _split(program: Program, name: str, factor: int) -> Program:
    """The program with index `name` as two, the inner one of extent `factor`."""
    statements, tensors = [], dict(program.tensors)
    for s in program.statements:
        taken = {i.name for i in all_indices(s)}
        outer = unused(f"{name}_outer", taken) if f"{name}_outer" in taken else f"{name}_outer"
        inner = unused(f"{name}_inner", taken) if f"{name}_inner" in taken else f"{name}_inner"

        def halves(indices: tuple[Index, ...], outer: str = outer, inner: str = inner) -> tuple[Index, ...]:
            parts = (
                (Index(outer, i.extent // factor), Index(inner, factor)) if i.name == name else (i,) for i in indices
            )
            return tuple(i for part in parts for i in part)

        for d, i in enumerate(s.indices):
            if i.name == name:
                tensors[s.target] = _seen_split(tensors[s.target], d, factor)
        whole = {name: Affine.of({outer: factor, inner: 1})}
        value = transform(
            substitute_indices(s.value, whole),
            lambda n: replace(n, indices=halves(n.indices)) if isinstance(n, Reduce) else n,
        )
        new = Statement(s.target, halves(s.indices), value)
        statements.append(replace(new, value=_resolved(value, extents(new))))
    names = {i.name for s in statements for i in all_indices(s)}
    return replace(
        program,
        outputs=tuple(tensors[t.name] for t in program.outputs),
        statements=tuple(statements),
        hints=tuple(h for h in program.hints if h.subject in names or h.subject in tensors or not h.subject),
    )


def _seen_split(t: Tensor, d: int, factor: int) -> Tensor:
    shape = (*t.shape[:d], t.shape[d] // factor, factor, *t.shape[d + 1 :])
    strides = (*t.strides[:d], t.strides[d] * factor, t.strides[d], *t.strides[d + 1 :])
    return replace(t, shape=shape, strides=strides)


def _resolved(e: Expr, extent: Mapping[str, int]) -> Expr:
    """The expression with quotients and remainders taken out where ranges decide them."""

    def change(n: Expr) -> Expr:
        match n:
            case Read() | Inside():
                return replace(n, index=tuple(position(IndexValue(a), extent) for a in n.index))
            case IndexValue():
                return replace(n, index=position(n, extent))
            case _:
                return n

    return transform(e, change)
