"""The search that the tuner uses: a model of the times measured so far says where the next measurement is worth most.

First come the start set (known winners, the family's default) and a few points far from each other; then, in turn, the
points with the largest expected improvement over everything measured and over the best of one code path. Measurements
of the same kernel on other devices or sizes, if there are any, are what the model expects before it has seen anything,
with as much weight as they turn out to deserve (a linear mean function: Rasmussen and Williams, section 2.7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.autotune.grids import Grid, Point
from tilewright.autotune.space_building import Rows
from tilewright.autotune.strategies import Asking
from tilewright.autotune.surrogate import Array, Surrogate, expected_improvement

Prior = Callable[[Rows], Array]
"""What other measurements expect of points: log seconds up to a constant, [points, sources]."""


@dataclass(frozen=True)
class GuidedSettings:
    """How `Guided` behaves."""

    design: int = 8
    """Points far from each other that are measured before the model is asked; the start set counts."""
    pattern: str = "G"
    """What follows in turn: G the model's choice from anywhere, L from around the leaders, S within one code path."""
    leaders: int = 3
    """The fastest, whose surroundings are always looked at."""
    pool: int = 1000
    """Random points that the model chooses from, beside those."""
    relearn: int = 5
    """The model's length scales are found anew after so many measurements, or a tenth of those there are."""
    remembered: int = 200
    """Of more measurements than that, the model sees the fastest and the newest: its cost grows with their cube."""
    tails: tuple[float, ...] = (8.0,)
    """Slower points, and failed ones, count as this many times the best: a model need not tell them apart. Models with
    different tails take turns: one sees the landscape, another the differences between the leaders."""
    waiting: int = 32
    """Points that are being measured, of which the model knows the newest."""
    power: float = 2.0
    """A code path is looked at in proportion to this power of its speed."""
    trust: float = 5.0
    """Other devices' measurements together count as much as so many of one's own, before they are weighted."""


class Guided(Asking):
    """See the module's text."""

    def __init__(
        self,
        grid: Grid,
        seed: int = 0,
        start: Iterable[Point] = (),
        settings: GuidedSettings | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(grid, seed, start)
        self.settings = settings or GuidedSettings()
        self._prior = prior
        self._models = [Surrogate(grid.widths) for _ in self.settings.tails]
        self._turn = 0
        self._design: list[Point] | None = None
        self._learnt_at = [-math.inf] * len(self._models)
        self._steps = 0
        self._around: dict[Point, Rows] = {}
        self._trusted: Array = np.zeros(0)

    def _proposals(self) -> Iterator[Point]:
        settings = self.settings
        if self._design is None:
            self._design = self._designed(max(1, settings.design - len(self.asked)))
        if len(self.asked) < settings.design:
            yield from self._design
        if not math.isfinite(self.fastest):
            return
        kind = settings.pattern[self._steps % len(settings.pattern)]
        self._turn = self._steps // len(settings.pattern) % len(self._models)
        self._steps += 1
        pool, best = self._pool(kind)
        if not len(pool):
            return
        self._learn()
        mean, deviation = self._predicted(pool)
        gains = expected_improvement(mean, deviation, math.log(best))
        for at in np.argsort(-gains, kind="stable"):
            yield tuple(pool[at].tolist())

    def _designed(self, count: int) -> list[Point]:
        """Points far from those asked for and from each other, of a random sample.

        M. E. Johnson, L. M. Moore, D. Ylvisaker, "Minimax and maximin distance designs", Journal of Statistical
        Planning and Inference 26, 1990.
        """
        rows = self.fresh(self.grid.sample(self.rng, 500))
        if not len(rows):
            return []
        points = self.grid.features(rows)
        chosen: list[int] = []
        known = self.grid.features(np.array(list(self.asked), np.int64)) if self.asked else points[:0]
        distance = np.full(len(rows), np.inf)
        for k in known:
            distance = np.minimum(distance, ((points - k) ** 2).sum(axis=1))
        while len(chosen) < min(count, len(rows)):
            at = int(distance.argmax()) if np.isfinite(distance).all() else int(self.rng.integers(len(rows)))
            chosen.append(at)
            distance = np.minimum(distance, ((points - points[at]) ** 2).sum(axis=1))
        return [tuple(r) for r in rows[chosen].tolist()]

    def _pool(self, kind: str) -> tuple[Rows, float]:
        """The points to choose from, and the time to improve on."""
        parts = [self._neighbours(leader) for leader in self.leaders(self.settings.leaders)]
        best = self.fastest
        if kind == "G":
            parts.append(self.grid.sample(self.rng, self.settings.pool))
        elif kind == "S" and self.grid.strata:
            parts, best = self._stratum()
        rows = self.fresh(np.concatenate(parts))
        if not len(rows):
            rows = self.fresh(self.grid.sample(self.rng, self.settings.pool))
        return rows[np.unique(self.grid.codes(rows), return_index=True)[1]], best

    def _stratum(self) -> tuple[list[Rows], float]:
        """Points of the code path that is most due, and its own best time."""
        sample = self.grid.sample(self.rng, 4 * self.settings.pool)
        path = self._paths(sample)
        tried = self._paths(np.array(list(self.seconds), np.int64))
        seconds = np.array(list(self.seconds.values()))
        limit = self.fastest * self._tail
        due: list[tuple[float, int, float]] = []
        for p in np.unique(path):
            own = seconds[tried == p]
            best = min(float(own.min(initial=math.inf)), limit)
            hope = 1.0 if not len(own) else (self.fastest / best) ** self.settings.power
            due.append(((len(own) + 1) / hope, int(p), best))
        _, chosen, best = min(due)
        return [sample[path == chosen][: self.settings.pool]], best

    def _paths(self, rows: Rows) -> NDArray[np.int64]:
        """A number for each point's code path."""
        found = np.zeros(len(rows), np.int64)
        for p in self.grid.strata:
            found = found * self.grid.counts[p] + rows[:, p]
        return found

    def _neighbours(self, point: Point) -> Rows:
        """Kept: leaders stay leaders for a while."""
        if point not in self._around:
            self._around[point] = self.grid.around(point)
        return self._around[point]

    def _learn(self) -> None:
        """Fit the model to what is known; points that are being measured count as what it expects of them."""
        kept = list(self.seconds.items())
        if len(kept) > self.settings.remembered:
            half = self.settings.remembered // 2
            kept = sorted(kept[:-half], key=lambda k: k[1])[:half] + kept[-half:]
        rows = np.array([p for p, _ in kept], np.int64)
        values = np.log(np.minimum([s for _, s in kept], self.fastest * self._tail))
        expected = self._expected(rows)
        self._trusted = self._weighted(expected, values)
        values = values - expected @ self._trusted
        anew = len(self.seconds) - self._learnt_at[self._turn] >= max(self.settings.relearn, len(self.seconds) // 10)
        if anew:
            self._learnt_at[self._turn] = len(self.seconds)
        features = self.grid.features(rows)
        self._models[self._turn].fit(features, values, anew)
        waiting = [p for p in self.asked if p not in self.seconds][-self.settings.waiting :]
        if waiting:
            more = self.grid.features(np.array(waiting, np.int64))
            believed = np.concatenate([values, self._models[self._turn].predict(more)[0]])
            self._models[self._turn].fit(np.concatenate([features, more]), believed, False)

    @property
    def _tail(self) -> float:
        return self.settings.tails[self._turn]

    def _predicted(self, rows: Rows) -> tuple[Array, Array]:
        mean, deviation = self._models[self._turn].predict(self.grid.features(rows))
        return mean + self._expected(rows) @ self._trusted, deviation

    def _expected(self, rows: Rows) -> Array:
        if self._prior is None:
            return np.zeros((len(rows), 0))
        return np.minimum(self._prior(rows), math.log(self._tail))

    def _weighted(self, expected: Array, values: Array) -> Array:
        """How much each source says about this device: least squares, drawn towards their plain mean."""
        sources = expected.shape[1]
        if not sources:
            return np.zeros(0)
        first = np.full(sources, 1.0 / sources)
        a = expected - expected.mean(axis=0)
        b = values - values.mean()
        ridge = self.settings.trust * max(float(a.var()), 1e-6) * np.eye(sources)
        found: Array = np.linalg.solve(a.T @ a + ridge, a.T @ b + ridge @ first)
        return np.maximum(found, 0.0)


__all__ = ["Guided", "GuidedSettings", "Prior"]
