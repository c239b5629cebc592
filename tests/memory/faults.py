"""Faults planted in kernels that families generate, to see that the simulator reports each kind.

A fault edits the source of one kernel at a place that must be there, so that a change of a family that moves the place
fails the test instead of planting nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memory.programs import TARGETS, programs
from tilewright.dsl.families import by_name
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.space import Value


@dataclass(frozen=True)
class Fault:
    """A case (family, example, target, configuration) and what is changed in its source."""

    family: str
    program: str
    target: str
    values: Mapping[str, Value]
    """Of the configuration; other parameters have the family's own choice."""
    place: str
    """A text of the source; it must occur."""
    by: str
    """What stands there instead."""
    report: str
    """What the first line of a report must hold."""
    which: int = 0
    """Which occurrence is replaced."""
    watched: bool = False
    """True if only unoptimised code with a watch on uninitialised values shows it."""

    @property
    def case(self) -> dict[str, object]:
        """The case as `Simulator.run` takes it."""
        target = TARGETS[self.target]
        default = by_name(self.family).default(programs(target)[self.program], target)
        return {
            "family": self.family,
            "program": self.program,
            "target": self.target,
            "configuration": {**default, **self.values},
        }

    def planted(self, lowering: Lowering) -> Lowering:
        """The lowering with the fault in its last launch."""
        *others, last = lowering.launches
        return replace(lowering, launches=(*others, replace(last, source=self._edited(last.source))))

    def _edited(self, source: str) -> str:
        parts = source.split(self.place)
        if len(parts) <= self.which + 1:
            raise ValueError(f"the source has {self.place!r} {len(parts) - 1} times:\n{source}")
        before, after = parts[: self.which + 1], parts[self.which + 1 :]
        return self.place.join(before) + self.by + self.place.join(after)


_GEMM: Mapping[str, Value] = {
    "view": 0, "tile_m": 16, "tile_n": 16, "tile_k": 8, "item_m": 2, "item_n": 2, "pad_local": 1,
}  # fmt: skip
_BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"


DIVERGENCE = "Work-group divergence detected (barrier)"
_READ, _WRITE = "Invalid read of size 4 at {} memory", "Invalid write of size 4 at {} memory"
_RACE = "data race at {} memory"


def _gemm(place: str, by: str, report: str, which: int = 0, watched: bool = False) -> Fault:
    return Fault("contract", "gemm", "gpu", _GEMM, place, by, report, which, watched)


FAULTS: Mapping[str, Fault] = {
    "global read behind the end": _gemm("flat < 19", "flat < 20", _READ.format("global")),
    "global read before the start": _gemm("g_a[", "g_a[-1 + ", _READ.format("global")),
    "global write behind the end": _gemm("row < 19", "row < 20", _WRITE.format("global")),
    "local write out of bounds": _gemm("local_a[8][17]", "local_a[7][17]", _WRITE.format("local")),
    "local read out of bounds": _gemm("= local_a[k]", "= local_a[k + 1]", _READ.format("local")),
    "private array out of bounds": _gemm("sums[2][2]", "sums[1][2]", _WRITE.format("private"), watched=True),
    "barrier missing after loading": _gemm(_BARRIER, "", _RACE.format("local")),
    "barrier missing before loading again": _gemm(_BARRIER, "", _RACE.format("local"), 1),
    "barrier that only some reach": _gemm(_BARRIER, f"if (item < 3) {_BARRIER}", DIVERGENCE),
    "two groups write one element": _gemm("row = m0 +", "row =", _RACE.format("global")),
    "local memory read before it is written": _gemm(
        "local_b[k][at] = value;", "", "Controlflow depends on uninitialized value", watched=True
    ),
    "accumulators never set": _gemm("sums[i][j] = 0;", "", "Controlflow depends on uninitialized value", watched=True),
}
