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
    ceil_div,
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
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target

SPLITS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GPU_SPLITS = (*SPLITS, 512, 1024)
GRAINS = (2, 4, 8, 16, 32, 64, 128, 256)
"""KiB of memory that one work-item of a CPU may walk over."""


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
        plan = Plan.of(program)
        return _cpu_space(plan) if target.shape is Shape.CPU else _gpu_space(plan, target)

    def default(self, program: Program, target: Target) -> Configuration:
        """The native width, about four chains of accumulators, and every core busy."""
        plan = Plan.of(program)
        return _cpu_default(plan, target) if target.shape is Shape.CPU else _gpu_default(plan, target)

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
        vector = along or Dimension("one", 1)
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
            return Dimension("one", 1)
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


# --- spaces ---------------------------------------------------------------------------------------------------------


def _cpu_space(plan: Plan) -> Space:
    vector, reduced = (plan.vector.name,), tuple(d.name for d in plan.loops.reduced)
    parameters = [
        Parameter(
            "lanes",
            plan.widths(16),
            "elements per vector; the native width or twice that is typical",
            "vector",
            vector,
            sized=True,
        ),
        Parameter(
            "unroll",
            (1, 2, 4),
            "independent accumulators per reduction; 2 to 4 hide the latency of additions",
            "unroll",
            reduced,
        ),
        Parameter("grain", GRAINS, "KiB of memory per work-item; 16 to 64"),
        Parameter(
            "splits",
            _splits(plan.split.extent),
            "parts of the reduction that run apart; more than 1 if outputs are few",
            "split",
            reduced,
            sized=True,
        ),
    ]
    constraints = []
    if plan.rows:
        constraints.append(
            Constraint(
                "the accumulators are longer than a row",
                lambda c: c["unroll"] == 1 or c.integer("unroll") * c.integer("lanes") <= plan.vector.extent,
                sized=True,
            )
        )
    else:
        parameters.append(
            Parameter("vectors", (1, 2, 4, 8), "neighbouring vectors of outputs per work-item", "item", vector)
        )
        constraints.append(
            Constraint(
                "a work-item's vectors are longer than the outputs' innermost dimension",
                lambda c: c["vectors"] == 1 or c.integer("vectors") * c.integer("lanes") <= plan.vector.extent,
                sized=True,
            )
        )
        constraints.append(
            Constraint(
                "more than 16 accumulators",
                lambda c: c.integer("vectors") * c.integer("unroll") * len(plan.reduces) <= max(16, len(plan.reduces)),
            )
        )
    return Space(tuple(parameters), tuple(constraints))


def _splits(extent: int, values: tuple[int, ...] = SPLITS) -> tuple[int, ...]:
    return tuple(n for n in values if n == 1 or n * 4 <= extent)


def _cpu_default(plan: Plan, target: Target) -> Configuration:
    size = max(accumulator(e).itemsize for e in plan.reduces)
    lanes = min(target.lanes(size), plan.widths(16)[-1])
    busy = 2 * target.compute_units
    values: dict[str, int] = {"lanes": lanes}
    if plan.rows:
        values["unroll"] = 4 if plan.vector.extent >= 4 * lanes else 2 if plan.vector.extent >= 2 * lanes else 1
        runs = plan.others
    else:
        most = [v for v in (1, 2, 4) if v == 1 or v * lanes <= plan.vector.extent]
        filled = [v for v in most if plan.others * ceil_div(plan.vector.extent, v * lanes) >= busy]
        values["vectors"] = filled[-1] if filled else most[-1]
        values["unroll"] = 2 if values["vectors"] * len(plan.reduces) <= 4 else 1
        runs = plan.others * ceil_div(plan.vector.extent, values["vectors"] * lanes)
    total = plan.outputs * plan.length * plan.element_bytes
    splits = 1
    if runs < busy:
        # Each part should still be worth a work-item: 32 KiB or more.
        wanted = min(ceil_div(2 * busy, runs), max(1, total // runs >> 15))
        splits = max(n for n in _splits(plan.split.extent) if n <= wanted)
    values["splits"] = splits
    share = total // busy >> 10
    values["grain"] = max((g for g in GRAINS if g <= min(share, 64)), default=GRAINS[0])
    return Configuration.of(values)


def _gpu_space(plan: Plan, target: Target) -> Space:
    groups = tuple(n for n in (32, 64, 128, 256, 512) if n <= target.max_work_group) or (1,)
    most = max(4, 16 // min(plan.itemsizes))
    widths = tuple(w for w in plan.widths(most) if not plan.rows or plan.vector.extent % w == 0)
    bytes_per_item = sum(accumulator(e).itemsize for e in plan.reduces)
    reduced = tuple(d.name for d in plan.loops.reduced)
    return Space(
        (
            Parameter(
                "lanes", widths, "elements per vector; 16 bytes of them", "vector", (plan.vector.name,), sized=True
            ),
            Parameter(
                "unroll", (1, 2, 4, 8), "vectors that an item reads ahead, each with an accumulator", "unroll", reduced
            ),
            Parameter("work_group", groups, "work-items per work-group, typically 128 to 256"),
            Parameter("outputs", (1, 2, 4, 8, 16, 32, 64, 128, 256), "outputs (or vectors of them) per work-group"),
            Parameter(
                "splits",
                _splits(plan.length, GPU_SPLITS),
                "parts of the reduction that run apart; more than 1 if outputs are few",
                "split",
                reduced,
                sized=True,
            ),
        ),
        (
            Constraint(
                "fewer work-items than outputs in a work-group",
                lambda c: c.integer("outputs") <= c.integer("work_group"),
            ),
            Constraint(
                "more than 64 accumulators",
                lambda c: c["unroll"] == 1 or c.integer("unroll") * c.integer("lanes") * len(plan.reduces) <= 64,
            ),
            Constraint(
                "partial results do not fit into local memory",
                lambda c: (
                    c.integer("work_group") * bytes_per_item * (1 if plan.rows else c.integer("lanes"))
                    <= target.local_memory
                ),
            ),
        ),
    )


def _gpu_default(plan: Plan, target: Target) -> Configuration:
    """16 bytes per read, four reads under way per item, and every unit's work-items busy several times over."""
    group = power_below(min(256, target.max_work_group))
    most = max(1, 16 // max(plan.itemsizes))
    whole = [w for w in plan.widths(most) if plan.vector.extent % w == 0]
    lanes = whole[-1]
    if plan.rows:
        steps = max(1, plan.length // lanes)
        # A work-item should add up a few vectors; short rows share a work-group.
        outputs = max(1, min(group, group // power_below(max(1, min(group, steps // 2)))))
        groups = ceil_div(plan.outputs, outputs)
    else:
        slots = plan.others * ceil_div(plan.vector.extent, lanes)
        outputs = _even_share(slots, group)
        groups = ceil_div(slots, outputs)
        steps = plan.length
    unroll = max(n for n in (1, 2, 4) if n == 1 or n * lanes * len(plan.reduces) <= 32)
    splits = 1
    if groups < 8 * target.compute_units:
        wanted = ceil_div(16 * target.compute_units, groups)
        # Each part should be worth the second launch: a few rounds of every item.
        longest = max(1, steps * outputs // (4 * unroll * group))
        splits = max(n for n in _splits(plan.length, GPU_SPLITS) if n <= max(1, min(wanted, longest)))
    values = {"lanes": lanes, "unroll": unroll, "work_group": group, "outputs": outputs, "splits": splits}
    return Configuration.of(values)


def _even_share(slots: int, group: int) -> int:
    """Outputs per work-group that leave few items without one, at least 8 of them where there are as many."""
    shares = [n for n in (64, 32, 16, 8) if n <= min(group, slots)] or [power_below(min(group, slots))]
    return min(shares, key=lambda n: (ceil_div(slots, n) * n > 1.07 * slots, -n))


REDUCE = ReduceFamily()
