"""What may be tried for a stage: the configurations of every family that fits it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from tilewright.autotune.grids import Grid
from tilewright.dsl import families
from tilewright.dsl.families import Family
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration, Space, Value
from tilewright.dsl.target import Target

FamilySource = Callable[[Program, Target], tuple[Family, ...]]
"""The families that can lower a stage, most special first; `dsl.families.fitting` unless a test says otherwise."""

REFERENCE_FAMILY = "naive"
"""Fits everything; searched only where nothing else fits."""


_ALL = 2_000
"""Candidates of a stage that are listed one by one, at most."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a stage."""

    family: str
    configuration: Configuration

    @cached_property
    def key(self) -> tuple[str, str]:
        """What the database calls it: family and configuration as JSON."""
        return self.family, self.configuration.to_json()

    def __str__(self) -> str:
        return f"{self.family}({self.configuration})"


@dataclass(frozen=True)
class StageSpace:
    """All candidates of one stage on one target."""

    spaces: Mapping[str, Space]
    """By family, most special first."""
    defaults: tuple[Candidate, ...]
    """Each family's own choice, most special first."""

    def violated(self, candidate: Candidate) -> str | None:
        """Why this is no candidate here, or None if it is one."""
        space = self.spaces.get(candidate.family)
        if space is None:
            return f"family {candidate.family} does not fit"
        return space.violated(candidate.configuration)

    def stored(self, family: str, configuration: str) -> Candidate:
        """A candidate as the database names it, with the parameters that it is too old to name."""
        found = Configuration.from_json(configuration)
        return Candidate(family, self.spaces[family].completed(found) if family in self.spaces else found)

    def nearest(self, family: str, configuration: str) -> Candidate | None:
        """A candidate of other sizes as the database names it, its values moved to the nearest that there are here.

        None if that is no candidate.
        """
        if family not in self.spaces:
            return None
        space = self.spaces[family]
        found = space.completed(Configuration.from_json(configuration))
        moved = {p.name: _nearest(found[p.name], p.values) for p in space.parameters if p.name in found}
        candidate = Candidate(family, Configuration.of(moved))
        return candidate if space.violated(candidate.configuration) is None else None

    def grid(self, family: str) -> Grid:
        """The points of a family's space; made once."""
        if family not in self._grids:
            self._grids[family] = Grid.of(self.spaces[family])
        return self._grids[family]

    def use(self, family: str, grid: Grid) -> None:
        """Take a grid that was made already."""
        self._grids[family] = grid

    def listed(self, most: int) -> list[Candidate] | None:
        """Every candidate, or None if there are more than `most`."""
        left = most
        for name in self.spaces:
            size = self.grid(name).size
            if size is None or size > left:
                return None  # the grids of the other families are made when they are searched
            left -= size
        return [
            Candidate(name, self.grid(name).configuration(row)) for name in self.spaces for row in self.grid(name).rows
        ]

    @cached_property
    def all(self) -> tuple[Candidate, ...] | None:
        """Every candidate, or None where there are too many to list."""
        found = self.listed(_ALL)
        return None if found is None else tuple(found)

    @cached_property
    def _grids(self) -> dict[str, Grid]:
        return {}


def _nearest(value: Value, values: tuple[Value, ...]) -> Value:
    """The value, or of numbers the one with the smallest ratio to it."""
    numbers = [v for v in values if isinstance(v, int)]
    if value in values or not isinstance(value, int) or not numbers:
        return value
    return min(numbers, key=lambda v: abs(math.log2(max(v, 0.5) / max(value, 0.5))))


def stage_space(stage: Program, target: Target, source: FamilySource | None = None) -> StageSpace:
    """The candidates of a stage; UnsupportedError if no family fits it on this target."""
    fitting = (source or families.fitting)(stage, target)
    special = tuple(f for f in fitting if f.name != REFERENCE_FAMILY) or fitting
    return StageSpace(
        {f.name: families.space(f, stage, target) for f in special},
        tuple(Candidate(f.name, families.default(f, stage, target)) for f in special),
    )


__all__ = ["REFERENCE_FAMILY", "Candidate", "FamilySource", "StageSpace", "stage_space"]
