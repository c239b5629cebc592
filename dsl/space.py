"""Spaces of configurations: named parameters with their values, and constraints with their reasons.

A family states its space beside its kernel; the tuner searches it.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

Value = int | str


@dataclass(frozen=True)
class Configuration(Mapping[str, Value]):
    """One choice for every parameter of a space; hashable, and the same text whatever order it was made in."""

    items_: tuple[tuple[str, Value], ...]

    @staticmethod
    def of(values: Mapping[str, Any]) -> Configuration:
        return Configuration(tuple(sorted(values.items())))

    @staticmethod
    def from_json(text: str) -> Configuration:
        return Configuration.of(json.loads(text))

    def to_json(self) -> str:
        return json.dumps(dict(self.items_), sort_keys=True)

    def integer(self, name: str) -> int:
        """A parameter's value as an int."""
        return int(self[name])

    @cached_property
    def _by_name(self) -> dict[str, Value]:
        return dict(self.items_)

    def __getitem__(self, name: str) -> Value:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self.items_)

    def __len__(self) -> int:
        return len(self.items_)

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.items_)


@dataclass(frozen=True)
class Parameter:
    """A tunable choice. ``values`` are ordered: neighbours in the tuple are neighbours in the search.

    ``hint`` and ``subjects`` tie it to the tuning lines of a text: ``tile m: 32`` narrows the parameter with the hint
    ``tile`` that has the index m among its subjects.
    """

    name: str
    values: tuple[Value, ...]
    meaning: str
    hint: str = ""
    """The kind of hint it answers (see `program.Hint`), empty for none. One named work_group answers such lines."""
    subjects: tuple[str, ...] = ()
    """The indices, or for ``stage`` the tensors, that such a line may name."""
    words: tuple[tuple[str, Value], ...] = ()
    """How a line spells its values, where that differs: ``("none", 0), ("packed", 1)``."""
    before: Value | None = None
    """What configurations that were stored before the parameter existed mean; None if they are of no use."""
    sized: bool = False
    """True if larger programs have larger values of it, so that a line may ask for more than there is here."""


@dataclass(frozen=True)
class Constraint:
    """A condition on configurations, with the reason that is shown when it is not met."""

    reason: str
    holds: Callable[[Configuration], bool]
    sized: bool = False
    """True if larger programs meet it more easily: lines of a text that it rules out do not apply to small ones."""


@dataclass(frozen=True)
class Space:
    """All configurations of one family for one program on one target."""

    parameters: tuple[Parameter, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    measures: tuple[tuple[str, Callable[[Configuration], int]], ...] = ()
    """What `where` lines may ask of a configuration beside its parameters: ``local_bytes``, ``work_group``."""
    unanswered: tuple[str, ...] = ()
    """Tuning lines of the text that mean nothing to this family on this device, or nothing at these sizes."""

    @property
    def raw_size(self) -> int:
        """Number of points before constraints."""
        return math.prod(len(p.values) for p in self.parameters)

    def completed(self, configuration: Configuration) -> Configuration:
        """A stored configuration with the parameters that it is too old to name."""
        missing = {p.name: p.before for p in self.parameters if p.before is not None and p.name not in configuration}
        return Configuration.of({**configuration, **missing}) if missing else configuration

    def violated(self, configuration: Configuration) -> str | None:
        """Why a configuration is not in this space, or None if it is."""
        names = {p.name for p in self.parameters}
        if set(configuration) != names:
            odd = sorted(set(configuration) ^ names)
            return f"parameters {', '.join(odd)} do not match the space's"
        for p in self.parameters:
            if configuration[p.name] not in p.values:
                return f"{p.name}={configuration[p.name]} is not one of {', '.join(map(str, p.values))}"
        for c in self.constraints:
            if not c.holds(configuration):
                return c.reason
        return None

    def __iter__(self) -> Iterator[Configuration]:
        """Every legal configuration, in a fixed order: the last parameter changes fastest."""
        names = [p.name for p in self.parameters]
        by_name = sorted(range(len(names)), key=lambda n: names[n])
        for values in itertools.product(*(p.values for p in self.parameters)):
            candidate = Configuration(tuple((names[n], values[n]) for n in by_name))
            if all(c.holds(candidate) for c in self.constraints):
                yield candidate

    def point(self, number: int) -> Configuration:
        """The point of this number (from 0 to `raw_size` - 1), legal or not, in the order of iteration."""
        chosen: dict[str, Value] = {}
        for p in reversed(self.parameters):
            number, at = divmod(number, len(p.values))
            chosen[p.name] = p.values[at]
        return Configuration.of(chosen)

    def sample(self, rng: random.Random, attempts: int = 1000) -> Configuration | None:
        """A legal configuration at random, or None if none was met in `attempts` draws."""
        for _ in range(attempts):
            candidate = Configuration.of({p.name: rng.choice(p.values) for p in self.parameters})
            if self.violated(candidate) is None:
                return candidate
        return None

    def neighbours(self, configuration: Configuration) -> list[Configuration]:
        """Legal configurations that differ in one parameter, by one step for numbers and any value for names."""
        found = []
        for p in self.parameters:
            at = p.values.index(configuration[p.name])
            steps = range(len(p.values)) if isinstance(p.values[at], str) else (at - 1, at + 1)
            for other in steps:
                if other != at and 0 <= other < len(p.values):
                    candidate = Configuration.of({**configuration, p.name: p.values[other]})
                    if self.violated(candidate) is None:
                        found.append(candidate)
        return found

    def restricted(self, allowed: Mapping[str, tuple[Value, ...]], constraints: tuple[Constraint, ...] = ()) -> Space:
        """The same space with some parameters limited to the given values (those it has) and more constraints."""
        parameters = tuple(replace(p, values=tuple(allowed.get(p.name, p.values))) for p in self.parameters)
        return replace(self, parameters=parameters, constraints=self.constraints + constraints)
