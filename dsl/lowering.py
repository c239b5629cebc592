"""What a family produces: kernels with their launch geometry, and the memory they need beside the tensors."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dsl.dtypes import DType


@dataclass(frozen=True)
class Launch:
    """One kernel launch. Sizes are baked into the source: the only arguments are buffers, in this order.

    ``arguments`` name tensors of the Program or scratch of the Lowering.
    """

    kernel: str
    """Name of the `__kernel` function in ``source``."""
    source: str
    global_size: tuple[int, ...]
    local_size: tuple[int, ...] | None
    arguments: tuple[str, ...]
    writes: tuple[str, ...]
    """Those of the arguments that the launch writes."""
    in_place: tuple[tuple[str, str], ...] = ()
    """Pairs of a tensor that is read and one that is written which may lie in the same memory: every element is
    written once, by the work-item that has read the element at that place before, and nobody else reads it."""


@dataclass(frozen=True)
class Scratch:
    """Device memory a Lowering needs beside the Program's tensors.

    ``fill`` is a value every element must have before the first launch (the launches only read such scratch);
    None means a launch writes it before another reads it.
    """

    name: str
    dtype: DType
    size: int
    """Elements."""
    fill: float | None = None


@dataclass(frozen=True)
class Lowering:
    """Launches to run in order. A launch that reads only constant inputs may be run once ahead of the others."""

    launches: tuple[Launch, ...]
    scratch: tuple[Scratch, ...] = ()
