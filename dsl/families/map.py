"""Pointwise programs: element by element, with broadcasting, copies and changes of layout.

    for every output element:  y[i] = f(x0[..], x1[..], ...)

Dimensions that lie together in all tensors become one loop. The vector runs along the output's innermost dimension;
operands are loaded as vectors, broadcast or gathered by their stride there. Where a size does not divide, the last
vector starts early and writes a few elements a second time (the same values), so that there is no scalar remainder.

CPU: one work-item walks rows of vectors, about `grain` KiB of memory. If the output's innermost dimension is not the
inputs' (a transposition), each vector's columns are walked down the other way, so that every cache line that a gather
touches is used by the next ones.
GPU: neighbouring work-items own neighbouring vectors of 1, 2 or 4 elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.shared import (
    Collapsed,
    Dimension,
    Geometry,
    aligned,
    banner,
    ceil_div,
    collapse,
    cpu_geometry,
    decode,
    gpu_geometry,
    kernel_name,
    launch,
    needs_f64,
    power_below,
    renderer,
    same_outputs,
    share,
    stored,
)
from tilewright.dsl.lowering import Launch, Lowering
from tilewright.dsl.program import Program, Reduce, substitute_indices, walk
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target
from tilewright.dsl.writer import (
    LANE,
    Source,
    index_type,
    variable,
)

GRAINS = (2, 4, 8, 16, 32, 64, 128, 256)
"""KiB of memory that one work-item of a CPU may walk over."""


class Map:
    """Vector code for programs without reductions."""

    name = "map"

    def refusal(self, program: Program, target: Target) -> str | None:
        """A reduction, outputs of different sizes, or an element type the device lacks."""
        if any(isinstance(n, Reduce) for s in program.statements for n in walk(s.value)):
            return "it has a reduction"
        if any(i.extent == 0 for s in program.statements for i in s.indices):
            return "it has no elements"
        return same_outputs(program) or needs_f64(program, target)

    def space(self, program: Program, target: Target) -> Space:
        """Vector width, and how much each work-item does."""
        plan = Plan.of(program)
        inner = (plan.inner.name,)
        if target.shape is Shape.CPU:
            return Space(
                (
                    Parameter(
                        "lanes",
                        plan.widths(16),
                        "elements per vector; the native width or twice that is typical",
                        "vector",
                        inner,
                        sized=True,
                    ),
                    Parameter("unroll", (1, 2, 4), "vectors per step of the innermost loop", "unroll", inner),
                    Parameter("grain", GRAINS, "KiB of memory per work-item; 16 to 64 keeps it within a near cache"),
                ),
                (
                    Constraint(
                        "a step of the innermost loop is longer than the loop",
                        lambda c: c["unroll"] == 1 or c.integer("unroll") * c.integer("lanes") <= plan.inner.extent,
                        sized=True,
                    ),
                    Constraint(
                        "a transposing copy walks down one vector at a time",
                        lambda c: c["unroll"] == 1 or not plan.transposes,
                    ),
                ),
            )
        groups = tuple(n for n in (32, 64, 128, 256) if n <= target.max_work_group) or (1,)
        return Space(
            (
                Parameter(
                    "lanes", plan.widths(4), "elements per vector; 4 where sizes allow", "vector", inner, sized=True
                ),
                Parameter("work_group", groups, "work-items per work-group, typically 64 to 256"),
                Parameter("items", (1, 2, 4, 8), "vectors per work-item, a work-group apart", "item", inner),
            )
        )

    def default(self, program: Program, target: Target) -> Configuration:
        """The native width; items as large as leaves every core several of them."""
        plan = Plan.of(program)
        if target.shape is Shape.CPU:
            return _cpu_default(plan, target)
        lanes = plan.widths(4)[-1]
        group = power_below(max(1, min(128, target.max_work_group)))
        vectors = plan.elements // lanes
        # Several vectors per item pay once the device is full many times over.
        items = 4 if vectors > 64 * target.compute_units * group else 1
        return Configuration.of({"lanes": lanes, "work_group": group, "items": items})

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """One launch."""
        plan = Plan.of(program)
        write = _cpu if target.shape is Shape.CPU else _gpu
        return Lowering((write(plan, configuration),))


@dataclass(frozen=True)
class Plan:
    """A program as loops: everything but the innermost, and that."""

    program: Program
    loops: Collapsed
    outer: tuple[Dimension, ...]
    inner: Dimension
    """The vector's dimension."""
    transposes: bool
    """An operand's innermost dimension is `outer[-1]` rather than `inner`."""

    @staticmethod
    def of(program: Program) -> Plan:
        """The loops of a program that `Map` does not refuse."""
        loops = collapse(program, aligned(program))
        kept = list(loops.kept) or [Dimension("one", 1)]
        inner = kept.pop()
        across = _across(program, loops, inner.name)
        if across is not None:
            kept.sort(key=lambda d: d.name == across)
        return Plan(program, loops, tuple(kept), inner, across is not None)

    @property
    def elements(self) -> int:
        """Elements of one output."""
        return self.inner.extent * math.prod(d.extent for d in self.outer)

    @property
    def element_bytes(self) -> int:
        """Bytes moved per output element, broadcast operands aside."""
        moved = [self.program.tensors[name].dtype.itemsize for name in self.loops.writes]
        for read in self.loops.reads:
            if self.program.tensors[read.tensor].address(read.index).coefficient(self.inner.name):
                moved.append(self.program.tensors[read.tensor].dtype.itemsize)
        return sum(moved)

    def widths(self, most: int) -> tuple[int, ...]:
        """Vector widths that fit the innermost dimension."""
        widest = min(most, power_below(self.inner.extent))
        return tuple(w for w in (1, 2, 4, 8, 16) if w <= widest and (w > 1 or widest < 4 or most <= 4))


def _across(program: Program, loops: Collapsed, inner: str) -> str | None:
    """The dimension along which a gathered operand is contiguous, if there is such an operand."""
    for read in loops.reads:
        address = program.tensors[read.tensor].address(read.index)
        if abs(address.coefficient(inner)) > 4:
            for d in loops.kept:
                if abs(address.coefficient(d.name)) == 1:
                    return d.name
    return None


def _cpu_default(plan: Plan, target: Target) -> Configuration:
    sizes = {plan.program.tensors[name].dtype.itemsize for name in plan.loops.writes}
    lanes = min(target.lanes(max(sizes)), plan.widths(16)[-1])
    lanes = max(lanes, plan.widths(16)[0])
    total = plan.elements * plan.element_bytes
    share = total // (2 * target.compute_units) >> 10
    grain = max((g for g in GRAINS if g <= min(share, 64)), default=GRAINS[0])
    unroll = 1 if plan.transposes or plan.inner.extent < 2 * lanes else 2
    return Configuration.of({"lanes": lanes, "unroll": unroll, "grain": grain})


# --- CPU ------------------------------------------------------------------------------------------------------------


def _cpu(plan: Plan, configuration: Configuration) -> Launch:
    lanes, unroll = configuration.integer("lanes"), configuration.integer("unroll")
    step = lanes * unroll
    budget = max(step, (configuration.integer("grain") << 10) // max(1, plan.element_bytes))
    row = plan.outer[-1] if plan.outer else Dimension("row", 1)
    far = plan.outer[:-1]
    if plan.transposes:
        # Rows of the gathered operand are walked along; a few of its lines stay in the cache between vectors.
        rows = min(row.extent, max(lanes, budget // lanes))
        run = _share(plan.inner.extent, max(lanes, budget // rows), lanes)
    else:
        run = _share(plan.inner.extent, budget, step)
        rows = min(row.extent, max(1, budget // run))
    slabs = max(1, min(math.prod(d.extent for d in far), budget // (run * rows)))
    counts = (ceil_div(math.prod(d.extent for d in far), slabs), ceil_div(row.extent, rows))
    pieces = ceil_div(plan.inner.extent, run)
    ctype = index_type(plan.program)
    body = Source()
    writer = _Writer(plan, body, lanes, ctype)
    body.line(f"const {ctype} item = ({ctype})get_global_id(0);")
    decode(body, "item", [("slab", counts[0]), ("block", counts[1]), ("piece", pieces)], ctype, ("slab", "block"))
    v = variable(plan.inner.name)
    body.line(f"const {ctype} {v}_first = piece * {run};")
    end = str(plan.inner.extent) if pieces == 1 else f"min(({ctype})({v}_first + {run}), ({ctype}){plan.inner.extent})"
    body.line(f"const {ctype} {v}_end = {end};")
    with share(body, ctype, "flat", "slab", slabs, math.prod(d.extent for d in far)):
        decode(body, "flat", [(variable(d.name), d.extent) for d in far], ctype)
        if plan.transposes:
            with body.block(f"for ({ctype} {v}_at = {v}_first; {v}_at < {v}_end; {v}_at += {lanes})"):
                body.line(f"const {ctype} {v} = min({v}_at, ({ctype})({v}_end - {lanes}));")
                with share(body, ctype, variable(row.name), "block", rows, row.extent):
                    writer.vector(0)
        else:
            with share(body, ctype, variable(row.name), "block", rows, row.extent):
                writer.run(unroll, whole=plan.inner.extent % lanes == 0 and run % lanes == 0)
    items = math.prod(counts) * pieces
    return writer.launch(cpu_geometry(items), configuration)


def _share(extent: int, most: int, step: int) -> int:
    """The extent itself if it is at most `most`, else equal parts of it that are multiples of `step`."""
    if extent <= most or extent <= step:
        return extent
    parts = ceil_div(extent, max(most, step))
    return ceil_div(ceil_div(extent, parts), step) * step


class _Writer:
    """Writes the innermost code of a map."""

    def __init__(self, plan: Plan, body: Source, lanes: int, ctype: str) -> None:
        self.plan = plan
        self.body = body
        self.lanes = lanes
        self.ctype = ctype
        self.helpers: dict[str, str] = {}
        self.names = {d.name: variable(d.name) for d in (*plan.outer, plan.inner)}

    def run(self, unroll: int, whole: bool) -> None:
        """The vectors of one row, `unroll` at a time; `whole` if the row is known to be whole vectors."""
        v, step = self.names[self.plan.inner.name], self.lanes * unroll
        self.body.line(f"{self.ctype} {v} = {v}_first;")
        if unroll > 1 or not whole:
            with self.body.block(f"for (; {v} <= {v}_end - {step}; {v} += {step})"):
                for k in range(unroll):
                    self.vector(k)
        if whole and (unroll == 1 or self.plan.inner.extent % step):
            with self.body.block(f"for (; {v} < {v}_end; {v} += {self.lanes})"):
                self.vector(0)
        elif not whole:
            with self.body.block(f"for (; {v} < {v}_end; {v} += {self.lanes})"):
                # The last vector starts early, over elements that already have these values.
                self.body.line(f"const {self.ctype} early = min({v}, ({self.ctype})({v}_end - {self.lanes}));")
                self.vector(0, "early")

    def vector(self, number: int, at: str | None = None) -> None:
        """One vector of every output, `number` vectors after the loop variable (or at the variable `at`)."""
        inner, tensors = self.plan.inner.name, self.plan.program.tensors
        names = {**self.names, inner: at or self.names[inner]}
        place = {inner: Affine.of({inner: 1, LANE: 1}, number * self.lanes)}
        prefix = f"{'abcd'[number]}_"
        expressions = renderer(
            self.plan.program,
            names,
            self.plan.loops.moved(place),
            self.lanes,
            self.helpers,
            self.body,
            prefix,
            self.plan.loops.extents(),
        )
        for target, value in self.plan.loops.values.items():
            address = self.plan.loops.writes[target].substitute(place)
            stored(expressions, self.body, tensors[target], address, substitute_indices(value, place), str(number))

    def launch(self, geometry: Geometry, configuration: Configuration) -> Launch:
        """The finished kernel."""
        program = self.plan.program
        top = banner("map", program, configuration)
        return launch(kernel_name("map", program), program, geometry, self.body, self.helpers, top)


# --- GPU ------------------------------------------------------------------------------------------------------------


def _gpu(plan: Plan, configuration: Configuration) -> Launch:
    lanes, group, items = (configuration.integer(name) for name in ("lanes", "work_group", "items"))
    extents = [(variable(d.name), d.extent) for d in plan.outer]
    vectors = ceil_div(plan.inner.extent, lanes)
    count = vectors * math.prod(d.extent for d in plan.outer)
    ctype = index_type(plan.program)
    body = Source()
    writer = _Writer(plan, body, lanes, ctype)
    v = variable(plan.inner.name)
    body.line(f"const {ctype} start = ({ctype})get_group_id(0) * {group * items} + ({ctype})get_local_id(0);")
    with body.block(f"for ({ctype} flat = start; flat < start + {group * items} && flat < {count}; flat += {group})"):
        decode(body, "flat", [*extents, ("vector", vectors)], ctype)
        if plan.inner.extent % lanes:
            body.line(f"const {ctype} {v} = min(vector * {lanes}, ({ctype}){plan.inner.extent - lanes});")
        else:
            body.line(f"const {ctype} {v} = vector * {lanes};")
        writer.vector(0)
    return writer.launch(gpu_geometry(ceil_div(count, items), group), configuration)


MAP = Map()
