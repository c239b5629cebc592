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
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tilewright.autotune.candidates import Candidate, StageSpace
from tilewright.autotune.surrogate import Surrogate, expected_improvement
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
    pattern: str = "LGCG"
    """What follows in turn: L a step around a leader, G the model's choice from anywhere, C a crossing of two, X
    exploration."""
    draws: int = 8
    """Random candidates of which exploration takes the least familiar."""
    pool: int = 40
    """Random candidates that the model chooses from, beside the leaders' neighbours and crossings."""
    renewed: int = 8
    """So many of them are drawn anew each time: legal candidates are rare in spaces with many constraints."""
    relearn: int = 8
    """The model's length scales are found anew after so many measurements."""
    remembered: int = 200
    """Of more measurements than that, the model sees the fastest and the newest: its cost grows with their cube."""
    tail: float = 8.0
    """Slower candidates, and failed ones, count as this many times the best: the model need not tell them apart."""


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
        self._around: dict[Candidate, list[Candidate]] = {}
        self._models: dict[str, tuple[int, int, Surrogate]] = {}
        self._fastest: dict[str, float] = {}
        self._tried: Counter[str] = Counter()
        self._pool: deque[Candidate] = deque(maxlen=self.settings.pool)
        every = space.all
        self._rest: list[Candidate] | None = None
        if every is not None and len(every) <= self.settings.exhaustive:
            self._rest = list(every)
            self._random.shuffle(self._rest)

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
        return [self._candidates[k] for k in self._ranking()[:count]]

    def tell(self, candidate: Candidate, seconds: float | None) -> None:
        """See `Strategy`."""
        key = candidate.key
        self.seconds[key] = seconds if seconds is not None and math.isfinite(seconds) else None
        self._candidates[key] = candidate
        self._asked.add(key)
        self._familiar.update(_values(candidate))
        self._tried[candidate.family] += 1
        if seconds is not None and math.isfinite(seconds):
            self._fastest[candidate.family] = min(seconds, self._fastest.get(candidate.family, math.inf))

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
        if len(self._asked) < self.settings.explore:
            yield from self._explored()
        pattern = self.settings.pattern
        first = self._steps
        self._steps += 1
        for kind in (*(pattern[(first + n) % len(pattern)] for n in range(len(pattern))), "X"):
            yield from {
                "L": self._stepped,
                "C": self._crossed,
                "G": self._modelled,
                "X": self._explored,
            }[kind]()
        if self.space.all is not None:  # nearly everything is known: what is left, one by one
            yield from self.space.all

    def _ranking(self) -> list[Key]:
        done = [k for k, s in self.seconds.items() if s is not None]
        return sorted(done, key=lambda k: self.seconds[k] or math.inf)

    def _neighbours(self, candidate: Candidate) -> list[Candidate]:
        """Those of the space, kept: leaders stay leaders for a while."""
        if candidate not in self._around:
            self._around[candidate] = self.space.neighbours(candidate)
        return self._around[candidate]

    def _stepped(self) -> Iterator[Candidate]:
        """Neighbours of the leaders, the most promising of each leader first."""
        for leader in self.best(self.settings.leaders):
            yield from self._by_promise(self._neighbours(leader))

    def _modelled(self) -> Iterator[Candidate]:
        """What the model expects most of, among leaders' neighbours, crossings and random candidates."""
        pool = [n for leader in self.best(self.settings.leaders) for n in self._neighbours(leader)]
        pool += [c for _ in range(3) for c in self._crossed()]
        draws = self.settings.renewed if self._pool else self.settings.pool
        self._pool.extend(c for _ in range(draws) if (c := self._drawn()) is not None)
        pool += self._pool
        yield from self._by_promise(pool)

    def _by_promise(self, candidates: list[Candidate]) -> list[Candidate]:
        """New candidates, those with the largest expected improvement first."""
        fresh = [c for c in dict.fromkeys(candidates) if c.key not in self._asked]
        self._random.shuffle(fresh)
        promise: dict[Candidate, float] = {}
        best = min((s for s in self.seconds.values() if s is not None), default=None)
        for family in {c.family for c in fresh}:
            members = [c for c in fresh if c.family == family]
            model = self._model(family, best)
            if model is not None and best is not None:
                mean, deviation = model.predict([c.configuration for c in members])
                promise.update(zip(members, expected_improvement(mean, deviation, math.log(best)), strict=True))
        return sorted(fresh, key=lambda c: -promise.get(c, 0.0))

    def _model(self, family: str, best: float | None) -> Surrogate | None:
        """The family's model with everything known; None while too little is."""
        known = [(self._candidates[k].configuration, s) for k, s in self.seconds.items() if k[0] == family]
        if best is None or len(known) < 5 or self.space.spaces[family].raw_size < 2:
            return None
        learnt, at, model = self._models.get(family, (0, 0, Surrogate(self.space.spaces[family])))
        if learnt != len(known):
            worst = best * self.settings.tail
            kept = known
            if len(known) > self.settings.remembered:
                half = self.settings.remembered // 2
                kept = sorted(known[:-half], key=lambda k: k[1] or math.inf)[:half] + known[-half:]
            values = [math.log(min(s if s is not None else worst, worst)) for _, s in kept]
            anew = at == 0 or len(known) - at >= self.settings.relearn
            model.fit([c for c, _ in kept], values, anew)
            self._models[family] = (len(known), len(known) if anew else at, model)
        return model

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
                yield from self._random.sample(around := self._neighbours(child), min(2, len(around)))
            else:
                yield child

    def _explored(self) -> Iterator[Candidate]:
        """Random candidates, those with the least familiar parameter values first."""
        drawn = [c for _ in range(self.settings.draws) if (c := self._drawn()) is not None]
        yield from sorted(drawn, key=self._familiarity)

    def _drawn(self) -> Candidate | None:
        """A candidate at random, of fast families more often."""
        names = list(self.space.spaces)
        (name,) = self._random.choices(names, [self._prospect(n) for n in names])
        return self.space.sample(self._random, name)

    def _prospect(self, family: str) -> float:
        """How often a family is drawn relative to the fastest: by the square of its speed; less if it only failed."""
        if family not in self._fastest:
            return 1.0 / (1.0 + self._tried[family])
        return (min(self._fastest.values()) / self._fastest[family]) ** 2

    def _familiarity(self, candidate: Candidate) -> float:
        values = list(_values(candidate))
        return sum(self._familiar[v] for v in values) / max(1, len(values))


def _values(candidate: Candidate) -> Iterator[tuple[str, str, object]]:
    yield candidate.family, "", ""
    for name, value in candidate.configuration.items():
        yield candidate.family, name, value


__all__ = ["LocalSearch", "SearchSettings", "Strategy"]
