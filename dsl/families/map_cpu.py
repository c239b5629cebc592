"""The kernels of the `map` family for CPUs; the family describes them."""

from __future__ import annotations

import math

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.map import Plan
from tilewright.dsl.families.shared import (
    Dimension,
    Geometry,
    banner,
    ceil_div,
    cpu_geometry,
    decode,
    kernel_name,
    launch,
    renderer,
    share,
    stored,
)
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import substitute_indices
from tilewright.dsl.space import Configuration
from tilewright.dsl.writer import LANE, Source, index_type, variable


def cpu(plan: Plan, configuration: Configuration) -> Launch:
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
    writer = Writer(plan, body, lanes, ctype)
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


class Writer:
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
