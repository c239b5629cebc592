"""Constants that are packed anew in every run, where that takes much less memory.

A launch that packs constants runs once, ahead of all runs, and what it packed stays. Where that is larger than the
constants were (two TF32 parts of each element, or windows that Winograd transformed), a network with much arithmetic
for each weight can keep them as they were instead: the packed form is scratch then, in memory that calls take in turn.
On CPUs nothing is repacked: what is packed there has the size that it had.

Which calls do so is decided by the operations that they do for each byte that packing moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.dsl.target import Shape
from tilewright.graph.calls import Network
from tilewright.graph.footprint import footprint
from tilewright.graph.planned import PlannedCall
from tilewright.runtime import Device

WORTH_REPACKING = 192 << 20
"""(guess) Bytes of device memory from which on it is worth more launches."""
LEFT = 0.75
"""What must be left of them at most."""
GROWTH = 1.5
"""How many times the constants' bytes what is packed from them takes at least."""
OPERATIONS_PER_BYTE = 1500
"""(guess) Arithmetic of a call for each byte that its packing moves: the H100 computes 40 while it moves one, so that
packing adds less than 3 % to a call."""


def packed_in_runs(network: Network, calls: Sequence[PlannedCall], device: Device) -> tuple[PlannedCall, ...]:
    """The calls, some of which pack their constants in every run if that saves much memory."""
    kept = tuple(calls)
    cheap = {c for c in kept if _is_cheap(c)}
    if device.target.shape is not Shape.GPU or not cheap:
        return kept
    repacked = tuple(replace(c, ahead=frozenset()) if c in cheap else c for c in kept)
    whole = _needed(network, kept, device)
    if whole < WORTH_REPACKING or _needed(network, repacked, device) > LEFT * whole:
        return kept
    return repacked


def _is_cheap(planned: PlannedCall) -> bool:
    """Whether packing takes memory, and little time beside what the call computes."""
    if not planned.ahead:
        return False
    launches = [planned.lowering.launches[n] for n in planned.ahead]
    scratch = {s.name: s.size * s.dtype.itemsize for s in planned.lowering.scratch}
    tensors = {t.name: t.size * t.dtype.itemsize for t in planned.program.inputs}
    packed = sum(scratch[w] for launch in launches for w in launch.writes)
    read = sum(tensors.get(a, 0) for launch in launches for a in launch.arguments)
    if packed < GROWTH * read:
        return False
    return planned.program.operations >= OPERATIONS_PER_BYTE * (read + packed)


def _needed(network: Network, calls: Sequence[PlannedCall], device: Device) -> int:
    """Bytes of device memory with the best placement of temporaries."""
    found = footprint(network, calls, splits=True, alignment=1, limit=device.max_allocation)
    return found.total - found.temporaries + found.least
