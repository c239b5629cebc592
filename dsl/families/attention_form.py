"""Recognises softmax-weighted sums, whatever operators they came from, for computation in one pass over the keys.

    s[i,j] = any pointwise function of  sum(d) q[i,d] * k[j,d]  and of reads at (i, j): scale, masks, biases
    m[i]   = max(j) s[i,j]
    l[i]   = sum(j) exp(s[i,j] - m[i])
    a[i,c] = sum(j) exp(s[i,j] - m[i]) * v[j,c]
    o[i,c] = any pointwise function of a, l, m and reads at (i, c)

Intermediates are replaced by what they hold until one expression is left; then every sum over j must be a product of
one exponential, values, and factors that do not depend on j, which leave the sum. It does not matter at which
statement the division by l stands, whether the exponential is to base e or 2, and where the scale is.

The pass itself ("online softmax") is from Milakov & Gimelshein, "Online normalizer calculation for softmax" (2018,
arXiv:1805.02867), with weighted sums from Dao et al., "FlashAttention" (2022, arXiv:2205.14135): the running maximum
and sums hold for the keys seen so far, and are rescaled by exp(old maximum - new maximum) where the maximum grows.

f16 and bf16 are storage: everything between reads and writes is computed in f32, also where the program would round an
intermediate; matrix instructions take weights in the values' type (`attention_fragments.products_of`). As in NumPy,
a row whose every score is -inf is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_algebra import ONE
from tilewright.dsl.families.attention_pass import DEPTH, Pass, Refused, dot_of, operands_of
from tilewright.dsl.program import (
    Call,
    Cast,
    Computed,
    Const,
    Expr,
    Index,
    IndexValue,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    checked_dimensions,
    children,
    extents,
    free_indices,
    position,
    substitute_indices,
    transform,
    walk,
)

COLUMN = "~column"
"""Name of the values' own index where the program has none."""
LONGEST_ROW = 256
"""Largest extent of the depth and of the columns: a block of rows keeps both on the chip."""
FEW_ROWS = 16
"""Up to so many rows, the heads that share keys are rows of one pass, though masks are then no bounds on its keys."""
MAX_NODES = 4000
"""Largest expression that is looked at."""

_STORAGE = (DType.F16, DType.BF16, DType.F32)


@dataclass(frozen=True)
class Attention:
    """A program seen as one pass over keys; index tuples are listed outermost first, extents of 1 are left out."""

    program: Program
    batch: tuple[Index, ...]
    """Output indices that choose the keys or the values: each has a pass of its own."""
    rows: tuple[Index, ...]
    """Output indices that choose the scores alone."""
    column: Index
    """The output index that chooses the values alone."""
    key: Index
    depth: Index | None
    score: Expr
    """Of `key`, rows and batch; holds `dot`."""
    dot: Reduce | None
    query: Expr
    """The factors of `dot` that do not depend on the key."""
    keys: Expr
    values: Expr
    exponential: str
    """exp or exp2."""
    factor: float
    """The weights are exponential(factor * (score - maximum))."""
    value: Expr
    """The output's element, of `MAXIMUM`, `TOTAL`, `PRODUCT` and reads."""
    address: Affine
    """Where the element is stored."""

    @property
    def output(self) -> Tensor:
        """The tensor that is written."""
        return self.program.outputs[0]

    @property
    def m(self) -> int:
        """Rows that share their keys and values."""
        return math.prod(i.extent for i in self.rows)

    @property
    def n(self) -> int:
        """Keys."""
        return self.key.extent

    @property
    def d(self) -> int:
        """Depth of the product that scores are made of; 0 if they are made of reads alone."""
        return self.depth.extent if self.depth else 0

    @property
    def e(self) -> int:
        """Columns."""
        return self.column.extent

    @property
    def g(self) -> int:
        """Passes."""
        return math.prod(i.extent for i in self.batch)

    def extents(self) -> dict[str, int]:
        """Extent of every index."""
        every = (*self.batch, *self.rows, self.column, self.key, *((self.depth,) if self.depth else ()))
        return {i.name: i.extent for i in every}


@lru_cache(maxsize=256)
def recognise(program: Program) -> Attention | str:
    """The program as one pass over keys, or why it is none (one clause)."""
    refused = _obviously_none(program)
    if refused:
        return refused
    try:
        return _attention(program)
    except Refused as reason:
        return str(reason)


def _obviously_none(program: Program) -> str | None:
    """A refusal that needs no look at how the statements hang together."""
    every = [n for s in program.statements for n in walk(s.value)]
    if not any(isinstance(n, Reduce) and n.kind == "max" for n in every):
        return "nothing takes the maximum of scores"
    if not any(isinstance(n, Call) and n.function in ("exp", "exp2") for n in every):
        return "it has no exponential"
    if len(program.outputs) != 1:
        return "it has several outputs"
    if any(n.dtype is DType.F64 for n in every):
        return "it computes in f64; one pass keeps f32"
    if program.outputs[0].dtype not in _STORAGE:
        return "its output is not f16, bf16 or f32"
    if any(isinstance(n, Reduce) and n.until is not None for n in every):
        return "it has a prefix reduction (a scan)"
    if len(every) > MAX_NODES:
        return "its expressions are too large"
    return None


def _attention(program: Program) -> Attention:
    statement, value = _expanded(program)
    if 0 in [i.extent for i in statement.indices]:
        raise Refused("its output is empty")
    gone = {i.name: Affine((), 0) for i in statement.indices if i.extent == 1}
    address = program.outputs[0].address(tuple(Affine.index(i.name) for i in statement.indices)).substitute(gone)
    element = _Element(
        program,
        tuple(i for i in statement.indices if i.extent > 1),
        substitute_indices(value, gone),
        address,
    )
    found = _form(element)
    split = _split(element)
    if split is None or found.m > FEW_ROWS:
        return found
    return _form(split)


@dataclass(frozen=True)
class _Element:
    """The output's element as one expression."""

    program: Program
    indices: tuple[Index, ...]
    value: Expr
    address: Affine


def _form(element: _Element) -> Attention:
    pass_ = Pass()
    value = pass_.rewritten(element.value)
    score, values = pass_.score, pass_.values
    if score is None or values is None or pass_.key is None:
        raise Refused("no sum is weighted with the exponential of a score")
    dot = dot_of(score)
    query, keys = operands_of(dot) if dot else (ONE, ONE)
    batch, rows, columns = _sorted(element.indices, free_indices(score), free_indices(keys), free_indices(values))
    depth = Index(DEPTH, dot.indices[0].extent) if dot else None
    column = columns[0] if columns else Index(COLUMN, 1)
    if max(depth.extent if depth else 0, column.extent) > LONGEST_ROW:
        raise Refused(f"rows of more than {LONGEST_ROW} elements do not stay on the chip")
    return Attention(
        element.program,
        batch,
        tuple(sorted(rows, key=lambda i: -abs(element.address.coefficient(i.name)))),
        column,
        pass_.key,
        depth,
        score,
        dot,
        query,
        keys,
        values,
        pass_.exponential,
        pass_.factor,
        value,
        element.address,
    )


def _split(element: _Element) -> _Element | None:
    """The same with an index that is only divided where it chooses keys (``k[h/4]``) split into group and member.

    Members of a group are rows of one pass then, which reads the group's keys once. None if there is no such index.
    """
    extent = {i.name: i.extent for i in element.indices}
    atoms = {t for e in walk(element.value) if isinstance(e, Read) for a in e.index for t in a.atoms}
    for atom in sorted(atoms, key=str):
        e = atom.expr if isinstance(atom, Computed) else None
        match e:
            case Call(function="floordiv", args=(IndexValue(index=at), Const(value=size))):
                name, count = at.single, int(size)
                if name is None or extent.get(name, 1) % count or extent[name] == count:
                    continue
                group, member = Index(f"{name}~group", extent[name] // count), Index(f"{name}~member", count)
                place = {name: Affine.of({group.name: count, member.name: 1})}
                indices = tuple(part for i in element.indices for part in ((group, member) if i.name == name else (i,)))
                reach = {i.name: i.extent for i in indices}
                value = _resolved(substitute_indices(element.value, place), reach)
                return _Element(element.program, indices, value, element.address.substitute(place))
            case _:
                pass
    return None


def _resolved(value: Expr, extent: Mapping[str, int]) -> Expr:
    """The expression with quotients in its reads resolved as far as the extents of the output's indices tell."""

    def change(e: Expr) -> Expr:
        if not isinstance(e, Read) or all(a.is_linear for a in e.index):
            return e
        return replace(e, index=tuple(position(IndexValue(a), extent) for a in e.index))

    return transform(value, change)


def _sorted(
    indices: tuple[Index, ...], score: frozenset[str], keys: frozenset[str], values: frozenset[str]
) -> tuple[tuple[Index, ...], tuple[Index, ...], tuple[Index, ...]]:
    """Output indices as batch, rows and columns, by the operands that they choose."""
    batch, rows, columns = [], [], []
    for i in indices:
        if i.name in keys or (i.name in score and i.name in values):
            batch.append(i)
        elif i.name in score:
            rows.append(i)
        elif i.name in values:
            columns.append(i)
        else:
            raise Refused("an index of the output chooses neither scores nor values")
    if len(columns) > 1:
        raise Refused("its values have several indices of their own")
    return tuple(batch), tuple(rows), tuple(columns)


# --- one expression ---------------------------------------------------------------------------------------------------


def _expanded(program: Program) -> tuple[Statement, Expr]:
    """The statement of the output, and its value with intermediates replaced by what they hold.

    Reductions bind indices named after how deep reductions stand within them, so that equal values have equal
    expressions; conversions between the types of storage are gone.
    """
    hidden = {t.name: t for t in program.intermediates}
    held: dict[str, tuple[Statement, Expr]] = {}
    for s in program.statements:
        extent = extents(s)
        if 0 in extent.values():
            raise Refused("an index has extent 0")

        def change(e: Expr, extent: dict[str, int] = extent) -> Expr:
            match e:
                case Read() if e.tensor in hidden:
                    if checked_dimensions(e.index, hidden[e.tensor].shape, extent):
                        raise Refused("an intermediate is read outside its range")
                    made, value = held[e.tensor]
                    return substitute_indices(value, {i.name: a for i, a in zip(made.indices, e.index, strict=True)})
                case Cast() if e.dtype in _STORAGE and e.arg.dtype in _STORAGE:
                    return e.arg
                case Reduce():
                    return _renamed(e)
                case _:
                    return e

        held[s.target] = s, transform(s.value, change)
        if _size(held[s.target][1]) > MAX_NODES:
            raise Refused("its expressions are too large")
    return held[program.outputs[0].name]


def _renamed(e: Reduce) -> Reduce:
    """The reduction with its indices named `~<height>_<number>`; those of extent 1 are gone unless all are."""
    height = _height(e.body)
    wide = [i for i in e.indices if i.extent > 1] or [e.indices[0]]
    names = {i.name: f"~{height}_{n}" for n, i in enumerate(wide)}
    places = {i.name: Affine.index(names[i.name]) if i.name in names else Affine((), 0) for i in e.indices}
    indices = tuple(Index(names[i.name], i.extent) for i in wide)
    return Reduce(e.kind, indices, substitute_indices(e.body, places), e.dtype)


def _height(e: Expr) -> int:
    return max((_height(c) for c in children(e)), default=0) + isinstance(e, Reduce)


def _size(e: Expr) -> int:
    return 1 + sum(_size(c) for c in children(e))
