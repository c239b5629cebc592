"""Plans: a network's calls as launches with every buffer bound; the one way in which programs are executed.

Built once, a Plan holds one arena for everything that is written and read within a run, the packed constants, and the
list of launches. `run` uploads inputs, walks the list, downloads outputs; it decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from tilewright.autotune import Choice, choose, look_up, lower
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import Program
from tilewright.errors import DeviceError
from tilewright.graph.calls import BufferSpec, Call, Network, Role, network_of
from tilewright.graph.memory import Arenas, Lifetime, assign, assign_whole
from tilewright.runtime import BoundLaunch, Buffer, Builds, Context, Device, building, context
from tilewright.tuning_db import Store

Feeds = Mapping[str, "np.ndarray[Any, Any] | Buffer"]


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


@dataclass(frozen=True)
class ProfileRow:
    """What one launch of a run took."""

    op: str
    """The network's operators that it computes, and the names of the first and last of their nodes."""
    kernel: str
    family: str
    configuration: str
    origin: str
    """Why this configuration: tuned, nearest shape, default."""
    microseconds: float
    gflops: float
    """Of the stage that the launch belongs to: its arithmetic over the time of all its launches."""
    gbytes_per_second: float
    """Likewise for the bytes that the stage reads and writes at least."""


class SharedConstants:
    """Device buffers of constants, shared by the plans of one session while any of them uses them."""

    def __init__(self) -> None:
        self._buffers: WeakValueDictionary[object, Buffer] = WeakValueDictionary()

    def get(self, key: object, make: Callable[[], Buffer]) -> Buffer:
        """The buffer of a key, made if there is none; a key of None is never shared."""
        found = None if key is None else self._buffers.get(key)
        if found is None:
            found = make()
            if key is not None:
                self._buffers[key] = found
        return found

    def known(self, key: object) -> Buffer | None:
        """The buffer of a key if some plan holds it."""
        return self._buffers.get(key)


def plan_program(program: Program, device: Device, store: Store | None = None) -> Plan:
    """A Program on its own as a plan; inputs and outputs are named by its tensors."""
    return build_plan(network_of(program, device.target), device, store)


def build_plan(
    network: Network, device: Device, store: Store | None = None, shared: SharedConstants | None = None
) -> Plan:
    """Choose a configuration for every call, lay out memory, build the kernels, and run once what needs no input.

    ``shared`` keeps constants on the device for several plans of one network. Raises KernelError or DeviceError if the
    device cannot do it.
    """
    ctx = context(device)
    with building(ctx) as builds:
        calls = _planned(network, device, store, builds)
    builder = _Builder(network, calls, ctx, shared or SharedConstants())
    return builder.plan()


# --- choosing ---------------------------------------------------------------------------------------------------------


def _planned(network: Network, device: Device, store: Store | None, builds: Builds) -> tuple[PlannedCall, ...]:
    """Every call that writes anything, with its choice and lowering; equal stages are lowered once, and then built."""
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


# --- building ---------------------------------------------------------------------------------------------------------


@dataclass
class _Builder:
    """Memory and launches of one plan."""

    network: Network
    calls: tuple[PlannedCall, ...]
    ctx: Context
    shared: SharedConstants
    buffers: dict[str, Buffer] = field(default_factory=dict)

    def plan(self) -> Plan:
        self.launches = [
            PlannedLaunch(c, launch, {a: c.arguments[a] for a in launch.arguments})
            for c in self.calls
            for n, launch in enumerate(c.lowering.launches)
            if n not in c.ahead
        ]
        self.used = {b for p in self.launches for b in p.arguments.values()}
        self._fill_scratch()
        self._place_io()
        for call in self.calls:
            self._constants_of(call)
        arenas = self._place_temporaries()
        bound = [self.ctx.bind(p.launch, {a: self.buffers[b] for a, b in p.arguments.items()}) for p in self.launches]
        self.ctx.finish()
        return Plan(self.network, self.calls, tuple(self.launches), bound, self.buffers, self.ctx, arenas)

    def _place_io(self) -> None:
        for spec in self.network.buffers.values():
            if spec.role in (Role.INPUT, Role.OUTPUT):
                self.buffers[spec.name] = self.ctx.allocate(spec.nbytes)

    def _fill_scratch(self) -> None:
        for call in self.calls:
            for s in call.lowering.scratch:
                name = call.arguments[s.name]
                if s.fill is not None and name not in self.buffers:
                    self.buffers[name] = self.shared.get(name, lambda s=s: self._filled(s))  # type: ignore[misc]

    def _filled(self, scratch: Scratch) -> Buffer:
        assert scratch.fill is not None
        buffer = self.ctx.allocate(scratch.size * scratch.dtype.itemsize)
        self.ctx.fill(buffer, scratch.fill, scratch.dtype)
        return buffer

    def _constants_of(self, call: PlannedCall) -> None:
        """Upload the call's constants and run its launches that need nothing else; keep what later runs use."""
        passing: dict[str, Buffer] = {}
        specs = {n: self.network.buffers[n] for n in call.call.buffers.values() if n in self.network.buffers}
        constants = {n: s for n, s in specs.items() if s.role is Role.CONSTANT}
        for name, spec in constants.items():
            if name in self.used and name not in self.buffers:
                self.buffers[name] = self.shared.get(spec.key, lambda spec=spec: self._uploaded(spec))  # type: ignore[misc]
        for n in sorted(call.ahead):
            self._run_ahead(call, call.lowering.launches[n], constants, passing)

    def _run_ahead(
        self, call: PlannedCall, launch: Launch, constants: Mapping[str, BufferSpec], passing: dict[str, Buffer]
    ) -> None:
        """One launch ahead of all runs, unless another plan holds its results already."""
        sizes = {s.name: s.size * s.dtype.itemsize for s in call.lowering.scratch}
        keys = {w: self._packed_key(call, w) for w in launch.writes}
        known = {w: self.shared.known(key) for w, key in keys.items() if key is not None}
        if launch.writes and all(known.get(w) is not None for w in launch.writes):
            self.buffers.update({call.arguments[w]: b for w, b in known.items() if b is not None})
            return
        for w in launch.writes:
            name = call.arguments[w]
            if name not in self.buffers:
                self.buffers[name] = self.shared.get(keys[w], lambda w=w: self.ctx.allocate(sizes[w]))  # type: ignore[misc]
        given = {}
        for argument in launch.arguments:
            name = call.arguments[argument]
            if name in constants and name not in self.buffers:
                if name not in passing:
                    passing[name] = self._uploaded(constants[name])
                given[argument] = passing[name]
            else:
                given[argument] = self.buffers[name]
        self.ctx.enqueue([self.ctx.bind(launch, given)])

    def _packed_key(self, call: PlannedCall, scratch: str) -> object:
        """Equal for scratch that the same launches fill from the same constants; None if that cannot be told."""
        names = dict(zip(call.program.tensors, call.call.program.tensors, strict=True))
        keys = tuple(self.network.buffers[call.call.buffers[names[c]]].key for c in call.constants)
        if None in keys:
            return None
        sources = tuple(call.lowering.launches[n].source for n in sorted(call.ahead))
        return sources, call.constants, keys, scratch

    def _uploaded(self, spec: BufferSpec) -> Buffer:
        assert spec.content is not None
        buffer = self.ctx.allocate(spec.nbytes)
        self.ctx.write(buffer, spec.content)
        return buffer

    def _place_temporaries(self) -> Arenas:
        sizes = {s.name: s.nbytes for s in self.network.buffers.values()}
        for call in self.calls:
            sizes.update({call.arguments[s.name]: s.size * s.dtype.itemsize for s in call.lowering.scratch})
        touched: dict[str, list[int]] = {}
        for position, p in enumerate(self.launches):
            for name in p.arguments.values():
                if name not in self.buffers:
                    touched.setdefault(name, []).append(position)
        lifetimes = [Lifetime(name, sizes[name], at[0], at[-1]) for name, at in touched.items()]
        if not self.ctx.splits_buffers:
            arenas = assign_whole(lifetimes)
            memory = [self.ctx.allocate(n) for n in arenas.sizes]
            self.buffers.update((name, memory[spot.arena]) for name, spot in arenas.spots.items())
            return arenas
        arenas = assign(lifetimes, self.ctx.alignment, self.ctx.device.max_allocation)
        memory = [self.ctx.allocate(n) for n in arenas.sizes]
        for name, spot in arenas.spots.items():
            self.buffers[name] = self.ctx.view(memory[spot.arena], spot.offset, sizes[name])
        return arenas


# --- running ----------------------------------------------------------------------------------------------------------


class Plan:
    """Launches in order with their buffers; made by `build_plan` and `plan_program`.

    Runs of one plan exclude each other; several plans may run in several threads.
    """

    def __init__(
        self,
        network: Network,
        calls: tuple[PlannedCall, ...],
        launches: tuple[PlannedLaunch, ...],
        bound: list[BoundLaunch],
        buffers: Mapping[str, Buffer],
        ctx: Context,
        arenas: Arenas,
    ) -> None:
        self.network = network  # also keeps the constants alive by whose identity buffers are shared
        self.calls = calls
        self.launches = launches
        self.device = ctx.device
        self.inputs = {s.name: s for s in network.buffers.values() if s.role is Role.INPUT}
        self.outputs = {s.name: s for s in network.buffers.values() if s.role is Role.OUTPUT}
        self.arena_bytes = sum(arenas.sizes)
        """Memory for everything that is written and read within a run."""
        self._ctx = ctx
        self._arenas = arenas
        self._buffers = dict(buffers)
        self._own = {name: self._buffers[name] for name in (*self.inputs, *self.outputs)}
        self._bound = bound
        self._users = {name: [n for n, p in enumerate(launches) if name in p.arguments.values()] for name in self._own}
        self._lock = threading.Lock()

    @property
    def lost(self) -> bool:
        """True after a fault of the device, with which the plan's buffers are gone."""
        return self._ctx.lost

    @property
    def constants(self) -> tuple[Buffer, ...]:
        """Buffers that are written once: constants as they are or packed, and filled scratch."""
        others = self._own.keys() | self._arenas.spots.keys()
        return tuple(b for name, b in self._buffers.items() if name not in others)

    @property
    def constant_bytes(self) -> int:
        """Memory for constants."""
        return sum(b.nbytes for b in self.constants)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: inputs by name (arrays of the declared shape and dtype, or device buffers) to all outputs."""
        with self._lock:
            self._hand_in(feeds, {})
            self._ctx.enqueue(self._bound)
            return {
                name: self._ctx.read(self._buffers[name], spec.shape, spec.dtype) for name, spec in self.outputs.items()
            }

    def run_on_device(self, feeds: Feeds) -> dict[str, Buffer]:
        """Run once and leave the outputs on the device, in buffers of their own."""
        with self._lock:
            given = {name: self._ctx.allocate(spec.nbytes) for name, spec in self.outputs.items()}
            self._hand_in(feeds, given)
            self._ctx.enqueue(self._bound)
            return given

    def time(self, feeds: Feeds, repeats: int, warmup: int = 1) -> list[float]:
        """Seconds per run without moving inputs and outputs."""
        with self._lock:
            self._hand_in(feeds, {})
            return self._ctx.time(self._bound, repeats, warmup)

    def time_calls(self, feeds: Feeds, repeats: int) -> list[list[float]]:
        """Seconds of each of `calls` by itself, in `repeats` samples; 0.0 where nothing is launched."""
        with self._lock:
            self._hand_in(feeds, {})
            times = []
            for call in self.calls:  # in order: a later one may overwrite what an earlier one reads
                bound = [b for b, p in zip(self._bound, self.launches, strict=True) if p.planned is call]
                times.append(self._ctx.time(bound, repeats) if bound else [0.0] * repeats)
            return times

    def profile(self, feeds: Feeds) -> list[ProfileRow]:
        """What each launch of one run takes."""
        with self._lock:
            self._hand_in(feeds, {})
            self._ctx.enqueue(self._bound)
            self._ctx.finish()
            seconds = self._ctx.profile(self._bound)
        totals: dict[int, float] = {}
        for p, s in zip(self.launches, seconds, strict=True):
            totals[id(p.planned)] = totals.get(id(p.planned), 0.0) + s
        return [_row(p, s, totals[id(p.planned)]) for p, s in zip(self.launches, seconds, strict=True)]

    def describe(self) -> str:
        """What the plan does, for people: memory, then one line per launch."""
        lines = [
            f"{len(self.launches)} launches on {self.device.name}, {self.arena_bytes / 2**20:.1f} MiB arena, "
            f"{self.constant_bytes / 2**20:.1f} MiB constants"
        ]
        for p in self.launches:
            c = p.planned
            lines.append(f"{_label(c.call)}: {c.choice.family} ({c.choice.configuration}; {c.choice.origin})")
        return "\n".join(lines)

    def _hand_in(self, feeds: Feeds, outputs: Mapping[str, Buffer]) -> None:
        """Bind buffers of the caller, upload arrays into the plan's own."""
        wanted: dict[str, Buffer] = {name: outputs.get(name, self._own[name]) for name in self.outputs}
        for name in self.inputs:
            value = feeds[name]
            wanted[name] = value if isinstance(value, Buffer) else self._own[name]
        self._rebind({name: b for name, b in wanted.items() if self._buffers[name] is not b})
        for name, spec in self.inputs.items():
            value = feeds[name]
            if not isinstance(value, Buffer):
                self._ctx.write(self._buffers[name], value)
            elif value.nbytes < spec.nbytes:
                raise DeviceError(f"input {name} needs {spec.nbytes} bytes, but its buffer has {value.nbytes}")

    def _rebind(self, changed: Mapping[str, Buffer]) -> None:
        if not changed:
            return
        self._buffers.update(changed)
        for n in sorted({n for name in changed for n in self._users[name]}):
            p = self.launches[n]
            buffers = {a: self._buffers[b] for a, b in p.arguments.items()}
            self._bound[n] = self._ctx.rebind(self._bound[n], p.launch, buffers)


def _label(call: Call) -> str:
    ops = "+".join(call.ops)
    if not call.sources:
        return ops
    names = call.sources[0] if len(call.sources) == 1 else f"{call.sources[0]}..{call.sources[-1]}"
    return f"{ops} {names}"


def _row(p: PlannedLaunch, seconds: float, stage_seconds: float) -> ProfileRow:
    c = p.planned
    rate = 1e-9 / stage_seconds if stage_seconds > 0 else 0.0
    return ProfileRow(
        _label(c.call),
        p.launch.kernel,
        c.choice.family,
        str(c.choice.configuration),
        c.choice.origin,
        seconds * 1e6,
        c.program.operations * rate,
        c.program.bytes_moved * rate,
    )


__all__ = [
    "Feeds",
    "Plan",
    "PlannedCall",
    "PlannedLaunch",
    "ProfileRow",
    "SharedConstants",
    "build_plan",
    "plan_program",
]
