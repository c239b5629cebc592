"""Measurements that others made: spaces recorded on some device, so that searches can be judged without one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.autotune.grids import Grid, Point
from tilewright.dsl.space import Configuration, Parameter, Space, Value
from tilewright.errors import DatabaseError, InputError
from tilewright.tuning_db import Measurement, recorded

_FAILED = 1e15
"""Seconds; some of Kernel Tuner's files say 1e20 ms of what failed."""


@dataclass(frozen=True)
class Recorded:
    """One kernel's measurements on one device."""

    kernel: str
    device: str
    space: Space
    rows: NDArray[Any]
    """Points measured, [count, parameters]."""
    seconds: NDArray[np.float64]
    """Time of each; infinite where it failed."""

    def grid(self) -> Grid:
        """The points measured as a space to search."""
        return Grid(self.space, self.rows, True)

    def times(self) -> dict[Point, float]:
        """Seconds by point."""
        return dict(zip(map(tuple, self.rows.tolist()), self.seconds.tolist(), strict=True))

    @property
    def best(self) -> float:
        """Seconds of the fastest."""
        return float(self.seconds.min(initial=math.inf))

    def configurations(self) -> Iterable[tuple[Configuration, float | None]]:
        """Everything measured; None for failures."""
        for row, seconds in zip(self.rows, self.seconds, strict=True):
            values = {p.name: p.values[at] for p, at in zip(self.space.parameters, row, strict=True)}
            yield Configuration.of(values), float(seconds) if math.isfinite(seconds) else None


def read_recorded(path: Path) -> Recorded:
    """A T4 or Kernel Tuner file, see `tuning_db.recorded`; DatabaseError if it is neither, InputError if it is empty.

    Of a configuration that was measured more than once, the last counts. Parameters have the values that occur.
    """
    unnamed = path.name.split(".")[0]
    try:
        found = list(recorded.read_file(path))
    except DatabaseError:  # T4 files of others say neither what was measured nor on what
        found = list(recorded.read_file(path, recorded.Origin(unnamed, unnamed)))
    measured = {m.configuration: m for m in found if isinstance(m, Measurement)}
    if not measured:
        raise InputError(f"{path}: no measurements in it")
    configurations = [Configuration.from_json(text) for text in measured]
    names = list(configurations[0])
    if any(set(c) != set(names) for c in configurations):
        raise InputError(f"{path}: its configurations do not all have the same parameters")
    space = Space(tuple(Parameter(n, _ordered({c[n] for c in configurations}), "recorded") for n in names))
    places = {p.name: {v: n for n, v in enumerate(p.values)} for p in space.parameters}
    rows = np.array([[places[n][c[n]] for n in names] for c in configurations], np.uint16)
    times = np.array([math.inf if m.seconds is None else m.seconds for m in measured.values()])
    seconds = np.where(times < _FAILED, times, math.inf)
    first = next(iter(measured.values()))
    return Recorded(first.family, first.device, space, rows, seconds)


def _ordered(values: set[Value]) -> tuple[Value, ...]:
    """Numbers by size, then names."""
    return tuple(sorted(values, key=lambda v: (isinstance(v, str), v)))


__all__ = ["Recorded", "read_recorded"]
