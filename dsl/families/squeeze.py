"""Squeeze-and-excitation: a reduction to a vector per row and small products of it, in two launches or one (GPUs).

    v0[row, f] = g0( reduce(...) x[row, ..., f] );    vi[row, f'] = gi( sum(f) w[f', f] * v(i-1)[row, f] )

A work-group per row keeps the vectors in local memory. In each step its items share the outputs, and where these are
fewer than items, the sums as well. What is large, the first reduction, is spread over the device by a launch of its
own (`reduce`'s, which leaves partial results); the second one adds these up on its way.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.reduce import Plan
from tilewright.dsl.families.shared import Dimension, aligned_widths, power_below
from tilewright.dsl.families.squeeze_form import Form, Step, recognise
from tilewright.dsl.lowering import Lowering, Scratch
from tilewright.dsl.program import Program, Tensor, contiguous_strides, reads
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target

FEATURES = 4096
"""Most features of a step."""
WEIGHTS = 96 << 10
"""Most weights of a product: more than a single work-group should read."""
NEAR = 256 << 10
"""(guess) Bytes of a row that one work-group reads as fast as a launch of its own would take."""
SPLITS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FLOATS = (DType.F16, DType.BF16, DType.F32)


class Squeeze:
    """Vectors per row and small products of them."""

    name = "squeeze"

    def refusal(self, program: Program, target: Target) -> str | None:
        """Any other form, other types than floats, or products too large for one work-group."""
        if target.shape is not Shape.GPU:
            return "it is for GPUs"
        form = recognise(program)
        if isinstance(form, str):
            return form
        if any(t.dtype not in FLOATS for t in program.tensors.values()):
            return "it has other elements than f16, bf16 and f32"
        widths = [s.feature.extent for s in form.steps]
        if len(set(reads(form.steps[0].total.body))) > 1:
            return "its first step is a product: as many as there are rows are work for a contraction"
        products = [a * b for a, b in pairwise(widths)]
        if max(widths) > FEATURES or max(products) > WEIGHTS:
            return "its products are too large for a work-group each"
        return None

    def space(self, program: Program, target: Target) -> Space:
        """The size of work-groups, the width of vectors, and whether the first reduction is spread."""
        form = _form(program)
        groups = tuple(n for n in (64, 128, 256, 512, 1024) if n <= target.max_work_group) or (1,)
        first = tuple(i.name for i in form.steps[0].depth)
        most = math.prod(i.extent for i in form.steps[0].depth)
        return Space(
            (
                Parameter("lanes", (1, 2, 4, 8), "elements per vector at most; 16 bytes of them"),
                Parameter("work_group", groups, "work-items per row; as many as there are where rows are few"),
                Parameter(
                    "splits",
                    tuple(n for n in SPLITS if n == 1 or 4 * n <= most),
                    "parts of the first reduction, by a launch of its own; 1: no such launch",
                    "split",
                    first,
                    sized=True,
                ),
            ),
            (
                Constraint(
                    "local memory is too small",
                    lambda c: local_bytes(form, c.integer("work_group"), c.integer("lanes")) <= target.local_memory,
                ),
            ),
        )

    def default(self, program: Program, target: Target) -> Configuration:
        """All items that there are for few rows; a launch of its own for a large first reduction."""
        from tilewright.dsl.families import reduce_space

        form, space = _form(program), self.space(program, target)
        rows = math.prod(i.extent for i in form.rows)
        first = form.steps[0]
        sizes = [program.tensors[r.tensor] for r in reads(first.total.body)]
        one_row = sum(t.size * t.dtype.itemsize for t in sizes) // rows
        group = power_below(min(1024 if rows <= 2 * target.compute_units else 256, target.max_work_group))
        splits = 1
        if one_row > NEAR:
            wanted = reduce_space.default(Plan.of(first_program(form)), target).integer("splits")
            splits = max(n for n in (int(v) for v in space.parameters[2].values) if n <= max(2, wanted))
        narrow = min(t.dtype.itemsize for t in program.inputs if t.size >= max(t.size for t in program.inputs) // 8)
        values = {"lanes": 16 // max(2, narrow), "work_group": group, "splits": splits}
        while space.violated(Configuration.of(values)) is not None and values["lanes"] > 1:
            values["lanes"] //= 2
        return Configuration.of(values)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """One launch, or two if the first reduction is spread."""
        from tilewright.dsl.families import reduce_gpu, reduce_space, squeeze_gpu

        form, splits = _form(program), configuration.integer("splits")
        if splits == 1:
            return Lowering((squeeze_gpu.write(form, configuration, None),))
        plan = Plan.of(first_program(form))
        spread = Configuration.of({**reduce_space.default(plan, target), "splits": splits})
        target_name = form.steps[0].statement.target
        unused = Scratch(target_name, program.tensors[target_name].dtype, 1)
        launches = (reduce_gpu.gpu(plan, spread), squeeze_gpu.write(form, configuration, plan))
        return Lowering(launches, (*plan.scratch(splits), unused))


def _form(program: Program) -> Form:
    form = recognise(program)
    if isinstance(form, str):
        raise ValueError(form)
    return form


def first_program(form: Form) -> Program:
    """The first step by itself, its output row after row."""
    step = form.steps[0]
    whole = form.program.tensors[step.statement.target]
    order = [*form.rows, step.feature]
    shape = tuple(i.extent for i in order)
    output = Tensor(whole.name, whole.dtype, shape, contiguous_strides(shape))
    statement = replace(step.statement, indices=tuple(order))
    names = {r.tensor for r in reads(statement.value)}
    inputs = tuple(t for t in form.program.inputs if t.name in names)
    return Program(f"{form.program.name}_sums", inputs, (output,), (statement,), fast_math=form.program.fast_math)


def lanes_of(form: Form, step: Step, most: int) -> int:
    """The widest vectors of a step's outputs that all its accesses allow."""
    tensors = form.program.tensors
    made = {s.statement.target for s in form.steps}
    places = [tensors[r.tensor].address(r.index) for r in reads(step.statement.value) if r.tensor not in made]
    if step is form.steps[-1]:
        places.append(output_address(form))
    widths = tuple(w for w in (1, 2, 4, 8) if w <= most)
    return aligned_widths(widths, Dimension(step.feature.name, step.feature.extent), places)[-1]


def output_address(form: Form) -> Affine:
    """Where an element of the last step's output lies."""
    last = form.steps[-1].statement
    index = tuple(Affine.index(i.name) if i.extent > 1 else Affine() for i in last.indices)
    return form.program.tensors[last.target].address(index)


def local_bytes(form: Form, group: int, lanes: int) -> int:
    """Local memory of a work-group: the vectors, and a vector of each item's."""
    return 4 * (sum(s.feature.extent for s in form.steps[:-1]) + group * lanes)


SQUEEZE = Squeeze()
