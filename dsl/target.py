"""What a device can do, as plain data: families read it and ask nothing else about the device.

`runtime/targets.py` fills one in per device; tests make their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tilewright.dsl.matrix import MatrixUnit


class Shape(Enum):
    """Which lowering suits the device."""

    CPU = "cpu"
    """Few cores, wide vectors, caches: one work-item computes a register tile in vector code."""
    GPU = "gpu"
    """Many work-items in work-groups that share local memory."""


@dataclass(frozen=True)
class Handoff:
    """How work-groups of one launch wait for results of others, which OpenCL 1.2 leaves to drivers, as macros."""

    text: str
    """``TW_COUNT(counter)`` reads a counter that others change, ``TW_PAUSE()`` lets others run; ``TW_FENCE()`` orders
    what the work-group wrote before what it does next, and what it reads after what it has seen;
    ``TW_FENCE_COPIES()`` does so for copies that run by themselves; ``TW_BARRIER(n)`` holds the first n work-items."""
    some_items: bool
    """Whether there is ``TW_BARRIER``."""


@dataclass(frozen=True)
class Target:
    """A device as the generator sees it. Fields marked (guess) are not reported by OpenCL and are estimated."""

    shape: Shape
    compute_units: int
    """Cores of a CPU, multiprocessors of a GPU."""
    vector_bytes: int
    """Width of a vector register in bytes: 16 (SSE, NEON), 32 (AVX2), 64 (AVX-512); on GPUs the best load per item."""
    vector_registers: int
    """(guess) Vector registers a work-item may use before spilling: 16 or 32 on CPUs."""
    max_work_group: int
    local_memory: int
    """Bytes of local memory a work-group may use."""
    has_real_local_memory: bool
    """False where local memory is emulated in ordinary memory (CPUs)."""
    sub_group: int
    """Work-items that run in lockstep; 1 on CPUs."""
    fma: str
    """How a multiply-add is spelled: 'fma(a, b, c)' or 'a * b + c' (left to the compiler to contract)."""
    has_f16: bool
    has_f64: bool
    l1_bytes: int = 32 << 10
    """(guess) First-level data cache per core."""
    l2_bytes: int = 512 << 10
    """(guess) Second-level cache per core."""
    streaming_stores: bool = False
    """(guess) The compiler knows `__builtin_nontemporal_store`, which writes past the caches, without reading a line
    before it is written."""
    exp2: str = "exp2"
    """(guess) The function for powers of two whose relative error is at most 3e-7 and that is fastest."""
    matrix: MatrixUnit | None = None
    """Matrix instructions and what feeds them; None where there are none."""
    handoff: Handoff | None = None
    """What makes one kernel of several launches; None where there is no such thing or starting kernels is cheap."""
    build_options: str = ""

    def lanes(self, itemsize: int) -> int:
        """Elements of `itemsize` bytes in one vector register, at most 16."""
        return max(1, min(16, self.vector_bytes // itemsize))
