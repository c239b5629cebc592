"""Plans: a network's calls as launches with every buffer bound; the one way in which programs are executed.

Built once, a Plan holds one arena for everything that is written and read within a run, the packed constants, and the
list of launches. Which configuration a call runs with: `planned.py`; where memory comes from: `footprint.py` and
`memory.py`; what a run does: `running.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from tilewright.dsl.lowering import Launch, Scratch
from tilewright.dsl.program import Program
from tilewright.graph.calls import BufferSpec, Network, Role, network_of
from tilewright.graph.footprint import place, temporaries
from tilewright.graph.mapped import let_go
from tilewright.graph.memory import Arenas, Spot
from tilewright.graph.planned import PlannedCall, PlannedLaunch, launches_of_runs, packed_key, planned_calls
from tilewright.graph.positions import Checks
from tilewright.graph.running import Feeds, Plan, ProfileRow
from tilewright.runtime import BoundLaunch, Buffer, Context, Device, building, context
from tilewright.tuning_db import Store


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
    network: Network,
    device: Device,
    store: Store | None = None,
    shared: SharedConstants | None = None,
    checks: Checks | None = None,
) -> Plan:
    """Choose a configuration for every call, lay out memory, build the kernels, and run once what needs no input.

    ``shared`` keeps constants on the device for several plans of one network; ``checks`` are done in every run. Raises
    KernelError or DeviceError if the device cannot do it.
    """
    ctx = context(device)
    with building(ctx) as builds:
        calls = planned_calls(network, device, store, builds)
    builder = _Builder(network, calls, ctx, shared or SharedConstants(), checks or Checks())
    return builder.plan()


# --- building ---------------------------------------------------------------------------------------------------------


@dataclass
class _Builder:
    """Memory and launches of one plan."""

    network: Network
    calls: tuple[PlannedCall, ...]
    ctx: Context
    shared: SharedConstants
    checks: Checks
    buffers: dict[str, Buffer] = field(default_factory=dict)

    def plan(self) -> Plan:
        launches = launches_of_runs(self.calls)
        self.used = {b for p in launches for b in p.arguments.values()}
        self._fill_scratch()
        for call in self.calls:
            self._constants_of(call)
        self.buffers = {name: b for name, b in self.buffers.items() if name in self.used}
        arenas = self._place_temporaries()
        bound = [self._bound(p) for p in launches]
        self.ctx.finish()
        if any(call.ahead for call in self.calls):  # constants that were packed are not needed as they were
            self.ctx.trim()
        return Plan(self.network, self.calls, launches, bound, self.buffers, self.ctx, arenas, self.checks)

    def _bound(self, p: PlannedLaunch) -> BoundLaunch:
        """A launch with its arguments; runs set those that are inputs or outputs of the network."""
        return self.ctx.bind(p.launch, {a: self.buffers.get(b) for a, b in p.arguments.items()})

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
        keys = {w: packed_key(self.network, call, w) for w in launch.writes}
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
                    passing[name] = self._uploaded(constants[name], reuse=False)  # or all of them wait for others
                given[argument] = passing[name]
            else:
                given[argument] = self.buffers[name]
        self.ctx.enqueue([self.ctx.bind(launch, given)])

    def _uploaded(self, spec: BufferSpec, reuse: bool = True) -> Buffer:
        assert spec.content is not None
        buffer = self.ctx.allocate(spec.nbytes, reuse)
        self.ctx.write(buffer, spec.content)
        let_go(spec.content)
        return buffer

    def _place_temporaries(self) -> Arenas:
        lifetimes = temporaries(self.network, self.calls)
        splits, most = self.ctx.splits_buffers, self.ctx.device.max_allocation
        arenas = place(lifetimes, splits, self.ctx.alignment, most)
        # where parts must not overlap, those of the plan before may still be in use: such memory is not used again
        memory = [self.ctx.allocate(n, reuse=splits) for n in arenas.sizes]
        parts: dict[Spot, Buffer] = {}
        for b in sorted(lifetimes, key=lambda b: -b.nbytes):
            spot = arenas.spots[b.name]
            whole = memory[spot.arena]
            if splits:
                self.buffers[b.name] = self.ctx.view(whole, spot.offset, b.nbytes)
            else:  # one view for all that is there in turn, as large as the largest
                if spot not in parts:
                    parts[spot] = self.ctx.view(whole, spot.offset, b.nbytes) if spot.offset else whole
                self.buffers[b.name] = parts[spot]
            self.buffers |= dict.fromkeys(b.heirs, self.buffers[b.name])
        return arenas


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
