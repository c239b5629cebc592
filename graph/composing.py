"""Steps that become one: who makes and reads each value while steps are being fused, and composing their Programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tilewright.dsl import compose, precision
from tilewright.dsl.program import Program, Reduce, Tensor, children, walk
from tilewright.graph.steps import Item, References, Step, Steps, merged

MAX_NESTING = 100
"""Levels of an expression up to which steps are taken in, one after the other: stacks are not endless."""


def is_map(program: Program) -> bool:
    """True for one statement without a reduction."""
    return len(program.statements) == 1 and not any(isinstance(e, Reduce) for e in walk(program.statements[0].value))


@dataclass
class Work:
    """The steps while they are being fused: who makes and who reads each value, by position."""

    steps: Steps
    items: list[Step | None]

    def __post_init__(self) -> None:
        self.made_at: dict[str, int] = {}
        self.read_at: dict[str, list[int]] = {}
        for position, step in enumerate(self.items):
            if step is not None:
                self.made_at[self.steps.written(step)] = position
                for value in self.steps.read(step):
                    self.read_at.setdefault(value, []).append(position)

    def available(self, value: str) -> int:
        """The position after which a value is there; -1 for inputs and constants."""
        return self.made_at.get(value, -1)

    def readers(self, value: str) -> list[int]:
        """Positions of the steps that read a value."""
        return self.read_at.get(value, [])

    def absorb(self, position: int, members: Sequence[int], item: Item) -> None:
        """Put `item` at `position` in place of the step there and of the members."""
        gone = [position, *members]
        for p in gone:
            step = self.items[p]
            assert step is not None
            for value in self.steps.read(step):
                self.read_at[value].remove(p)
            self.made_at.pop(self.steps.written(step), None)
            self.items[p] = None
        self.items[position] = item
        self.made_at[self.steps.written(item)] = position
        for value in self.steps.read(item):
            self.read_at.setdefault(value, []).append(position)
            self.read_at[value].sort()

    def finished(self) -> Steps:
        return replace(self.steps, steps=tuple(s for s in self.items if s is not None))


def composed(items: Sequence[Item], references: References) -> Item:
    """One item that computes all in order; only the last one's output remains."""
    programs = [i.program for i in items]
    made: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    pads: Mapping[str, float] = {t.name: t.pad for p in programs for t in p.inputs if t.pad}
    for p in programs:
        for t in p.inputs:
            if t.name not in made and (t.name not in inputs or t.pad):
                inputs[t.name] = t
        made.update({t.name: t for t in p.outputs})
    last = programs[-1].outputs
    hidden = {t.name: references.inner() for t in made.values() if t.name != last[0].name}
    whole = Program(
        "_".join(dict.fromkeys(p.name for p in programs)),
        tuple(inputs.values()),
        last,
        tuple(s for p in programs for s in p.statements),
        (
            *(replace(t, pad=pads.get(t.name, 0.0)) for t in made.values() if t.name in hidden),
            *(t for p in programs for t in p.intermediates),
        ),
        tuple(h for p in programs for h in p.hints),
        tuple(x for p in programs for x in p.limits),
        precision=precision.composed(*programs),
    )
    program = merged(_inlined(compose.rename(whole, hidden)))
    ops = tuple(op for i in items for op in i.ops)
    return Item(program, ops, tuple(dict.fromkeys(s for i in items for s in i.sources)))


def _inlined(program: Program) -> Program:
    """Inlining until nothing changes: one pass cannot see readers that it brings together."""
    while True:
        smaller = compose.inline(program)
        if len(smaller.statements) == len(program.statements):
            return smaller
        program = smaller


def item_at(work: Work, position: int) -> Item:
    item = work.items[position]
    assert isinstance(item, Item)
    return item


def all_of(work: Work, group: Sequence[int]) -> Item:
    return composed([item_at(work, p) for p in sorted(group)], work.steps.references)


def maker(work: Work, tensor: Tensor, group: Sequence[int]) -> int | None:
    """The position of the step that makes just this tensor for the group alone, if it is not in the group."""
    value = work.steps.references[tensor.name].value
    at = work.available(value)
    step = work.items[at] if at >= 0 else None
    if not isinstance(step, Item) or at in group or step.output.name != tensor.name:
        return None
    if value in work.steps.graph.output_names or set(work.readers(value)) - set(group):
        return None
    return at


def nesting(program: Program) -> int:
    """Levels of the most nested expression."""
    deepest, waiting = 0, [(s.value, 1) for s in program.statements]
    while waiting:
        e, level = waiting.pop()
        deepest = max(deepest, level)
        waiting += [(c, level + 1) for c in children(e)]
    return deepest
