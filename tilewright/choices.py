"""What tuning chooses from, and what an op's own lines (tile, where, ...) leave of it: what `Op.space` gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tilewright.autotune.candidates import stage_space
from tilewright.dsl.space import Configuration, Parameter, Space, Value
from tilewright.dsl.text import statement_text
from tilewright.graph.plan import Plan, PlannedCall
from tilewright.runtime import Device
from tilewright.wording import row

COUNTED = 40_000
"""Points of a space that are looked at, at most, to count the legal ones; that takes about half a second."""


@dataclass(frozen=True)
class Count:
    """How many configurations are legal."""

    number: int
    exact: bool
    """False if the space is too large to look at every point: there are at least `number`."""

    def __str__(self) -> str:
        return f"{self.number:,}" if self.exact else f"at least {self.number:,}"


@dataclass(frozen=True)
class Narrowing:
    """What the op's own lines (tile, vector, where, ...) did to one parameter."""

    parameter: str
    before: tuple[Value, ...]
    after: tuple[Value, ...]


@dataclass(frozen=True)
class FamilySpace:
    """The configurations of one family for one stage."""

    family: str
    space: Space
    default: Configuration
    legal: Count
    undeclared: Space
    """The space without the op's own lines."""
    undeclared_legal: Count

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What there is to choose: name, values, meaning."""
        return self.space.parameters

    @property
    def narrowed(self) -> tuple[Narrowing, ...]:
        """The parameters with fewer values than without the op's own lines."""
        whole = {p.name: p.values for p in self.undeclared.parameters}
        return tuple(
            Narrowing(p.name, whole[p.name], p.values)
            for p in self.space.parameters
            if p.name in whole and p.values != whole[p.name]
        )

    def __str__(self) -> str:
        lines = [f"  {self.family}: {self.legal} legal of {self.space.raw_size:,} configurations"]
        if (self.legal, self.space.raw_size) != (self.undeclared_legal, self.undeclared.raw_size):
            lines[0] += f" (without the op's own lines {self.undeclared_legal} of {self.undeclared.raw_size:,})"
        narrowed = {n.parameter: n for n in self.narrowed}
        for p in self.parameters:
            values = ", ".join(map(str, p.values))
            if p.name in narrowed:
                values = f"{', '.join(map(str, narrowed[p.name].before))} -> {values or 'nothing'}"
            lines.append(row(p.name, [f"{values}: {p.meaning}"], 14))
        lines += [row("refused", [c.reason], 14) for c in self.space.constraints]
        lines += [row("without use", [line], 14) for line in self.space.unanswered]
        lines.append(row("default", [str(self.default)], 14))
        return "\n".join(lines)


@dataclass(frozen=True)
class StageChoices:
    """What tuning chooses from for one stage."""

    text: str
    families: tuple[FamilySpace, ...]
    """Those that fit, most special first."""

    @property
    def spaces(self) -> Mapping[str, Space]:
        """The spaces by family."""
        return {f.family: f.space for f in self.families}

    def __str__(self) -> str:
        return "\n".join([*(f"  {line}" for line in self.text.splitlines()), *map(str, self.families)])


@dataclass(frozen=True)
class Choices:
    """What tuning chooses from, stage by stage; its text is for people."""

    op: str
    device: str
    stages: tuple[StageChoices, ...]

    def __iter__(self) -> Iterator[StageChoices]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, number: int) -> StageChoices:
        return self.stages[number]

    def __str__(self) -> str:
        lines = [f"op {self.op} on {self.device}"]
        for n, stage in enumerate(self.stages, 1):
            lines += [f"stage {n} of {len(self.stages)}", str(stage)]
        return "\n".join(lines)


def choices(op: str, plan: Plan) -> Choices:
    """What tuning a plan would choose from."""
    return Choices(op, plan.device.name, tuple(_choices(call, plan.device) for call in plan.calls))


def _choices(call: PlannedCall, device: Device) -> StageChoices:
    stage, target = call.program, device.target
    bare = replace(stage, hints=(), limits=())
    declared, whole = stage_space(stage, target), stage_space(bare, target)
    found = []
    for candidate in declared.defaults:
        name = candidate.family
        space, undeclared = declared.spaces[name], whole.spaces.get(name, declared.spaces[name])
        legal = count_legal(space, candidate.configuration)
        same = bare == stage
        before = legal if same else count_legal(undeclared, candidate.configuration)
        found.append(FamilySpace(name, space, candidate.configuration, legal, undeclared, before))
    return StageChoices("\n".join(statement_text(s) for s in call.call.program.statements), tuple(found))


def count_legal(space: Space, known: Configuration | None = None, limit: int = COUNTED) -> Count:
    """The number of legal configurations: exact up to `limit` points, else what `limit` points spread evenly show.

    ``known`` is one that is legal.
    """
    if space.raw_size <= limit:
        return Count(sum(1 for _ in space), True)
    step = next(n for n in itertools.count(space.raw_size // limit + 1) if math.gcd(n, space.raw_size) == 1)
    points = (space.point(n * step % space.raw_size) for n in range(limit))
    number = sum(space.violated(point) is None for point in points)
    return Count(max(number, int(known is not None)), False)


__all__ = ["Choices", "Count", "FamilySpace", "Narrowing", "StageChoices", "choices", "count_legal"]
