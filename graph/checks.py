"""Positions that are looked at when a plan is run; `positions.py` says which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from tilewright.errors import InputError
from tilewright.runtime import Array, Buffer


@dataclass(frozen=True)
class Check:
    """Positions of one node; ``value`` is the graph's input that holds them, or the output that is their extent."""

    node: str
    """What messages call it."""
    value: str
    low: int
    high: int
    """The first and the last position that are allowed."""
    column: int | None = None
    """The only element of the last dimension that is a position; None if all are."""
    ignored: int | None = None
    """A number that is allowed wherever it is."""

    def verify(self, low: float, high: float) -> None:
        """InputError unless both are allowed."""
        if not (self.low <= low and high <= self.high):
            outside = low if low < self.low else high
            raise InputError(
                f"node {self.node} is given the position {outside}, "
                f"but positions from {self.low} to {self.high} are all that its input has"
            )

    def extent(self, array: np.ndarray) -> tuple[float, float]:
        """The smallest and the largest position in an array."""
        if self.column is not None:
            array = array[..., self.column]
        if self.ignored is not None:
            array = array[array != self.ignored]
        return (array.min(), array.max()) if array.size else (self.low, self.low)


@dataclass(frozen=True)
class Checks:
    """What is to be looked at when a plan is run."""

    fed: tuple[Check, ...] = ()
    """Before a run, among its inputs."""
    made: tuple[Check, ...] = ()
    """After it, among its outputs."""
    _known: WeakKeyDictionary[Buffer, set[Check]] = field(default_factory=WeakKeyDictionary)
    """Memory of Arrays, whose elements never change, and what was found to be right in it."""

    def verify_fed(self, given: Callable[[str], np.ndarray | Array]) -> None:
        """InputError for a position among the inputs that is not allowed."""
        for check in self.fed:
            array = given(check.value)
            if isinstance(array, Array):
                done = self._known.setdefault(array.buffer, set())
                if check not in done:
                    check.verify(*check.extent(array.numpy()))
                    done.add(check)
            else:
                check.verify(*check.extent(array))

    def verify_made(self, extents: Mapping[str, np.ndarray]) -> None:
        """InputError for a position that the device was given and that is not allowed."""
        for check in self.made:
            below, largest = extents[check.value].tolist()
            check.verify(-1 - below, largest)


__all__ = ["Check", "Checks"]
