"""Search strategies over the points of one space: they propose points and are told how those did.

    while (point := strategy.ask()) is not None:
        strategy.tell(point, seconds_or_None)

They never touch a device. `guided.py` has the one that the tuner uses; those here need no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from tilewright.autotune.grids import Grid, Point
from tilewright.autotune.space_building import Rows

PARENTS = 20
"""Points that the evolutionary search breeds from."""
MUTATION = 0.1
"""Chance of each parameter of a child to take any value."""
RESTART = 0.1
"""Chance of the local search to leave its leader for a random point."""


class Strategy(Protocol):
    """One search in one space."""

    def ask(self) -> Point | None:
        """The next point to measure, never one that was told or asked before; None when there is nothing left."""

    def tell(self, point: Point, seconds: float | None) -> None:
        """How a point did; None if it failed. May also be called for results known beforehand."""


class Asking:
    """What strategies have in common: memory, the start set, no repetitions, and an end."""

    def __init__(self, grid: Grid, seed: int = 0, start: Iterable[Point] = ()) -> None:
        self.grid = grid
        self.rng = np.random.default_rng(seed)
        self.seconds: dict[Point, float] = {}
        """Everything told; infinite for failures."""
        self.asked: dict[Point, None] = {}
        """Everything asked for or told, in order."""
        self._start = list(start)

    def ask(self) -> Point | None:
        """See `Strategy`."""
        for point in self._all_proposals():
            if point not in self.asked:
                self.asked[point] = None
                return point
        return None

    def tell(self, point: Point, seconds: float | None) -> None:
        """See `Strategy`."""
        self.asked[point] = None
        self.seconds[point] = seconds if seconds is not None and math.isfinite(seconds) else math.inf

    @property
    def fastest(self) -> float:
        """The shortest time told; infinite if nothing worked."""
        return min(self.seconds.values(), default=math.inf)

    def leaders(self, count: int) -> list[Point]:
        """The fastest points told, at most `count`."""
        done = [p for p, s in self.seconds.items() if math.isfinite(s)]
        return sorted(done, key=lambda p: self.seconds[p])[:count]

    def fresh(self, rows: Rows) -> Rows:
        """The points that were not asked for."""
        if not len(rows) or not self.asked:
            return rows
        known = self.grid.codes(np.array(list(self.asked), np.int64))
        return rows[~np.isin(self.grid.codes(rows), known)]

    def bred(self) -> Iterator[Point]:
        """Children of the fastest points: parents by tournament, uniform crossover, mutation."""
        parents = self.leaders(PARENTS)
        for _ in range(50 if len(parents) > 1 else 0):
            one, other = (parents[int(min(self.rng.integers(len(parents), size=2)))] for _ in range(2))
            child = np.where(self.rng.random(len(one)) < 0.5, one, other)
            anything = [self.rng.integers(count) for count in self.grid.counts]
            child = np.where(self.rng.random(len(one)) < MUTATION, anything, child)
            if self.grid.legal(child[None])[0]:
                yield from _points(child[None])

    def _all_proposals(self) -> Iterator[Point]:
        while self._start:
            yield self._start.pop(0)
        yield from self._proposals()
        yield from _points(self.grid.sample(self.rng, 64))
        left = self.fresh(self.grid.rows)  # nearly everything is known: any of what is left
        if len(left):
            yield from _points(left[self.rng.integers(len(left))][None])

    def _proposals(self) -> Iterator[Point]:
        """Points in order of promise, some of them perhaps known."""
        return iter(())


class Exhaustive(Asking):
    """Every point, in random order."""

    def __init__(self, grid: Grid, seed: int = 0, start: Iterable[Point] = ()) -> None:
        super().__init__(grid, seed, start)
        self._rest = self.rng.permutation(len(grid.rows)).tolist()

    def _proposals(self) -> Iterator[Point]:
        while self._rest:
            yield from _points(self.grid.rows[self._rest.pop()][None])


class Random(Asking):
    """Points at random."""


class Local(Asking):
    """Iterated local search: a random neighbour of the leader until none is left, now and then from somewhere else.

    H. R. Lourenço, O. C. Martin, T. Stützle, "Iterated local search", Handbook of Metaheuristics, 2003.
    """

    def __init__(self, grid: Grid, seed: int = 0, start: Iterable[Point] = ()) -> None:
        super().__init__(grid, seed, start)
        self._at: Point | None = None

    def tell(self, point: Point, seconds: float | None) -> None:
        """See `Strategy`."""
        super().tell(point, seconds)
        if self._at is None or self.seconds[point] < self.seconds[self._at]:
            self._at = point

    def _proposals(self) -> Iterator[Point]:
        if self._at is not None and self.rng.random() >= RESTART:
            around = self.fresh(self.grid.around(self._at))
            yield from _points(around[self.rng.permutation(len(around))])
        self._at = None  # a basin whose floor is known


class Evolution(Asking):
    """A steady-state genetic algorithm: tournaments among the fastest, uniform crossover, mutation.

    G. Syswerda, "Uniform crossover in genetic algorithms", ICGA 1989, and "A study of reproduction in generational and
    steady-state genetic algorithms", FOGA 1991.
    """

    def _proposals(self) -> Iterator[Point]:
        if len(self.asked) < PARENTS:
            return
        yield from self.bred()


def _points(rows: Rows) -> Iterator[Point]:
    return (tuple(row) for row in rows.tolist())


__all__ = ["Asking", "Evolution", "Exhaustive", "Local", "Random", "Strategy"]
