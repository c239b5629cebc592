"""The least time that a stage can take on a device, by its measured limits."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.autotune.subjects import ForeignKernel, Subject
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Call, Reduce, walk
from tilewright.runtime.roofline import Limits


@dataclass(frozen=True)
class Bound:
    """The least time that a stage can take on a device: ``launch + max(memory, arithmetic)``."""

    bytes_moved: int
    """Each input read once, each output written once."""
    operations: int
    """Pointwise functions and reduction steps; a multiply-add is two."""
    bandwidth: float
    """Bytes per second for as many bytes as are moved."""
    rate: float
    """Operations per second of multiply-adds."""
    launch_seconds: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes_moved if self.bytes_moved else 0.0

    @property
    def memory_seconds(self) -> float:
        """The time that moving the bytes takes."""
        return self.bytes_moved / self.bandwidth

    @property
    def arithmetic_seconds(self) -> float:
        """The time that the operations take."""
        return self.operations / self.rate

    @property
    def seconds(self) -> float:
        """The bound."""
        return self.launch_seconds + max(self.memory_seconds, self.arithmetic_seconds)

    @property
    def by(self) -> str:
        """What the bound is due to for the most part: memory, arithmetic, or launch."""
        longest = max(self.memory_seconds, self.arithmetic_seconds)
        if self.launch_seconds > longest:
            return "launch"
        return "memory" if longest == self.memory_seconds else "arithmetic"


def bound_of(stage: Subject, limits: Limits) -> Bound:
    """The bound of a stage."""
    if isinstance(stage, ForeignKernel):
        computed = {t.dtype for t in stage.outputs}
    else:
        computed = {n.dtype for s in stage.statements for n in walk(s.value) if isinstance(n, Call | Reduce)}
    rate = limits.rate("f64" if DType.F64 in computed else "f32")
    moved = stage.bytes_moved
    return Bound(moved, stage.operations, limits.bandwidth(moved), rate, limits.launch_seconds)


__all__ = ["Bound", "bound_of"]
