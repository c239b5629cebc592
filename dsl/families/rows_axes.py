"""One iteration space for the statements of a chain: which index of one statement is which of another.

Statements name their indices as they like. Where one reads what another wrote, the indices at that place are the same
axis; what that leaves open is matched by extents, preferring axes that walk through the same dimension of a tensor
that both read. Any such match is right, since each statement runs over all of its indices; the choice decides speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.program import (
    Expr,
    Index,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Statement,
    all_indices,
    children,
    rename_indices,
    substitute_indices,
    transform,
    walk,
)


class NoChain(Exception):
    """The statements are no chain over shared rows; its text is the clause that says why."""


@dataclass(frozen=True)
class Frame:
    """Statements over common axes: row axes, and the inner axes that reductions run over. Extents are above 1."""

    rows: tuple[Index, ...]
    inner: tuple[Index, ...]
    statements: tuple[Statement, ...]
    """Indices of extent 1 are gone, from reads and reductions too; a tensor's dimension of size 1 is read at 0."""

    @property
    def extents(self) -> dict[str, int]:
        """Extent of every axis."""
        return {i.name: i.extent for i in (*self.rows, *self.inner)}


def frame(program: Program) -> Frame:
    """The common axes of a program's statements; raises NoChain where there are none."""
    statements = [_apart(_without_units(s), n) for n, s in enumerate(program.statements)]
    first = next((s for s in statements if _reductions(s)), None)
    if first is None:
        raise NoChain("it has no reduction over more than one element")
    if any(isinstance(n, Reduce) for s in statements for r in _reductions(s) for n in walk(r.body)):
        raise NoChain("it has a reduction within a reduction")
    axes = _Axes({i.name: i for s in statements for i in all_indices(s)})
    _join_reads(program, statements, axes)
    rows, inner = first.indices, _reductions(first)[0].indices
    order = sorted(statements, key=lambda s: s is not first)
    matching = _Matching(axes, [i.name for i in rows], [i.name for i in inner])
    for s in order:
        matching.match(s)
    names = matching.names([i.name for i in (*rows, *inner)])
    own = frozenset(names[i.name] for i in rows)
    renamed = tuple(rename_indices(s, {i.name: names[i.name] for i in all_indices(s)}) for s in statements)
    for s in renamed:
        _check_ranges(s, own, len(inner))

    def axis(i: Index) -> Index:
        return Index(names[i.name], i.extent)

    return Frame(tuple(map(axis, rows)), tuple(map(axis, inner)), renamed)


def _without_units(s: Statement) -> Statement:
    """The statement without indices of extent 1; a reduction over one element is that element."""
    zero = {i.name: Affine((), 0) for i in all_indices(s) if i.extent == 1}

    def change(e: Expr) -> Expr:
        if not isinstance(e, Reduce):
            return e
        left = tuple(i for i in e.indices if i.extent > 1)
        return replace(e, indices=left) if left else e.body

    indices = tuple(i for i in s.indices if i.extent > 1)
    return Statement(s.target, indices, transform(substitute_indices(s.value, zero), change))


def _apart(s: Statement, number: int) -> Statement:
    return rename_indices(s, {i.name: f"{i.name}~{number}" for i in all_indices(s)})


def _reductions(s: Statement) -> list[Reduce]:
    return list(dict.fromkeys(n for n in walk(s.value) if isinstance(n, Reduce)))


@dataclass
class _Axes:
    """Indices of all statements, joined to axes (disjoint sets)."""

    index: Mapping[str, Index]
    parent: dict[str, str] = field(default_factory=dict)

    def axis(self, name: str) -> str:
        while name in self.parent:
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        if self.index[a].extent != self.index[b].extent:
            raise NoChain("its statements run over different ranges")
        a, b = self.axis(a), self.axis(b)
        if a != b:
            self.parent[b] = a


def _join_reads(program: Program, statements: Sequence[Statement], axes: _Axes) -> None:
    """Join the indices of what is written with those it is read at."""
    made: dict[str, Statement] = {}
    for s in statements:
        for e in walk(s.value):
            if isinstance(e, Inside) and e.tensor in made:
                raise NoChain("it asks whether an index lies inside an intermediate")
            if isinstance(e, Read | Inside | IndexValue) and any(
                isinstance(c, Read) and c.tensor in made for n in children(e) for c in walk(n)
            ):
                raise NoChain("an index is computed from an intermediate")
            if isinstance(e, Read) and e.tensor in made:
                where = [a for a, n in zip(e.index, program.tensors[e.tensor].shape, strict=True) if n != 1]
                units = [a for a, n in zip(e.index, program.tensors[e.tensor].shape, strict=True) if n == 1]
                if any(a.single is None for a in where) or any(a.terms or a.constant for a in units):
                    raise NoChain("a value is read at another place than its own")
                for i, a in zip(made[e.tensor].indices, where, strict=True):
                    axes.join(i.name, str(a.single))
        made[s.target] = s


@dataclass
class _Matching:
    """Completes the axes: gives every index of every statement one of the row or inner axes."""

    axes: _Axes
    rows: Sequence[str]
    inner: Sequence[str]
    walked: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    """The axes that statements matched so far use in each dimension of each tensor."""

    def match(self, s: Statement) -> None:
        reductions = _reductions(s)
        if reductions:
            self._assign(s, s.indices, [*self.rows])
            for r in reductions:
                self._assign(s, r.indices, [*self.inner])
        else:
            self._assign(s, s.indices, [*self.rows, *self.inner])
        for place, name in _walks(s):
            self.walked.setdefault(place, set()).add(self.axes.axis(name))

    def _assign(self, s: Statement, indices: tuple[Index, ...], wanted: list[str]) -> None:
        free = list(dict.fromkeys(self.axes.axis(name) for name in wanted))
        left = []
        for i in indices:
            own = self.axes.axis(i.name)
            if own in free:
                free.remove(own)
            else:
                left.append(i)
        places: dict[str, list[tuple[str, int]]] = {}
        for place, name in _walks(s):
            places.setdefault(name, []).append(place)
        for i in left:
            fits = [a for a in free if self.axes.index[a].extent == i.extent]
            if not fits:
                raise NoChain("its statements run over different ranges")
            best = max(fits, key=lambda a: sum(a in self.walked.get(p, ()) for p in places.get(i.name, ())))
            self.axes.join(best, i.name)
            free.remove(best)

    def names(self, wanted: Sequence[str]) -> dict[str, str]:
        """A name for each index's axis, as the statement wrote it that has them all, made unique."""
        chosen: dict[str, str] = {}
        for name in wanted:
            stem = name.split("~", maxsplit=1)[0]
            while stem in chosen.values():
                stem += "_"
            chosen[self.axes.axis(name)] = stem
        if len(chosen) != len(wanted):
            raise NoChain("two indices of a statement are one in another")
        found = {name: chosen.get(self.axes.axis(name)) for name in self.axes.index}
        if None in found.values():
            raise NoChain("its statements run over different ranges")
        return {name: str(axis) for name, axis in found.items()}


def _walks(s: Statement) -> list[tuple[tuple[str, int], str]]:
    """((tensor, dimension), index) for every index that moves a read along a dimension."""
    return [
        ((e.tensor, d), name)
        for e in walk(s.value)
        if isinstance(e, Read)
        for d, a in enumerate(e.index)
        for name in a.names
    ]


def _check_ranges(s: Statement, rows: frozenset[str], inner: int) -> None:
    """NoChain unless the statement gives a value per row or per element, and reduces whole rows to one value each."""
    outputs = [i.name for i in s.indices]
    if len(set(outputs)) != len(outputs) or not rows <= set(outputs):
        raise NoChain("a statement does not run over all rows")
    wide = len(outputs) > len(rows)
    if wide and len(outputs) != len(rows) + inner:
        raise NoChain("a statement keeps only some of the reduced indices")
    for r in _reductions(s):
        if wide:
            raise NoChain("a reduction is repeated along an output index")
        names = {i.name for i in r.indices}
        if len(names) != inner or len(r.indices) != inner or names & rows:
            raise NoChain("its reductions run over different ranges")
