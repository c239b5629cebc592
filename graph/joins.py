"""Joins without copies: which values are written straight into their slice of a concatenation.

A join's input lies in the join's buffer if a step makes it and no other join has taken it. A join whose inputs are a
run of another's (each step of a dense block joins all that came before) is a slice of that one altogether.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tilewright.dsl.program import Tensor
from tilewright.graph.steps import Item, JoinStep, Steps


@dataclass(frozen=True)
class Slot:
    """A range of a join along its axis."""

    join: str
    axis: int
    start: int
    size: int

    def within(self, place: Tensor) -> Tensor:
        """The slot of a join that lies at `place`."""
        shape = (*place.shape[: self.axis], self.size, *place.shape[self.axis + 1 :])
        return replace(place, shape=shape, offset=place.offset + self.start * place.strides[self.axis])


@dataclass
class Places:
    """Slots of the values that lie in joins, and the copies that fill the others."""

    slots: dict[str, Slot] = field(default_factory=dict)
    missing: dict[str, list[tuple[str, Slot]]] = field(default_factory=dict)

    def slot_of(self, value: str) -> Slot | None:
        """Where a value is written in place, None if it has a buffer of its own."""
        return self.slots.get(value)

    def copies(self, join: str) -> list[tuple[str, Slot]]:
        """What has to be copied before a join is complete: value and slot."""
        return self.missing.get(join, [])


def places_of_joins(steps: Steps) -> Places:
    """Decide for every join what is written in place and what is copied."""
    places = Places()
    joins = [s for s in steps.steps if isinstance(s, JoinStep)]
    movable = {steps.written(s) for s in steps.steps if isinstance(s, Item | JoinStep)} - steps.homes.keys()
    hosts: list[JoinStep] = []
    filled_by: dict[tuple[str, int], str] = {}
    for join in reversed(joins):
        host = _host(steps, join, hosts) if join.output in movable else None
        if host is not None:
            first, where = host
            start = sum(_size(steps, v, join.axis) for v in first.inputs[:where])
            places.slots[join.output] = Slot(first.output, join.axis, start, _size(steps, join.output, join.axis))
            for n in range(len(join.inputs)):  # its copies are needed here, earlier than for its host
                filled_by[first.output, where + n] = join.output
            continue
        hosts.append(join)
        _fill(steps, join, movable, places)
    for host_join in hosts:
        _copies(steps, host_join, places, filled_by)
    return places


def _size(steps: Steps, value: str, axis: int) -> int:
    constant = steps.graph.constants.get(value)
    shape = steps.graph.values[value].sizes if constant is None else constant.shape
    return shape[axis]


def _host(steps: Steps, join: JoinStep, hosts: list[JoinStep]) -> tuple[JoinStep, int] | None:
    """A later join that has this one's inputs as a run (and where), if it is at no risk of being written twice."""
    for other in hosts:
        if other.axis != join.axis or len(other.inputs) < len(join.inputs) or join.output in other.inputs:
            continue
        for where in range(len(other.inputs) - len(join.inputs) + 1):
            if other.inputs[where : where + len(join.inputs)] == join.inputs:
                return other, where
    return None


def _fill(steps: Steps, join: JoinStep, movable: set[str], places: Places) -> None:
    start = 0
    for value in join.inputs:
        size = _size(steps, value, join.axis)
        if value in movable and value not in places.slots and join.inputs.count(value) == 1:
            places.slots[value] = Slot(join.output, join.axis, start, size)
        start += size


def _copies(steps: Steps, join: JoinStep, places: Places, filled_by: dict[tuple[str, int], str]) -> None:
    start = 0
    for position, value in enumerate(join.inputs):
        slot = Slot(join.output, join.axis, start, _size(steps, value, join.axis))
        if places.slots.get(value) != slot:
            places.missing.setdefault(filled_by.get((join.output, position), join.output), []).append((value, slot))
        start += slot.size
