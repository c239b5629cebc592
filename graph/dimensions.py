"""Dimensions of steps' outputs split and turned: what a step makes, made under another shape or in another order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.program import (
    Expr,
    Index,
    IndexValue,
    Inside,
    Program,
    Read,
    Statement,
    Tensor,
    transform,
    walk,
)
from tilewright.graph.steps import Item, References
from tilewright.ops import Permuted, Reshaped, View


def made_through(item: Item, views: Sequence[View], value: str, references: References) -> Item | None:
    """The item making what `views` see of its output, as `value`; None if it cannot.

    It can split and turn its output's dimensions, as long as each index that is split stands alone where it is used.
    """
    program = item.program
    if len(program.statements) != 1:
        return None
    for view in views:
        made = _turned(program, view) if isinstance(view, Permuted) else _cut(program, view, references)
        if made is None:
            return None
        program = made
    old = program.outputs[0]
    output = replace(old, name=references.name(value, old.shape))
    (statement,) = program.statements
    return replace(
        item, program=replace(program, outputs=(output,), statements=(replace(statement, target=output.name),))
    )


def _turned(program: Program, view: Permuted) -> Program:
    (statement,), (output,) = program.statements, program.outputs
    moved = replace(output, shape=tuple(output.shape[a] for a in view.axes), strides=())
    indices = tuple(statement.indices[a] for a in view.axes)
    return replace(program, outputs=(moved,), statements=(replace(statement, indices=indices),))


def _cut(program: Program, view: View, references: References) -> Program | None:
    if not isinstance(view, Reshaped):
        return None
    cuts = splits(program.outputs[0].shape, view.shape)
    if cuts is None:
        return None
    for d, factors in cuts:
        if not _stands_alone(program, d):
            return None
        program = split_dimension(program, d, factors, references)
    return program


def _stands_alone(program: Program, d: int) -> bool:
    """Whether the index of output dimension d stands alone in every read that has it."""
    (statement,) = program.statements
    name = statement.indices[d].name
    for e in walk(statement.value):
        if isinstance(e, Read | Inside) and any(name in a.names for a in e.index):
            alone = sum(a.single == name for a in e.index)
            if isinstance(e, Inside) or alone != 1 or sum(name in a.names for a in e.index) != 1:
                return False
    return True


def splits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[tuple[int, tuple[int, int]]] | None:
    """Splittings of one dimension into two, to be done in this order, that lead from `shape` to `wanted`; or None."""
    groups = _groups(shape, wanted)
    if groups is None:
        return None
    result, d = [], 0
    for count in groups:
        for inner in range(d, d + count - 1):
            result.append((inner, (wanted[inner], math.prod(wanted[inner + 1 : d + count]))))
        d += count
    return result


def _groups(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many dimensions of `wanted` make up each dimension of `shape`, or None if they do not."""
    if not shape:
        return None if wanted else ()
    for count in range(1, len(wanted) - len(shape) + 2):
        if math.prod(wanted[:count]) == shape[0]:
            rest = _groups(shape[1:], wanted[count:])
            if rest is not None:
                return (count, *rest)
    return None


def split_dimension(program: Program, d: int, factors: tuple[int, int], references: References) -> Program:
    """A pointwise program with output dimension d seen as two: its tensors are read under their split shapes.

    The index of that dimension must occur bare wherever a tensor is read.
    """
    statement = program.statements[0]
    old = statement.indices[d]
    outer, inner = Index(f"{old.name}_o", factors[0]), Index(f"{old.name}_i", factors[1])
    tensors: dict[str, Tensor] = {}

    def split(t: Tensor, at: int) -> Tensor:
        shape = (*t.shape[:at], *factors, *t.shape[at + 1 :])
        return Tensor(references.name(references[t.name].value, shape), t.dtype, shape, pad=t.pad)

    def change(e: Expr) -> Expr:
        if isinstance(e, IndexValue) and old.name in e.index.names:
            total = Affine.index(outer.name) * factors[1] + Affine.index(inner.name)
            return replace(e, index=e.index.substitute({old.name: total}))
        if not isinstance(e, Read):
            return e
        t = program.tensors[e.tensor]
        at = next((n for n, a in enumerate(e.index) if a.single == old.name), None)
        if at is None:
            tensors[t.name] = t
            return e
        new = split(t, at)
        tensors[new.name] = new
        index = (*e.index[:at], Affine.index(outer.name), Affine.index(inner.name), *e.index[at + 1 :])
        return replace(e, tensor=new.name, index=index)

    value = transform(statement.value, change)
    output = split(program.outputs[0], d)
    indices = (*statement.indices[:d], outer, inner, *statement.indices[d + 1 :])
    return replace(
        program,
        inputs=tuple(tensors.values()),
        outputs=(output,),
        statements=(Statement(output.name, indices, value),),
    )
