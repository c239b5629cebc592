"""Search strategies: they propose candidates and are told how those did. They never touch a device.

    while (candidate := search.ask()) is not None:
        search.tell(candidate, seconds_or_None)

`LocalSearch` is what the tuner uses: first the start set (defaults, known winners), then, in spaces small enough, every
candidate; in larger ones exploration of parameter values that were tried least, steps around the leaders, and
crossings of two leaders.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tilewright.autotune.candidates import Candidate, StageSpace
from tilewright.dsl.space import Configuration

Key = tuple[str, str]


class Strategy(Protocol):
    """One search; made for one stage."""

    def ask(self) -> Candidate | None:
        """The next candidate to measure, never one that was told or asked before; None when there is nothing left."""

    def tell(self, candidate: Candidate, seconds: float | None) -> None:
        """How a candidate did; None if it failed. May also be called for results known beforehand."""


@dataclass(frozen=True)
class SearchSettings:
    """How `LocalSearch` behaves."""

    exhaustive: int = 128
    """Spaces of at most so many candidates are measured whole."""
    explore: int = 10
    """Candidates measured from anywhere before the leaders' surroundings are looked at."""
    leaders: int = 4
    """How many of the best are improved and crossed."""
    pattern: str = "LLCLXC"
    """What follows in turn: L a step around a leader, C a crossing of two, X exploration."""
    draws: int = 8
    """Random candidates of which exploration takes the least familiar."""


class LocalSearch:
    """See the module's text."""

    def __init__(
        self,
        space: StageSpace,
        start: Iterable[Candidate] = (),
        seed: int = 0,
        settings: SearchSettings | None = None,
    ) -> None:
        self.space = space
        self.settings = settings or SearchSettings()
        self.seconds: dict[Key, float | None] = {}
        """Everything told."""
        self._candidates: dict[Key, Candidate] = {}
        self._asked: set[Key] = set()
        self._random = random.Random(seed)
        self._start = [c for c in start if space.violated(c) is None]
        self._familiar: Counter[tuple[str, str, object]] = Counter()
        self._steps = 0
        every = space.all
        self._rest: list[Candidate] | None = None
        if every is not None and len(every) <= self.settings.exhaustive:
            self._rest = list(every)
            self._random.shuffle(self._rest)

    @property
    def is_exhaustive(self) -> bool:
        """True if every candidate of the space will be asked for."""
        return self._rest is not None

    def best(self, count: int = 1) -> list[Candidate]:
        """The fastest candidates told, at most `count`."""
        return [self._candidates[k] for k in self._ranking()[:count]]

    def tell(self, candidate: Candidate, seconds: float | None) -> None:
        """See `Strategy`."""
        key = candidate.key
        self.seconds[key] = seconds if seconds is not None and math.isfinite(seconds) else None
        self._candidates[key] = candidate
        self._asked.add(key)
        self._familiar.update(_values(candidate))

    def ask(self) -> Candidate | None:
        """See `Strategy`."""
        for found in self._proposals():
            key = found.key
            if key not in self._asked:
                self._asked.add(key)
                return found
        return None

    def _proposals(self) -> Iterator[Candidate]:
        """Candidates in order of promise, some of them known."""
        while self._start:
            yield self._start.pop(0)
        if self._rest is not None:
            while self._rest:
                yield self._rest.pop()
            return
        if len(self.seconds) < self.settings.explore:
            yield from self._explored()
        pattern = self.settings.pattern
        first = self._steps
        self._steps += 1
        for kind in (*(pattern[(first + n) % len(pattern)] for n in range(len(pattern))), "X"):
            yield from {"L": self._stepped, "C": self._crossed, "X": self._explored}[kind]()
        if self.space.all is not None:  # nearly everything is known: what is left, one by one
            yield from self.space.all

    def _ranking(self) -> list[Key]:
        done = [k for k, s in self.seconds.items() if s is not None]
        return sorted(done, key=lambda k: self.seconds[k] or math.inf)

    def _stepped(self) -> Iterator[Candidate]:
        """Neighbours of the leaders, the best leader's first."""
        for leader in self.best(self.settings.leaders):
            around = self.space.neighbours(leader)
            self._random.shuffle(around)
            yield from around

    def _crossed(self) -> Iterator[Candidate]:
        """Every parameter from one of two leaders of the same family, sometimes with a step."""
        leaders = self.best(2 * self.settings.leaders)
        for _ in range(self.settings.draws):
            if len(leaders) < 2:
                return
            one, other = self._random.sample(leaders, 2)
            if one.family != other.family or set(one.configuration) != set(other.configuration):
                continue
            parents = (one.configuration, other.configuration)
            child = Candidate(
                one.family, Configuration.of({p: self._random.choice(parents)[p] for p in one.configuration})
            )
            if self.space.violated(child) is not None:
                continue
            if child.key in self._asked:
                yield from self._random.sample(around := self.space.neighbours(child), min(2, len(around)))
            else:
                yield child

    def _explored(self) -> Iterator[Candidate]:
        """Random candidates, those with the least familiar parameter values first."""
        drawn = [c for _ in range(self.settings.draws) if (c := self.space.sample(self._random)) is not None]
        yield from sorted(drawn, key=self._familiarity)

    def _familiarity(self, candidate: Candidate) -> float:
        values = list(_values(candidate))
        return sum(self._familiar[v] for v in values) / max(1, len(values))


def _values(candidate: Candidate) -> Iterator[tuple[str, str, object]]:
    yield candidate.family, "", ""
    for name, value in candidate.configuration.items():
        yield candidate.family, name, value


__all__ = ["LocalSearch", "SearchSettings", "Strategy"]
