"""What measurements of the same kernel on other devices, or for other sizes, say about the points of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.autotune.grids import Grid, Point
from tilewright.autotune.guided import Guided
from tilewright.autotune.search import Strategies
from tilewright.autotune.space_building import Rows
from tilewright.autotune.strategies import Asking
from tilewright.autotune.subjects import Subject
from tilewright.autotune.surrogate import Array, Surrogate
from tilewright.dsl.program import GENERATOR_VERSION
from tilewright.dsl.space import Configuration
from tilewright.runtime import Device
from tilewright.tuning_db import Measurement, Status, Store

SOURCES = 4
"""Programs that a search is told of, at most."""
WORKING = 8
"""Fewer measurements of a program say too little."""
OTHER_DEVICE = 3.0
"""Another device is as far away as sizes that differ by a factor of eight."""
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


def told(stage: Subject, device: Device, store: Store, key: str, generator: str = GENERATOR_VERSION) -> Strategies:
    """Makes searches for a stage that know what was measured of it on other devices and drivers, and of other sizes.

    The nearest `SOURCES` programs of its structure count: by the sum over the sizes of the absolute log2 ratio, another
    device counting as `OTHER_DEVICE` more. What this very device and driver measured of the stage is not among them.
    """
    here = (device.identity, device.driver, key)
    near = [
        (_distance(stage.sizes, k.sizes) + (0.0 if k.device == device.identity else OTHER_DEVICE), k)
        for k in store.kindred(generator, stage.structure)
        if k.working >= WORKING and len(k.sizes) == len(stage.sizes) and (k.device, k.driver, k.signature) != here
    ]
    near.sort(key=lambda pair: pair[0])
    tried = [store.tried(k.device, k.driver, generator, k.signature) for _, k in near[:SOURCES]]

    def make(family: str, grid: Grid, seed: int) -> Asking:
        sources = [_points(grid, [m for m in found.values() if m.family == family]) for found in tried]
        sources = [s for s in sources if sum(v is not None for v in s.values()) >= WORKING]
        if not sources:
            return Guided(grid, seed)
        elsewhere = Elsewhere(grid, sources, seed)
        return Guided(grid, seed, elsewhere.winners, prior=elsewhere)

    return make


def _points(grid: Grid, measurements: Sequence[Measurement]) -> dict[Point, float | None]:
    """Seconds of what the grid's parameters can express."""
    values = {p.name: p.values for p in grid.space.parameters}
    found: dict[Point, float | None] = {}
    for m in measurements:
        configuration = grid.space.completed(Configuration.from_json(m.configuration))
        if set(configuration) == set(values) and all(v in values[n] for n, v in configuration.items()):
            found[grid.point(configuration)] = m.seconds if m.status is Status.OK else None
    return found


def _distance(a: Sequence[int], b: Sequence[int]) -> float:
    return sum(abs(math.log2(max(x, 0.5) / max(y, 0.5))) for x, y in zip(a, b, strict=True))


__all__ = ["Elsewhere", "told"]
