"""Composing Programs: inline intermediates, fuse a producer with its consumer, give shared reductions a statement.

Fusion is composition followed by inlining: the consumer's reads of the producer's output are replaced by the
producer's expression. Two rules keep that from ever doing more work than it saves:

* a value with a reduction in it is inlined only into one statement that reads each of its elements exactly once, at
  one place (an epilogue: ``relu(sum(k) a*b + bias)``);
* a pointwise value is inlined where it is read at one place only (a prologue or a chain of pointwise operations).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.precision import composed
from tilewright.dsl.program import (
    Call,
    Const,
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
    checked_dimensions,
    children,
    extents,
    free_indices,
    reads,
    rename_reductions,
    rename_tensors,
    substitute_indices,
    transform,
    walk,
)

MAX_NODES = 400
"""Expressions larger than this are not inlined further: compilers slow down, and duplicated chains would explode."""


def fuse(producer: Program, consumer: Program, connect: Mapping[str, str], keep: tuple[str, ...] = ()) -> Program:
    """One program that computes `producer` and then `consumer`, with intermediates inlined where that pays.

    ``connect`` maps outputs of the producer to the inputs of the consumer that they feed; apart from these, tensors
    of the same name in both programs are the same tensor. Producer outputs are no longer outputs unless listed in
    ``keep``. Raises ValueError if connected tensors differ in shape or dtype.
    """
    renamed = rename(consumer, {theirs: ours for ours, theirs in connect.items()})
    made = {t.name: t for t in producer.outputs}
    for t in renamed.inputs:
        if t.name in made and (t.shape, t.dtype) != (made[t.name].shape, made[t.name].dtype):
            found = made[t.name]
            raise ValueError(f"{t.name} is {found.dtype.value}{found.shape} but read as {t.dtype.value}{t.shape}")
    pads = {t.name: t.pad for t in renamed.inputs}
    inputs = {t.name: t for t in (*producer.inputs, *(t for t in renamed.inputs if t.name not in made))}
    dropped = tuple(
        Tensor(t.name, t.dtype, t.shape, pad=pads.get(t.name, 0.0)) for t in producer.outputs if t.name not in keep
    )
    program = Program(
        f"{producer.name}_{consumer.name}",
        tuple(inputs.values()),
        (*(t for t in producer.outputs if t.name in keep), *renamed.outputs),
        (*producer.statements, *renamed.statements),
        (*producer.intermediates, *dropped, *renamed.intermediates),
        (*producer.hints, *renamed.hints),
        (*producer.limits, *renamed.limits),
        producer.fast_math or renamed.fast_math,
        composed(producer, renamed),
    )
    return inline(program)


def rename(program: Program, names: Mapping[str, str]) -> Program:
    """The same program with tensors renamed."""

    def tensors(group: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(t, name=names.get(t.name, t.name)) for t in group)

    statements = tuple(
        replace(s, target=names.get(s.target, s.target), value=rename_tensors(s.value, names))
        for s in program.statements
    )
    return replace(
        program,
        inputs=tensors(program.inputs),
        outputs=tensors(program.outputs),
        intermediates=tensors(program.intermediates),
        statements=statements,
        hints=tuple(
            replace(h, subject=names.get(h.subject, h.subject)) if h.kind == "stage" else h for h in program.hints
        ),
    )


def inline(program: Program) -> Program:
    """Replace reads of intermediates by what they hold, by the two rules above; drop the statements then dead."""
    statements = list(program.statements)
    hidden = {t.name: t for t in program.intermediates}
    position = 0
    while position < len(statements):
        made = statements[position]
        if made.target in hidden:
            readers = [n for n, s in enumerate(statements) if any(r.tensor == made.target for r in touches(s.value))]
            if not readers:
                del statements[position]
                del hidden[made.target]
                continue
            if len(readers) == 1 and _may_inline(made, statements[readers[0]]):
                statements[readers[0]] = _inlined(made, statements[readers[0]], hidden.pop(made.target))
                del statements[position]
                continue
        position += 1
    return _rebuilt(program, tuple(statements), tuple(hidden.values()))


def _rebuilt(program: Program, statements: tuple[Statement, ...], intermediates: tuple[Tensor, ...]) -> Program:
    names = {i.name for s in statements for i in all_indices(s)} | program.tensors.keys()
    return replace(
        program,
        statements=statements,
        intermediates=intermediates,
        hints=tuple(h for h in program.hints if h.subject in names or not h.subject),
    )


def touches(e: Expr) -> list[Read | Inside]:
    """All mentions of tensors below `e`, in order."""
    return [n for n in walk(e) if isinstance(n, Read | Inside)]


def _may_inline(made: Statement, reader: Statement) -> bool:
    """Whether `reader` reads `made` at one place, and only once per element if `made` reduces."""
    found = [r for r in touches(reader.value) if r.tensor == made.target]
    if any(isinstance(r, Inside) for r in found) or len({r.index for r in found}) != 1:
        return False
    if (_nodes(made.value) - 1) * len(found) + _nodes(reader.value) > MAX_NODES:
        return False
    if not any(isinstance(n, Reduce) for n in walk(made.value)):
        return True
    if any(r.tensor == made.target for n in walk(reader.value) for e in _within_indices(n) for r in reads(e)):
        return False
    index = found[0].index
    singles = [a.single for a in index]
    own = {i.name: i.extent for i in reader.indices}
    covers = (
        all(name in own for name in singles)
        and len(set(singles)) == len(singles) == len(own)
        and all(own[str(name)] == i.extent for name, i in zip(singles, made.indices, strict=True))
    )
    inside_reduction = any(
        r.tensor == made.target for n in walk(reader.value) if isinstance(n, Reduce) for r in reads(n.body)
    )
    return covers and not inside_reduction


def _within_indices(e: Expr) -> tuple[Expr, ...]:
    """What the index expressions of a read compute."""
    return children(e) if isinstance(e, Read | Inside | IndexValue) else ()


def _nodes(e: Expr) -> int:
    return 1 + sum(_nodes(c) for c in children(e))


def _inlined(made: Statement, reader: Statement, tensor: Tensor) -> Statement:
    taken = {i.name for i in all_indices(reader)}
    fresh: dict[str, str] = {}
    for i in all_indices(made):
        if i not in made.indices and i.name in taken:
            fresh[i.name] = unused(i.name, taken | set(fresh.values()))
    body = rename_reductions(made.value, fresh)
    extent = extents(reader)

    def change(node: Expr) -> Expr:
        if not isinstance(node, Read) or node.tensor != made.target:
            return node
        places = {i.name: a for i, a in zip(made.indices, node.index, strict=True)}
        value = substitute_indices(body, places)
        needed = checked_dimensions(node.index, tensor.shape, extent)
        return _guarded(value, node, tensor, needed) if needed else value

    return replace(reader, value=transform(reader.value, change))


def unused(name: str, taken: set[str]) -> str:
    """`name`, with a number behind it that makes it none of `taken`."""
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _guarded(value: Expr, read: Read, tensor: Tensor, dimensions: tuple[int, ...]) -> Expr:
    """`value` where the read it replaces lies inside the tensor, else the pad value."""
    condition: Expr | None = None
    for d in dimensions:
        at = IndexValue(read.index[d])
        for test in (
            Call("ge", (at, Const(0, DType.I32)), DType.BOOL),
            Call("lt", (at, Const(tensor.shape[d], DType.I32)), DType.BOOL),
        ):
            condition = test if condition is None else Call("and", (condition, test), DType.BOOL)
    assert condition is not None
    return Call("where", (condition, value, Const(tensor.pad, value.dtype)), value.dtype)


def hoist(program: Program) -> Program:
    """Give reductions that are the same along some loop around them a statement of their own.

    ``y[r,k] = e[r,k] / sum(j) e[r,j]`` would compute each row's sum once per k, and so would the largest element in
    ``sum(k) exp(x[r,k] - max(j) x[r,j])``. Reductions that read nothing (counts of the elements inside a window) stay:
    they cost less than the memory they would take.
    """
    work = _Hoisting(set(program.tensors))
    for s in program.statements:
        work.add(s)
    if not work.made:
        return program
    return replace(
        program, statements=tuple(work.statements), intermediates=(*program.intermediates, *work.made.values())
    )


class _Hoisting:
    """Statements as `hoist` makes them."""

    def __init__(self, taken: set[str]) -> None:
        self.statements: list[Statement] = []
        self.made: dict[str, Tensor] = {}
        self.taken = taken

    def add(self, s: Statement) -> None:
        """Add one statement, those for its repeating reductions ahead of it."""
        found = {e: own for e, own in _repeating(s.value, s.indices)}
        replaced: dict[Expr, Expr] = {}
        for reduce in sorted(found, key=str):
            own = found[reduce]
            name = f"{s.target}_{reduce.kind}"
            name = unused(name, self.taken) if name in self.taken else name
            self.taken.add(name)
            self.made[name] = Tensor(name, reduce.dtype, tuple(i.extent for i in own))
            self.add(Statement(name, own, reduce))
            replaced[reduce] = Read(name, tuple(Affine.index(i.name) for i in own), reduce.dtype)
        self.statements.append(replace(s, value=_exchanged(s.value, replaced)))


def _exchanged(e: Expr, replaced: Mapping[Expr, Expr]) -> Expr:
    return transform(e, lambda node: replaced.get(node, node)) if replaced else e


def _repeating(e: Expr, loops: tuple[Index, ...]) -> Iterator[tuple[Reduce, tuple[Index, ...]]]:
    """Outermost reductions that give the same value along a loop with more than one step, and the loops they depend on.

    ``loops`` are the indices of the output and of the reductions around `e`.
    """
    if isinstance(e, Reduce):
        free = free_indices(e)
        if reads(e) and any(i.extent > 1 and i.name not in free for i in loops):
            yield e, tuple(i for i in loops if i.name in free)
            return
        loops = (*loops, *e.indices)
    for c in children(e):
        yield from _repeating(c, loops)
