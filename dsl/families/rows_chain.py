"""A chain over shared rows as loops and passes: what is known when, and what is worth keeping from pass to pass.

Every row is walked over several times. A pass reduces what depends on the results of earlier passes only, and writes
the elements whose operands are known. For softmax: pass 1 the maximum, pass 2 the sum of the exponentials, pass 3
the quotients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.rows_axes import Frame, NoChain, frame
from tilewright.dsl.families.shared import Dimension, fixed_indices, join_neighbours
from tilewright.dsl.program import (
    Call,
    Cast,
    Expr,
    Index,
    Inside,
    Program,
    Read,
    Reduce,
    Tensor,
    checked_dimensions,
    children,
    substitute_indices,
    transform,
    walk,
)

_COSTS = {
    **dict.fromkeys(("exp", "exp2", "log", "log2", "sigmoid", "tanh", "erf"), 16),
    **dict.fromkeys(("pow", "expm1", "log1p", "sin", "cos", "tan", "atan", "sinh", "cosh"), 24),
    **dict.fromkeys(("div", "sqrt", "rsqrt", "floordiv", "mod"), 4),
}
"""Arithmetic operations that a function is worth; 1 unless listed."""
COSTLY = 12
"""Operations from which a value is kept rather than computed again from operands in a near cache."""


@dataclass(frozen=True)
class Pass:
    """One walk over a row."""

    reduces: tuple[Reduce, ...]
    writes: tuple[str, ...]
    """Outputs with a value per element that are written on this walk."""
    scalars: tuple[str, ...]
    """Values per row that are known after it, in order."""


@dataclass(frozen=True)
class Kept:
    """A value per element that is computed in one pass and used in later ones."""

    value: Expr
    first: int
    last: int
    """Positions of these passes."""


@dataclass(frozen=True)
class Chain:
    """The statements as loops over rows and, within a row, over its elements."""

    program: Program
    rows: tuple[Dimension, ...]
    inner: tuple[Dimension, ...]
    values: Mapping[str, Expr]
    """The value of each target, in order, in terms of the loops."""
    wide: frozenset[str]
    """Targets with a value per element; the others have one per row."""
    addresses: Mapping[str, Affine]
    """Where each target's element lies, were it in memory."""
    checks: Mapping[Expr, tuple[int, ...]]
    """The dimensions in which each read of an input can lie outside its tensor."""
    opening: tuple[str, ...]
    """Values per row that are known before the first pass."""
    passes: tuple[Pass, ...]

    @property
    def count(self) -> int:
        """Number of rows."""
        return math.prod(d.extent for d in self.rows)

    @property
    def length(self) -> int:
        """Elements of a row."""
        return math.prod(d.extent for d in self.inner)

    @property
    def extents(self) -> dict[str, int]:
        """Extent of every loop."""
        return {d.name: d.extent for d in (*self.rows, *self.inner)}

    @property
    def reads(self) -> tuple[Read, ...]:
        """The reads of inputs, without repetition."""
        return tuple(e for e in self.checks if isinstance(e, Read))

    def is_output(self, target: str) -> bool:
        """Whether a target is written to memory."""
        return any(t.name == target for t in self.program.outputs)

    def is_wide(self, e: Expr) -> bool:
        """Whether a value differs from element to element of a row."""
        inner = {d.name for d in self.inner}
        return any(
            isinstance(n, Read | Inside) and any(not inner.isdisjoint(a.names) for a in n.index) for n in walk(e)
        )

    def below(self, e: Expr) -> Iterator[Expr]:
        """The expression and all it is made of, through intermediates with a value per element."""
        yield e
        if isinstance(e, Read) and e.tensor in self.wide:
            yield from self.below(self.values[e.tensor])
        for c in children(e):
            yield from self.below(c)

    def element(self, target: str) -> Expr:
        """What a target with a value per element holds: as it is read if another statement reads it, else its value."""
        found = (n for v in self.values.values() for n in walk(v) if isinstance(n, Read) and n.tensor == target)
        return next(found, self.values[target])

    def roots(self, position: int) -> tuple[Expr, ...]:
        """What a pass computes per element."""
        step = self.passes[position]
        return (*(e.body for e in step.reduces), *(self.element(name) for name in step.writes))

    def kept(self, keeps: Callable[[Chain, Expr], bool]) -> tuple[Kept, ...]:
        """The largest values per element that several passes share, of those that `keeps` allows."""
        first: dict[Expr, int] = {}
        for position in range(len(self.passes)):
            for root in self.roots(position):
                for n in self.below(root):
                    first.setdefault(n, position)
        last: dict[Expr, int] = {}

        def visit(e: Expr, position: int) -> None:
            if first[e] < position and e.dtype is not DType.BOOL and self.is_wide(e) and keeps(self, e):
                last[e] = position
                return
            if isinstance(e, Read) and e.tensor in self.wide:
                visit(self.values[e.tensor], position)
            for c in children(e):
                visit(c, position)

        for position in range(len(self.passes)):
            for root in self.roots(position):
                visit(root, position)
        return tuple(Kept(e, first[e], last[e]) for e in last)


def is_costly(chain: Chain, e: Expr) -> bool:
    """True for values that take longer to compute than to load from a near cache."""
    return isinstance(e, Call | Cast | Read) and _cost(chain, e) >= COSTLY


def is_loaded_or_costly(chain: Chain, e: Expr) -> bool:
    """True for reads of memory, for costly values, and for those made of several reads."""
    if isinstance(e, Read) and e.tensor not in chain.wide:
        return True
    if not isinstance(e, Call | Cast | Read):
        return False
    reads = {n for n in chain.below(e) if isinstance(n, Read) and n.tensor not in chain.wide and chain.is_wide(n)}
    return len(reads) > 1 or _cost(chain, e) >= COSTLY


def _cost(chain: Chain, e: Expr) -> int:
    return sum(_COSTS.get(n.function, 1) for n in set(chain.below(e)) if isinstance(n, Call))


@functools.lru_cache(maxsize=64)
def chain_of(program: Program) -> Chain | str:
    """The program as a chain over rows, or the clause that says why it is none."""
    try:
        return _chain(program)
    except NoChain as reason:
        return str(reason)


def _chain(program: Program) -> Chain:
    found = frame(program)
    tensors, extent = program.tensors, found.extents
    made = {s.target for s in found.statements}
    every = list(dict.fromkeys(n for s in found.statements for n in walk(s.value)))
    touched = [n for n in every if isinstance(n, Read | Inside) and n.tensor not in made]
    addresses = {
        s.target: tensors[s.target].address(_place(tensors[s.target], tuple(i.name for i in s.indices)))
        for s in found.statements
    }
    outputs = [addresses[t.name] for t in program.outputs]
    accesses = [*(tensors[n.tensor].address(n.index) for n in touched if isinstance(n, Read)), *outputs]
    main = _main_access(program, found, [n for n in touched if isinstance(n, Read)])
    gone: dict[str, Affine] = {}
    fixed = fixed_indices(program, every, extent)

    def loops(names: list[str]) -> tuple[Dimension, ...]:
        return join_neighbours(sorted(names, key=lambda n: -abs(main.coefficient(n))), extent, accesses, fixed, gone)

    rows, inner = loops([i.name for i in found.rows]), loops([i.name for i in found.inner])
    values = {s.target: _looped(s.value, gone, inner) for s in found.statements}
    chain = Chain(
        program,
        rows,
        inner,
        values,
        frozenset(s.target for s in found.statements if len(s.indices) > len(found.rows)),
        {name: a.substitute(gone) for name, a in addresses.items()},
        {substitute_indices(n, gone): checked_dimensions(n.index, tensors[n.tensor].shape, extent) for n in touched},
        (),
        (),
    )
    return _scheduled(chain)


def _place(tensor: Tensor, names: tuple[str, ...]) -> tuple[Affine, ...]:
    """The index of a target's element; its dimensions of size 1 have no loop."""
    left = iter(names)
    return tuple(Affine((), 0) if n == 1 else Affine.index(next(left)) for n in tensor.shape)


def _main_access(program: Program, found: Frame, reads: list[Read]) -> Affine:
    """The address of the read that decides the order of loops: that of most axes.

    NoChain where elements are read by several rows each: that is a contraction or a window, for other families.
    """
    inner = {i.name for i in found.inner}
    candidates = [r for r in reads if any(not inner.isdisjoint(a.names) for a in r.index)]
    if not candidates:
        raise NoChain("it reads nothing that is reduced")
    addresses = {r: program.tensors[r.tensor].address(r.index) for r in candidates}
    main = max(candidates, key=lambda r: (len(addresses[r].names), program.tensors[r.tensor].size))
    elements = math.prod(found.extents.values())
    if elements > 2 * max(program.tensors[r.tensor].size for r in candidates):
        raise NoChain("many rows read the same elements, as in a contraction or a window")
    return addresses[main]


def _looped(e: Expr, gone: Mapping[str, Affine], inner: tuple[Dimension, ...]) -> Expr:
    """A value in terms of the loops; all reductions run over the loops of a row."""
    over = tuple(Index(d.name, d.extent) for d in inner)

    def change(n: Expr) -> Expr:
        return replace(n, indices=over) if isinstance(n, Reduce) else n

    return transform(substitute_indices(e, gone), change)


def _scheduled(chain: Chain) -> Chain:
    """The chain with its passes."""
    known: dict[Expr, int] = {}

    def depth(e: Expr) -> int:
        """The passes that must be over before `e` is known (at the element at hand, for what is wide)."""
        if e not in known:
            found = [depth(c) for c in children(e)]
            if isinstance(e, Read) and e.tensor in chain.values:
                found.append(depth(chain.values[e.tensor]))
            known[e] = max(found, default=0) + isinstance(e, Reduce)
        return known[e]

    reduces = list(dict.fromkeys(n for v in chain.values.values() for n in walk(v) if isinstance(n, Reduce)))
    last = max(depth(e) for e in reduces)
    wide = [t for t in chain.values if t in chain.wide and chain.is_output(t)]
    narrow = [t for t in chain.values if t not in chain.wide]
    passes = [
        Pass(
            tuple(e for e in reduces if depth(e) == p),
            tuple(t for t in wide if depth(chain.values[t]) == p - 1),
            tuple(t for t in narrow if depth(chain.values[t]) == p),
        )
        for p in range(1, last + 2)
    ]
    if not passes[-1].writes:
        passes.pop()
    return replace(chain, opening=tuple(t for t in narrow if depth(chain.values[t]) == 0), passes=tuple(passes))
