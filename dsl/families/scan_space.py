"""The spaces of the `scan` family, and its choice without tuning."""

from __future__ import annotations

import math

from tilewright.dsl.families.map import STREAMED
from tilewright.dsl.families.reduce import accumulator
from tilewright.dsl.families.scan import Plan
from tilewright.dsl.families.shared import ceil_div, power_below
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target

GRAINS = (4, 8, 16, 32, 64, 128, 256)
"""KiB of memory that one work-item of a CPU may walk over."""


def space(plan: Plan, target: Target) -> Space:
    """The configurations to search."""
    if target.shape is Shape.CPU:
        return _cpu_space(plan, target)
    return _gpu_row_space(plan, target) if plan.rows else _gpu_column_space(plan, target)


def default(plan: Plan, target: Target) -> Configuration:
    """A configuration that should be near the best."""
    if target.shape is Shape.CPU:
        return _cpu_default(plan, target)
    return _gpu_row_default(plan, target) if plan.rows else _gpu_column_default(plan, target)


def _parts(plan: Plan, values: tuple[int, ...]) -> Parameter:
    meaning = "parts of a scan that run apart; more than 1 where scans are few and long"
    return Parameter("splits", values, meaning, "split", (plan.along.name,), sized=True)


def _lanes(plan: Plan, values: tuple[int, ...], meaning: str) -> Parameter:
    return Parameter("lanes", values, meaning, "vector", (plan.vector.name,), sized=True)


def _cpu_space(plan: Plan, target: Target) -> Space:
    lanes = _lanes(plan, plan.widths(16), "elements per vector; the native width, or twice that in rows")
    parts = _parts(plan, tuple(n for n in plan.splits(64) if n <= 256))
    if plan.rows:
        grain = Parameter("grain", GRAINS, "KiB of memory per work-item; 16 to 64")
        return Space((lanes, grain, parts, _stream(target)))
    many = (1, 2, 4, 8, 16, 32, 64, 128)
    meaning = "neighbouring vectors per work-item; 1 KiB or more"
    vectors = Parameter("vectors", many, meaning, "item", (plan.vector.name,))
    return Space((lanes, vectors, parts, _stream(target)), (_fits(plan),))


def _stream(target: Target) -> Parameter:
    values = (0, 1) if target.streaming_stores else (0,)
    return Parameter("stream", values, "1: outputs are written past the caches; for those that are larger")


def _fits(plan: Plan) -> Constraint:
    return Constraint(
        "a work-item's vectors are longer than the outputs' innermost dimension",
        lambda c: c["vectors"] == 1 or c.integer("vectors") * c.integer("lanes") <= plan.vector.extent,
    )


def _cpu_default(plan: Plan, target: Target) -> Configuration:
    # In rows two registers per vector: a step more within it, but half as many carries.
    lanes = min(target.lanes(plan.itemsize) * (2 if plan.rows else 1), plan.widths(16)[-1])
    values = {"lanes": lanes}
    busy = 2 * target.compute_units
    runs = plan.others
    total = runs * plan.along.extent * plan.element_bytes * (1 if plan.rows else plan.vector.extent)
    if plan.rows:
        values["grain"] = max((g for g in GRAINS if g <= min(64, total // busy >> 10)), default=GRAINS[0])
    else:
        fitting = [m for m in (1, 2, 4, 8, 16, 32, 64) if m == 1 or m * lanes <= plan.vector.extent]
        # A work-item walks over 1 KiB at each step, or less if too few would be left.
        small = [m for m in fitting if m == 1 or m * lanes * plan.itemsize <= 1024]
        filled = [m for m in small if plan.others * ceil_div(plan.vector.extent, m * lanes) >= busy]
        values["vectors"] = filled[-1] if filled else small[-1]
        runs *= ceil_div(plan.vector.extent, values["vectors"] * lanes)
    written = math.prod(d.extent for d in plan.loops.kept) * plan.itemsize
    values["stream"] = int(target.streaming_stores and written >= STREAMED)
    values["splits"] = 1
    if runs < target.compute_units:
        # Parts read twice: they pay where they bring idle cores to work. Each should be worth a work-item, 64 KiB.
        wanted = min(ceil_div(busy, runs), max(1, total // runs >> 16))
        values["splits"] = max(n for n in plan.splits(64) if n <= wanted)
    return Configuration.of(values)


def _groups(target: Target) -> tuple[int, ...]:
    return tuple(n for n in (32, 64, 128, 256, 512) if n <= target.max_work_group) or (1,)


def _gpu_row_space(plan: Plan, target: Target) -> Space:
    groups = _groups(target)
    sharers = tuple(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if n <= groups[-1])
    carried = 2 * sum(accumulator(e).itemsize for e in plan.scans)
    return Space(
        (
            _lanes(plan, plan.widths(max(1, 16 // plan.itemsize), whole=True), "elements per vector; 4 of f32"),
            Parameter(
                "vectors", (1, 2, 4, 8), "vectors per work-item and tile; 4 for long rows", "item", (plan.along.name,)
            ),
            Parameter("work_group", groups, "work-items per work-group, typically 128 to 256"),
            Parameter("sharers", sharers, "work-items per row; as many as give each a few vectors"),
            _parts(plan, plan.splits(64)),
        ),
        (
            Constraint(
                "more work-items per row than in a work-group",
                lambda c: c.integer("sharers") <= c.integer("work_group"),
            ),
            Constraint(
                "a part is shared by less than a work-group",
                lambda c: c["splits"] == 1 or c["sharers"] == c["work_group"],
            ),
            Constraint(
                "most work-items are beyond the end of a row",
                lambda c: c["sharers"] == 1 or c.integer("sharers") * c.integer("lanes") < 2 * plan.along.extent,
            ),
            Constraint(
                "the sums of a tile do not fit into local memory",
                lambda c: c.integer("work_group") * c.integer("vectors") * carried <= target.local_memory,
            ),
        ),
    )


def _gpu_row_default(plan: Plan, target: Target) -> Configuration:
    lanes = plan.widths(max(1, 16 // plan.itemsize), whole=True)[-1]
    group = min(256, _groups(target)[-1])
    steps = ceil_div(plan.along.extent, lanes)
    # Four vectors per item where rows are long: fewer, larger steps through local memory.
    sharers = min(group, power_below(max(1, steps // 2)))
    vectors = max(n for n in (1, 2, 4) if n == 1 or n * sharers < 2 * steps)
    carried = 2 * sum(accumulator(e).itemsize for e in plan.scans)
    while vectors > 1 and group * vectors * carried > target.local_memory // 2:
        vectors //= 2
    splits = 1
    tile = sharers * vectors * lanes
    if sharers == group and plan.others < 2 * target.compute_units and plan.along.extent >= 8 * tile:
        wanted = min(ceil_div(8 * target.compute_units, plan.others), plan.along.extent // (2 * tile))
        splits = max(n for n in plan.splits(64) if n <= wanted)
    values = {"lanes": lanes, "vectors": vectors, "work_group": group, "sharers": sharers, "splits": splits}
    return Configuration.of(values)


def _gpu_column_space(plan: Plan, target: Target) -> Space:
    return Space(
        (
            _lanes(plan, plan.widths(max(1, 16 // plan.itemsize)), "scans per work-item; 1, or 4 of f32"),
            Parameter(
                "unroll",
                (1, 2, 4, 8),
                "elements of each scan that are read ahead; 4 to 8",
                "unroll",
                (plan.along.name,),
            ),
            Parameter("work_group", _groups(target), "work-items per work-group, typically 64 to 128"),
            _parts(plan, plan.splits(16)),
        )
    )


def _gpu_column_default(plan: Plan, target: Target) -> Configuration:
    scans = plan.others * plan.vector.extent
    wanted = 1024 * target.compute_units
    lanes = max((w for w in plan.widths(4) if w * plan.itemsize <= 16 and scans // w >= wanted), default=1)
    group = min(64, _groups(target)[-1])
    unroll = max(n for n in (1, 2, 4, 8) if n == 1 or n <= plan.along.extent)
    items = plan.others * ceil_div(plan.vector.extent, lanes)
    splits = 1
    if items * 4 < wanted:
        splits = max(n for n in plan.splits(64) if n == 1 or n <= ceil_div(wanted, items))
    return Configuration.of({"lanes": lanes, "unroll": unroll, "work_group": group, "splits": splits})
