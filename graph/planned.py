"""What a plan will run: every call with its configuration, its kernels and the memory beside its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.autotune import Choice, choose, look_up, lower
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import Program
from tilewright.graph import recipe
from tilewright.graph.calls import Call, Network
from tilewright.graph.recipe import Label, Step
from tilewright.runtime import Builds, Device
from tilewright.tuning_db import Store


@dataclass(frozen=True)
class Stage:
    """A call as the tuner and the database know it."""

    program: Program
    """With canonical names."""
    constants: tuple[str, ...]
    """Inputs of ``program`` that never change between runs."""

    @staticmethod
    def of(call: Call, network: Network) -> Stage:
        """The stage of a network's call."""
        names = _canonical_names(call)
        return Stage(call.program.canonical, tuple(names[name] for name in network.constant_inputs(call)))


def stages_of(network: Network) -> Counter[Stage]:
    """The different stages of a network, and how often each runs."""
    return Counter(Stage.of(call, network) for call in _writing(network))


def _writing(network: Network) -> list[Call]:
    """The calls that write anything."""
    return [call for call in network.calls if any(t.size for t in call.program.outputs)]


def _canonical_names(call: Call) -> dict[str, str]:
    return dict(zip(call.program.tensors, call.program.canonical.tensors, strict=True))


@dataclass(frozen=True, eq=False)
class PlannedCall:
    """One stage with the configuration that it runs with."""

    call: Call
    stage: Stage
    choice: Choice
    lowering: Lowering
    arguments: Mapping[str, str]
    """Buffer name by kernel argument."""
    ahead: frozenset[int]
    """Positions of the lowering's launches that depend on constants alone and run once."""

    @property
    def program(self) -> Program:
        """The stage's program."""
        return self.stage.program


@dataclass(frozen=True, eq=False)
class PlannedLaunch:
    """One launch of every run."""

    planned: PlannedCall
    launch: Launch
    arguments: Mapping[str, str]
    """Buffer name by kernel argument."""


def planned_calls(
    network: Network, device: Device, store: Store | None, builds: Builds | None = None
) -> tuple[PlannedCall, ...]:
    """Every call that writes anything, with its choice and lowering; equal stages are lowered once.

    ``builds`` is handed every source as soon as it is written. Nothing is asked of the device itself.
    """
    calls = _writing(network)
    stages = [Stage.of(call, network) for call in calls]
    look_up(((s.program, s.constants) for s in stages), device, store)
    lowered: dict[Stage, tuple[Choice, Lowering]] = {}
    result = []
    for number, (call, stage) in enumerate(zip(calls, stages, strict=True)):
        if stage not in lowered:
            choice = choose(stage.program, device, store, stage.constants)
            lowered[stage] = choice, lower(stage.program, device, choice)
            if builds is not None:
                for launch in lowered[stage][1].launches:
                    builds.add(launch.source)
        choice, lowering = lowered[stage]
        names = _canonical_names(call)
        arguments = {names[tensor]: buffer for tensor, buffer in call.buffers.items()}
        arguments |= {s.name: _scratch_name(number, s) for s in lowering.scratch}
        result.append(PlannedCall(call, stage, choice, lowering, arguments, _ahead(lowering, stage.constants)))
    return tuple(result)


def _scratch_name(number: int, scratch: Scratch) -> str:
    if scratch.fill is not None:
        return f"\0fill {scratch.fill!r} {scratch.dtype.value} {scratch.size}"
    return f"\0scratch {number} {scratch.name}"


def _ahead(lowering: Lowering, constants: Sequence[str]) -> frozenset[int]:
    """Launches that read constants alone and write scratch that no launch of a run writes as well."""
    scratch = {s.name for s in lowering.scratch}
    fixed = set(constants) | {s.name for s in lowering.scratch if s.fill is not None}
    found = set()
    for n, launch in enumerate(lowering.launches):
        later = {w for other in lowering.launches[n + 1 :] for w in other.writes}
        reads = set(launch.arguments) - set(launch.writes)
        if reads <= fixed and set(launch.writes) <= scratch - later and constants:
            found.add(n)
            fixed |= set(launch.writes)
    return frozenset(found)


def step_of(planned: PlannedCall, network: Network) -> Step:
    """What building and running a plan needs of a call."""
    call, choice, program = planned.call, planned.choice, planned.program
    names = dict(zip(program.tensors, call.program.tensors, strict=True))
    return Step(
        Label(
            call.ops,
            call.sources,
            choice.family,
            str(choice.configuration),
            choice.origin,
            program.operations,
            program.bytes_moved,
        ),
        planned.lowering.launches,
        planned.lowering.scratch,
        planned.arguments,
        planned.ahead,
        {c: call.buffers[names[c]] for c in planned.stage.constants},
    )


def packed_key(network: Network, planned: PlannedCall, scratch: str) -> object:
    """Equal for scratch that the same launches fill from the same constants; None if that cannot be told."""
    return recipe.packed_key(network.buffers, step_of(planned, network), scratch)


def launches_of_runs(calls: Sequence[PlannedCall]) -> tuple[PlannedLaunch, ...]:
    """The launches of every run, in order: all that do not run ahead."""
    return tuple(
        PlannedLaunch(c, launch, {a: c.arguments[a] for a in launch.arguments})
        for c in calls
        for n, launch in enumerate(c.lowering.launches)
        if n not in c.ahead
    )
