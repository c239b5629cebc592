"""Whole-network mixed precision: f32 values stored in 16 bits between steps, everything computed in f32.

The pass runs on fused steps, so that only what lies in memory between kernels is rounded, once: a residual sum with its
activation, a softmax, a whole normalisation with its statistics. The programs say it all: reads of narrow tensors are
widened, results are rounded as they are written, and so are operands of contractions that are worked out on the way to
the product (a gate, a softmax), so that instructions for 16 bits can multiply them. Operands that lie in memory in f32,
such as the network's input, are not: TF32 is allowed for them, which has as many bits as f16.

What stays f32: the network's inputs and outputs, and what is a view of them; values that 16 bits would spoil
(`ranges.py`); constants that are no factors of contractions and smaller than the results made with them (biases, scales
and statistics of normalisations). Values of other types than f32 are left alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from tilewright.dsl import precision
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Cast, Expr, Program, Read, Reduce, Statement, Tensor, reads, transform, walk
from tilewright.graph.ranges import Ranges, exceeds
from tilewright.graph.steps import Item, Steps


@dataclass
class NarrowConstants:
    """Constants in 16 bits, made once for all plans of a session: equal arrays give the same array."""

    dtype: DType
    _made: dict[int, tuple[weakref.ref[np.ndarray], np.ndarray | None]] = field(default_factory=dict)

    def get(self, array: np.ndarray) -> np.ndarray | None:
        """The array in the narrow type, None if that cannot hold its numbers."""
        known = self._made.get(id(array))
        if known is not None and known[0]() is array:
            return known[1]
        made = None if exceeds(array, self.dtype) else array.astype(self.dtype.numpy)
        self._made[id(array)] = weakref.ref(array), made
        return made


def narrowed(steps: Steps, constants: NarrowConstants) -> Steps:
    """The same network with f32 values stored in the constants' type where that does no harm."""
    work = _Narrowing(steps, constants)
    narrow = work.narrow_values()
    made = tuple(work.item(s, narrow) if isinstance(s, Item) else s for s in steps.steps)
    graph = steps.graph
    values = {n: replace(v, dtype=constants.dtype) if n in narrow else v for n, v in graph.values.items()}
    arrays = {n: work.constant(a) if n in narrow else a for n, a in graph.constants.items()}
    return replace(steps, steps=made, graph=replace(graph, values=values, constants=arrays))


class _Narrowing:
    """One network on its way."""

    def __init__(self, steps: Steps, constants: NarrowConstants) -> None:
        self.steps = steps
        self.constants = constants
        self.dtype = constants.dtype
        self.wide: set[str] = set()
        """Values that the type may not hold."""

    def constant(self, array: np.ndarray) -> np.ndarray:
        """A constant that is known to fit."""
        found = self.constants.get(array)
        assert found is not None
        return found

    # --- which values ---

    def narrow_values(self) -> frozenset[str]:
        """The values to be stored in 16 bits; those that share memory by views and joins are so together."""
        graph = self.steps.graph
        used = {v for s in self.steps.steps for v in self.steps.read(s)}
        single = {n for n, a in graph.constants.items() if a.dtype == np.float32 and n in used}
        self.wide |= {n for n in single if self.constants.get(graph.constants[n]) is None}
        self._follow_ranges()
        candidates = self._worthwhile(single) - self.wide
        for step in self.steps.steps:
            value = self.steps.written(step)
            if value in graph.values and graph.values[value].dtype is DType.F32 and value not in self.wide:
                candidates.add(value)
        candidates -= graph.output_names
        together = _Groups()
        for step in self.steps.steps:
            if not isinstance(step, Item):
                together.join((self.steps.written(step), *self.steps.read(step)))
        return frozenset(v for v in candidates if together.members(v) <= candidates)

    def _follow_ranges(self) -> None:
        for step in self.steps.steps:
            value = self.steps.written(step)
            if isinstance(step, Item):
                if step.output.name in self._ranges(step).wide:
                    self.wide.add(value)
            elif self.wide.intersection(self.steps.read(step)):
                self.wide.add(value)

    def _ranges(self, item: Item) -> Ranges:
        inputs = item.program.inputs
        wide = (t.name for t in inputs if self.steps.references[t.name].value in self.wide)
        return Ranges.of(item.program, wide, self.dtype)

    def _worthwhile(self, constants: set[str]) -> set[str]:
        """Constants whose traffic counts: factors of contractions, what is as large as a result, parts of joins."""
        found: set[str] = set()
        for step in self.steps.steps:
            if not isinstance(step, Item):
                found |= constants.intersection(self.steps.read(step))
                continue
            factors = {r.tensor for s in step.program.statements for f in precision.factors(s) for r in reads(f)}
            for t in step.program.inputs:
                if t.name in factors or t.size >= step.output.size:
                    found |= constants & {self.steps.references[t.name].value}
        return found

    # --- programs ---

    def item(self, item: Item, narrow: frozenset[str]) -> Item:
        """The item with narrow tensors."""
        program = item.program
        names = {t.name for t in (*program.inputs, *program.outputs) if self.steps.references[t.name].value in narrow}
        ranges = self._ranges(item)
        names |= self._narrow_between(program, ranges)

        def tensors(group: Iterable[Tensor]) -> tuple[Tensor, ...]:
            return tuple(replace(t, dtype=self.dtype) if t.name in names else t for t in group)

        statements = tuple(self._statement(s, names, ranges) for s in program.statements)
        made = replace(
            program,
            inputs=tensors(program.inputs),
            outputs=tensors(program.outputs),
            intermediates=tensors(program.intermediates),
            statements=statements,
        )
        is_exact = any(self._is_exact(s, ranges) for s in program.statements)
        return replace(item, program=made if is_exact else precision.allowing_tf32(made))

    def _narrow_between(self, program: Program, ranges: Ranges) -> set[str]:
        """Intermediates to be narrow: those that kernels leave in memory, as there is no chain that one could keep."""
        if not all(
            precision.is_contraction(e) for s in program.statements for e in walk(s.value) if isinstance(e, Reduce)
        ):
            return set()
        return {t.name for t in program.intermediates if t.dtype is DType.F32 and t.name not in ranges.wide}

    def _is_exact(self, s: Statement, ranges: Ranges) -> bool:
        """Whether a contraction has factors that rounding would spoil."""
        return any(map(ranges.is_wide, precision.factors(s)))

    def _statement(self, s: Statement, names: set[str], ranges: Ranges) -> Statement:
        def widened(e: Expr) -> Expr:
            if isinstance(e, Read) and e.tensor in names:
                return Cast(replace(e, dtype=self.dtype), e.dtype)
            return e

        made = replace(s, value=transform(s.value, widened))
        if not self._is_exact(s, ranges):
            made = precision.rounded(made, self.dtype, stored=False)
        return replace(made, value=_stored(made.value, self.dtype)) if s.target in names else made


def _stored(value: Expr, dtype: DType) -> Expr:
    """The value in the narrow type: what was only widened is moved as it is."""
    if isinstance(value, Cast) and value.arg.dtype is dtype and isinstance(value.arg, Read):
        return value.arg
    return Cast(value, dtype)


class _Groups:
    """Values that share memory (disjoint sets)."""

    def __init__(self) -> None:
        self._of: dict[str, set[str]] = {}

    def join(self, values: Iterable[str]) -> None:
        """Put values, and all that they are with already, into one group."""
        whole = set[str]().union(*(self.members(v) for v in values))
        for v in whole:
            self._of[v] = whole

    def members(self, value: str) -> set[str]:
        """All values of its group."""
        return self._of.get(value, {value})
