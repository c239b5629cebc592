"""The kernels of the `scan` family for CPUs; the family describes them."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.scan_writer import (
    BLOCK,
    Step,
    Writer,
    column_block,
    column_carry,
    column_leave,
    column_sum,
)
from tilewright.dsl.families.shared import Geometry, ceil_div, cpu_geometry, decode, share
from tilewright.dsl.writer import LANE, variable, vector_type

WRITTEN_OUT = 4
"""Most vectors of a work-item that have variables of their own; more are elements of arrays."""


def rows(writer: Writer) -> Geometry:
    """One work-item per run of rows and part: whole vectors, then single elements."""
    plan, body, ctype, lanes = writer.plan, writer.body, writer.ctype, writer.lanes
    writer.multiples = {plan.along.name: lanes}
    part = plan.part(writer.splits, lanes)
    one = part * plan.element_bytes
    rows = max(1, min(plan.others, (writer.configuration.integer("grain") << 10) // one))
    blocks = ceil_div(plan.others, rows)
    body.line(f"const {ctype} item = ({ctype})get_global_id(0);")
    decode(body, "item", [("block", blocks), ("split", writer.splits)], ctype, ("block", "split"))
    first, end = writer.ranges(lanes)
    with share(body, ctype, "flat", "block", rows, plan.others):
        decode(body, "flat", [(variable(d.name), d.extent) for d in plan.kept], ctype)
        for j, e in enumerate(plan.scans):
            writer.declare(f"carry{j}", e, 1, writer.row_carry(j, e, "flat"))
        body.line(f"{ctype} {writer.t} = {first};")
        last = f"{end} - {lanes}"
        with body.block(f"while ({writer.t} <= {last})" if writer.blocked else ""):
            _row_block(writer, f"min({writer.t} + {BLOCK * lanes}, {last} + 1)" if writer.blocked else f"{last} + 1")
        if plan.along.extent % lanes:
            with body.block(f"for (; {writer.t} < {end}; ++{writer.t})"):
                _row_step(writer, 1, "carry", False)
        if writer.sums:
            for j, e in enumerate(plan.scans):
                writer.row_sum(j, e, "flat", f"carry{j}")
    return cpu_geometry(blocks * writer.splits)


def _row_block(writer: Writer, stop: str) -> None:
    """Whole vectors up to `stop`, with `carry` taken past them; in a block `part` begins anew."""
    body, lanes, anew = writer.body, writer.lanes, writer.blocked or writer.sums
    for j, e in enumerate(writer.plan.scans):
        splat = f"carry{j}" if lanes == 1 else f"({vector_type(e.dtype, lanes)})(carry{j})"
        writer.declare(f"part{j}", e, lanes, writer.identity(e, lanes) if anew else splat)
        if writer.blocked and not writer.sums:
            writer.declare(f"base{j}", e, lanes, splat)
    body.line(f"const {writer.ctype} stop = {stop};")
    with body.block(f"for (; {writer.t} < stop; {writer.t} += {lanes})"):
        _row_step(writer, lanes, "part", writer.blocked)
    for j, e in enumerate(writer.plan.scans):
        text = f"part{j}" if lanes == 1 else f"part{j}.s0"
        if writer.sums:
            text = writer.across(e, f"part{j}", lanes)
        body.line(f"carry{j} = {writer.combined(e, 1, f'carry{j}', text) if anew else text};")


def _row_step(writer: Writer, lanes: int, carry: str, based: bool) -> None:
    """One vector of a row; `carry` starts the names of what is carried, on top of `base` if there is one."""
    name, body = writer.plan.along.name, writer.body
    place = {name: Affine.of({name: 1, LANE: 1})} if lanes > 1 else {}
    step = Step(writer, lanes, place, "v_" if carry == "part" else "w_")
    step.enter()
    results = []
    for j, (e, x) in enumerate(zip(writer.plan.scans, step.entering, strict=True)):
        before = f"{carry}{j}"
        if writer.sums:
            body.line(f"{before} = {writer.combined(e, lanes, before, x)};")
            continue
        within = writer.within(e, x, lanes)
        total = within if lanes == 1 else f"({vector_type(e.dtype, lanes)})({writer.last(within, lanes)})"
        mine = writer.shifted(e, within, lanes) if writer.plan.is_exclusive(e) else within
        text = writer.combined(e, lanes, before, mine)
        results.append(
            writer.declare(f"{x}_y", e, lanes, writer.combined(e, lanes, f"base{j}", text) if based else text)
        )
        body.line(f"{before} = {writer.combined(e, lanes, before, total)};")
    if not writer.sums:
        step.leave(results, body)


def columns(writer: Writer) -> Geometry:
    """One work-item per block of neighbouring scans and part, all vectors of it at each step."""
    plan, body, ctype, lanes = writer.plan, writer.body, writer.ctype, writer.lanes
    vectors = writer.configuration.integer("vectors")
    run, v = vectors * lanes, writer.names[plan.vector.name]
    pieces = ceil_div(plan.vector.extent, run)
    body.line(f"const {ctype} item = ({ctype})get_global_id(0);")
    parts = [("flat", plan.others), ("split", writer.splits), ("piece", pieces)]
    decode(body, "item", parts, ctype, ("split",))
    decode(body, "flat", [(variable(d.name), d.extent) for d in plan.kept], ctype)
    writer.multiples = {plan.vector.name: lanes} if plan.vector.extent % run == 0 else {}
    early = f"min(piece * {run}, ({ctype}){plan.vector.extent - run})"
    body.line(f"const {ctype} {v} = {early if plan.vector.extent % run else f'piece * {run}'};")
    array = vectors > WRITTEN_OUT
    for j, e in enumerate(plan.scans):
        stems = [f"carry{j}", f"base{j}"] if writer.blocked else [f"carry{j}"]
        names = [f"{stem}{end}" for stem in stems for end in _suffixes(vectors, array)]
        body.line(f"{vector_type(e.dtype, lanes)} {', '.join(names)};")

    def each(write_one: Callable[[int, str], None]) -> None:
        """Write code for every vector, given its number (or 0 in a loop) and the end of its carries' names."""
        if array:
            with body.loop("m", vectors, ctype=ctype):
                write_one(0, "[m]")
            return
        for m in range(vectors):
            write_one(m, f"_{m}")

    each(lambda m, suffix: column_carry(writer, suffix, _block_place(writer, m, array)))
    with writer.blocks(*writer.ranges(1)) as (first, end):
        if writer.blocked:
            each(lambda m, suffix: column_block(writer, suffix, begins=True))
        with body.block(f"for ({ctype} {writer.t} = {first}; {writer.t} < {end}; ++{writer.t})"):
            each(lambda m, suffix: _column_step(writer, m, suffix, _block_place(writer, m, array)))
        if writer.blocked:
            each(lambda m, suffix: column_block(writer, suffix, begins=False))
    if writer.sums:
        each(lambda m, suffix: column_sum(writer, suffix, _block_place(writer, m, array)))
    return cpu_geometry(plan.others * writer.splits * pieces)


def _suffixes(vectors: int, array: bool) -> list[str]:
    """How the names of a block's carries end where they are declared."""
    return [f"[{vectors}]"] if array else [f"_{m}" for m in range(vectors)]


def _block_place(writer: Writer, m: int, array: bool) -> dict[str, Affine]:
    """Where vector `m` of a block stands, or the one whose number is in the C variable `m`."""
    name, lanes = writer.plan.vector.name, writer.lanes
    terms = {name: 1, LANE: 1 if lanes > 1 else 0}
    if array:
        writer.names["<m>"] = "m"
        terms["<m>"] = lanes
    return {name: Affine.of(terms, m * lanes)}


def _column_step(writer: Writer, m: int, suffix: str, place: dict[str, Affine]) -> None:
    """One element of a vector of scans."""
    step = Step(writer, writer.lanes, place, f"v{m}_")
    step.enter()
    column_leave(writer, step, suffix, writer.body)
