"""What building and running a plan takes, as plain data: launches, memory and where constants come from.

A recipe is made from the planned calls of a network (`plan.py`) or read from disk (`plan_store.py`). Nothing here knows
Programs, operators or ONNX, so that a plan that is kept needs none of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Launch, Scratch
from tilewright.graph.checks import Checks
from tilewright.graph.memory import Arenas, Lifetime


class Role(Enum):
    """What a buffer is for."""

    INPUT = "input"
    """Written by the caller before each run."""
    OUTPUT = "output"
    """Read by the caller after each run."""
    CONSTANT = "constant"
    """Written once."""
    TEMPORARY = "temporary"
    """Written and read within a run."""


@dataclass(frozen=True, eq=False)
class BufferSpec:
    """A piece of device memory that tensors of calls lie in."""

    name: str
    dtype: DType
    size: int
    """Elements."""
    role: Role
    shape: tuple[int, ...] = ()
    """Shape of what the caller hands in or gets (row-major); for inputs and outputs."""
    content: np.ndarray | None = None
    """A constant's elements, in the order in which they lie in memory; None for what is computed ahead of runs."""
    key: object = None
    """Constants of equal key (not None) have equal content and may share memory between plans."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Label:
    """What profiles say of a call."""

    ops: tuple[str, ...]
    sources: tuple[str, ...]
    """Names of the network's nodes that it belongs to."""
    family: str
    configuration: str
    origin: str
    """Why this configuration: tuned, nearest shape, default."""
    operations: int
    """Arithmetic operations of one run."""
    bytes_moved: int
    """Bytes that it reads and writes at least."""

    @property
    def text(self) -> str:
        """The operators, and the names of the first and last of their nodes."""
        ops = "+".join(self.ops)
        if not self.sources:
            return ops
        names = self.sources[0] if len(self.sources) == 1 else f"{self.sources[0]}..{self.sources[-1]}"
        return f"{ops} {names}"


@dataclass(frozen=True, eq=False)
class Step:
    """One call."""

    label: Label
    launches: tuple[Launch, ...]
    scratch: tuple[Scratch, ...]
    arguments: Mapping[str, str]
    """Buffer name by kernel argument."""
    ahead: frozenset[int]
    """Positions of the launches that depend on constants alone and run once."""
    constants: Mapping[str, str]
    """Those of the arguments that are constants of the network, in the order of the call's inputs."""


@dataclass(frozen=True, eq=False)
class StepLaunch:
    """One launch of every run."""

    step: Step
    launch: Launch
    arguments: Mapping[str, str]
    """Buffer name by kernel argument."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """All of a plan but the device's objects."""

    buffers: Mapping[str, BufferSpec]
    """Inputs, outputs and constants; they also keep the arrays alive by whose identity memory is shared."""
    steps: tuple[Step, ...]
    temporaries: tuple[Lifetime, ...]
    arenas: Arenas
    checks: Checks

    @cached_property
    def launches(self) -> tuple[StepLaunch, ...]:
        """The launches of every run, in order: all that do not run ahead."""
        return tuple(
            StepLaunch(s, launch, {a: s.arguments[a] for a in launch.arguments})
            for s in self.steps
            for n, launch in enumerate(s.launches)
            if n not in s.ahead
        )


def packed_key(buffers: Mapping[str, BufferSpec], step: Step, scratch: str) -> object:
    """Equal for scratch that the same launches fill from the same constants; None if that cannot be told."""
    keys = tuple(buffers[name].key for name in step.constants.values())
    if None in keys:
        return None
    sources = tuple(step.launches[n].source for n in sorted(step.ahead))
    told = repr((sources, tuple(step.constants), keys, scratch))
    return "packed", hashlib.sha256(told.encode()).hexdigest()


def with_packed_constants(recipe: Recipe) -> Recipe:
    """The recipe with results of launches ahead of all runs as constants, whose content the device has.

    The same recipe where there are no such launches, or results that nothing can tell from others.
    """
    used = {name for p in recipe.launches for name in p.arguments.values()}
    buffers = {n: s for n, s in recipe.buffers.items() if s.role is not Role.CONSTANT or n in used}
    steps = []
    for step in recipe.steps:
        written = {w for n in step.ahead for w in step.launches[n].writes}
        packed = [s for s in step.scratch if s.name in written and step.arguments[s.name] in used]
        for s in packed:
            name, key = step.arguments[s.name], packed_key(recipe.buffers, step, s.name)
            if key is None:
                return recipe
            buffers[name] = BufferSpec(name, s.dtype, s.size, Role.CONSTANT, (s.size,), None, key)
        steps.append(_without_ahead(step, [s.name for s in packed]))
    return replace(recipe, buffers=buffers, steps=tuple(steps))


def _without_ahead(step: Step, packed: list[str]) -> Step:
    launches = tuple(launch for n, launch in enumerate(step.launches) if n not in step.ahead)
    read = {a for launch in launches for a in launch.arguments}
    constants = {c: name for c, name in step.constants.items() if c in read} | {s: step.arguments[s] for s in packed}
    scratch = tuple(s for s in step.scratch if s.name in read and s.name not in packed)
    return replace(step, launches=launches, scratch=scratch, ahead=frozenset(), constants=constants)
