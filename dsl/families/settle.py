"""Settling range checks while generating.

A read that is known to lie outside its tensor becomes the pad value; one that is known to lie inside loses its check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import (
    Call,
    Cast,
    Const,
    Expr,
    IndexValue,
    Inside,
    Program,
    Read,
    substitute_indices,
    transform,
    walk,
)
from tilewright.dsl.writer import LANE


@dataclass(frozen=True)
class Check:
    """``0 <= position < size``."""

    position: Affine
    size: int


@dataclass(frozen=True)
class Checks:
    """The range checks of an expression: one group per read or `inside`."""

    groups: tuple[frozenset[Check], ...]

    def __iter__(self) -> Iterator[Check]:
        return iter(dict.fromkeys(c for group in self.groups for c in group))


@dataclass(frozen=True)
class Settled:
    """An expression after settling, and the dimensions in which each of its reads still needs a check."""

    value: Expr
    checks: Mapping[Expr, tuple[int, ...]]


def checks_of(e: Expr, program: Program, needed: Mapping[Expr, tuple[int, ...]]) -> Checks:
    """All range checks of an expression; `needed` has the dimensions of each read or `inside` that can lie outside."""
    return Checks(
        tuple(
            frozenset(Check(n.index[d], program.tensors[n.tensor].shape[d]) for d in needed[n])
            for n in walk(e)
            if isinstance(n, Read | Inside)
        )
    )


def settle(
    e: Expr,
    program: Program,
    needed: Mapping[Expr, tuple[int, ...]],
    where: Mapping[str, Affine],
    known: Mapping[Check, bool],
    lanes: int,
) -> Settled:
    """`e` with loop variables replaced as in `where`, checks decided where they are constant or in `known`.

    ``known`` speaks of positions as they are in `e`. Products with a pad value of 0 vanish, whatever the other factor.
    """
    left: dict[Expr, tuple[int, ...]] = {}

    def change(node: Expr) -> Expr:
        if not isinstance(node, Read | Inside):
            return substitute_indices(node, where) if isinstance(node, IndexValue) else _folded(node)
        tensor, open_dimensions = program.tensors[node.tensor], []
        for d in needed[node]:
            verdict = known.get(Check(node.index[d], tensor.shape[d]))
            if verdict is None:
                verdict = _constant(node.index[d].substitute(where), tensor.shape[d], lanes)
            if verdict is False:
                return Const(tensor.pad if isinstance(node, Read) else False, node.dtype)
            if verdict is None:
                open_dimensions.append(d)
        moved = substitute_indices(node, where)
        if isinstance(moved, Read):
            left[moved] = tuple(open_dimensions)
            return moved
        return moved if open_dimensions else Const(True, DType.BOOL)

    return Settled(transform(e, change), left)


def _constant(position: Affine, size: int, lanes: int) -> bool | None:
    """Whether all lanes lie inside (True) or outside (False); None if they differ or the position has variables."""
    if any(name != LANE for name in position.names):
        return None
    low, high = position.range({LANE: lanes})
    if low >= 0 and high < size:
        return True
    return False if high < 0 or low >= size else None


def _folded(node: Expr) -> Expr:
    """A node simplified where its operands are constants."""
    match node:
        case Cast(arg=Const() as c) if c.dtype is DType.BOOL or node.dtype.is_float:
            return Const(float(c.value) if node.dtype.is_float else int(c.value), node.dtype)
        case Call(function="mul", args=args) if any(isinstance(a, Const) and a.value == 0 for a in args):
            return Const(0.0 if node.dtype.is_float else 0, node.dtype)
        case Call(function="where", args=(Const() as condition, yes, no)):
            chosen = yes if condition.value else no
            return chosen if chosen.dtype is node.dtype else Cast(chosen, node.dtype)
        case Call(function="and", args=(Const() as a, other)) | Call(function="and", args=(other, Const() as a)):
            return other if a.value else Const(False, DType.BOOL)
        case _:
            return node
