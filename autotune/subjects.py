"""What is measured: a program of the language, or a kernel that somebody else has written.

A program's inputs are random, and its results are what the reference kernels give. A foreign kernel comes with its
arguments and with what it has to make of them; both travel to the measuring process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.autotune import checking
from tilewright.autotune.checking import Bytes
from tilewright.dsl.program import Program, Tensor

Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Arguments:
    """One set of a foreign kernel's arrays, by the names of its arguments."""

    inputs: Mapping[str, Values]
    """What is only read."""
    initial: Mapping[str, Values]
    """What outputs hold before the kernel runs; those that are not named are poisoned."""
    expected: Mapping[str, Values]
    """What outputs must hold afterwards."""


@dataclass(frozen=True, eq=False)
class ForeignKernel:
    """A kernel that is not ours, with what it is tried on. It has the fields of a `Program` that the tuner looks at."""

    name: str
    text: str
    """What is tuned, for people."""
    signature: str
    """Identity of source, sizes and types."""
    structure: str
    """The same without sizes."""
    sizes: tuple[int, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    scalars: Mapping[str, np.generic]
    """Arguments that are no arrays."""
    sets: tuple[Arguments, ...]
    """Candidates are timed on the first, and their results must be right for all of them."""
    tolerances: Mapping[str, float]
    """Largest error of each output relative to the largest magnitude expected in it."""
    bytes_moved: int = 0
    operations: int = 0


Subject = Program | ForeignKernel


def scalars(subject: Subject) -> Mapping[str, np.generic]:
    """Arguments of the kernels that are no arrays."""
    return subject.scalars if isinstance(subject, ForeignKernel) else {}


def input_bytes(subject: Subject, tensor: Tensor, alignment: int, turn: int = 0) -> Bytes:
    """The whole allocation of an input, guards included, of one of the sets."""
    if isinstance(subject, ForeignKernel):
        return guarded_values(tensor, subject.sets[turn].inputs[tensor.name], alignment)
    return checking.input_bytes(subject, tensor, alignment)


def initial_bytes(subject: Subject, tensor: Tensor, alignment: int, turn: int = 0) -> Bytes | None:
    """The whole allocation of an output that the kernel also reads; None for one that it has to overwrite."""
    if not isinstance(subject, ForeignKernel) or tensor.name not in subject.sets[turn].initial:
        return None
    return guarded_values(tensor, subject.sets[turn].initial[tensor.name], alignment)


def guarded_values(tensor: Tensor, values: Values, alignment: int) -> Bytes:
    """Elements of a tensor without gaps, between guard zones."""
    offset, total = checking.guarded_bytes(tensor.span * tensor.dtype.itemsize, alignment)
    whole = np.full(total, checking.pattern(tensor.dtype), np.uint8)
    whole[offset : offset + values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return whole


def tolerance(subject: Subject, output: Tensor) -> float:
    """Largest error of an output that is allowed, relative to the largest magnitude in it."""
    if isinstance(subject, ForeignKernel):
        return subject.tolerances[output.name]
    return checking.tolerance(subject, output)


def difference(subject: Subject, output: Tensor, actual: Values, expected: Values) -> tuple[float | None, str | None]:
    """(error, what is wrong or None) of an output, see `checking.difference`."""
    if not isinstance(subject, ForeignKernel):
        return checking.difference(subject, output, actual, expected)
    if expected.size == 0:
        return 0.0, None
    return checking.within(output.name, actual, expected, subject.tolerances[output.name])


__all__ = [
    "Arguments",
    "ForeignKernel",
    "Subject",
    "difference",
    "guarded_values",
    "initial_bytes",
    "input_bytes",
    "scalars",
    "tolerance",
]
