"""Reductions: sums, products, maxima and minima, several over the same ranges in one pass.

    acc_j = identity; for every reduced index: acc_j = acc_j (+) body_j;   y[i] = f(acc_0, acc_1, ...)

Two forms. *Rows*: memory is contiguous along what is reduced; the vector runs along it, and its lanes are combined at
the end. *Columns*: memory is contiguous along the outputs; the vector holds neighbouring outputs.
Where a size does not divide: in rows the last vector starts early and the lanes already counted are replaced by the
identity; in columns it starts early and outputs are computed twice.

CPU: one work-item per run of outputs, with several independent accumulators.
GPU: a work-group shares the reduction of one or several outputs and combines through local memory.
With few outputs the reduction is split: partial results go to scratch, and a second launch combines them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.shared import (
    Collapsed,
    Dimension,
    aligned,
    collapse,
    computes_indices,
    needs_f64,
    power_below,
    same_outputs,
)
from tilewright.dsl.lowering import Lowering, Scratch
from tilewright.dsl.program import (
    Expr,
    Program,
    Reduce,
    Statement,
    all_indices,
    reads,
    rename_reductions,
    transform,
    walk,
)
from tilewright.dsl.space import Configuration, Space
from tilewright.dsl.target import Shape, Target

WRITTEN_OUT = 8
"""Most vectors of a CPU's work-item whose accumulators are variables; more are elements of arrays."""


class ReduceFamily:
    """Reductions without the structure of a contraction."""

    name = "reduce"

    def refusal(self, program: Program, target: Target) -> str | None:
        """No reduction, nested or differing ones, outputs of different sizes, or an element type the device lacks."""
        found = [n for s in program.statements for n in walk(s.value) if isinstance(n, Reduce)]
        if not all(any(isinstance(n, Reduce) for n in walk(s.value)) for s in program.statements):
            return "a statement has no reduction"
        if any(isinstance(inner, Reduce) for n in found for inner in walk(n.body)):
            return "it has a reduction within a reduction"
        if len({tuple(i.extent for i in n.indices) for n in found}) != 1:
            return "its reductions run over different ranges"
        if any(i.extent == 0 for s in program.statements for i in all_indices(s)):
            return "it has an empty range"
        computed = computes_indices(program)
        if computed:
            return computed
        return same_outputs(program) or needs_f64(program, target)

    def space(self, program: Program, target: Target) -> Space:
        """Vector width, accumulators, and how the reduction is shared."""
        from tilewright.dsl.families import reduce_space

        return reduce_space.space(Plan.of(program), target)

    def default(self, program: Program, target: Target) -> Configuration:
        """The native width, about four chains of accumulators, and every core busy."""
        from tilewright.dsl.families import reduce_space

        return reduce_space.default(Plan.of(program), target)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """One launch, or two if the reduction is split."""
        from tilewright.dsl.families import reduce_gpu, reduce_kernels

        plan, splits = Plan.of(program), configuration.integer("splits")
        cpu_shaped = target.shape is Shape.CPU
        first = reduce_kernels.cpu(plan, configuration) if cpu_shaped else reduce_gpu.gpu(plan, configuration)
        if splits == 1:
            return Lowering((first,))
        if cpu_shaped:
            return Lowering((first, reduce_kernels.combine(plan, configuration)), plan.scratch(splits))
        return Lowering((first, reduce_gpu.combine(plan, configuration, target)), plan.scratch(splits))


@dataclass(frozen=True)
class Plan:
    """A reduction as loops."""

    program: Program
    loops: Collapsed
    reduces: tuple[Reduce, ...]
    """The distinct reductions, rewritten in terms of the loops."""
    rows: bool
    """The vector runs along what is reduced."""
    vector: Dimension
    """The vector's dimension."""
    kept: tuple[Dimension, ...]
    """Output dimensions other than the vector's."""
    reduced: tuple[Dimension, ...]
    """Reduced dimensions other than the vector's."""

    @staticmethod
    def of(program: Program) -> Plan:
        """The loops of a program that the family does not refuse."""
        statements = same_reductions(aligned(program))
        loops = collapse(program, statements)
        reduces = tuple(
            dict.fromkeys(n for value in loops.values.values() for n in walk(value) if isinstance(n, Reduce))
        )
        kept, reduced = list(loops.kept), list(loops.reduced)
        weights = _contiguity(program, reduces)
        along = max((d for d in (*reduced, *kept)), key=lambda d: weights.get(d.name, 0), default=None)
        if along is None or not weights.get(along.name):
            along = reduced[-1] if reduced else kept[-1] if kept else None
        rows = along is None or along in reduced
        vector = along or Dimension("<one>", 1)
        return Plan(
            program,
            loops,
            reduces,
            rows,
            vector,
            tuple(d for d in kept if d != vector),
            tuple(d for d in reduced if d != vector),
        )

    @property
    def outputs(self) -> int:
        """Output elements."""
        return math.prod(d.extent for d in self.loops.kept)

    @property
    def length(self) -> int:
        """Reduced elements per output."""
        return math.prod(d.extent for d in self.loops.reduced)

    @property
    def others(self) -> int:
        """Outputs, or in columns runs of outputs along the vector's dimension."""
        return math.prod(d.extent for d in self.kept)

    @property
    def element_bytes(self) -> int:
        """Bytes read per step of the reduction."""
        found = {r: None for e in self.reduces for r in reads(e.body)}
        return sum(self.program.tensors[r.tensor].dtype.itemsize for r in found) or 4

    @property
    def itemsizes(self) -> tuple[int, ...]:
        """Bytes per element of the tensors that are read in reductions."""
        found = dict.fromkeys(r.tensor for e in self.reduces for r in reads(e.body))
        return tuple(self.program.tensors[name].dtype.itemsize for name in found) or (4,)

    @property
    def main_itemsize(self) -> int:
        """Bytes per element of the tensors that most of the traffic is for: those of at least 1/8 of the elements."""
        tensors = {r.tensor: self.program.tensors[r.tensor] for e in self.reduces for r in reads(e.body)}
        large = [t.dtype.itemsize for t in tensors.values() if 8 * t.size >= self.outputs * self.length]
        return max(large, default=max(self.itemsizes))

    @property
    def addresses(self) -> tuple[Affine, ...]:
        """Where the operands of the reductions are read."""
        found = dict.fromkeys(r for e in self.reduces for r in reads(e.body))
        return tuple(self.program.tensors[r.tensor].address(r.index) for r in found)

    @property
    def number(self) -> Affine:
        """The flat number of an output, in the order of the kept loops."""
        total, step = Affine(), 1
        for d in reversed(self.loops.kept):
            total, step = total + Affine.of({d.name: step}), step * d.extent
        return total

    @property
    def split(self) -> Dimension:
        """The reduced dimension that a split divides: the outermost one, unless it is short."""
        order = (*self.reduced, self.vector) if self.rows else self.reduced
        if not order:
            return Dimension("<one>", 1)
        return order[0] if order[0].extent >= 16 else max(order, key=lambda d: d.extent)

    def widths(self, most: int) -> tuple[int, ...]:
        """Vector widths that fit the vector's dimension."""
        return tuple(w for w in (1, 2, 4, 8, 16) if w <= min(most, power_below(self.vector.extent)))

    def scratch(self, splits: int) -> tuple[Scratch, ...]:
        """Partial results: for each reduction, `splits` times all outputs."""
        return tuple(
            Scratch(name, accumulator(e), splits * self.outputs)
            for name, e in zip(self.partials, self.reduces, strict=True)
        )

    @property
    def partials(self) -> tuple[str, ...]:
        """Names of the scratch buffers."""
        taken = set(self.program.tensors)
        stem = "partial"
        while any(name.startswith(stem) for name in taken):
            stem += "_"
        return tuple(f"{stem}{number}" for number in range(len(self.reduces)))


def accumulator(e: Reduce) -> DType:
    """The type of a reduction's value in registers."""
    return {DType.F16: DType.F32, DType.BF16: DType.F32, DType.BOOL: DType.I32}.get(e.dtype, e.dtype)


def same_reductions(statements: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """All reductions with the index names of the first."""
    first = next(n for s in statements for n in walk(s.value) if isinstance(n, Reduce))

    def change(node: Expr) -> Expr:
        if not isinstance(node, Reduce) or node.indices == first.indices:
            return node
        names = {mine.name: theirs.name for mine, theirs in zip(node.indices, first.indices, strict=True)}
        apart = rename_reductions(node, {name: f"{name}~" for name in names})
        return rename_reductions(apart, {f"{name}~": wanted for name, wanted in names.items()})

    return tuple(replace(s, value=transform(s.value, change)) for s in statements)


def _contiguity(program: Program, reduces: tuple[Reduce, ...]) -> Mapping[str, int]:
    """For each loop, how many reads inside reductions are contiguous along it, weighted by their dimensions."""
    weights: dict[str, int] = {}
    for read in {r: None for e in reduces for r in reads(e.body)}:
        address = program.tensors[read.tensor].address(read.index)
        for name in address.names:
            if address.coefficient(name) == 1:
                weights[name] = weights.get(name, 0) + len(address.terms)
    return weights


REDUCE = ReduceFamily()
