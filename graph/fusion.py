"""Fusion by composing Programs: pointwise consumers into producers, pointwise producers into reductions.

A step is absorbed by an earlier one (an epilogue: bias, activation, ``x * sigmoid(x)``, the residual sum whose other
operand is there already) if the values between them are read by nothing else; views in between are no obstacle where
the earlier step can make what they see. A pointwise step is absorbed by a later
one (a prologue) only where each of its elements is read once, so that nothing is computed twice.

A product with weights that are the softmax of a product is one step with all that leads to these weights, where the
`attention` family recognises it: the scores are then never in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.attention_form import recognise
from tilewright.dsl.program import (
    Expr,
    Inside,
    Program,
    Read,
    Reduce,
    Tensor,
    all_indices,
    children,
    walk,
)
from tilewright.graph.chains import with_chains
from tilewright.graph.composing import MAX_NESTING, Work, all_of, composed, is_map, item_at, maker, nesting
from tilewright.graph.dimensions import made_through, split_dimension, splits
from tilewright.graph.steps import Item, Steps, ViewStep
from tilewright.ops import View

MAX_MEMBERS = 12
"""Steps that one step absorbs at most."""


def fuse(steps: Steps) -> Steps:
    """The same network with steps composed where that saves traffic with memory and repeats no work."""
    return with_chains(_with_prologues(_with_attention(_with_epilogues(steps))))


# --- epilogues --------------------------------------------------------------------------------------------------------


def _with_epilogues(steps: Steps) -> Steps:
    work = Work(steps, list(steps.steps))
    for position, step in enumerate(steps.steps):
        if isinstance(work.items[position], Item) and work.items[position] is step:
            _push_views(work, position)
            members = _closing_members(work, position)
            if members:
                item = _composed_epilogue(work, position, members)
                if item is not None:
                    work.absorb(position, members, item)
    return work.finished()


def _closing_members(work: Work, position: int) -> list[int]:
    """The longest run of readers that `position` can absorb with one value left for others to read."""
    step = work.items[position]
    assert step is not None
    live = {work.steps.written(step)}
    members: list[int] = []
    best: list[int] = []
    while len(members) < MAX_MEMBERS:
        waiting = sorted({r for value in live for r in work.readers(value)} - set(members))
        if not waiting or not _is_epilogue(work, position, waiting[0], members):
            return best
        if any(value in work.steps.graph.output_names for value in live):
            return best
        reader = work.items[waiting[0]]
        assert reader is not None
        members.append(waiting[0])
        live.add(work.steps.written(reader))
        live = {v for v in live if set(work.readers(v)) - set(members) or v in work.steps.graph.output_names}
        live.add(work.steps.written(reader))
        if len(live) == 1:
            best = list(members)
    return best


def _push_views(work: Work, position: int) -> None:
    """Let a step make what views see of its output, where a pointwise step that it can absorb reads just that."""
    item = item_at(work, position)
    value, members, views = work.steps.written(item), list[int](), list[View]()
    while True:
        readers = work.readers(value)
        step = work.items[readers[0]] if len(readers) == 1 else None
        if not isinstance(step, ViewStep) or value in work.steps.graph.output_names:
            break
        members.append(readers[0])
        views += step.views
        value = step.output
    wanted = members and value not in work.steps.graph.output_names
    if wanted and readers and _closes(work, {value}, position, readers[0]):
        made = made_through(item, views, value, work.steps.references)
        if made is not None:
            work.absorb(position, members, made)


def _is_epilogue(work: Work, position: int, reader: int, members: Sequence[int]) -> bool:
    """Whether a reader is pointwise over the group's own values, and its other operands are there before the group."""
    own = {work.steps.written(step) for p in (position, *members) if (step := work.items[p]) is not None}
    return _closes(work, own, position, reader)


def _closes(work: Work, own: Collection[str], position: int, reader: int) -> bool:
    """Whether a reader is pointwise over these values, and its other operands are there before `position`."""
    item = work.items[reader]
    if not isinstance(item, Item) or not is_map(item.program):
        return False
    statement = item.program.statements[0]
    here = tuple(Affine.index(i.name) for i in statement.indices)
    for e in walk(statement.value):
        if isinstance(e, Read | Inside) and work.steps.references[e.tensor].value in own:
            if isinstance(e, Inside) or e.index != here:
                return False
            if item.program.tensors[e.tensor].shape != item.output.shape:
                return False
    others = [v for v in work.steps.read(item) if v not in own]
    return all(work.available(v) < position for v in others)


def _composed_epilogue(work: Work, position: int, members: Sequence[int]) -> Item | None:
    items = [work.items[p] for p in (position, *members)]
    found = [i for i in items if isinstance(i, Item)]
    shape = found[0].output.shape
    seen = [found[0]]
    for item in found[1:]:
        cuts = splits(item.output.shape, shape)
        if cuts is None:
            return None
        fitted = item.program
        for d, factors in cuts:
            fitted = split_dimension(fitted, d, factors, work.steps.references)
        seen.append(replace(item, program=fitted))
    return composed(seen, work.steps.references)


# --- prologues --------------------------------------------------------------------------------------------------------


def _with_prologues(steps: Steps) -> Steps:
    work = Work(steps, list(steps.steps))
    for position in range(len(work.items)):
        item = work.items[position]
        if not isinstance(item, Item) or not is_map(item.program):
            continue
        value = steps.written(item)
        readers = work.readers(value)
        if len(readers) != 1 or value in steps.graph.output_names:
            continue
        reader = work.items[readers[0]]
        if isinstance(reader, Item) and _reads_each_once(reader.program, item.output):
            whole = composed([item, reader], steps.references)
            if nesting(whole.program) <= MAX_NESTING:
                work.absorb(readers[0], [position], whole)
    return work.finished()


def _reads_each_once(program: Program, tensor: Tensor) -> bool:
    """Whether the program reads every element of `tensor` exactly once."""
    found = [
        (s, e)
        for s in program.statements
        for e in walk(s.value)
        if isinstance(e, Read | Inside) and e.tensor == tensor.name
    ]
    if len(found) != 1 or isinstance(found[0][1], Inside):
        return False
    statement, read = found[0]
    singles = [a.single for a, n in zip(read.index, tensor.shape, strict=True) if n != 1]
    extent = {i.name: i.extent for i in all_indices(statement) if i.extent != 1}
    sizes = [n for n in tensor.shape if n != 1]
    return len(singles) == len(extent) and {name: n for name, n in zip(singles, sizes, strict=True)} == extent


# --- attention --------------------------------------------------------------------------------------------------------


def _with_attention(steps: Steps) -> Steps:
    work = Work(steps, list(steps.steps))
    for position, step in enumerate(steps.steps):
        if not isinstance(step, Item) or work.items[position] is not step or len(step.program.statements) != 1:
            continue
        if not any(isinstance(e, Reduce) for e in walk(step.program.statements[0].value)):
            continue  # nothing is summed with weights
        for weights in step.program.inputs:
            found = _weighted(work, position, weights)
            if found is not None:
                work.absorb(position, *found)
                _absorb_scaling(work, position)
                break
    return work.finished()


def _weighted(work: Work, position: int, weights: Tensor) -> tuple[list[int], Item] | None:
    """The steps behind the weights that the step at `position` sums with, and all composed; None if it does not.

    Steps join, the nearest first, if they make something of the size of the weights, or of one number per row of
    them, that no other step reads.
    """
    group = [position]
    at = maker(work, weights, group)
    while at is not None and len(group) <= MAX_MEMBERS:
        group.append(at)
        item = all_of(work, group)
        found = recognise(item.program)
        if not isinstance(found, str) and found.dot is not None:
            return sorted(group)[:-1], item
        inputs = [t for p in group[1:] for t in item_at(work, p).program.inputs]
        rows = {weights.size} | {weights.size // n for n in weights.shape if n}
        at = max((p for t in inputs if t.size in rows and (p := maker(work, t, group)) is not None), default=None)
    return None


def _absorb_scaling(work: Work, position: int) -> None:
    """Let the step at `position` do the scaling of its own operands, as far as that leaves keys and values plain."""
    tried: set[int] = set()
    while True:
        item = item_at(work, position)
        made = {p for t in item.program.inputs if (p := maker(work, t, [position])) is not None}
        candidates = sorted(p for p in made - tried if is_map(item_at(work, p).program))
        if not candidates:
            return
        tried.add(candidates[0])
        whole = all_of(work, [candidates[0], position])
        seen, now = recognise(item.program), recognise(whole.program)
        assert not isinstance(seen, str)
        beside = {r.tensor for r in _beside_products(seen.score)}
        if item_at(work, candidates[0]).output.name in beside or isinstance(now, str):
            continue
        if isinstance(now.keys, Read) and isinstance(now.values, Read):
            work.absorb(position, [candidates[0]], whole)


def _beside_products(e: Expr) -> list[Read]:
    """Reads that are not within a reduction."""
    if isinstance(e, Reduce):
        return []
    own = [e] if isinstance(e, Read) else []
    return own + [r for c in children(e) for r in _beside_products(c)]
