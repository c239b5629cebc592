"""The kernels of the `map` family for CPUs; the family describes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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
    round_up,
    share,
    stored,
)
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import Expr, Read, substitute_indices
from tilewright.dsl.space import Configuration
from tilewright.dsl.writer import LANE, Expressions, Source, index_type, variable, vector_type


def cpu(plan: Plan, configuration: Configuration) -> Launch:
    lanes, unroll = configuration.integer("lanes"), configuration.integer("unroll")
    step = lanes * unroll
    budget = max(step, (configuration.integer("grain") << 10) // max(1, plan.element_bytes))
    row = plan.outer[-1] if plan.outer else Dimension("<row>", 1)
    far = plan.outer[:-1]
    if plan.transposes:
        # Rows of the gathered operand are walked along; a few of its lines stay in the cache between vectors.
        rows = min(row.extent, round_up(max(lanes, budget // lanes), lanes))
        run = _share(plan.inner.extent, max(lanes, budget // rows), lanes)
    else:
        run = _share(plan.inner.extent, budget, step)
        rows = min(row.extent, max(1, budget // run))
    slabs = max(1, min(math.prod(d.extent for d in far), budget // (run * rows)))
    turns = bool(plan.crossing) and 1 < lanes <= row.extent
    counts = (ceil_div(math.prod(d.extent for d in far), slabs), ceil_div(row.extent, rows))
    pieces = ceil_div(plan.inner.extent, run)
    ctype = index_type(plan.program)
    body = Source()
    writer = Writer(plan, body, lanes, ctype, configuration["stream"] == 1)
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
                if turns:
                    writer.tiles(row, rows)
                else:
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

    def __init__(self, plan: Plan, body: Source, lanes: int, ctype: str, streams: bool) -> None:
        self.plan = plan
        self.body = body
        self.lanes = lanes
        self.ctype = ctype
        self.streams = streams
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
        inner = self.plan.inner.name
        names = {**self.names, inner: at or self.names[inner]}
        place = self._place(number)
        steady = at is None and (not self.plan.transposes or self.plan.inner.extent % self.lanes == 0)
        expressions = self._expressions(names, place, f"{'abcd'[number]}_")
        self._store(expressions, place, str(number), {inner: self.lanes} if steady else {})

    def _place(self, number: int, others: Mapping[str, Affine] | None = None) -> dict[str, Affine]:
        """Where a vector stands, `number` vectors after the loop variable."""
        inner = self.plan.inner.name
        return {inner: Affine.of({inner: 1, LANE: 1}, number * self.lanes), **(others or {})}

    def _expressions(self, names: Mapping[str, str], place: dict[str, Affine], prefix: str) -> Expressions:
        """A renderer for values whose loop variables were replaced as in `place`."""
        plan = self.plan
        checks, extents = plan.loops.moved(place), plan.loops.extents()
        return renderer(plan.program, names, checks, self.lanes, self.helpers, self.body, prefix, extents)

    def _store(
        self, expressions: Expressions, place: dict[str, Affine], number: str, multiples: Mapping[str, int]
    ) -> None:
        """Store a vector of every output."""
        for target, value in self.plan.loops.values.items():
            address = self.plan.loops.writes[target].substitute(place)
            moved, tensor = substitute_indices(value, place), self.plan.program.tensors[target]
            stored(expressions, self.body, tensor, address, moved, number, multiples, self.streams)

    def tiles(self, row: Dimension, rows: int) -> None:
        """The current block's `rows` of the dimension `row`, a square tile at a time.

        The operands that cross are read along their rows and turned in registers, so that each cache line is touched
        once: large powers of two would put the rows of a tile into one set of the cache.
        """
        a, lanes, body = self.names[row.name], self.lanes, self.body
        whole = rows >= row.extent
        first = "0" if whole else f"block * {rows}"
        end = str(row.extent) if whole else f"min(({self.ctype})(block * {rows} + {rows}), ({self.ctype}){row.extent})"
        body.line(f"const {self.ctype} {a}_end = {end};")
        with body.block(f"for ({self.ctype} {a}_at = {first}; {a}_at < {a}_end; {a}_at += {lanes})"):
            body.line(f"const {self.ctype} {a} = min({a}_at, ({self.ctype}){row.extent - lanes});")
            turned = {read: self._turned(read, row, f"t{n}") for n, read in enumerate(self.plan.crossing)}
            for k in range(lanes):
                place = self._place(0, {row.name: Affine.of({row.name: 1}, k)})
                expressions = self._expressions(self.names, place, f"r{k}_")
                known = {substitute_indices(read, place): names[k] for read, names in turned.items()}
                expressions.read = _known_first(known, expressions.read)
                steady = self.plan.inner.extent % lanes == 0
                self._store(expressions, place, f"r{k}", {self.plan.inner.name: lanes} if steady else {})

    def _turned(self, read: Read, row: Dimension, name: str) -> list[str]:
        """Read a tile of an operand and transpose it (Eklundh, A fast computer method for matrix transposing, 1972).

        Returns the variables that hold the elements along `inner` at each position of `row`. Each of the log2(lanes)
        steps swaps the off-diagonal blocks of half the size.
        """
        lanes, inner = self.lanes, self.plan.inner.name
        kind = vector_type(read.dtype, lanes)
        vectors = []
        for i in range(lanes):
            place = {inner: Affine.of({inner: 1}, i), row.name: Affine.of({row.name: 1, LANE: 1})}
            expressions = self._expressions(self.names, place, f"{name}_{i}_")
            vectors.append(expressions(substitute_indices(read, place)))
        half = lanes // 2
        while half:
            after = list(vectors)
            for i in (i for i in range(lanes) if not i & half):
                a, b = vectors[i], vectors[i + half]
                upper = [f"{b}.s{k - half:x}" if k & half else f"{a}.s{k:x}" for k in range(lanes)]
                lower = [f"{b}.s{k:x}" if k & half else f"{a}.s{k + half:x}" for k in range(lanes)]
                for number, parts in ((i, upper), (i + half, lower)):
                    after[number] = f"{name}_{half}_{number}_turned"
                    self.body.line(f"const {kind} {after[number]} = ({kind})({', '.join(parts)});")
            vectors, half = after, half // 2
        return vectors

    def launch(self, geometry: Geometry, configuration: Configuration) -> Launch:
        """The finished kernel."""
        program = self.plan.program
        top = banner("map", program, configuration)
        return launch(kernel_name("map", program), program, geometry, self.body, self.helpers, top)


def _known_first(known: Mapping[Expr, str], read: Callable[[Read], str]) -> Callable[[Read], str]:
    """`read` with the reads in `known` taken from variables."""
    return lambda e: known[e] if e in known else read(e)
