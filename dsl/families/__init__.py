"""Families: the ways to lower a class of single-kernel programs to OpenCL C.

A family is one object with four answers. They are asked in the order of `FAMILIES`, most special first; `naive` comes
last and fits everything, so every legal program runs.
"""

from __future__ import annotations

from typing import Protocol

from tilewright.dsl.families.contract import CONTRACT
from tilewright.dsl.families.map import MAP
from tilewright.dsl.families.naive import NAIVE
from tilewright.dsl.families.reduce import REDUCE
from tilewright.dsl.families.window import WINDOW
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration, Space
from tilewright.dsl.target import Target
from tilewright.errors import UnsupportedError


class Family(Protocol):
    """A way to lower programs."""

    name: str

    def refusal(self, program: Program, target: Target) -> str | None:
        """Why this family cannot lower the program (one clause a person can read), or None if it can."""

    def space(self, program: Program, target: Target) -> Space:
        """The configurations to search; at least one is legal."""

    def default(self, program: Program, target: Target) -> Configuration:
        """A legal configuration that should be near the best, from the program and the target alone."""

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """The kernels for one configuration of the space."""


FAMILIES: tuple[Family, ...] = (WINDOW, CONTRACT, REDUCE, MAP, NAIVE)
"""Every family, most special first. Depthwise convolution fits `contract` as well, as many products of one row."""

CHAINS: tuple[Family, ...] = ()
"""The families that compute several statements which feed each other in one kernel; `stages.split` asks them."""


def fitting(stage: Program, target: Target) -> tuple[Family, ...]:
    """The families that can lower a stage, most special first; UnsupportedError with the reason if none can."""
    found = tuple(f for f in FAMILIES if f.refusal(stage, target) is None)
    if not found:
        reason = FAMILIES[-1].refusal(stage, target)
        raise UnsupportedError(f"{stage.name} cannot run on this device: {reason}; cast to a type the device has")
    return found


def by_name(name: str) -> Family:
    """The family called `name`; UnsupportedError if there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise UnsupportedError(f"there is no family {name!r}; the families are {', '.join(f.name for f in FAMILIES)}")
