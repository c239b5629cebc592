"""Steps that are one chain over shared rows: normalisations and softmaxes written out in small operators.

A step that reduces rows takes in the steps that go on with what it made (the difference from the mean, its square's
mean, the quotient), and pointwise steps whose result it alone reads (the scaled and masked scores of a softmax), as
long as the `rows` family computes the whole in one kernel.
"""

from __future__ import annotations

import math

from tilewright.dsl.compose import hoist, inline
from tilewright.dsl.families.rows_chain import chain_of
from tilewright.dsl.program import Program, Reduce, Tensor, all_indices, walk
from tilewright.graph.composing import MAX_NESTING, Work, all_of, is_map, item_at, maker, nesting
from tilewright.graph.steps import Item, Steps

MAX_MEMBERS = 12
"""Steps that one step absorbs at most."""


def with_chains(steps: Steps) -> Steps:
    """The same network with steps composed that are chains over rows."""
    work = Work(steps, list(steps.steps))
    for position in range(len(work.items)):
        item = work.items[position]
        if isinstance(item, Item) and _reduces_rows(item.program):
            _take_operands(work, _take_readers(work, position))
    return work.finished()


def _reduces_rows(program: Program) -> bool:
    """Whether a program has reductions that use each element of its largest operand about once."""
    largest = max((t.size for t in program.inputs), default=0)
    found = [s for s in program.statements if any(isinstance(n, Reduce) for n in walk(s.value))]
    return bool(found) and all(math.prod(i.extent for i in all_indices(s)) <= 2 * largest for s in found)


def _take_readers(work: Work, position: int) -> int:
    """Let the step at `position` join the steps that read what it makes; returns where the whole stands."""
    group = [position]
    best: tuple[int, list[int], Item] | None = None
    while len(group) <= MAX_MEMBERS:
        live = _live(work, group)
        if len(live) == 1 and len(group) > 1 and live == {work.steps.written(item_at(work, max(group)))}:
            whole = _chained(work, group)
            if whole is None:
                break
            best = max(group), sorted(group)[:-1], whole
        waiting = sorted({r for value in live for r in work.readers(value)} - set(group))
        if not waiting or not isinstance(work.items[waiting[0]], Item) or _is_wanted(work, live):
            break
        group.append(waiting[0])
    if best is None:
        return position
    work.absorb(*best)
    return best[0]


def _live(work: Work, group: list[int]) -> set[str]:
    """The values made in the group that a step outside reads, or the network gives out, or none reads yet."""
    members = set(group)
    made = {work.steps.written(item_at(work, p)) for p in group}
    outputs = work.steps.graph.output_names
    return {v for v in made if v in outputs or not set(work.readers(v)) <= members or not work.readers(v)}


def _is_wanted(work: Work, live: set[str]) -> bool:
    """Whether the network itself gives out one of these values."""
    return any(value in work.steps.graph.output_names for value in live)


def _chained(work: Work, group: list[int]) -> Item | None:
    """The group composed, if that is a chain over rows."""
    names: dict[str, str] = {}
    for p in sorted(group):
        item = item_at(work, p)
        for t in item.program.inputs:
            # A value that is read under another shape than it was made in is not the same tensor in the composition.
            if names.get(work.steps.references[t.name].value, t.name) != t.name:
                return None
        names[work.steps.references[item.output.name].value] = item.output.name
    whole = all_of(work, group)
    if nesting(whole.program) > MAX_NESTING:
        return None
    program = hoist(inline(whole.program))
    joined = len(program.statements) == 1 and _ranges(program) == 1
    return whole if joined or not isinstance(chain_of(program), str) else None


def _ranges(program: Program) -> int:
    """How many different ranges the program's reductions run over."""
    every = (n for s in program.statements for n in walk(s.value) if isinstance(n, Reduce))
    return len({tuple(i.extent for i in n.indices) for n in every})


def _take_operands(work: Work, position: int) -> None:
    """Let the step at `position` compute pointwise operands that it alone reads."""
    tried: set[int] = set()
    while len(tried) < MAX_MEMBERS:
        item = item_at(work, position)
        if len(item.program.statements) < 2:
            return
        left = (p for t in item.program.inputs if (p := _pointwise_maker(work, t, position)) is not None)
        at = max((p for p in left if p not in tried), default=None)
        if at is None:
            return
        tried.add(at)
        whole = _chained(work, [at, position])
        if whole is not None:
            work.absorb(position, [at], whole)


def _pointwise_maker(work: Work, tensor: Tensor, position: int) -> int | None:
    at = maker(work, tensor, [position])
    return at if at is not None and is_map(item_at(work, at).program) else None
