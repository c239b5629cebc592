"""The search that the tuner uses: a model of the times measured so far says where the next measurement is worth most.

First come the start set (known winners, the family's default) and a few points far from each other; then always the
point with the largest expected improvement, among the neighbours of the leaders and many points at random. Measurements
of the same kernel on other devices or sizes, if there are any, are what the model expects before it has seen anything,
with as much weight as they turn out to deserve (a linear mean function: Rasmussen and Williams, section 2.7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

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
    leaders: int = 3
    """The fastest, whose surroundings are always looked at."""
    pool: int = 1000
    """Random points that the model chooses from, beside those."""
    relearn: int = 5
    """The model's length scales are found anew after so many measurements, or a tenth of those there are."""
    remembered: int = 200
    """Of more measurements than that, the model sees the fastest and the newest: its cost grows with their cube."""
    tail: float = 8.0
    """Slower points, and failed ones, count as this many times the best: the model need not tell them apart."""
    patience: int = 40
    """After so many measurements without an improvement the model is doubted: every other choice is bred from the
    fastest points instead, whatever it expects."""
    waiting: int = 32
    """Points that are being measured, of which the model knows the newest."""
    trust: float = 5.0
    """Other devices' measurements together count as much as so many of one's own, before they are weighted."""
    widened: float = 1.5
    """The model's deviations are taken this many times: they count its lengths and amplitude, fitted to few points, as
    known, and so are too small (D. R. Jones, "A taxonomy of global optimization methods based on response surfaces",
    Journal of Global Optimization 21, 2001). Told of other devices' measurements, searches gained nothing by it."""


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
        self._model = Surrogate(grid.widths)
        self._design: list[Point] | None = None
        self._learnt_at = -math.inf
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
        if self._doubted():
            yield from self.bred()
        pool = self._pool()
        if not len(pool):
            return
        self._learn()
        mean, deviation = self._predicted(pool)
        gains = expected_improvement(mean, deviation, math.log(self.fastest))
        for at in np.argsort(-gains, kind="stable"):
            yield tuple(pool[at].tolist())

    def _doubted(self) -> bool:
        """True for every other choice while the model's choices have led to nothing for long."""
        times = list(self.seconds.values())
        stale = len(times) - 1 - times.index(min(times))
        return stale >= self.settings.patience and len(times) % 2 == 1

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

    def _pool(self) -> Rows:
        """The points to choose from."""
        parts = [self._neighbours(leader) for leader in self.leaders(self.settings.leaders)]
        rows = self.fresh(np.concatenate([*parts, self.grid.sample(self.rng, self.settings.pool)]))
        return rows[np.unique(self.grid.codes(rows), return_index=True)[1]]

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
        values = np.log(np.minimum([s for _, s in kept], self.fastest * self.settings.tail))
        expected = self._expected(rows)
        self._trusted = self._weighted(expected, values)
        values = values - expected @ self._trusted
        anew = len(self.seconds) - self._learnt_at >= max(self.settings.relearn, len(self.seconds) // 10)
        if anew:
            self._learnt_at = len(self.seconds)
        features = self.grid.features(rows)
        self._model.fit(features, values, anew)
        waiting = [p for p in self.asked if p not in self.seconds][-self.settings.waiting :]
        if waiting:
            more = self.grid.features(np.array(waiting, np.int64))
            believed = np.concatenate([values, self._model.predict(more)[0]])
            self._model.fit(np.concatenate([features, more]), believed, False)

    def _predicted(self, rows: Rows) -> tuple[Array, Array]:
        mean, deviation = self._model.predict(self.grid.features(rows))
        if self._prior is None:
            return mean, self.settings.widened * deviation
        return mean + self._expected(rows) @ self._trusted, deviation

    def _expected(self, rows: Rows) -> Array:
        if self._prior is None:
            return np.zeros((len(rows), 0))
        return np.minimum(self._prior(rows), math.log(self.settings.tail))

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
