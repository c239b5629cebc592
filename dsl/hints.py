"""What an op's tuning lines mean for a space of configurations, whatever the family.

A family says of each Parameter which kind of hint it answers and for which indices or tensors (`Parameter.hint`,
`Parameter.subjects`); `narrowed` does the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from tilewright.dsl import limits
from tilewright.dsl.program import Hint, Limit, Program
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space, Value
from tilewright.dsl.target import Target
from tilewright.errors import UnsupportedError


class LineError(UnsupportedError):
    """A tuning line that leaves a family nothing."""

    def __init__(self, line: str, what: str) -> None:
        super().__init__(f"the line '{line}' leaves {what}")
        self.line = line


def narrowed(space: Space, program: Program, target: Target) -> Space:
    """The configurations that the program's `tile`, `where` and other tuning lines leave.

    A line narrows nothing if no parameter answers it, if its values are too large for a small program, or if it names
    a place that the device lacks; the result lists such lines as `unanswered`. Raises LineError, which names the line,
    if nothing is left.
    """
    if not program.hints and not program.limits:
        return space
    unanswered = []
    for hint in program.hints:
        answering = [p for p in space.parameters if answers(p, hint)]
        smaller = _with_values(space, answering, hint) if answering else None
        if smaller is None:
            unanswered.append(hint.line)
        space = smaller or space
    for limit in program.limits:
        if not limits.names(limit.condition) <= _known(space):
            unanswered.append(limit.line)
            continue
        space = space.restricted({}, (_constraint(limit, space, target),))
        if next(iter(space), None) is None:
            raise LineError(limit.line, "no configuration on this device")
    return replace(space, unanswered=tuple(dict.fromkeys(unanswered)))


def answers(p: Parameter, hint: Hint) -> bool:
    """Whether a parameter is what a hint speaks of."""
    if hint.kind == "work_group":
        return p.name == "work_group"
    return p.hint == hint.kind and hint.subject in p.subjects


def _with_values(space: Space, answering: list[Parameter], hint: Hint) -> Space | None:
    """The space with the hint's values; None if the program is too small for them."""
    for p in answering:
        words = dict(p.words)
        wanted = {words.get(str(v), v) for v in hint.values}
        left = tuple(v for v in p.values if v in wanted)
        if not left:
            if hint.kind == "stage" or (p.sized and _above(wanted, p.values)):
                return None  # a place that this kind of device lacks, or a value that larger programs have
            spelled = {value: word for word, value in p.words}
            there = ", ".join(str(spelled.get(v, v)) for v in p.values)
            raise LineError(hint.line, f"nothing to choose; {p.name} can be {there} here")
        space = space.restricted({p.name: left})
    if next(iter(space), None) is not None:
        return space
    roomy = replace(space, constraints=tuple(c for c in space.constraints if not c.sized))
    if next(iter(roomy), None) is not None:
        return None
    raise LineError(hint.line, "no configuration on this device, with the lines above")


def _above(wanted: Collection[Value], values: Collection[Value]) -> bool:
    largest = max((v for v in values if isinstance(v, int)), default=0)
    return all(isinstance(v, int) and v > largest for v in wanted)


# --- where lines ------------------------------------------------------------------------------------------------------


def _known(space: Space) -> set[str]:
    """What the space's configurations give numbers for, by the names that where lines use."""
    names = {f"{p.hint}_{s}" for p in space.parameters if p.hint for s in p.subjects}
    names |= {p.name for p in space.parameters if p.name == "work_group"}
    return names | {name for name, _ in space.measures} | {"device.local_mem", "device.max_work_group"}


def _constraint(limit: Limit, space: Space, target: Target) -> Constraint:
    fixed = {"device.local_mem": target.local_memory, "device.max_work_group": target.max_work_group}

    def holds(configuration: Configuration) -> bool:
        return limits.holds(limit.condition, fixed | _numbers(space, configuration))

    return Constraint(f"the program asks for {limit.condition}", holds)


def _numbers(space: Space, configuration: Configuration) -> dict[str, int]:
    values = {name: measure(configuration) for name, measure in space.measures}
    for p in space.parameters:
        value = configuration[p.name]
        if isinstance(value, int):
            values |= {f"{p.hint}_{s}": value for s in p.subjects if p.hint}
            if p.name == "work_group":
                values[p.name] = value
    return values


# --- the family's own choice ------------------------------------------------------------------------------------------


def nearest(space: Space, wanted: Configuration) -> Configuration:
    """The wanted configuration if the space has it, else the one that differs least from it, value by value."""
    if space.violated(wanted) is None:
        return wanted
    return min(space, key=lambda c: _distance(space, c, wanted))


def _distance(space: Space, one: Mapping[str, Value], other: Mapping[str, Value]) -> float:
    total = 0.0
    for p in space.parameters:
        a, b = one[p.name], other.get(p.name)
        if isinstance(a, int) and isinstance(b, int) and a > 0 and b > 0:
            total += max(a, b) / min(a, b) - 1
        elif a != b:
            total += 1
    return total
