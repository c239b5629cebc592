"""What a plan will run: every call with its configuration, its kernels and the memory beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.autotune import Choice, choose, look_up, lower
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import Program
from tilewright.graph.calls import Call, Network
from tilewright.runtime import Builds, Device
from tilewright.tuning_db import Store


@dataclass(frozen=True, eq=False)
class PlannedCall:
    """One stage with the configuration that it runs with."""

    call: Call
    program: Program
    """The stage with canonical names: what the tuner and the database know it by."""
    constants: tuple[str, ...]
    """Inputs of ``program`` that never change between runs."""
    choice: Choice
    lowering: Lowering
    arguments: Mapping[str, str]
    """Buffer name by kernel argument."""
    ahead: frozenset[int]
    """Positions of the lowering's launches that depend on constants alone and run once."""


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
    calls = [call for call in network.calls if any(t.size for t in call.program.outputs)]
    names_of = [dict(zip(c.program.tensors, c.program.canonical.tensors, strict=True)) for c in calls]
    constants_of = [
        tuple(names[name] for name in network.constant_inputs(c)) for c, names in zip(calls, names_of, strict=True)
    ]
    look_up(((c.program.canonical, fixed) for c, fixed in zip(calls, constants_of, strict=True)), device, store)
    lowered: dict[tuple[Program, tuple[str, ...]], tuple[Choice, Lowering]] = {}
    result = []
    for number, (call, names, constants) in enumerate(zip(calls, names_of, constants_of, strict=True)):
        program = call.program.canonical
        key = (program, constants)
        if key not in lowered:
            choice = choose(program, device, store, constants)
            lowered[key] = choice, lower(program, device, choice)
            if builds is not None:
                for launch in lowered[key][1].launches:
                    builds.add(launch.source)
        choice, lowering = lowered[key]
        arguments = {names[tensor]: buffer for tensor, buffer in call.buffers.items()}
        arguments |= {s.name: _scratch_name(number, s) for s in lowering.scratch}
        ahead = _ahead(lowering, constants)
        result.append(PlannedCall(call, program, constants, choice, lowering, arguments, ahead))
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


def launches_of_runs(calls: Sequence[PlannedCall]) -> tuple[PlannedLaunch, ...]:
    """The launches of every run, in order: all that do not run ahead."""
    return tuple(
        PlannedLaunch(c, launch, {a: c.arguments[a] for a in launch.arguments})
        for c in calls
        for n, launch in enumerate(c.lowering.launches)
        if n not in c.ahead
    )
