"""The kernels of the `reduce` family for CPUs, and what all its kernels have in common; the family describes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.reduce import WRITTEN_OUT, Plan, accumulator
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
from tilewright.dsl.program import Expr, Reduce, substitute_indices
from tilewright.dsl.space import Configuration
from tilewright.dsl.writer import (
    LANE,
    Expressions,
    Source,
    argument,
    index_type,
    store,
    variable,
    vector_type,
)


class Writer:
    """Writes accumulation, combination and the expression around the reductions."""

    def __init__(self, plan: Plan, configuration: Configuration, lanes: int, part: str = "") -> None:
        self.plan = plan
        self.configuration = configuration
        self.lanes = lanes
        self.part = part
        self.body = Source()
        self.ctype = index_type(plan.program, plan.outputs * configuration.integer("splits"))
        self.helpers: dict[str, str] = {}
        self.names = {name: variable(name) for name in (*plan.loops.extents(), plan.vector.name)}
        self.multiples: dict[str, int] | None = None
        """For aligned access on GPUs, see `is_aligned`."""

    def declare(self, chains: int) -> None:
        """The accumulators: `chains` of each reduction."""
        expressions = self.expressions(self.lanes, {}, "")
        for j, e in enumerate(self.plan.reduces):
            kind = vector_type(accumulator(e), self.lanes)
            start = expressions.identity(e.kind, e.dtype)
            names = ", ".join(f"{acc(j, k)} = {start}" for k in range(chains))
            self.body.line(f"{kind} {names};")

    def expressions(self, lanes: int, place: dict[str, Affine], prefix: str) -> Expressions:
        """A renderer for values whose loop variables were replaced as in `place`."""
        checks = self.plan.loops.moved(place)
        source = self.body if prefix else None
        return renderer(
            self.plan.program, self.names, checks, lanes, self.helpers, source, prefix, multiples=self.multiples
        )

    def step(self, chain: int | str, offsets: Mapping[str, Affine | int] | None = None, counted: int = 0) -> None:
        """Add one vector to the accumulators of `chain`.

        ``offsets`` are added to loop variables; the first ``counted`` lanes are left out.
        """
        place = {name: Affine.index(name) + offset for name, offset in (offsets or {}).items()}
        if self.lanes > 1:
            vector = self.plan.vector.name
            place[vector] = place.get(vector, Affine.index(vector)) + Affine.index(LANE)
        number = chain if isinstance(chain, int) else 0
        expressions = self.expressions(self.lanes, place, f"{'abcdefgh'[number % 8]}{number // 8 or ''}_")
        for j, e in enumerate(self.plan.reduces):
            moved = substitute_indices(e.body, place)
            value = expressions.converted(expressions(moved), moved.dtype, e.dtype)
            if counted:
                value = self._uncounted(expressions, value, e, counted)
            self.body.line(expressions.accumulate(e.kind, acc(j, chain), value, e.dtype))

    def _uncounted(self, expressions: Expressions, value: str, e: Reduce, counted: int) -> str:
        """`value` with its first lanes replaced by the identity."""
        size = accumulator(e).itemsize
        mask = ", ".join("0" if lane < counted else "-1" for lane in range(self.lanes))
        kind = f"{ {1: 'char', 2: 'short', 4: 'int', 8: 'long'}[size] }{self.lanes}"
        return f"(({kind})({mask}) ? {value} : {expressions.identity(e.kind, e.dtype)})"

    def merge(self, first: int, others: list[int]) -> None:
        """Combine accumulators into that of chain `first`."""
        expressions = self.expressions(self.lanes, {}, "")
        for j, e in enumerate(self.plan.reduces):
            for k in others:
                self.body.line(expressions.accumulate(e.kind, acc(j, first), acc(j, k), e.dtype))

    def across(self, j: int, chain: int) -> str:
        """The lanes of an accumulator combined, as a scalar variable."""
        e, width, value = self.plan.reduces[j], self.lanes, acc(j, chain)
        while width > 1:
            width //= 2
            half = f"{acc(j, chain)}_{width}"
            text = self.expressions(width, {}, "").combined(e.kind, f"{value}.lo", f"{value}.hi", e.dtype)
            self.body.line(f"const {vector_type(accumulator(e), width)} {half} = {text};")
            value = half
        # The lanes of a truth value are 0 or -1, a scalar is 0 or 1.
        return f"({value} & 1)" if e.dtype is DType.BOOL else value

    def finish(self, results: list[str], lanes: int, offset: Affine | int = 0, along: str = "") -> None:
        """Store the outputs ``offset`` after the variable of loop ``along`` (the vector's), given the reductions."""
        vector, tensors = along or self.plan.vector.name, self.plan.program.tensors
        place: dict[str, Affine] = {}
        if lanes > 1 or offset:
            place = {vector: Affine.of({vector: 1, LANE: 1 if lanes > 1 else 0}) + offset}
        moved_reduces: dict[Expr, str] = {
            substitute_indices(e, place): name for e, name in zip(self.plan.reduces, results, strict=True)
        }
        number = str(offset or "") if isinstance(offset, int) else ""
        expressions = self.expressions(lanes, place, f"out{number}_")
        expressions.reduce = moved_reduces.__getitem__
        for target, value in self.plan.loops.values.items():
            address = self.plan.loops.writes[target].substitute(place)
            moved = substitute_indices(value, place)
            stored(expressions, self.body, tensors[target], address, moved, number, self.multiples)

    def keep(self, j: int, value: str, lanes: int, offset: Affine | int = 0, along: str = "") -> None:
        """Store a partial result of the current split."""
        e, vector = self.plan.reduces[j], along or self.plan.vector.name
        place = {vector: Affine.of({vector: 1, **({LANE: 1} if lanes > 1 else {})}) + offset}
        address = self.plan.number.substitute(place) + Affine.of({"<split>": self.plan.outputs})
        pointer = argument(self.plan.partials[j])
        if e.dtype is DType.BOOL:
            value = f"({value} & 1)"
        names = {**self.names, "<split>": "split"}
        self.body.line(store(pointer, address, names, accumulator(e), lanes, value))

    def add_partials(self) -> None:
        """Add the partial results of the C variable `split` for the C variable `output`."""
        expressions = self.expressions(1, {}, "")
        for j, e in enumerate(self.plan.reduces):
            value = f"{argument(self.plan.partials[j])}[split * {self.plan.outputs} + output]"
            self.body.line(expressions.accumulate(e.kind, acc(j, 0), value, e.dtype))

    def launch(self, geometry: Geometry, split: bool, combines: bool = False) -> Launch:
        """The finished kernel."""
        program = self.plan.program
        scratch = []
        if split or combines:
            for name, e in zip(self.plan.partials, self.plan.reduces, strict=True):
                const = "const " if combines else ""
                scratch.append((name, f"__global {const}{accumulator(e).opencl}* restrict {argument(name)}"))
        remark = "combines the partial results of the launch before" if combines else ""
        return launch(
            kernel_name("reduce", program, self.part),
            program,
            geometry,
            self.body,
            self.helpers,
            banner("reduce", program, self.configuration, remark),
            tuple(scratch),
            self.plan.partials if split else None,
        )


def acc(j: int, chain: int | str) -> str:
    """The accumulator of reduction `j` in chain `chain`, or the element of an array."""
    return f"acc{j}_{chain}"


# --- CPU ------------------------------------------------------------------------------------------------------------


def cpu(plan: Plan, configuration: Configuration) -> Launch:
    """One work-item per run of outputs (and split)."""
    writer = Writer(plan, configuration, configuration.integer("lanes"))
    return _cpu_rows(writer, configuration) if plan.rows else _cpu_columns(writer, configuration)


def _per_item(plan: Plan, configuration: Configuration, outputs: int) -> int:
    """How many rows (or runs of vectors) a work-item takes, by the memory they read."""
    splits = configuration.integer("splits")
    one = outputs * ceil_div(plan.length, splits) * plan.element_bytes
    return max(1, min(plan.others, (configuration.integer("grain") << 10) // one))


@contextmanager
def _reduced_loops(writer: Writer, loops: tuple[Dimension, ...], split: Dimension, splits: int) -> Iterator[None]:
    """Loops over reduced dimensions; the one that is split runs over the current split's part."""
    with ExitStack() as stack:
        for d in loops:
            name = writer.names[d.name]
            if d == split and splits > 1:
                size = ceil_div(d.extent, splits)
                end = f"min(split * {size} + {size}, ({writer.ctype}){d.extent})"
                header = f"for ({writer.ctype} {name} = split * {size}; {name} < {end}; ++{name})"
                stack.enter_context(writer.body.block(header))
            else:
                stack.enter_context(writer.body.loop(name, d.extent, ctype=writer.ctype))
        yield


def _cpu_rows(writer: Writer, configuration: Configuration) -> Launch:
    """Outputs are taken `outputs` at a time: what they share is loaded once, and memory is read as so many streams.

    The outputs of a group lie far apart: a processor fetches several long streams ahead sooner than one of as many
    bytes, and neighbouring rows are such a one.
    """
    plan, body, ctype = writer.plan, writer.body, writer.ctype
    unroll, splits, together = (configuration.integer(name) for name in ("unroll", "splits", "outputs"))
    groups, places = far_groups(plan, together)
    count = math.prod(d.extent for d in groups)
    taken = max(1, _per_item(plan, configuration, 1) // together)
    blocks = ceil_div(count, taken)
    body.line(f"const {ctype} item = ({ctype})get_global_id(0);")
    decode(body, "item", [("block", blocks), ("split", splits)], ctype, ("block", "split"))
    with share(body, ctype, "flat", "block", taken, count):
        decode(body, "flat", [(variable(d.name), d.extent) for d in groups], ctype)
        along = plan.kept[-1].name if together > 1 else ""
        if along:
            body.line(f"const {ctype} {writer.names[along]} = {variable(groups[-1].name)};")
        writer.declare(together * unroll)
        with _reduced_loops(writer, plan.reduced, plan.split, splits):
            _row(writer, unroll, places, splits if plan.split == plan.vector else 1)
        for row, place in enumerate(places):
            chains = [row * unroll + k for k in range(unroll)]
            writer.merge(chains[0], chains[1:])
            results = [writer.across(j, chains[0]) for j in range(len(plan.reduces))]
            if splits == 1:
                writer.finish(results, 1, place, along)
                continue
            for j, value in enumerate(results):
                writer.keep(j, value, 1, place, along)
    return writer.launch(cpu_geometry(blocks * splits), splits > 1)


def far_groups(plan: Plan, together: int) -> tuple[tuple[Dimension, ...], tuple[int, ...]]:
    """The loops over groups of rows, and where a group's rows lie after its first.

    The rows are as many parts, evenly spread and overlapping where they do not divide: each group has one of each part.
    """
    if together == 1:
        return plan.kept, (0,)
    *outer, inner = plan.kept
    part = ceil_div(inner.extent, together)
    places = tuple(row * (inner.extent - part) // (together - 1) for row in range(together))
    return (*outer, Dimension(f"{inner.name}_group", part)), places


def _row(writer: Writer, unroll: int, places: tuple[int, ...], splits: int) -> None:
    """Rows, or the current split's part of them: steps of `unroll` vectors, single vectors, and the odd rest."""
    plan, body, lanes, ctype = writer.plan, writer.body, writer.lanes, writer.ctype
    u, extent, step = writer.names[plan.vector.name], plan.vector.extent, writer.lanes * unroll
    whole = extent - extent % lanes
    first, end = "0", str(whole)
    if splits > 1:
        part = round_up(ceil_div(extent, splits), step)
        body.line(f"const {ctype} {u}_end = min(split * {part} + {part}, ({ctype}){whole});")
        first, end = f"split * {part}", f"{u}_end"

    def add(chain: int, counted: int = 0) -> None:
        for row, place in enumerate(places):
            offsets = {plan.vector.name: chain * lanes, **({plan.kept[-1].name: place} if len(places) > 1 else {})}
            writer.step(row * unroll + chain, offsets, counted)

    body.line(f"{ctype} {u} = {first};")
    if unroll > 1:
        with body.block(f"for (; {u} <= {end} - {step}; {u} += {step})"):
            for chain in range(unroll):
                add(chain)
    if unroll == 1 or splits > 1 or whole % step:
        with body.block(f"for (; {u} < {end}; {u} += {lanes})"):
            add(0)
    if extent > whole:
        # The rest as a vector that starts early; the lanes that were counted before are left out.
        last = f"if (split == {splits - 1})" if splits > 1 else ""
        with body.block(last):
            body.line(f"{u} = {extent - lanes};")
            add(0, lanes - extent % lanes)


def _cpu_columns(writer: Writer, configuration: Configuration) -> Launch:
    plan, body, lanes, ctype = writer.plan, writer.body, writer.lanes, writer.ctype
    unroll, splits, vectors = (configuration.integer(name) for name in ("unroll", "splits", "vectors"))
    run = vectors * lanes
    pieces = ceil_div(plan.vector.extent, run)
    rows = _per_item(plan, configuration, run)
    blocks = ceil_div(plan.others, rows)
    v = writer.names[plan.vector.name]
    body.line(f"const {ctype} item = ({ctype})get_global_id(0);")
    decode(body, "item", [("block", blocks), ("split", splits), ("piece", pieces)], ctype, ("block", "split"))
    if plan.vector.extent % run:
        body.line(f"const {ctype} {v} = min(piece * {run}, ({ctype}){plan.vector.extent - run});")
    else:
        body.line(f"const {ctype} {v} = piece * {run};")
    with share(body, ctype, "flat", "block", rows, plan.others):
        decode(body, "flat", [(variable(d.name), d.extent) for d in plan.kept], ctype)
        if vectors > WRITTEN_OUT:
            _wide_columns(writer, vectors, splits)
        else:
            _narrow_columns(writer, unroll, vectors, splits)
    return writer.launch(cpu_geometry(blocks * splits * pieces), splits > 1)


def _wide_columns(writer: Writer, vectors: int, splits: int) -> None:
    """Many vectors of outputs, whose accumulators are arrays: each step walks over a long piece of memory."""
    plan, body, lanes = writer.plan, writer.body, writer.lanes
    writer.names["<m>"] = "m"
    chain, offset = "m[m]", Affine.of({"<m>": lanes})
    for j, e in enumerate(plan.reduces):
        body.line(f"{vector_type(accumulator(e), lanes)} {acc(j, f'm[{vectors}]')};")
    with body.loop("m", vectors):
        for j, e in enumerate(plan.reduces):
            body.line(f"{acc(j, chain)} = {writer.expressions(lanes, {}, '').identity(e.kind, e.dtype)};")
    with _reduced_loops(writer, plan.reduced, plan.split, splits), body.loop("m", vectors):
        writer.step(chain, {plan.vector.name: offset})
    with body.loop("m", vectors):
        if splits == 1:
            writer.finish([acc(j, chain) for j in range(len(plan.reduces))], lanes, offset)
        else:
            for j in range(len(plan.reduces)):
                writer.keep(j, acc(j, chain), lanes, offset)


def _narrow_columns(writer: Writer, unroll: int, vectors: int, splits: int) -> None:
    """A few vectors of outputs, with `unroll` accumulators each."""
    plan, lanes = writer.plan, writer.lanes
    writer.declare(vectors * unroll)
    _columns(writer, unroll, vectors, splits)
    for m in range(vectors):
        writer.merge(m, [k * vectors + m for k in range(1, unroll)])
    for m in range(vectors):
        if splits == 1:
            writer.finish([acc(j, m) for j in range(len(plan.reduces))], lanes, m * lanes)
            continue
        for j in range(len(plan.reduces)):
            writer.keep(j, acc(j, m), lanes, m * lanes)


def _columns(writer: Writer, unroll: int, vectors: int, splits: int) -> None:
    """The loops over what is reduced, the innermost one `unroll` steps at a time."""
    plan, body, ctype, lanes = writer.plan, writer.body, writer.ctype, writer.lanes
    if not plan.reduced:
        for m in range(vectors):
            writer.step(m, {plan.vector.name: m * lanes})
        return
    *outer, inner = plan.reduced
    u = writer.names[inner.name]
    with _reduced_loops(writer, tuple(outer), plan.split, splits):
        first, end = "0", str(inner.extent)
        if inner == plan.split and splits > 1:
            size = ceil_div(inner.extent, splits)
            body.line(f"const {ctype} {u}_end = min(split * {size} + {size}, ({ctype}){inner.extent});")
            first, end = f"split * {size}", f"{u}_end"
        body.line(f"{ctype} {u} = {first};")
        if unroll > 1:
            with body.block(f"for (; {u} <= {end} - {unroll}; {u} += {unroll})"):
                for k in range(unroll):
                    _column_step(writer, k, vectors, k)
        with body.block(f"for (; {u} < {end}; ++{u})"):
            _column_step(writer, 0, vectors, 0)


def _column_step(writer: Writer, chain: int, vectors: int, offset: int) -> None:
    """One step of the innermost reduced loop, `offset` after its variable, for every vector of outputs."""
    plan = writer.plan
    inner = plan.reduced[-1].name
    for m in range(vectors):
        writer.step(chain * vectors + m, {plan.vector.name: m * writer.lanes, inner: offset})


def combine(plan: Plan, configuration: Configuration) -> Launch:
    """The second launch: combine the partial results of all splits and compute the outputs, one at a time."""
    writer = Writer(plan, configuration, 1, "_combine")
    body, ctype = writer.body, writer.ctype
    grain = 64
    body.line(f"const {ctype} first = ({ctype})get_global_id(0) * {grain};")
    with body.block(f"for ({ctype} output = first; output < first + {grain} && output < {plan.outputs}; ++output)"):
        decode(body, "output", [(variable(d.name), d.extent) for d in plan.loops.kept], ctype)
        writer.declare(1)
        with body.loop("split", configuration.integer("splits"), ctype=ctype):
            writer.add_partials()
        writer.finish([acc(j, 0) for j in range(len(plan.reduces))], 1)
    return writer.launch(cpu_geometry(ceil_div(plan.outputs, grain)), False, combines=True)
