"""Listing the legal points of a space without looking at the illegal ones.

Each constraint becomes a table of verdicts over the parameters that it reads, found by asking it about partial
configurations: one that reads a parameter not chosen yet is asked again with each of that parameter's values. The
tables are then joined, one parameter at a time, and a partial row is dropped as soon as some table has no entry left
that it could lead to (forward checking: R. M. Haralick, G. L. Elliott, "Increasing tree search efficiency for
constraint satisfaction problems", Artificial Intelligence 14, 1980), for all rows at once in NumPy.

A point is a row of indices into the parameters' values, one byte each where that is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.dsl.space import Configuration, Constraint, Space, Value

Rows = NDArray[Any]
"""Points, [count, parameters] of unsigned integers."""

ASKED = 20_000
"""A constraint that needs more questions than this is checked row by row instead of through a table."""
CHUNK = 1 << 18
"""Rows that are extended at once."""


class _Unread(Exception):
    """A parameter that has no value yet was read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class _Partial(Configuration):
    """A configuration of which some parameters are open."""

    open: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Value:
        if name in self.open:
            raise _Unread(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        if self.open:
            raise _Unread(self.open[0])
        return super().__iter__()

    def __len__(self) -> int:
        if self.open:
            raise _Unread(self.open[0])
        return super().__len__()


@dataclass(frozen=True)
class Table:
    """What a function of configurations says, [values of each parameter that it reads]."""

    positions: tuple[int, ...]
    """Those parameters, by their places in the space."""
    answers: NDArray[Any]

    def possible(self, chosen: frozenset[int]) -> Table:
        """Of a constraint: what the chosen parameters alone still allow."""
        unknown = tuple(axis for axis, p in enumerate(self.positions) if p not in chosen)
        kept = tuple(p for p in self.positions if p in chosen)
        return Table(kept, np.asarray(self.answers.any(axis=unknown))) if unknown else self

    def of(self, rows: Rows) -> NDArray[Any]:
        """The answer for every point."""
        return np.asarray(self.answers[tuple(rows[:, p] for p in self.positions)])


@dataclass(frozen=True)
class Listing:
    """Legal points of a space."""

    rows: Rows
    complete: bool
    """False if these are only a sample of them."""


def listing(space: Space, most: int = 1 << 25, checked: int = 1 << 25, seed: int = 0) -> Listing:
    """The legal points; of more than `most`, or where `checked` rows had to be checked one by one, a sample.

    `checked` counts rows that no table decides: constraints that read most of a space's parameters.
    """
    counts = [len(p.values) for p in space.parameters]
    tables, slow = [], []
    for constraint in space.constraints:
        verdicts = table(_asked(constraint), space)
        if verdicts is None:
            slow.append(constraint)
        else:
            tables.append(verdicts)
    rng = np.random.default_rng(seed)
    rows, complete = _joined(counts, tables, most, rng)
    if slow:
        complete = complete and len(rows) <= checked
        order = np.arange(len(rows)) if complete else rng.permutation(len(rows))[:checked]
        kept = [n for n in order if all(c.holds(configuration(space, rows[n])) for c in slow)]
        rows = rows[kept]
    return Listing(rows, complete)


def _asked(constraint: Constraint) -> Callable[[Configuration], bool]:
    return lambda c: bool(constraint.holds(c))


def configuration(space: Space, row: Sequence[int] | Rows) -> Configuration:
    """The configuration of a point."""
    return Configuration.of({p.name: p.values[int(at)] for p, at in zip(space.parameters, row, strict=True)})


def codes(rows: Rows, counts: Sequence[int]) -> NDArray[np.int64]:
    """Each point's number in the order of the full product; the product must be below 2**63."""
    found = np.zeros(len(rows), np.int64)
    for at, count in enumerate(counts):
        found *= count
        found += rows[:, at]
    return found


def table(function: Callable[[Configuration], Any], space: Space, asked: int = ASKED) -> Table | None:
    """The function's table; None if it takes more questions than `asked`, or one of them cannot be answered."""
    names = [p.name for p in space.parameters]
    values = {p.name: p.values for p in space.parameters}
    leaves: list[tuple[dict[str, int], Any]] = []
    stack: list[dict[str, int]] = [{}]
    while stack:
        known = stack.pop()
        asked -= 1
        if asked < 0:
            return None
        items = tuple(sorted((name, values[name][at]) for name, at in known.items()))
        try:
            answer = function(_Partial(items, tuple(n for n in names if n not in known)))
        except _Unread as e:
            stack.extend({**known, e.name: at} for at in range(len(values[e.name])))
        except Exception:  # it may rely on the constraints before it, which the check row by row honours
            return None
        else:
            leaves.append((known, answer))
    scope = tuple(n for n in names if any(n in known for known, _ in leaves))
    answers = np.empty([len(values[n]) for n in scope], np.asarray([a for _, a in leaves]).dtype)
    for known, answer in leaves:
        answers[tuple(known.get(n, slice(None)) for n in scope)] = answer
    return Table(tuple(names.index(n) for n in scope), answers)


def _order(counts: Sequence[int], tables: Sequence[Table]) -> list[int]:
    """Parameters in the order in which they are added: those that make the fewest rows first."""
    order: list[int] = []
    left = set(range(len(counts)))

    def growth(parameter: int) -> float:
        before, after = frozenset(order), frozenset([*order, parameter])
        ratio = float(counts[parameter])
        for t in tables:
            if parameter in t.positions:
                ratio *= t.possible(after).answers.mean() / max(t.possible(before).answers.mean(), 1e-9)
        return ratio

    while left:
        chosen = min(sorted(left), key=growth)
        order.append(chosen)
        left.remove(chosen)
    return order


def _joined(counts: Sequence[int], tables: Sequence[Table], most: int, rng: np.random.Generator) -> tuple[Rows, bool]:
    """All rows that the tables allow, and True; or a sample and False where there were more than `most`."""
    types = [np.uint8 if n <= 256 else np.uint16 if n <= 65536 else np.uint32 for n in counts]
    columns: dict[int, NDArray[Any]] = {}
    length, complete = 1 if all(t.answers.any() for t in tables) else 0, True
    for p in _order(counts, tables):
        known = frozenset([*columns, p])
        limits = [f for t in tables if p in t.positions and not (f := t.possible(known)).answers.all()]
        parts: dict[int, list[NDArray[Any]]] = {q: [] for q in (*columns, p)}
        for start in range(0, length, CHUNK):
            piece = {q: c[start : start + CHUNK] for q, c in columns.items()}
            above, added = _extended(min(CHUNK, length - start), piece, p, counts, limits)
            for q, c in piece.items():
                parts[q].append(c[above])
            parts[p].append(added.astype(types[p]))
        columns = {q: np.concatenate(c) if c else np.zeros(0, types[q]) for q, c in parts.items()}
        length = len(columns[p])
        if length > most:
            kept = np.sort(rng.choice(length, most, replace=False))
            columns = {q: c[kept] for q, c in columns.items()}
            length, complete = most, False
    rows = np.zeros((length, len(counts)), max(types, key=lambda t: np.dtype(t).itemsize) if types else np.uint8)
    for q in list(columns):
        rows[:, q] = columns.pop(q)
    return rows, complete


def _extended(
    length: int, columns: dict[int, NDArray[Any]], added: int, counts: Sequence[int], limits: Sequence[Table]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each legal extension by one parameter: the row that it extends, and the added value's index."""
    count = counts[added]
    if not limits:
        return np.repeat(np.arange(length), count), np.tile(np.arange(count), length)
    allowed: NDArray[np.bool_] | None = None
    for limit in limits:
        axis = limit.positions.index(added)
        verdicts = np.moveaxis(limit.answers, axis, -1).reshape(-1, count)
        at = np.zeros(length, np.int32)
        for q in limit.positions:
            if q != added:
                at *= counts[q]
                at += columns[q]
        found = verdicts[at]
        allowed = found if allowed is None else np.logical_and(allowed, found, out=allowed)
    assert allowed is not None
    above, value = np.nonzero(allowed)
    return above, value


__all__ = ["Listing", "Rows", "Table", "codes", "configuration", "listing", "table"]
