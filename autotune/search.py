"""The search over one stage: which family is looked at next, and within each family one strategy.

    while (candidate := search.ask()) is not None:
        search.tell(candidate, seconds_or_None)

It never touches a device. The start set (defaults, known winners) comes first; then spaces small enough are measured
whole, and in larger ones each family's `Guided` search gets its turns: the slower a family's best, the fewer.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tilewright.autotune.candidates import Candidate, StageSpace
from tilewright.autotune.grids import Grid
from tilewright.autotune.guided import Guided, GuidedSettings
from tilewright.autotune.strategies import Asking

Key = tuple[str, str]
Strategies = Callable[[str, Grid, int], Asking]
"""Makes a family's strategy from its name, its grid and a seed."""


@dataclass(frozen=True)
class SearchSettings:
    """How `StageSearch` behaves."""

    exhaustive: int = 128
    """Spaces of at most so many candidates are measured whole."""
    hopeless: int = 3
    """A family of which so many candidates were measured and none worked is tried ever less."""
    power: float = 2.0
    """A family is looked at in proportion to this power of its speed."""
    guided: GuidedSettings = field(default_factory=GuidedSettings)


class StageSearch:
    """See the module's text."""

    def __init__(
        self,
        space: StageSpace,
        start: Iterable[Candidate] = (),
        seed: int = 0,
        settings: SearchSettings | None = None,
        strategies: Strategies | None = None,
    ) -> None:
        self.space = space
        self.settings = settings or SearchSettings()
        self.seconds: dict[Key, float | None] = {}
        """Everything told."""
        self._make = strategies or (lambda _, grid, s: Guided(grid, s, settings=self.settings.guided))
        self._seed = seed
        self._candidates: dict[Key, Candidate] = {}
        self._asked: set[Key] = set()
        self._start = [c for c in start if space.violated(c) is None]
        self._families: dict[str, Asking] = {}
        self._ended: set[str] = set()
        self._tried: Counter[str] = Counter()
        self._fastest: dict[str, float] = {}
        self._rest: list[Candidate] | None = None
        every = space.listed(self.settings.exhaustive)
        if every is not None:
            self._rest = every
            random.Random(seed).shuffle(self._rest)

    @property
    def is_exhaustive(self) -> bool:
        """True if every candidate of the space will be asked for."""
        return self._rest is not None

    @property
    def is_starting(self) -> bool:
        """True while candidates of the start set have not been asked for."""
        return any(c.key not in self._asked for c in self._start)

    def best(self, count: int = 1) -> list[Candidate]:
        """The fastest candidates told, at most `count`."""
        done = [(s, k) for k, s in self.seconds.items() if s is not None]
        return [self._candidates[k] for _, k in sorted(done)[:count]]

    def tell(self, candidate: Candidate, seconds: float | None) -> None:
        """How a candidate did; None if it failed. May also be called for results known beforehand."""
        key, family = candidate.key, candidate.family
        known = seconds if seconds is not None and math.isfinite(seconds) else None
        self.seconds[key] = known
        self._candidates[key] = candidate
        if key not in self._asked:
            self._tried[family] += 1
        self._asked.add(key)
        if known is not None:
            self._fastest[family] = min(known, self._fastest.get(family, math.inf))
        if family in self._families:
            strategy = self._families[family]
            strategy.tell(strategy.grid.point(candidate.configuration), known)

    def ask(self) -> Candidate | None:
        """The next candidate to measure, never one that was told or asked before; None when there is nothing left."""
        for found in self._proposals():
            if found.key not in self._asked:
                self._asked.add(found.key)
                self._tried[found.family] += 1
                return found
        return None

    def _proposals(self) -> Iterator[Candidate]:
        while self._start:
            yield self._start.pop(0)
        if self._rest is not None:
            while self._rest:
                yield self._rest.pop()
            return
        while len(self._ended) < len(self.space.spaces):
            family = min((f for f in self.space.spaces if f not in self._ended), key=self._due)
            strategy = self._strategy(family)
            point = strategy.ask()
            if point is None:
                self._ended.add(family)
            else:
                yield Candidate(family, strategy.grid.configuration(point))

    def _due(self, family: str) -> float:
        """How much a family has had for what it promises: less of it is to be expected the slower its best is."""
        if family in self._fastest:
            speed = min(self._fastest.values()) / self._fastest[family]
        else:
            speed = min(1.0, self.settings.hopeless / (1.0 + self._tried[family]))
        return (self._tried[family] + 1) / math.pow(speed, self.settings.power)

    def _strategy(self, family: str) -> Asking:
        """The family's search; it begins with what is known."""
        if family not in self._families:
            strategy = self._make(family, self.space.grid(family), self._seed)
            for key in [k for k in self._asked if k[0] == family]:
                candidate = self._candidates.get(key) or self.space.stored(*key)
                point = strategy.grid.point(candidate.configuration)
                if key in self.seconds:
                    strategy.tell(point, self.seconds[key])
                else:
                    strategy.asked[point] = None
            self._families[family] = strategy
        return self._families[family]


__all__ = ["SearchSettings", "StageSearch", "Strategies"]
