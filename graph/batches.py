"""The first steps of a network for parts of a batch in turn, where that takes much less memory.

Networks of images begin with their largest values. What lies between the first steps is needed for one part of the
batch at a time then, and only what later steps read is kept for all of it: the parts are written side by side into its
buffer. Steps whose batches are still large keep a GPU as busy as before. On CPUs nothing is cut: their caches decide.

Which steps, and into how many parts, is decided by the most bytes that are alive at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from tilewright.dsl import compose
from tilewright.dsl.affine import Affine
from tilewright.dsl.program import Index, IndexValue, Inside, Program, Read, Reduce, Statement, Tensor, walk
from tilewright.dsl.target import Shape, Target
from tilewright.graph.ir import Value
from tilewright.graph.joins import places_of_joins
from tilewright.graph.steps import Item, JoinStep, Step, Steps, ViewStep
from tilewright.ops import Sliced

WORTH_CUTTING = 24 << 20
"""(guess) Bytes of temporaries from which on memory is worth more launches."""
LEFT = 0.75
"""What a cut must leave of them at most."""
MOST_MORE = 1 / 3
"""(guess) Launches more that a cut may cost, of those that there are."""
LEAST_BATCH = 16
"""Items of a batch that a part has at least."""
PARTS = (2, 4)


@dataclass(frozen=True)
class Cut:
    """The first ``steps`` steps are run for ``parts`` parts of the batch."""

    steps: int
    parts: int


def in_batches(steps: Steps, target: Target) -> Steps:
    """The network with its first steps cut, or as it was."""
    if target.shape is not Shape.GPU:
        return steps
    cut = best_cut(steps)
    return steps if cut is None else cut_in_parts(steps, cut)


def cut_in_parts(steps: Steps, cut: Cut) -> Steps:
    """The network with its first steps once for every part of the batch, and joins of what later steps read."""
    first, rest = steps.steps[: cut.steps], steps.steps[cut.steps :]
    batch = _batch(steps)
    assert batch is not None
    kept = _needed(steps, rest)
    work = _Cutting(steps, batch // cut.parts, dict(steps.graph.values))
    made = [step for part in range(cut.parts) for step in work.part(first, part)]
    joins = [
        JoinStep(value, tuple(_part_name(value, part) for part in range(cut.parts)), 0)
        for value in map(steps.written, first)
        if value in kept
    ]
    return replace(steps, graph=replace(steps.graph, values=work.values), steps=(*made, *joins, *rest))


# --- where to cut -----------------------------------------------------------------------------------------------------


def best_cut(steps: Steps) -> Cut | None:
    """The cut with the fewest launches more that saves enough, and of those the one with the least memory; or None."""
    batch = _batch(steps)
    counts = [n for n in PARTS if batch and batch % n == 0 and batch // n >= LEAST_BATCH]
    memory = _Memory.of(steps)
    whole = memory.peak(0, 1)
    if batch is None or not counts or whole < WORTH_CUTTING:
        return None
    most, more = _leading(steps, batch), int(MOST_MORE * len(steps.steps))
    found = [
        (n * (parts - 1), memory.peak(n, parts), Cut(n, parts))
        for parts in counts
        for n in range(1, min(most, more // (parts - 1)) + 1)
    ]
    return min((f for f in found if f[1] <= LEFT * whole), key=lambda f: f[:2], default=(0, 0, None))[2]


def _batch(steps: Steps) -> int | None:
    """The first size that all inputs have in common, if there is one."""
    sizes = {v.sizes[0] if v.sizes else 0 for v in steps.graph.inputs}
    return sizes.pop() if len(sizes) == 1 else None


def _leading(steps: Steps, batch: int) -> int:
    """How many steps at the start treat the items of a batch alone."""
    for n, step in enumerate(steps.steps):
        joins = isinstance(step, JoinStep) and step.axis > 0 and not steps.graph.constants.keys() & set(step.inputs)
        if not joins and not (isinstance(step, Item) and _is_alone(steps, step.program, batch)):
            return n
    return len(steps.steps)


def _is_alone(steps: Steps, program: Program, batch: int) -> bool:
    """Whether every element is computed from constants and from its own item of the batch."""
    constant = {t.name for t in program.inputs if steps.references[t.name].value in steps.graph.constants}
    led = {name for name, t in program.tensors.items() if name not in constant}
    if any(not t.shape or t.shape[0] != batch for name, t in program.tensors.items() if name in led):
        return False
    return all(_keeps_items(s, led) for s in program.statements)


def _keeps_items(statement: Statement, led: set[str]) -> bool:
    here = statement.indices[0].name
    for e in walk(statement.value):
        if isinstance(e, Reduce) and (e.until is not None and here in e.until.names):
            return False
        if isinstance(e, IndexValue) and here in e.index.names:
            return False
        if isinstance(e, Read | Inside):
            if e.tensor in led and e.index[0] != Affine.index(here):
                return False
            if any(here in a.names for a in e.index[e.tensor in led :]) or not all(a.is_linear for a in e.index):
                return False
    return True


def _needed(steps: Steps, rest: tuple[Step, ...]) -> set[str]:
    """What these steps read, and the network's outputs."""
    return set(steps.graph.output_names).union(*(steps.read(step) for step in rest))


@dataclass(frozen=True)
class _Memory:
    """Bytes and lifetimes of what has memory of its own, as they are known ahead of the layout."""

    steps: Steps
    owners: Mapping[str, str]
    """By value, the value in whose memory it lies."""
    nbytes: Mapping[str, int]

    @staticmethod
    def of(steps: Steps) -> _Memory:
        """What lies in joins, is seen through views, or overwrites what it is added to, has no memory of its own."""
        joins = places_of_joins(steps)
        owners: dict[str, str] = {}
        alone: set[str] = set()
        last = {v: n for n, step in enumerate(steps.steps) for v in steps.read(step)}
        for step in reversed(steps.steps):
            slot = joins.slot_of(steps.written(step))
            if slot is not None:
                owners[steps.written(step)] = owners.get(slot.join, slot.join)
        for n, step in enumerate(steps.steps):
            value = steps.written(step)
            if isinstance(step, ViewStep):
                owners[value] = owners.get(step.source, step.source)
            elif isinstance(step, Item) and value not in owners:
                terms = (steps.references[name].value for name in _overwritten(step.program))
                over = next((t for t in terms if last.get(t) == n and t in alone), value)
                owners[value] = owners.get(over, over)
                alone.add(value)
            owners.setdefault(value, value)
        known = steps.graph.values
        nbytes = {v: known[v].dtype.itemsize * _product(known[v].sizes) for v in owners.values() if v in known}
        for name in steps.graph.input_names | steps.graph.output_names:
            nbytes.pop(name, None)
        return _Memory(steps, owners, nbytes)

    def peak(self, count: int, parts: int) -> int:
        """The most bytes alive at a time if the first `count` steps run in parts."""
        every = self.steps.steps
        touched: dict[str, list[int]] = {}
        for n, step in enumerate(every):
            for value in (self.steps.written(step), *self.steps.read(step)):
                touched.setdefault(self.owners.get(value, value), []).append(n)
        changes = [0] * (len(every) + 1)
        for owner, at in touched.items():
            size, start = self.nbytes.get(owner, 0), at[0]
            if start < count:
                if at[-1] >= count:
                    start = 0
                else:
                    size //= parts
            changes[start] += size
            changes[at[-1] + 1] -= size
        return max(accumulate(changes))


def _overwritten(program: Program) -> Iterator[str]:
    """Terms of a sum of products that are read once, where the result is written."""
    statement = program.statements[-1]
    found = [e for e in walk(statement.value) if isinstance(e, Read | Inside)]
    here = tuple(Affine.index(i.name) for i in statement.indices)
    if len(program.statements) == 1 and any(isinstance(e, Reduce) for e in walk(statement.value)):
        for e in found:
            alone = sum(other.tensor == e.tensor for other in found) == 1
            if e.index == here and alone and program.tensors[e.tensor].shape == program.outputs[0].shape:
                yield e.tensor


def _product(sizes: tuple[int, ...]) -> int:
    found = 1
    for n in sizes:
        found *= n
    return found


# --- cutting ----------------------------------------------------------------------------------------------------------


@dataclass
class _Cutting:
    """Steps for parts of `size` items of the batch; `values` gets what they make."""

    steps: Steps
    size: int
    values: dict[str, Value]

    def part(self, first: tuple[Step, ...], part: int) -> Iterator[Step]:
        """The first steps for one part of the batch."""
        for v in self.steps.graph.inputs:
            self._known(v.name, part)
            ones = (1,) * len(v.sizes)
            starts = (part * self.size, *(0 for _ in v.sizes[1:]))
            yield ViewStep(_part_name(v.name, part), v.name, (Sliced(starts, ones, (self.size, *v.sizes[1:])),))
        for step in first:
            value = self.steps.written(step)
            self._known(value, part)
            if isinstance(step, Item):
                yield replace(step, program=self._program(step.program, part))
            elif isinstance(step, JoinStep):
                yield JoinStep(_part_name(value, part), tuple(_part_name(v, part) for v in step.inputs), step.axis)

    def _known(self, value: str, part: int) -> None:
        whole = self.steps.graph.values[value]
        name = _part_name(value, part)
        self.values[name] = Value(name, whole.dtype, (self.size, *whole.sizes[1:]))

    def _program(self, program: Program, part: int) -> Program:
        references, constants = self.steps.references, self.steps.graph.constants
        inner = {t.name for t in program.intermediates}
        names = {name: references.inner() for name in inner}
        led = set(inner)
        for name, t in program.tensors.items():
            if name not in inner and references[name].value not in constants:
                led.add(name)
                names[name] = references.name(_part_name(references[name].value, part), (self.size, *t.shape[1:]))

        def shorter(t: Tensor) -> Tensor:
            return replace(t, shape=(self.size, *t.shape[1:]), strides=()) if t.name in led else t

        def cut(s: Statement) -> Statement:
            return replace(s, indices=(Index(s.indices[0].name, self.size), *s.indices[1:]))

        made = replace(
            program,
            inputs=tuple(map(shorter, program.inputs)),
            outputs=tuple(map(shorter, program.outputs)),
            intermediates=tuple(map(shorter, program.intermediates)),
            statements=tuple(map(cut, program.statements)),
        )
        return compose.rename(made, names)


def _part_name(value: str, part: int) -> str:
    return f"{value}\0part {part}"


__all__ = ["Cut", "best_cut", "cut_in_parts", "in_batches"]
