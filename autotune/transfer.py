"""What measurements of the same kernel on other devices, or for other sizes, say about the points of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.autotune.grids import Grid, Point
from tilewright.autotune.space_building import Rows
from tilewright.autotune.surrogate import Array, Surrogate

LEARNT = 200
"""Measurements of a source that its model is made from: the fastest half, and others at random."""
TAIL = 8.0
"""Slower points, and failed ones, count as this many times a source's best."""


class Elsewhere:
    """Log seconds relative to the best of each source: measured where the source has the point, else modelled."""

    def __init__(self, grid: Grid, sources: Sequence[Mapping[Point, float | None]], seed: int = 0) -> None:
        """Each source: seconds by point, None or infinite where it failed; those where nothing worked are left out."""
        self._grid = grid
        self._models: list[Surrogate | None] = []
        self._known: list[tuple[np.ndarray, Array]] = []
        self._learnt: list[tuple[Rows, Array]] = []
        self.winners: list[Point] = []
        """The best point of each source, as far as the grid has it; then the one that is best on average."""
        rng = np.random.default_rng(seed)
        for source in sources:
            times = {p: s if s is not None else math.inf for p, s in source.items()}
            best = min(times.values(), default=math.inf)
            if not math.isfinite(best):
                continue
            points = sorted(times, key=lambda p: times[p])
            rows = np.array(points, np.int64)
            logs = np.log(np.minimum([times[p] / best for p in points], TAIL))
            codes = grid.codes(rows)
            order = np.argsort(codes)
            self._known.append((codes[order], logs[order]))
            half = LEARNT // 2
            rest = rng.permutation(len(rows))[: LEARNT - half] if len(rows) > LEARNT else np.arange(half, len(rows))
            taken = np.unique(np.concatenate([np.arange(min(half, len(rows))), rest]))
            self._learnt.append((rows[taken], logs[taken]))
            self._models.append(None)
            self.winners.extend(points[:1])
        self.winners = [w for w in self.winners if grid.legal(np.array([w], np.int64))[0]]
        if len(self._known) > 1 and len(grid.rows):
            drawn = grid.sample(rng, 20_000)
            self.winners.append(tuple(drawn[int(self(drawn).mean(axis=1).argmin())].tolist()))
        self.winners = list(dict.fromkeys(self.winners))

    def __call__(self, rows: Rows) -> Array:
        """[points, sources]"""
        found = np.zeros((len(rows), len(self._known)))
        codes = self._grid.codes(rows)
        for n, (known, logs) in enumerate(self._known):
            at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
            found[:, n] = logs[at]
            missing = known[at] != codes
            if missing.any():
                mean = self._model(n).predict(self._grid.features(rows[missing]))[0]
                found[missing, n] = np.clip(mean, 0.0, math.log(TAIL))
        return found

    def _model(self, source: int) -> Surrogate:
        model = self._models[source]
        if model is None:
            model = self._models[source] = Surrogate(self._grid.widths)
            rows, logs = self._learnt[source]
            model.fit(self._grid.features(rows), logs, True)
        return model


__all__ = ["Elsewhere"]
