"""Families: the ways to lower a class of single-kernel programs to OpenCL C.

A family is one object with four answers. They are asked in the order of `FAMILIES`, most special first; `naive` comes
last and fits everything, so every legal program runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from tilewright.dsl.families.attention import ATTENTION
from tilewright.dsl.families.contract import CONTRACT
from tilewright.dsl.families.map import MAP
from tilewright.dsl.families.matrix import MATRIX
from tilewright.dsl.families.naive import NAIVE
from tilewright.dsl.families.reduce import REDUCE
from tilewright.dsl.families.rows import ROWS
from tilewright.dsl.families.scan import SCAN
from tilewright.dsl.families.squeeze import SQUEEZE
from tilewright.dsl.families.wgmma import WGMMA
from tilewright.dsl.families.window import WINDOW
from tilewright.dsl.families.winograd import WINOGRAD
from tilewright.dsl.hints import LineError, narrowed, nearest
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration, Space
from tilewright.dsl.target import Shape, Target
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


FAMILIES: tuple[Family, ...] = (
    ATTENTION,
    WINDOW,
    WINOGRAD,
    WGMMA,
    MATRIX,
    CONTRACT,
    REDUCE,
    ROWS,
    SQUEEZE,
    SCAN,
    MAP,
    NAIVE,
)
"""Every family, most special first. Depthwise convolution fits `contract` as well, as many products of one row."""

CHAINS: tuple[Family, ...] = (ATTENTION, ROWS, SQUEEZE)
"""The families that compute several statements which feed each other in one kernel; `stages.split` asks them."""

COMPUTING: tuple[Family, ...] = (CONTRACT,)
"""The families of contractions that compute a factor on its way from memory as fast as they read one."""


def space(family: Family, stage: Program, target: Target) -> Space:
    """A family's space as the stage's tuning lines narrow it; UnsupportedError if they leave nothing.

    A line whose values only the other kind of device has (a CPU, a GPU) narrows nothing here: it is `unanswered`.
    """
    whole = family.space(stage, target)
    if not stage.hints and not stage.limits:
        return whole
    try:
        return narrowed(whole, stage, target)
    except LineError as error:
        if not _meant_for_others(family, stage, target, error.line):
            raise
        rest = replace(
            stage,
            hints=tuple(h for h in stage.hints if h.line != error.line),
            limits=tuple(limit for limit in stage.limits if limit.line != error.line),
        )
        left = space(family, rest, target)
        return replace(left, unanswered=(*left.unanswered, error.line))


def _meant_for_others(family: Family, stage: Program, target: Target, line: str) -> bool:
    """Whether a line by itself leaves something on the other kind of device."""
    other = replace(target, shape=Shape.GPU if target.shape is Shape.CPU else Shape.CPU)
    hints = tuple(h for h in stage.hints if h.line == line)
    alone = replace(stage, hints=hints, limits=tuple(limit for limit in stage.limits if limit.line == line))
    if family.refusal(alone, other) is not None:
        return False
    try:
        return line not in narrowed(family.space(alone, other), alone, other).unanswered
    except LineError:
        return False


def default(family: Family, stage: Program, target: Target) -> Configuration:
    """A family's own choice, or what is nearest to it among what the stage's tuning lines leave."""
    wanted = family.default(stage, target)
    return nearest(space(family, stage, target), wanted) if stage.hints or stage.limits else wanted


def fitting(stage: Program, target: Target) -> tuple[Family, ...]:
    """The families that can lower a stage, most special first.

    UnsupportedError with the reason if none can, or if the stage's tuning lines leave no configuration of those that
    are meant for it.
    """
    found = tuple(f for f in _in_order(target) if f.refusal(stage, target) is None)
    if not found:
        reason = FAMILIES[-1].refusal(stage, target)
        raise UnsupportedError(f"{stage.name} cannot run on this device: {reason}; cast to a type the device has")
    return _willing(found, stage, target) if stage.hints or stage.limits else found


def _in_order(target: Target) -> tuple[Family, ...]:
    """`FAMILIES` with the better untuned choice first.

    On GPUs the stages of `winograd` go through memory; whether that pays depends on the sizes and is for the tuner.
    """
    if target.shape is Shape.CPU:
        return FAMILIES
    others = [f for f in FAMILIES if f is not WINOGRAD]
    others.insert(others.index(CONTRACT) + 1, WINOGRAD)
    return tuple(others)


def _willing(found: tuple[Family, ...], stage: Program, target: Target) -> tuple[Family, ...]:
    """Those that the tuning lines leave something of; a family that a line means nothing to is no way out of it."""
    left: dict[str, tuple[str, ...]] = {}
    refused: list[LineError] = []
    for family in found:
        try:
            left[family.name] = space(family, stage, target).unanswered
        except LineError as error:
            refused.append(error)
    for refusal in refused:
        if all(refusal.line in unanswered for unanswered in left.values()):
            raise refusal
    return tuple(f for f in found if f.name in left)


def by_name(name: str) -> Family:
    """The family called `name`; UnsupportedError if there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise UnsupportedError(f"there is no family {name!r}; the families are {', '.join(f.name for f in FAMILIES)}")
