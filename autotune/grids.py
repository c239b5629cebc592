"""The points that a search may propose in one space, and what a model is told of them.

A point is a tuple of indices, one into each parameter's values; many points are rows of an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.autotune.space_building import Rows, Table, codes, configuration, listing
from tilewright.dsl.space import Configuration, Parameter, Space

Point = tuple[int, ...]
Features = NDArray[np.float64]

LISTED = 1 << 20
"""Points of a space that are kept, at most; a random part of them in larger ones."""
CHECKED = 2048
"""Rows that are checked one by one, at most: constraints that no table can hold may take long."""
_DISTINCT_VALUES = 5
"""Parameters with fewer values need no second feature to tell them apart."""


class Grid:
    """Legal points of a space."""

    def __init__(self, space: Space, rows: Rows, complete: bool) -> None:
        """`rows` are all its legal points, or some of them if not `complete`."""
        self.space = space
        self.counts = tuple(len(p.values) for p in space.parameters)
        order = np.argsort(codes(rows, self.counts), kind="stable")
        self.rows = rows[order]
        self.complete = complete
        self._codes = codes(self.rows, self.counts)

    @staticmethod
    def of(space: Space, listed: int = LISTED, checked: int = CHECKED) -> Grid:
        """The grid of a space by its constraints."""
        found = listing(space, listed, checked)
        return Grid(space, found.rows, found.complete)

    @property
    def size(self) -> int | None:
        """Number of legal points; None where there are too many to list."""
        return len(self.rows) if self.complete else None

    def configuration(self, point: Sequence[int] | Rows) -> Configuration:
        """The configuration of a point."""
        return configuration(self.space, point)

    def point(self, found: Configuration) -> Point:
        """The point of a configuration of the space, legal or not."""
        return tuple(p.values.index(found[p.name]) for p in self.space.parameters)

    def codes(self, rows: Rows) -> NDArray[np.int64]:
        """One number for each point."""
        return codes(rows, self.counts)

    def places(self, rows: Rows) -> NDArray[np.int64]:
        """Where in `self.rows` each point is, -1 if it is not there."""
        if not len(self.rows):
            return np.full(len(rows), -1)
        at = np.minimum(np.searchsorted(self._codes, self.codes(rows)), len(self.rows) - 1)
        return np.where((self.rows[at] == rows).all(axis=1), at, -1)

    def legal(self, rows: Rows) -> NDArray[np.bool_]:
        """Which points the space allows."""
        if self.complete:
            return self.places(rows) >= 0
        return np.array([self.space.violated(self.configuration(r)) is None for r in rows], bool)

    def around(self, point: Point) -> Rows:
        """Legal points that differ in one parameter."""
        steps = [
            (*point[:at], value, *point[at + 1 :])
            for at, count in enumerate(self.counts)
            for value in range(count)
            if value != point[at]
        ]
        rows = np.array(steps, self.rows.dtype).reshape(-1, len(point))
        return rows[self.legal(rows)]

    def sample(self, rng: np.random.Generator, count: int) -> Rows:
        """Different listed points at random, at most `count`."""
        if len(self.rows) <= count:
            return self.rows
        if len(self.rows) > 20 * count:  # drawing without replacement would permute all of them
            return self.rows[np.unique(rng.integers(0, len(self.rows), count))]
        return self.rows[rng.choice(len(self.rows), count, replace=False)]

    @cached_property
    def _columns(self) -> list[tuple[Table, int]]:
        """The features: a table for each with the number of columns that it gives."""
        found = [Table((n,), _codes(p)) for n, p in enumerate(self.space.parameters) if len(p.values) > 1]
        return [(t, t.answers.shape[-1]) for t in found]

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each feature."""
        return tuple(width for _, width in self._columns)

    def features(self, rows: Rows) -> Features:
        """What a model is told of points, [count, sum of `widths`]; all within 0 and 1."""
        parts = [np.zeros((len(rows), 0)), *(t.of(rows) for t, _ in self._columns)]
        return np.concatenate(parts, axis=1)


def _codes(parameter: Parameter) -> NDArray[Any]:
    """Features of a parameter's values, [values, columns].

    Names are equally far from each other. Numbers lie by their logarithm, and where they are not all powers of two,
    also by how often two divides them: sub-groups, vectors and caches are powers of two.
    """
    values = parameter.values
    if any(isinstance(v, str) for v in values):
        names: Features = np.eye(len(values)) / np.sqrt(2.0)
        return names
    numbers = np.array(values, np.int64)
    logs = np.log2(numbers - min(int(numbers.min()), 1) + 1.0)
    columns = [(logs - logs.min()) / np.ptp(logs)]
    if len(values) >= _DISTINCT_VALUES and numbers.min() >= 1:
        twos = np.log2(numbers & -numbers)
        if np.any(numbers & (numbers - 1)) and np.ptp(twos) > 0:
            columns.append((twos - twos.min()) / np.ptp(twos))
    found: Features = np.stack(columns, axis=1)
    return found


__all__ = ["Features", "Grid", "Point"]
