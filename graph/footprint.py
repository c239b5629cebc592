"""How much device memory a plan takes, told from its calls alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tilewright.graph.calls import Network, Role
from tilewright.graph.memory import Arenas, Lifetime, assign, assign_apart, most_alive
from tilewright.graph.planned import PlannedCall, PlannedLaunch, launches_of_runs, packed_key


@dataclass(frozen=True)
class Footprint:
    """Bytes of device memory while a plan runs."""

    constants: int
    """Constants that runs read: as the network has them, packed, or one value all over."""
    inputs: int
    outputs: int
    temporaries: int
    """What is written and read within a run, as it was placed."""
    least: int
    """The most bytes of temporaries that are needed at one time: no placement takes less."""

    @property
    def total(self) -> int:
        """All of it, the caller's inputs and outputs included."""
        return self.constants + self.inputs + self.outputs + self.temporaries


def footprint(network: Network, calls: Sequence[PlannedCall], splits: bool, alignment: int, limit: int) -> Footprint:
    """The memory of a plan of these calls; `splits`, `alignment` and `limit` as for `place`."""
    sizes = sizes_of(network, calls)
    used = {b for p in launches_of_runs(calls) for b in p.arguments.values()}
    kept = kept_between_runs(network, calls)
    lifetimes = temporaries(network, calls)

    def of_role(role: Role) -> int:
        return sum(s.nbytes for s in network.buffers.values() if s.role is role)

    identity = _identity(network, calls, kept)
    constants = {identity.get(name, name): sizes[name] for name in used & kept}
    return Footprint(
        sum(constants.values()),
        of_role(Role.INPUT),
        of_role(Role.OUTPUT),
        sum(place(lifetimes, splits, alignment, limit).sizes),
        most_alive(lifetimes),
    )


def _identity(network: Network, calls: Sequence[PlannedCall], kept: Collection[str]) -> dict[str, object]:
    """By name, what is equal for buffers that are one in memory: constants of one key, and what is packed from them."""
    found: dict[str, object] = {s.name: s.key for s in network.buffers.values() if s.name in kept and s.key is not None}
    for c in calls:
        for w in (w for n in c.ahead for w in c.lowering.launches[n].writes):
            key = packed_key(network, c, w)
            if key is not None:
                found[c.arguments[w]] = key
    return found


def sizes_of(network: Network, calls: Sequence[PlannedCall]) -> dict[str, int]:
    """Bytes by name, of the network's buffers and of all scratch."""
    sizes = {s.name: s.nbytes for s in network.buffers.values()}
    for c in calls:
        sizes.update({c.arguments[s.name]: s.size * s.dtype.itemsize for s in c.lowering.scratch})
    return sizes


def kept_between_runs(network: Network, calls: Sequence[PlannedCall]) -> set[str]:
    """Names of what is written once: constants, filled scratch, and what launches ahead of all runs write."""
    kept = {s.name for s in network.buffers.values() if s.role is Role.CONSTANT}
    for c in calls:
        kept |= {c.arguments[s.name] for s in c.lowering.scratch if s.fill is not None}
        kept |= {c.arguments[w] for n in c.ahead for w in c.lowering.launches[n].writes}
    return kept


def temporaries(network: Network, calls: Sequence[PlannedCall]) -> list[Lifetime]:
    """When memory is needed for what is written and read within a run; what is computed in place takes none."""
    sizes, kept = sizes_of(network, calls), kept_between_runs(network, calls)
    elsewhere: Collection[str] = kept | {
        s.name for s in network.buffers.values() if s.role in (Role.INPUT, Role.OUTPUT)
    }
    touched: dict[str, list[int]] = {}
    launches = launches_of_runs(calls)
    for position, p in enumerate(launches):
        for name in p.arguments.values():
            if name not in elsewhere:
                touched.setdefault(name, []).append(position)
    return inherited({name: Lifetime(name, sizes[name], at[0], at[-1]) for name, at in touched.items()}, launches)


def inherited(alone: Mapping[str, Lifetime], launches: Sequence[PlannedLaunch]) -> list[Lifetime]:
    """Lifetimes by name, joined where a launch computes in place what begins there from what ends there."""
    found = dict(alone)
    owner = {name: name for name in alone}
    for position, p in enumerate(launches):
        used = list(p.arguments.values())
        for read, written in p.launch.in_place:
            old, new = p.arguments[read], p.arguments[written]
            if new not in found or old not in owner or used.count(old) > 1 or used.count(new) > 1:
                continue
            before, after = found[owner[old]], found[new]
            if before.last == position == after.first and before.nbytes == after.nbytes:
                heirs = (*before.heirs, new, *after.heirs)
                found[owner[old]] = replace(before, last=after.last, heirs=heirs)
                owner |= dict.fromkeys(heirs, owner[old])
                del found[new]
    return list(found.values())


def place(lifetimes: Sequence[Lifetime], splits: bool, alignment: int, limit: int) -> Arenas:
    """Spots for all; `splits` says whether parts of one buffer of the device may overlap, one used after the other."""
    found = assign(lifetimes, alignment, limit) if splits else assign_apart(lifetimes, alignment)
    return replace(found, spots={name: found.spots[b.name] for b in lifetimes for name in (b.name, *b.heirs)})
