"""The spaces of the `reduce` family, and its choice without tuning."""

from __future__ import annotations

from tilewright.dsl.families.reduce import WRITTEN_OUT, Plan, accumulator
from tilewright.dsl.families.shared import MOST_PARTIALS, aligned_widths, ceil_div, power_below
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target

SPLITS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
VECTORS = (1, 2, 4, 8, 16, 32, 64)
GPU_SPLITS = (*SPLITS, 512, 1024)
TOGETHER = (1, 2, 4, 8)
GRAINS = (2, 4, 8, 16, 32, 64, 128, 256)
"""KiB of memory that one work-item of a CPU may walk over."""

WORTH_A_LAUNCH = 3 << 18
"""Bytes of a long reduction from which on a CPU splits it: adding up its parts is another launch, about 10 us in a run.

Five means of 220 to 515 KiB left whole make mobilenet_v3_large 1 to 3% faster on both drivers of two EPYC cores; by
themselves means are faster split from 784 KiB on (Intel) or 1.5 MiB (PoCL).
"""


def space(plan: Plan, target: Target) -> Space:
    """The configurations to search."""
    return _cpu_space(plan) if target.shape is Shape.CPU else _gpu_space(plan, target)


def default(plan: Plan, target: Target) -> Configuration:
    """A configuration that should be near the best."""
    return _cpu_default(plan, target) if target.shape is Shape.CPU else _gpu_default(plan, target)


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
            _splits(plan, plan.split.extent),
            "parts of the reduction that run apart; more than 1 if outputs are few",
            "split",
            reduced,
            sized=True,
        ),
    ]
    constraints = []
    if plan.rows:
        neighbours = plan.kept[-1] if plan.kept else None
        together = tuple(n for n in TOGETHER if n == 1 or (neighbours is not None and n <= neighbours.extent))
        where = (neighbours.name,) if neighbours is not None else ()
        parameters.append(
            Parameter(
                "outputs",
                together,
                "neighbouring outputs at once; 4 where they share an operand",
                "item",
                where,
                sized=True,
            )
        )
        constraints.append(
            Constraint(
                "more than 16 accumulators",
                lambda c: c["outputs"] == 1 or c.integer("outputs") * c.integer("unroll") * len(plan.reduces) <= 16,
            )
        )
        constraints.append(
            Constraint(
                "the accumulators are longer than a row",
                lambda c: c["unroll"] == 1 or c.integer("unroll") * c.integer("lanes") <= plan.vector.extent,
                sized=True,
            )
        )
    else:
        parameters.append(
            Parameter("vectors", VECTORS, "neighbouring vectors of outputs per work-item; 2 KiB", "item", vector)
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
                lambda c: (
                    c.integer("vectors") > WRITTEN_OUT
                    or c.integer("vectors") * c.integer("unroll") * len(plan.reduces) <= max(16, len(plan.reduces))
                ),
            )
        )
        constraints.append(
            Constraint(
                "accumulators in arrays have no chains",
                lambda c: c.integer("vectors") <= WRITTEN_OUT or c["unroll"] == 1,
            )
        )
    return Space(tuple(parameters), tuple(constraints))


def _splits(plan: Plan, extent: int, values: tuple[int, ...] = SPLITS) -> tuple[int, ...]:
    return tuple(n for n in values if n == 1 or (n * 4 <= extent and n * plan.outputs <= MOST_PARTIALS))


def _cpu_default(plan: Plan, target: Target) -> Configuration:
    size = max(accumulator(e).itemsize for e in plan.reduces)
    lanes = min(target.lanes(size), plan.widths(16)[-1])
    busy = 2 * target.compute_units
    values: dict[str, int] = {"lanes": lanes}
    if plan.rows:
        values["unroll"] = 4 if plan.vector.extent >= 4 * lanes else 2 if plan.vector.extent >= 2 * lanes else 1
        values["outputs"] = _together(plan, busy)
        if values["outputs"] > 1:
            values["unroll"] = min(values["unroll"], 2)
        runs = ceil_div(plan.others, values["outputs"])
    else:
        most = [v for v in VECTORS if v == 1 or (v * lanes <= plan.vector.extent and v * lanes * size <= 2048)]
        filled = [v for v in most if plan.others * ceil_div(plan.vector.extent, v * lanes) >= busy]
        # Long reductions are rather split than narrowed, so that each step walks over a long piece of memory.
        long = plan.split.extent >= 16 * busy and plan.outputs * plan.length * plan.element_bytes >= WORTH_A_LAUNCH
        values["vectors"] = most[-1] if long or not filled else filled[-1]
        values["unroll"] = 2 if values["vectors"] * len(plan.reduces) <= 4 else 1
        runs = plan.others * ceil_div(plan.vector.extent, values["vectors"] * lanes)
    total = plan.outputs * plan.length * plan.element_bytes
    splits = 1
    if runs < busy:
        # Each part should still be worth a work-item: 32 KiB or more.
        wanted = min(ceil_div(2 * busy, runs), max(1, total // runs >> 15))
        splits = max(n for n in _splits(plan, plan.split.extent) if n <= wanted)
    values["splits"] = splits
    share = total // busy >> 10
    values["grain"] = max((g for g in GRAINS if g <= min(share, 64)), default=GRAINS[0])
    return Configuration.of(values)


def _together(plan: Plan, busy: int) -> int:
    """Neighbouring rows that share an operand are taken four at a time, if that leaves every core busy."""
    if not plan.kept or len(plan.reduces) > 2:
        return 1
    inner = plan.kept[-1]
    shared = any(a.names and inner.name not in a.names for a in plan.addresses)
    return max(n for n in (1, 2, 4) if n == 1 or (shared and inner.extent >= n and plan.others >= n * busy))


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
                _splits(plan, plan.length, GPU_SPLITS),
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
    most = max(1, 16 // plan.main_itemsize)
    lanes = aligned_widths(plan.widths(most), plan.vector, plan.addresses)[-1]
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
        longest = max(1, steps * outputs // (2 * unroll * group))
        splits = max(n for n in _splits(plan, plan.length, GPU_SPLITS) if n <= max(1, min(wanted, longest)))
    values = {"lanes": lanes, "unroll": unroll, "work_group": group, "outputs": outputs, "splits": splits}
    return Configuration.of(values)


def _even_share(slots: int, group: int) -> int:
    """Outputs per work-group that leave few items without one, at least 8 of them where there are as many."""
    shares = [n for n in (64, 32, 16, 8) if n <= min(group, slots)] or [power_below(min(group, slots))]
    return min(shares, key=lambda n: (ceil_div(slots, n) * n > 1.07 * slots, -n))
