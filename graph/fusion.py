"""Fusion by composing Programs: pointwise consumers into producers, pointwise producers into reductions.

A step is absorbed by an earlier one (an epilogue: bias, activation, ``x * sigmoid(x)``, the residual sum whose other
operand is there already) if the values between them are read by nothing else. A pointwise step is absorbed by a later
one (a prologue) only where each of its elements is read once, so that nothing is computed twice.

A product with weights that are the softmax of a product is one step with all that leads to these weights, where the
`attention` family recognises it: the scores are then never in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tilewright.dsl import compose
from tilewright.dsl.affine import Affine
from tilewright.dsl.families.attention_form import recognise
from tilewright.dsl.program import (
    Expr,
    Index,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    all_indices,
    children,
    transform,
    walk,
)
from tilewright.graph.steps import Item, References, Step, Steps, merged

MAX_MEMBERS = 12
"""Steps that one step absorbs at most."""


def fuse(steps: Steps) -> Steps:
    """The same network with steps composed where that saves traffic with memory and repeats no work."""
    return _with_prologues(_with_attention(_with_epilogues(steps)))


def is_map(program: Program) -> bool:
    """True for one statement without a reduction."""
    return len(program.statements) == 1 and not any(isinstance(e, Reduce) for e in walk(program.statements[0].value))


@dataclass
class _Work:
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


# --- epilogues --------------------------------------------------------------------------------------------------------


def _with_epilogues(steps: Steps) -> Steps:
    work = _Work(steps, list(steps.steps))
    for position, step in enumerate(steps.steps):
        if isinstance(work.items[position], Item) and work.items[position] is step:
            members = _closing_members(work, position)
            if members:
                item = _composed_epilogue(work, position, members)
                if item is not None:
                    work.absorb(position, members, item)
    return work.finished()


def _closing_members(work: _Work, position: int) -> list[int]:
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


def _is_epilogue(work: _Work, position: int, reader: int, members: Sequence[int]) -> bool:
    """Whether a reader is pointwise over the group's own values, and its other operands are there before the group."""
    item = work.items[reader]
    if not isinstance(item, Item) or not is_map(item.program):
        return False
    own = {work.steps.written(step) for p in (position, *members) if (step := work.items[p]) is not None}
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


def _composed_epilogue(work: _Work, position: int, members: Sequence[int]) -> Item | None:
    items = [work.items[p] for p in (position, *members)]
    found = [i for i in items if isinstance(i, Item)]
    shape = found[0].output.shape
    seen = [found[0]]
    for item in found[1:]:
        splits = _splits(item.output.shape, shape)
        if splits is None:
            return None
        fitted = item.program
        for d, factors in splits:
            fitted = split_dimension(fitted, d, factors, work.steps.references)
        seen.append(replace(item, program=fitted))
    return composed(seen, work.steps.references)


def _splits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[tuple[int, tuple[int, int]]] | None:
    """Splittings of one dimension into two, to be done in this order, that lead from `shape` to `wanted`; or None."""
    groups = _groups(shape, wanted)
    if groups is None:
        return None
    result, d = [], 0
    for count in groups:
        for inner in range(d, d + count - 1):
            result.append((inner, (wanted[inner], math.prod(wanted[inner + 1 : d + count]))))
        d += count
    return result


def _groups(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many dimensions of `wanted` make up each dimension of `shape`, or None if they do not."""
    if not shape:
        return None if wanted else ()
    for count in range(1, len(wanted) - len(shape) + 2):
        if math.prod(wanted[:count]) == shape[0]:
            rest = _groups(shape[1:], wanted[count:])
            if rest is not None:
                return (count, *rest)
    return None


def split_dimension(program: Program, d: int, factors: tuple[int, int], references: References) -> Program:
    """A pointwise program with output dimension d seen as two: its tensors are read under their split shapes.

    The index of that dimension must occur bare wherever a tensor is read.
    """
    statement = program.statements[0]
    old = statement.indices[d]
    outer, inner = Index(f"{old.name}_o", factors[0]), Index(f"{old.name}_i", factors[1])
    tensors: dict[str, Tensor] = {}

    def split(t: Tensor, at: int) -> Tensor:
        shape = (*t.shape[:at], *factors, *t.shape[at + 1 :])
        return Tensor(references.name(references[t.name].value, shape), t.dtype, shape, pad=t.pad)

    def change(e: Expr) -> Expr:
        if isinstance(e, IndexValue) and old.name in e.index.names:
            total = Affine.index(outer.name) * factors[1] + Affine.index(inner.name)
            return replace(e, index=e.index.substitute({old.name: total}))
        if not isinstance(e, Read):
            return e
        t = program.tensors[e.tensor]
        at = next((n for n, a in enumerate(e.index) if a.single == old.name), None)
        if at is None:
            tensors[t.name] = t
            return e
        new = split(t, at)
        tensors[new.name] = new
        index = (*e.index[:at], Affine.index(outer.name), Affine.index(inner.name), *e.index[at + 1 :])
        return replace(e, tensor=new.name, index=index)

    value = transform(statement.value, change)
    output = split(program.outputs[0], d)
    indices = (*statement.indices[:d], outer, inner, *statement.indices[d + 1 :])
    return replace(
        program,
        inputs=tuple(tensors.values()),
        outputs=(output,),
        statements=(Statement(output.name, indices, value),),
    )


# --- prologues --------------------------------------------------------------------------------------------------------


def _with_prologues(steps: Steps) -> Steps:
    work = _Work(steps, list(steps.steps))
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
            work.absorb(readers[0], [position], composed([item, reader], steps.references))
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
    work = _Work(steps, list(steps.steps))
    for position, step in enumerate(steps.steps):
        if not isinstance(step, Item) or work.items[position] is not step or len(step.program.statements) != 1:
            continue
        for weights in step.program.inputs:
            found = _weighted(work, position, weights)
            if found is not None:
                work.absorb(position, *found)
                _absorb_scaling(work, position)
                break
    return work.finished()


def _weighted(work: _Work, position: int, weights: Tensor) -> tuple[list[int], Item] | None:
    """The steps behind the weights that the step at `position` sums with, and all composed; None if it does not.

    Steps join, the nearest first, if they make something of the size of the weights, or of one number per row of
    them, that no other step reads.
    """
    group = [position]
    at = _maker(work, weights, group)
    while at is not None and len(group) <= MAX_MEMBERS:
        group.append(at)
        item = _all_of(work, group)
        found = recognise(item.program)
        if not isinstance(found, str) and found.dot is not None:
            return sorted(group)[:-1], item
        inputs = [t for p in group[1:] for t in _item(work, p).program.inputs]
        rows = {weights.size} | {weights.size // n for n in weights.shape}
        at = max((p for t in inputs if t.size in rows and (p := _maker(work, t, group)) is not None), default=None)
    return None


def _item(work: _Work, position: int) -> Item:
    item = work.items[position]
    assert isinstance(item, Item)
    return item


def _all_of(work: _Work, group: Sequence[int]) -> Item:
    return composed([_item(work, p) for p in sorted(group)], work.steps.references)


def _maker(work: _Work, tensor: Tensor, group: Sequence[int]) -> int | None:
    """The position of the step that makes just this tensor for the group alone, if it is not in the group."""
    value = work.steps.references[tensor.name].value
    at = work.available(value)
    step = work.items[at] if at >= 0 else None
    if not isinstance(step, Item) or at in group or step.output.name != tensor.name:
        return None
    if value in work.steps.graph.output_names or set(work.readers(value)) - set(group):
        return None
    return at


def _absorb_scaling(work: _Work, position: int) -> None:
    """Let the step at `position` do the scaling of its own operands, as far as that leaves keys and values plain."""
    tried: set[int] = set()
    while True:
        item = _item(work, position)
        made = {p for t in item.program.inputs if (p := _maker(work, t, [position])) is not None}
        candidates = sorted(p for p in made - tried if is_map(_item(work, p).program))
        if not candidates:
            return
        tried.add(candidates[0])
        whole = _all_of(work, [candidates[0], position])
        seen, now = recognise(item.program), recognise(whole.program)
        assert not isinstance(seen, str)
        beside = {r.tensor for r in _beside_products(seen.score)}
        if _item(work, candidates[0]).output.name in beside or isinstance(now, str):
            continue
        if isinstance(now.keys, Read) and isinstance(now.values, Read):
            work.absorb(position, [candidates[0]], whole)


def _beside_products(e: Expr) -> list[Read]:
    """Reads that are not within a reduction."""
    if isinstance(e, Reduce):
        return []
    own = [e] if isinstance(e, Read) else []
    return own + [r for c in children(e) for r in _beside_products(c)]


# --- composition ------------------------------------------------------------------------------------------------------


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
