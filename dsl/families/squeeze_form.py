"""Recognises a reduction to a short vector per row and small products of that vector: squeeze-and-excitation.

v0[row, f]   = g0( reduce(...) x[row, ..., f] )
vi[row, f']  = gi( sum(f) w[f', f] * v(i-1)[row, f] )        i = 1, 2, ...
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.shared import computes_indices
from tilewright.dsl.program import (
    Index,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Statement,
    all_indices,
    checked_dimensions,
    extents,
    rename_indices,
    substitute_indices,
    walk,
)


@dataclass(frozen=True)
class Step:
    """One statement; its indices of one element are gone."""

    statement: Statement
    total: Reduce
    feature: Index
    """The output index that the next step sums over; its name is ``f0``, ``f1``, ..."""
    depth: tuple[Index, ...]
    """What is reduced."""


@dataclass(frozen=True)
class Form:
    """The program as steps whose rows have the same names."""

    program: Program
    rows: tuple[Index, ...]
    steps: tuple[Step, ...]


@lru_cache(maxsize=256)
def recognise(program: Program) -> Form | str:
    """The program in this form, or why it has another."""
    statements = program.statements
    if len(statements) < 2 or len(program.outputs) != 1 or len(program.intermediates) != len(statements) - 1:
        return "it is no chain of several statements with one output"
    computed = computes_indices(program)
    if computed:
        return computed
    if any(i.extent == 0 for s in statements for i in all_indices(s)):
        return "it has an empty range"
    if any(isinstance(n, Inside | IndexValue) for s in statements for n in walk(s.value)):
        return "it uses indices as data"
    bare = [_without_ones(s) for s in statements]
    totals = [{n for n in walk(s.value) if isinstance(n, Reduce)} for s in bare]
    if any(len(found) != 1 for found in totals):
        return "a statement has no reduction, or several"
    if any(isinstance(n, Reduce) for found in totals for total in found for n in walk(total.body)):
        return "it has a reduction within a reduction"
    if any(_is_checked(program, s) for s in statements):
        return "it reads outside a tensor"
    return _linked(program, bare, [found.pop() for found in totals])


def _without_ones(s: Statement) -> Statement:
    """The statement with indices of one element replaced by 0; they stay in the list of its output's indices."""
    gone = {i.name: Affine((), 0) for i in all_indices(s) if i.extent == 1}
    return replace(s, value=substitute_indices(s.value, gone))


def _is_checked(program: Program, s: Statement) -> bool:
    extent = extents(s)
    found = (n for n in walk(s.value) if isinstance(n, Read))
    return any(checked_dimensions(r.index, program.tensors[r.tensor].shape, extent) for r in found)


def _linked(program: Program, statements: list[Statement], totals: list[Reduce]) -> Form | str:
    """Follow the chain from its end; each link says which index of the statement before it is its feature."""
    features: list[str | None] = [None] * len(statements)
    rows: list[list[str]] = [[] for _ in statements]
    for position in range(len(statements) - 1, 0, -1):
        made = statements[position - 1]
        found = {n for s in statements for n in walk(s.value) if isinstance(n, Read) and n.tensor == made.target}
        inside = {n for n in walk(totals[position].body) if isinstance(n, Read) and n.tensor == made.target}
        if len(found) != 1 or found != inside:
            return "a value is read at several places, or outside the next step's sum"
        (read,) = found
        link = _link(made, statements[position], totals[position], read)
        if isinstance(link, str):
            return link
        features[position - 1], pairs = link
        own = rows[position] or [mine for _, mine in pairs]
        if sorted(own) != sorted(mine for _, mine in pairs):
            return "its rows change from step to step"
        rows[position] = own
        rows[position - 1] = [{mine: theirs for theirs, mine in pairs}[name] for name in own]
    last = [i.name for i in statements[-1].indices if i.extent > 1 and i.name not in rows[-1]]
    if len(last) != 1:
        return "its last step has no row of outputs"
    features[-1] = last[0]
    return _named(program, statements, [str(f) for f in features], rows)


def _link(made: Statement, reader: Statement, total: Reduce, read: Read) -> tuple[str, list[tuple[str, str]]] | str:
    """The feature of `made`, and its rows with the reader's names for them."""
    outer = {i.name for i in reader.indices}
    depth = {i.name for i in total.indices if i.extent > 1}
    pairs, feature = [], None
    for index, position in zip(made.indices, read.index, strict=True):
        if index.extent == 1:
            continue
        name = position.single
        if name in outer:
            pairs.append((index.name, str(name)))
        elif name in depth and feature is None:
            feature = index.name
        else:
            return "a value is not read as rows of features"
    if feature is None or len(depth) != 1:
        return "a step does not sum over the features of the one before"
    return feature, pairs


def _named(program: Program, statements: list[Statement], features: list[str], rows: list[list[str]]) -> Form:
    """The steps with names of their own for features and depth, and the same ones for rows."""
    extent = {i.name: i.extent for i in statements[0].indices}
    shared = tuple(Index(f"row{n}", extent[name]) for n, name in enumerate(rows[0]))
    steps = []
    for number, (s, feature, own) in enumerate(zip(statements, features, rows, strict=True)):
        names = {name: row.name for name, row in zip(own, shared, strict=True)}
        names[feature] = f"f{number}"
        names |= {i.name: f"d{number}_{i.name}" for i in all_indices(s) if i.name not in names}
        moved = rename_indices(s, names)
        total = next(n for n in walk(moved.value) if isinstance(n, Reduce))
        own_feature = next(i for i in moved.indices if i.name == f"f{number}")
        steps.append(Step(moved, total, own_feature, tuple(i for i in total.indices if i.extent > 1)))
    return Form(program, shared, tuple(steps))
