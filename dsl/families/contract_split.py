"""Split-k: the depth of a product in parts that are computed side by side and added up afterwards.

    partial[part, ...] = sum over one part of the depth
    y[...]             = epilogue( sum over parts of partial[part, ...] )

A product of few rows and columns but great depth has too few tiles for the device's cores; its parts have `parts` times
as many. Both halves are Programs again: the first is a product with one more group, the second a small reduction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from tilewright.dsl.affine import Affine
from tilewright.dsl.compose import touches, unused
from tilewright.dsl.families.contraction import Contraction, views_of
from tilewright.dsl.families.shared import MOST_PARTIALS
from tilewright.dsl.lowering import Lowering, Scratch
from tilewright.dsl.program import (
    Index,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    all_indices,
    substitute_indices,
    transform,
)

MOST_PARTS = 64
"""Most parts that the depth is split into."""
LEAST_DEPTH = 64
"""Least depth of a part: below that, adding the parts costs more than it gains."""


@dataclass(frozen=True)
class Halves:
    """A product in parts, and what adds the parts up."""

    partial: Tensor
    product: Program
    total: Program


def split_values(c: Contraction) -> tuple[int, ...]:
    """The numbers of parts that divide the depth evenly, 1 first."""
    index, outputs = _longest(c.reduce), math.prod(i.extent for i in c.statement.indices)
    most = min(MOST_PARTS, MOST_PARTIALS // max(outputs, 1))
    parts = [1]
    while 2 * parts[-1] <= most and index.extent % (2 * parts[-1]) == 0 and c.k // (2 * parts[-1]) >= LEAST_DEPTH:
        parts.append(2 * parts[-1])
    return tuple(parts)


def halves(program: Program, c: Contraction, parts: int) -> Halves:
    """The two Programs of a product whose depth is split into `parts`, one of `split_values`."""
    s, reduce = c.statement, c.reduce
    index = _longest(reduce)
    taken = {i.name for i in all_indices(s)}
    part = Index(unused("part", taken), parts)
    length = index.extent // parts
    place = {index.name: Affine.of({part.name: length, index.name: 1})}
    shorter = tuple(replace(i, extent=length) if i == index else i for i in reduce.indices)
    sums = replace(reduce, indices=shorter, body=substitute_indices(reduce.body, place))
    partial = _partial(program, c, parts)
    product = replace(
        program,
        outputs=(partial,),
        statements=(Statement(partial.name, (part, *s.indices), sums),),
    )
    read = Read(partial.name, tuple(Affine.index(i.name) for i in (part, *s.indices)), reduce.dtype)
    added = Reduce("sum", (part,), read, reduce.dtype)
    total = replace(
        program,
        inputs=(partial, *program.inputs),
        statements=(replace(s, value=transform(s.value, lambda e: added if e == reduce else e)),),
    )
    return Halves(partial, _with_used_inputs(product), _with_used_inputs(total))


@lru_cache(maxsize=1024)
def split_view(program: Program, number: int, parts: int) -> tuple[Halves | None, Contraction]:
    """A view of the program, or of its product by parts of the depth, with both halves."""
    view = views_of(program)[number]
    if parts == 1:
        return None, view
    found = halves(program, view, parts)
    columns = {i.name for i in view.columns}
    products = views_of(found.product)
    return found, next((v for v in products if {i.name for i in v.columns} == columns), products[0])


def _with_used_inputs(program: Program) -> Program:
    used = {r.tensor for s in program.statements for r in touches(s.value)}
    return replace(program, inputs=tuple(t for t in program.inputs if t.name in used))


def joined(halves: Halves, product: Lowering, total: Lowering) -> Lowering:
    """The launches of both halves, with the partial sums as scratch."""
    scratch = Scratch(halves.partial.name, halves.partial.dtype, halves.partial.size)
    return Lowering((*product.launches, *total.launches), (*product.scratch, scratch, *total.scratch))


def _longest(reduce: Reduce) -> Index:
    return max(reduce.indices, key=lambda i: i.extent)


def _partial(program: Program, c: Contraction, parts: int) -> Tensor:
    """The partial sums: parts outermost, then the output's elements in the order in which the output has them."""
    output = program.tensors[c.statement.target]
    order = sorted(range(len(output.shape)), key=lambda d: (-abs(output.strides[d]), d))
    strides, step = [0] * len(output.shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= output.shape[d]
    name = unused("partial", set(program.tensors)) if "partial" in program.tensors else "partial"
    return Tensor(name, c.dtype, (parts, *output.shape), (step, *strides))
