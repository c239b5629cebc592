"""Squeeze-and-excitation as one step on GPUs: a pooling and the small products of what it makes.

Each by itself is a launch that costs more than its work. Steps join as long as the `squeeze` family computes the whole.
"""

from __future__ import annotations

from tilewright.dsl.families.squeeze import SQUEEZE
from tilewright.dsl.program import Program, Reduce, walk
from tilewright.dsl.stages import split
from tilewright.dsl.target import Shape, Target
from tilewright.graph.composing import Work, all_of
from tilewright.graph.steps import Item, Steps

LONGEST = 4
"""Most steps that become one."""


def with_squeezes(steps: Steps, target: Target) -> Steps:
    """The same network with such chains composed."""
    if target.shape is not Shape.GPU:
        return steps
    work = Work(steps, list(steps.steps))
    for position in range(len(work.items)):
        best: list[int] = []
        group = [position]
        while len(group) <= LONGEST and _sums(work, group[-1]) and _shrinks(work, position):
            if len(group) > 1:
                if not is_squeeze(all_of(work, group).program, target):
                    break
                best = list(group)
            readers = work.readers(work.steps.written(_item(work, group[-1])))
            if len(readers) != 1 or work.steps.written(_item(work, group[-1])) in steps.graph.output_names:
                break
            group.append(readers[0])
        if best:
            work.absorb(best[-1], best[:-1], all_of(work, best))
    return work.finished()


def _item(work: Work, position: int) -> Item:
    item = work.items[position]
    assert isinstance(item, Item)
    return item


def _sums(work: Work, position: int) -> bool:
    """Whether a step is a single statement with a reduction."""
    item = work.items[position]
    if not isinstance(item, Item) or len(item.program.statements) != 1:
        return False
    return any(isinstance(n, Reduce) for n in walk(item.program.statements[0].value))


def _shrinks(work: Work, position: int) -> bool:
    """Whether a step makes something much smaller than what it reads."""
    item = _item(work, position)
    return 4 * item.output.size <= max((t.size for t in item.program.inputs), default=0)


def is_squeeze(program: Program, target: Target) -> bool:
    """Whether the `squeeze` family computes a program as a whole."""
    stages = split(program, target)
    return len(stages) == 1 and SQUEEZE.refusal(stages[0], target) is None
