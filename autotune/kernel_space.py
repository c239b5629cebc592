"""The space of a foreign kernel: its parameters, its constraints, and the sizes that follow from them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.autotune.grids import Grid
from tilewright.autotune.size_expressions import Expression, expression
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space, Value
from tilewright.errors import InputError
from tilewright.runtime import Device

Size = int | str | Callable[[Mapping[str, Value]], int]
Sizes = Size | Sequence[Size] | Callable[[Mapping[str, Value]], Sequence[int]]
"""One to three sizes: numbers, expressions over parameters and scalar arguments, or functions of a configuration."""
Condition = str | Callable[[Mapping[str, Value]], bool] | Constraint

MOST_DIMENSIONS = 3
_EXAMINED = 2000
"""Points that are asked why none is legal, at most."""


@dataclass(frozen=True)
class Geometry:
    """Work-items of a launch, as they follow from a configuration."""

    what: str
    sizes: tuple[int | Expression | Callable[[Mapping[str, Value]], Any], ...]
    known: Mapping[str, int]
    """Scalar arguments by name."""

    def __call__(self, configuration: Configuration) -> tuple[int, ...]:
        """The sizes; InputError for what is no whole number."""
        found: list[Any] = []
        for size in self.sizes:
            if isinstance(size, int):
                found.append(size)
            elif isinstance(size, Expression):
                found.append(size(lambda name: self.known[name] if name in self.known else configuration[name]))
            else:
                result = size(configuration)
                found += result if isinstance(result, tuple | list) else [result]
        if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in found):
            raise InputError(f"{self.what} is {found} for {configuration}; sizes are whole numbers")
        if not 1 <= len(found) <= MOST_DIMENSIONS:
            raise InputError(f"{self.what} has {len(found)} sizes for {configuration}; give one to three")
        return tuple(int(n) for n in found)

    @property
    def text(self) -> str:
        """For people, and for the kernel's identity; functions have none."""
        return ", ".join(
            s.text if isinstance(s, Expression) else str(s) if isinstance(s, int) else "(function)" for s in self.sizes
        )

    @property
    def names(self) -> frozenset[str]:
        """What its expressions read."""
        return frozenset().union(*(s.names for s in self.sizes if isinstance(s, Expression)))

    @property
    def has_functions(self) -> bool:
        """True if its text does not say all."""
        return any(not isinstance(s, int | Expression) for s in self.sizes)


def geometry(what: str, given: Sizes, parameters: Sequence[str], known: Mapping[str, int]) -> Geometry:
    """Read sizes; InputError for an expression that names nothing there is."""
    sizes: list[Any] = list(given) if isinstance(given, tuple | list) else [given]
    for n, size in enumerate(sizes):
        if isinstance(size, str):
            sizes[n] = _known(expression(size, what), what, (*parameters, *known))
        elif isinstance(size, np.integer):
            sizes[n] = int(size)
        elif (not isinstance(size, int) or isinstance(size, bool)) and not callable(size):
            raise InputError(f"{what} holds {size!r}; sizes are whole numbers, expressions as text, or functions")
    return Geometry(what, tuple(sizes), known)


def _known(found: Expression, what: str, names: Sequence[str]) -> Expression:
    odd = sorted(found.names - set(names))
    if odd:
        raise InputError(
            f"{what}, {found.text!r}, names {odd[0]}, which is neither a parameter nor a whole-number argument; "
            f"there is {', '.join(names)}"
        )
    return found


def parameters_of(given: Space | Mapping[str, Sequence[Any]]) -> tuple[Parameter, ...]:
    """The parameters with their values; InputError for names that are no macros and values that cannot be stored."""
    if isinstance(given, Space):
        return given.parameters
    found = []
    for name, values in given.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise InputError(f"the parameter {name!r} cannot be a macro; use letters, digits and _")
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray | range) or not len(values):
            raise InputError(f"the parameter {name} needs a list of values, at least one")
        found.append(Parameter(name, tuple(_value(name, v) for v in values), "a macro"))
        if len(set(found[-1].values)) != len(found[-1].values):
            raise InputError(f"the parameter {name} has a value twice")
    return tuple(found)


def _value(name: str, value: Any) -> Value:
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return int(value)
    if isinstance(value, str) and "\n" not in value and "\\" not in value:
        return value
    raise InputError(f"{value!r} cannot be a value of {name}; use whole numbers and texts of one line, as '0.5f'")


def constraints_of(given: Sequence[Condition], parameters: Sequence[str], known: Mapping[str, int]) -> list[Constraint]:
    """Conditions on configurations; InputError for an expression that names nothing there is."""
    found = []
    for n, condition in enumerate(given, 1):
        if isinstance(condition, Constraint):
            found.append(condition)
        elif isinstance(condition, str):
            found.append(
                _condition(
                    _known(expression(condition, f"constraint {n}"), f"constraint {n}", (*parameters, *known)), known
                )
            )
        elif callable(condition):
            found.append(Constraint(getattr(condition, "__name__", "a function"), condition))
        else:
            raise InputError(f"constraint {n} is {condition!r}; give a text or a function of the configuration")
    return found


def _condition(found: Expression, known: Mapping[str, int]) -> Constraint:
    return Constraint(found.text, lambda c: bool(found(lambda name: known[name] if name in known else c[name])))


def launchable(device: Device, whole: Geometry, group: Geometry | None) -> list[Constraint]:
    """What a device asks of any launch."""
    positive = Constraint("the global size is positive", lambda c: min(whole(c)) > 0)
    if group is None:
        return [positive]
    most = device.target.max_work_group

    def divides(c: Configuration) -> bool:
        sizes, groups = whole(c), group(c)
        if len(sizes) != len(groups):
            raise InputError(f"{whole.what} has {len(sizes)} sizes, but {group.what} has {len(groups)}")
        return all(n % max(g, 1) == 0 for n, g in zip(sizes, groups, strict=True))

    return [
        positive,
        Constraint(f"a work-group has 1 to {most} work-items on {device.name}", lambda c: _fits(group(c), most)),
        Constraint("the work-group divides the global size", divides),
    ]


def _fits(group: tuple[int, ...], most: int) -> bool:
    return min(group) > 0 and math.prod(group) <= most


def check_not_empty(kernel: str, space: Space, grid: Grid) -> None:
    """InputError with the most frequent reason if no configuration is legal."""
    if len(grid.rows):
        return
    step = max(1, space.raw_size // _EXAMINED)
    points = (space.point(n) for n in range(0, space.raw_size, step))
    reasons = Counter(space.violated(p) or "" for p in points)
    reason, _ = reasons.most_common(1)[0]
    raise InputError(f"no configuration of kernel {kernel} is legal; what most of them violate: {reason}")


__all__ = [
    "Condition",
    "Geometry",
    "Sizes",
    "check_not_empty",
    "constraints_of",
    "geometry",
    "launchable",
    "parameters_of",
]
