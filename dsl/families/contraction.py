"""Recognises sums of products as a GEMM: rows x depth times depth x columns, with groups.

    y[g, rows, columns] = epilogue( sum(depth) A[g, rows, depth] * B[g, depth, columns] )

Every operand is any pointwise expression; its index expressions may be any affine ones, so that a convolution is a
contraction whose A reads the image at ``p*stride + r - pad`` (implicit GEMM). Indices that are neighbours in memory in
all tensors are merged, so a 1x1 convolution becomes the plain GEMM it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from tilewright.dsl import writer
from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType, promote
from tilewright.dsl.program import (
    Call,
    Cast,
    Expr,
    Index,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    checked_dimensions,
    extents,
    reads,
    walk,
)
from tilewright.dsl.target import Target
from tilewright.dsl.writer import Expressions, affine, argument, literal, vector_type
from tilewright.dsl.writer import element as memory_element


@dataclass(frozen=True)
class Access:
    """Where a read or a write goes in memory: the element address, and the range checks it needs first."""

    tensor: Tensor
    address: Affine
    checks: tuple[tuple[Affine, int], ...] = ()
    """Pairs of a position and the size it must lie under (and not below 0)."""

    @property
    def checked_names(self) -> frozenset[str]:
        """The indices on which a range check depends."""
        return frozenset(name for position, _ in self.checks for name in position.names)


@dataclass(frozen=True)
class Operand:
    """One factor of the product."""

    value: Expr
    read: Read | None
    """The read, if the factor is one read converted to the accumulators' type and nothing more."""


@dataclass(frozen=True)
class Contraction:
    """A statement seen as a grouped GEMM; each index tuple is listed outermost first."""

    statement: Statement
    reduce: Reduce
    a: Operand
    b: Operand
    groups: tuple[Index, ...]
    rows: tuple[Index, ...]
    columns: tuple[Index, ...]
    depth: tuple[Index, ...]
    output: Access
    accesses: tuple[tuple[Read, Access], ...]

    @property
    def m(self) -> int:
        """Rows of the product."""
        return math.prod(i.extent for i in self.rows)

    @property
    def n(self) -> int:
        """Columns of the product."""
        return math.prod(i.extent for i in self.columns)

    @property
    def k(self) -> int:
        """Depth of the product."""
        return math.prod(i.extent for i in self.depth)

    @property
    def g(self) -> int:
        """Number of independent products."""
        return math.prod(i.extent for i in self.groups)

    @property
    def dtype(self) -> DType:
        """Type of the accumulators."""
        return self.reduce.dtype

    def access(self, read: Read) -> Access:
        """Where a read of the statement goes."""
        return dict(self.accesses)[read]

    def epilogue_reads(self) -> list[Read]:
        """Reads outside the product."""
        inner = set(reads(self.reduce.body))
        return [r for r in reads(self.statement.value) if r not in inner]

    @property
    def in_place(self) -> tuple[tuple[str, str], ...]:
        """`Launch.in_place` of a kernel that stores every element once, right after its epilogue: what is added to."""
        output, inner = self.output, set(reads(self.reduce.body))
        every = [r.tensor for r, _ in self.accesses]
        found = [
            place.tensor.name
            for r, place in self.accesses
            if r not in inner and every.count(r.tensor) == 1 and place.tensor.dtype is output.tensor.dtype
            if place.address == output.address and not place.checks
        ]
        return tuple((name, output.tensor.name) for name in found)


@lru_cache(maxsize=256)
def recognise(program: Program) -> tuple[Contraction, ...] | str:
    """The program as a contraction, or why it is none.

    There are two ways to see one: either operand may be the one whose columns are computed in vectors. Both are
    returned where both are possible, the one that should be faster first.
    """
    if len(program.statements) != 1:
        return "it has several statements"
    s = program.statements[0]
    distinct = {e for e in walk(s.value) if isinstance(e, Reduce)}
    if len(distinct) != 1:
        return "it has no reduction" if not distinct else "it has several reductions"
    reduce = distinct.pop()
    if reduce.kind != "sum":
        return f"its reduction is {reduce.kind}, not a sum"
    if any(isinstance(e, Inside | IndexValue) for e in walk(s.value)):
        return "it uses indices as data"
    if 0 in extents(s).values():
        return "an index has extent 0"
    factors = _factors(reduce.body)
    outer = {i.name for i in s.indices}
    used = [_names(f) & outer for f in factors]
    views = []
    for has in dict.fromkeys(tuple(vector.name in names for names in used) for vector in s.indices):
        mine = [f for f, is_mine in zip(factors, has, strict=True) if is_mine]
        others = [f for f, is_mine in zip(factors, has, strict=True) if not is_mine]
        if mine and any(reads(f) for f in others):
            views.append(_contraction(program, s, reduce, others, mine))
    unique = {(v.columns, v.rows): v for v in views}
    ordered = sorted(unique.values(), key=_preference)
    return tuple(ordered[:2]) if ordered else "its sum is not over a product of two operands with indices of their own"


def views_of(program: Program) -> tuple[Contraction, ...]:
    """The ways to see a program as a contraction; ValueError for one that is none."""
    found = recognise(program)
    if isinstance(found, str):
        raise ValueError(f"program {program.name} is no contraction: {found}")
    return found


def _factors(e: Expr) -> list[Expr]:
    match e:
        case Call(function="mul", args=args):
            return [f for a in args for f in _factors(a)]
        case Cast(arg=Call(function="mul")) if e.arg.dtype is e.dtype:
            return _factors(e.arg)
        case Cast(arg=Call(function="mul")) if vector_type(e.arg.dtype, 1) == vector_type(e.dtype, 1):
            # Products of f16 are computed in f32 and never rounded, so the factors may be widened instead.
            return [Cast(f, e.dtype) for f in _factors(e.arg)]
        case _:
            return [e]


def _names(e: Expr) -> set[str]:
    return {name for r in reads(e) for a in r.index for name in a.names}


def _contraction(program: Program, s: Statement, reduce: Reduce, a: list[Expr], b: list[Expr]) -> Contraction:
    in_a, in_b = set().union(*map(_names, a)), set().union(*map(_names, b))
    extent = extents(s)
    tensors = program.tensors
    accesses = {r: access(r, tensors[r.tensor], extent) for r in reads(s.value)}
    target = tensors[s.target]
    output = Access(target, target.address(tuple(Affine.index(i.name) for i in s.indices)))
    contraction = Contraction(
        s,
        reduce,
        _operand(a),
        _operand(b),
        groups=tuple(i for i in s.indices if i.name in in_a and i.name in in_b),
        rows=tuple(i for i in s.indices if i.name not in in_b),
        columns=tuple(i for i in s.indices if i.name in in_b and i.name not in in_a),
        depth=reduce.indices,
        output=output,
        accesses=tuple(accesses.items()),
    )
    return _collapsed(_ordered(contraction))


def _operand(factors: list[Expr]) -> Operand:
    value = factors[0]
    for f in factors[1:]:
        value = Call("mul", (value, f), value.dtype)
    bare = value.arg if isinstance(value, Cast) else value
    while isinstance(bare, Cast) and promote(bare.arg.dtype, bare.dtype) is bare.dtype:  # others round
        bare = bare.arg
    return Operand(value, bare if isinstance(bare, Read) else None)


def access(read: Read, tensor: Tensor, extent: dict[str, int]) -> Access:
    """Address and range checks of a read."""
    checked = checked_dimensions(read.index, tensor.shape, extent)
    return Access(tensor, tensor.address(read.index), tuple((read.index[d], tensor.shape[d]) for d in checked))


def _ordered(c: Contraction) -> Contraction:
    """Indices in the order in which memory is walked: outputs by the output's strides, depth by A's.

    Depth indices that A's range checks depend on come first, so that the checks stay out of the innermost loop.
    """

    def by_output(indices: tuple[Index, ...]) -> tuple[Index, ...]:
        return tuple(sorted(indices, key=lambda i: -abs(c.output.address.coefficient(i.name))))

    in_a = [a for r, a in c.accesses if r in reads(c.a.value)]
    checked = frozenset().union(*(a.checked_names for a in in_a))

    def walked(i: Index) -> tuple[bool, int]:
        return i.name not in checked, -max((abs(a.address.coefficient(i.name)) for a in in_a), default=0)

    return replace(
        c,
        groups=by_output(c.groups),
        rows=by_output(c.rows),
        columns=by_output(c.columns),
        depth=tuple(sorted(c.depth, key=walked)),
    )


def _collapsed(c: Contraction) -> Contraction:
    """Merge neighbouring indices that every tensor walks as one, and drop those of extent 1."""
    merged: dict[str, tuple[Index, ...]] = {}
    for kind, group in (("groups", c.groups), ("rows", c.rows), ("columns", c.columns), ("depth", c.depth)):
        indices: list[Index] = []
        for i in group:
            if i.extent == 1:
                c = _without(c, i.name)
            elif indices and _merges(c, indices[-1], i):
                c = _without(c, indices[-1].name)
                indices[-1] = Index(i.name, indices[-1].extent * i.extent)
            else:
                indices.append(i)
        merged[kind] = tuple(indices)
    return replace(c, groups=merged["groups"], rows=merged["rows"], columns=merged["columns"], depth=merged["depth"])


def _merges(c: Contraction, outer: Index, inner: Index) -> bool:
    every = [c.output, *(a for _, a in c.accesses)]
    return all(
        a.address.coefficient(outer.name) == a.address.coefficient(inner.name) * inner.extent
        and not {outer.name, inner.name} & a.checked_names
        for a in every
    )


def _without(c: Contraction, name: str) -> Contraction:
    def drop(a: Access) -> Access:
        checks = tuple((position.without(name), size) for position, size in a.checks)
        return replace(a, address=a.address.without(name), checks=checks)

    return replace(c, output=drop(c.output), accesses=tuple((r, drop(a)) for r, a in c.accesses))


def _preference(c: Contraction) -> tuple[float, bool, int]:
    """Sort key: least expansion when B is packed, then contiguous columns in the output, then more columns."""
    size = sum(c.access(r).tensor.size for r in reads(c.b.value))
    expansion = c.g * c.k * c.n / max(size, 1)
    return max(expansion, 1.0), linear_stride(c.output.address, c.columns) != 1, -c.n


def linear_stride(address: Affine, indices: Iterable[Index]) -> int | None:
    """The address step per step of the flattened indices, or None if they are not walked as one."""
    inner = [i for i in indices if i.extent > 1]
    if not inner:
        return 1
    step = address.coefficient(inner[-1].name)
    expected = step
    for i in reversed(inner):
        if address.coefficient(i.name) != expected:
            return None
        expected *= i.extent
    return step


def decompose(flat: str, indices: tuple[Index, ...], name: Callable[[Index], str], ctype: str) -> list[str]:
    """C declarations that split a flattened index into its parts, last one fastest."""
    lines = []
    rest = 1
    for position, i in enumerate(reversed(indices)):
        value = flat if rest == 1 else f"{flat} / {rest}"
        if position < len(indices) - 1:
            value = f"({value}) % {i.extent}" if rest > 1 else f"{flat} % {i.extent}"
        lines.append(f"const {ctype} {name(i)} = {value};")
        rest *= i.extent
    return lines


class LoopNames(dict[str, str]):
    """C variable of each index: `i_<name>` unless set otherwise."""

    def __missing__(self, key: str) -> str:
        return f"i_{key}"


NAMES = LoopNames()


def checked(place: Access, value: str, names: LoopNames) -> str:
    """`value` guarded by the access's range checks (scalar code)."""
    if not place.checks:
        return value
    return f"(({conditions(place.checks, names)}) ? {value} : {literal(place.tensor.pad, place.tensor.dtype)})"


def conditions(checks: Iterable[tuple[Affine, int]], names: LoopNames) -> str:
    """C condition that every position lies in ``0 .. size-1``, one unsigned comparison each."""
    return " && ".join(f"(uint)({affine(position, names)}) < {size}u" for position, size in checks)


def element(c: Contraction, value: Expr, names: LoopNames, program: Program, helpers: dict[str, str]) -> str:
    """C text of one element of an operand."""

    def read(r: Read) -> str:
        place = c.access(r)
        return checked(place, memory_element(argument(r.tensor), affine(place.address, names), r.dtype), names)

    return Expressions(read, names, program.tensors, helpers=helpers, fast=program.fast_math)(value)


def parted(address: Affine, names: Iterable[str]) -> tuple[Affine, Affine]:
    """The address as (part without the given indices, part made of them alone)."""
    chosen = set(names)
    inner = Affine(tuple(t for t in address.terms if t[0] in chosen))
    outer = Affine(tuple(t for t in address.terms if t[0] not in chosen), address.constant)
    return outer, inner


def multiply_add(target: Target, dtype: DType, a: str, b: str, c: str) -> str:
    """`a * b + c` in the target's spelling; plain for integers."""
    return writer.multiply_add(target.fma if dtype.is_float else "", a, b, c)
