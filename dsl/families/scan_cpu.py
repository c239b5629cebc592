"""The kernels of the `scan` family for CPUs; the family describes them."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.scan_writer import Step, Writer, column_carry, column_leave, column_sum
from tilewright.dsl.families.shared import Geometry, ceil_div, cpu_geometry, decode, share
from tilewright.dsl.writer import LANE, variable, vector_type

WRITTEN_OUT = 4
"""Most vectors of a work-item that have variables of their own; more are elements of arrays."""


def rows(writer: Writer) -> Geometry:
    """One work-item per run of rows and part: whole vectors, then single elements."""
    plan, body, ctype, lanes = writer.plan, writer.body, writer.ctype, writer.lanes
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
        t = writer.t
        body.line(f"{ctype} {t} = {first};")
        if lanes > 1:
            for j, e in enumerate(plan.scans):
                start = f"({vector_type(e.dtype, lanes)})(carry{j})"
                writer.declare(f"carry{j}_v", e, lanes, writer.identity(e, lanes) if writer.sums else start)
            with body.block(f"for (; {t} <= {end} - {lanes}; {t} += {lanes})"):
                _row_step(writer, lanes, "_v")
            for j, e in enumerate(plan.scans):
                text = writer.across(e, f"carry{j}_v", lanes) if writer.sums else f"carry{j}_v.s0"
                body.line(f"carry{j} = {text};")
        if lanes == 1 or plan.along.extent % lanes:
            with body.block(f"for (; {t} < {end}; ++{t})"):
                _row_step(writer, 1, "")
        if writer.sums:
            for j, e in enumerate(plan.scans):
                writer.row_sum(j, e, "flat", f"carry{j}")
    return cpu_geometry(blocks * writer.splits)


def _row_step(writer: Writer, lanes: int, suffix: str) -> None:
    """One vector of a row; `suffix` ends the names of the carries."""
    name, body = writer.plan.along.name, writer.body
    place = {name: Affine.of({name: 1, LANE: 1})} if lanes > 1 else {}
    step = Step(writer, lanes, place, "v_" if lanes > 1 else "w_")
    step.enter()
    results = []
    for j, (e, x) in enumerate(zip(writer.plan.scans, step.entering, strict=True)):
        carry = f"carry{j}{suffix}"
        if writer.sums:
            body.line(f"{carry} = {writer.combined(e, lanes, carry, x)};")
            continue
        within = writer.within(e, x, lanes)
        total = within if lanes == 1 else f"({vector_type(e.dtype, lanes)})({writer.last(within, lanes)})"
        mine = writer.shifted(e, within, lanes) if writer.plan.is_exclusive(e) else within
        results.append(writer.declare(f"{x}_y", e, lanes, writer.combined(e, lanes, carry, mine)))
        body.line(f"{carry} = {writer.combined(e, lanes, carry, total)};")
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
    early = f"min(piece * {run}, ({ctype}){plan.vector.extent - run})"
    body.line(f"const {ctype} {v} = {early if plan.vector.extent % run else f'piece * {run}'};")
    array = vectors > WRITTEN_OUT
    for j, e in enumerate(plan.scans):
        kind = vector_type(e.dtype, lanes)
        names = [f"carry{j}[{vectors}]"] if array else [f"carry{j}_{m}" for m in range(vectors)]
        body.line(f"{kind} {', '.join(names)};")

    def each(write_one: Callable[[int, str], None]) -> None:
        """Write code for every vector, given its number (or 0 in a loop) and the end of its carries' names."""
        if array:
            with body.loop("m", vectors, ctype=ctype):
                write_one(0, "[m]")
            return
        for m in range(vectors):
            write_one(m, f"_{m}")

    each(lambda m, suffix: column_carry(writer, m, suffix, _block_place(writer, m, array)))
    first, end = writer.ranges(1)
    with body.block(f"for ({ctype} {writer.t} = {first}; {writer.t} < {end}; ++{writer.t})"):
        each(lambda m, suffix: _column_step(writer, m, suffix, _block_place(writer, m, array)))
    if writer.sums:
        each(lambda m, suffix: column_sum(writer, suffix, _block_place(writer, m, array)))
    return cpu_geometry(plan.others * writer.splits * pieces)


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
