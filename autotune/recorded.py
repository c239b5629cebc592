"""Measurements that others made: spaces recorded on some device, so that searches can be judged or begun without one.

Two formats of the auto-tuning community are read, plain or compressed with gzip: Kernel Tuner's cache files
(``tune_params`` and ``cache``) and T4 results (``results`` with ``configuration``, ``invalidity`` and ``measurements``;
F.-J. Willemsen et al., "A methodology for comparing optimization algorithms for auto-tuning", 2024).
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.autotune.grids import Grid, Point
from tilewright.dsl.space import Configuration, Parameter, Space, Value
from tilewright.errors import InputError

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "": 1e-3}
_GROUP = ("block_size_x", "block_size_y", "block_size_z")
"""The format's own names for the work-group's shape."""


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
    """Read a file of either format; InputError if it is neither, or holds no measurement."""
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        found = json.loads(text)
    except (OSError, EOFError, ValueError) as e:
        raise InputError(f"{path}: not a file of recorded measurements: {e}") from e
    entries: list[tuple[float, Mapping[str, Any]]]
    if isinstance(found, dict) and isinstance(found.get("cache"), dict):
        entries = [(_measured(e, e.get("time"), 1e-3), e) for e in found["cache"].values() if isinstance(e, dict)]
        names = list(found.get("tune_params_keys", ()))
    elif isinstance(found, dict) and isinstance(found.get("results"), list):
        entries = [_t4(e) for e in found["results"] if isinstance(e, dict) and isinstance(e.get("configuration"), dict)]
        names = list(entries[0][1]) if entries else []
    else:
        raise InputError(f"{path}: neither a Kernel Tuner cache (with 'cache') nor a T4 file (with 'results')")
    try:
        configurations = [{n: _value(e[n]) for n in names} for _, e in entries]
    except (KeyError, TypeError) as e:
        raise InputError(f"{path}: a measurement names no value of the parameter {e}") from e
    if not configurations or not names:
        raise InputError(f"{path}: no measurements in it")
    declared = found.get("tune_params") or {}
    space = _space(names, configurations, declared)
    places = {p.name: {v: n for n, v in enumerate(p.values)} for p in space.parameters}
    rows = np.array([[places[n][c[n]] for n in names] for c in configurations], np.uint16)
    seconds = np.array([s for s, _ in entries], np.float64)
    kernel, device = str(found.get("kernel_name", path.stem)), str(found.get("device_name", ""))
    return Recorded(kernel, device, space, rows, seconds)


def _measured(entry: Mapping[str, Any], time: Any, unit: float) -> float:
    """Seconds of a time; infinite if it says how the configuration failed instead."""
    if isinstance(time, bool) or not isinstance(time, int | float) or "__error__" in entry:
        return math.inf
    return float(time) * unit if 0.0 < time < 1e19 else math.inf


def _t4(entry: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    objective = (entry.get("objectives") or ["time"])[0]
    correct = entry.get("invalidity", "correct") == "correct"
    for measured in entry.get("measurements", ()) if correct else ():
        if measured.get("name") == objective:
            unit = _UNITS.get(measured.get("unit", ""), 1e-3)
            return _measured({}, measured.get("value"), unit), entry["configuration"]
    return math.inf, entry["configuration"]


def _value(found: Any) -> Value:
    if isinstance(found, float) and found.is_integer():
        return int(found)
    if isinstance(found, bool | int):
        return int(found)
    return str(found)


def _space(names: list[str], configurations: list[dict[str, Value]], declared: Mapping[str, Any]) -> Space:
    """The parameters with the values that occur, in the order in which the file lists them, or their own."""
    parameters = []
    for name in names:
        used = {c[name] for c in configurations}
        listed = [v for v in map(_value, declared.get(name, ())) if v in used]
        rest = sorted(used - set(listed), key=lambda v: (isinstance(v, str), v))
        parameters.append(Parameter(name, tuple(dict.fromkeys([*listed, *rest])), "recorded"))
    group = [n for n in _GROUP if n in names]
    measures = (("work_group", lambda c: math.prod(c.integer(n) for n in group)),) if len(group) > 1 else ()
    return Space(tuple(parameters), (), measures)


__all__ = ["Recorded", "read_recorded"]
