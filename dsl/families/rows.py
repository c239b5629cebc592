"""Chains over shared rows in one kernel: softmax, layer norm, batch moments, and whatever is made like them.

    m[r]   = max(k) x[r,k]                     a value per row, from all of its elements
    e[r,k] = exp(x[r,k] - m[r])                a value per element
    y[r,k] = e[r,k] / sum(j) e[r,j]

Statements give a value per row or per element of a row; reductions run over whole rows. Rows may lie along any
dimensions, several together, and with any strides; operands may be broadcast along rows or across them. A row is
walked over several times (see `rows_chain`); in between, its elements come from a cache, or stay in registers or local
memory.

CPU: one work-item per run of rows (`rows_cpu`). GPU: a team of work-items per row (`rows_gpu`).
"""

from __future__ import annotations

from tilewright.dsl.families import rows_cpu, rows_gpu
from tilewright.dsl.families.rows_chain import chain_of
from tilewright.dsl.families.rows_plan import Plan, plan_of
from tilewright.dsl.families.shared import ceil_div, needs_f64, power_below
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Program, Reduce, all_indices, walk
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target

GRAINS = (2, 4, 8, 16, 32, 64, 128, 256)
"""KiB of memory that one work-item of a CPU may walk over."""
LONG = 1 << 16
"""Elements of a row from which it is worth being shared by all units of a device, in several launches."""
STREAMED = 64 << 20
"""Bytes of output from which a CPU's caches do not hold it for its reader."""
REGISTERS = 65536
"""(guess) Registers of 4 bytes that the work-items of a GPU's group share; a quarter of a work-item's limit is left
for addresses and sums."""


class Rows:
    """Chains of statements over shared rows."""

    name = "rows"

    def refusal(self, program: Program, target: Target) -> str | None:
        """One statement, a prefix or nested reduction, differing ranges, too few long rows, or a missing type."""
        if len(program.statements) < 2:
            return "it has one statement only"
        if any(i.extent == 0 for s in program.statements for i in all_indices(s)):
            return "it has an empty range"
        found = [n for s in program.statements for n in walk(s.value) if isinstance(n, Reduce)]
        if any(n.until is not None for n in found):
            return "it has a prefix reduction (a scan)"
        made = {s.target for s in program.statements}
        if not any(getattr(n, "tensor", None) in made for s in program.statements for n in walk(s.value)):
            return "no statement reads what another one writes"
        chain = chain_of(program)
        if isinstance(chain, str):
            return chain
        plan = plan_of(program)
        if 4 * _most_units(plan, target) <= target.compute_units and chain.length >= LONG:
            return "it has a few long rows only, which would leave most of the device idle"
        return needs_f64(program, target)

    def space(self, program: Program, target: Target) -> Space:
        """Vector width, rows per work-item or work-group, and where values wait for the next pass."""
        plan = plan_of(program)
        return _cpu_space(plan, target) if target.shape is Shape.CPU else _gpu_space(plan, target)

    def default(self, program: Program, target: Target) -> Configuration:
        """The native width; teams whose members hold a few vectors each."""
        plan = plan_of(program)
        return _cpu_default(plan, target) if target.shape is Shape.CPU else _gpu_default(plan, target)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """One launch."""
        write = rows_cpu.lower if target.shape is Shape.CPU else rows_gpu.lower
        return Lowering((write(plan_of(program), configuration),))


def _most_units(plan: Plan, target: Target) -> int:
    """Cores or multiprocessors that the rows can occupy."""
    if not plan.across:
        return plan.others
    together = target.lanes(plan.register_bytes) if target.shape is Shape.CPU else 8
    return plan.others * ceil_div(plan.vector.extent, together)


# --- CPU ------------------------------------------------------------------------------------------------------------


def _cpu_space(plan: Plan, target: Target) -> Space:
    streams = (0, 1) if target.streaming_stores and _wide_outputs(plan) else (0,)
    aheads = ("nothing", "next") if rows_cpu.ahead_reads(plan) else ("nothing",)
    keeps = ("nothing", *("costly",) * bool(plan.costly), *("loads",) * bool(plan.loaded))
    parameters = [
        Parameter("lanes", plan.widths(16), "elements per vector; the native width or twice that is typical"),
        Parameter("unroll", (1, 2, 4), "vectors per step of the innermost loop, each with its own accumulators"),
        Parameter("grain", GRAINS, "KiB of memory per work-item; 16 to 64"),
        Parameter("keep", keeps, "what waits for the next pass in an array; loads: also what is read again"),
        Parameter("stream", streams, "1: what is written does not pass through the caches; for outputs beyond them"),
        Parameter("ahead", aheads, "what is fetched into the cache while a row is worked on"),
    ]
    constraints = [
        Constraint(
            "the values kept do not fit into the second-level cache",
            lambda c: (
                rows_cpu.kept_bytes(plan, str(c["keep"]), c.integer("lanes"), _vectors(plan, c)) <= target.l2_bytes
            ),
        )
    ]
    if plan.across:
        parameters.append(Parameter("vectors", (1, 2, 4, 8), "neighbouring vectors of rows per work-item"))
        constraints += [
            Constraint(
                "a work-item's vectors are longer than the rows' innermost dimension",
                lambda c: c["vectors"] == 1 or c.integer("vectors") * c.integer("lanes") <= plan.vector.extent,
            ),
            Constraint(
                "a step of the innermost loop has more than 8 vectors",
                lambda c: c.integer("vectors") * c.integer("unroll") <= 8,
            ),
            Constraint(
                "a step of the innermost loop is longer than the loop",
                lambda c: c.integer("unroll") <= plan.inner[-1].extent,
            ),
        ]
    else:
        constraints.append(
            Constraint(
                "a step of the innermost loop is longer than the loop",
                lambda c: c["unroll"] == 1 or c.integer("unroll") * c.integer("lanes") <= plan.vector.extent,
            )
        )
    return Space(tuple(parameters), tuple(constraints))


def _wide_outputs(plan: Plan) -> list[str]:
    """The outputs with a value per element."""
    return [t for p in plan.chain.passes for t in p.writes]


def _vectors(plan: Plan, configuration: Configuration) -> int:
    return configuration.integer("vectors") if plan.across else 1


def _cpu_default(plan: Plan, target: Target) -> Configuration:
    lanes = min(target.lanes(plan.register_bytes), plan.widths(16)[-1])
    values: dict[str, int | str] = {"lanes": lanes}
    busy, lined = 2 * target.compute_units, plan.others
    if plan.across:
        fitting = [v for v in (1, 2, 4, 8) if v == 1 or v * lanes <= plan.vector.extent]
        filled = [v for v in fitting if plan.others * ceil_div(plan.vector.extent, v * lanes) >= busy]
        values["vectors"] = vectors = filled[-1] if filled else fitting[0]
        values["unroll"] = 1
        one = vectors * lanes * plan.chain.length * plan.element_bytes
        lined *= ceil_div(plan.vector.extent, vectors * lanes)
    else:
        vectors, one = 1, plan.chain.length * plan.element_bytes
        values["unroll"] = max(u for u in (1, 2, 4) if u == 1 or u * lanes <= plan.vector.extent)
    share = lined * one // busy >> 10
    values["grain"] = max((g for g in GRAINS if g <= min(share, 64)), default=GRAINS[0])
    # Rows across memory would be read again from far apart cache lines.
    wanted = "loads" if plan.across and plan.loaded else "costly" if plan.costly else "nothing"
    fits = rows_cpu.kept_bytes(plan, wanted, lanes, vectors) <= target.l2_bytes // 2
    values["keep"] = wanted if fits else "nothing"
    written = sum(plan.program.tensors[t].size * plan.program.tensors[t].dtype.itemsize for t in _wide_outputs(plan))
    values["stream"] = int(target.streaming_stores and written >= STREAMED)
    near = 2 * vectors * (lanes if plan.across else 1) * plan.chain.length * plan.element_bytes <= target.l2_bytes
    values["ahead"] = "next" if rows_cpu.ahead_reads(plan) and near else "nothing"
    return Configuration.of(values)


# --- GPU ------------------------------------------------------------------------------------------------------------


def _gpu_space(plan: Plan, target: Target) -> Space:
    groups = tuple(n for n in (32, 64, 128, 256, 512, 1024) if n <= target.max_work_group) or (1,)
    widths = tuple(w for w in plan.widths(_widest(plan)) if plan.vector.extent % w == 0)
    places = ("nothing", "local", "registers") if plan.loaded else ("nothing",)
    return Space(
        (
            Parameter("lanes", widths, "elements per vector; 16 bytes where sizes allow"),
            Parameter("work_group", groups, "work-items per work-group, typically 128 to 512"),
            Parameter("rows", (1, 2, 4, 8, 16, 32, 64, 128, 256), "rows (or vectors of them) per work-group"),
            Parameter("keep", places, "where values wait for the next pass; nothing: they are read again"),
            Parameter("unroll", (1, 2, 4, 8), "vectors under way at once where values are read again"),
        ),
        (
            Constraint("fewer work-items than rows", lambda c: c.integer("rows") <= c.integer("work_group")),
            Constraint(
                "a team has several times more members than its row has vectors",
                lambda c: (
                    c.integer("work_group") // c.integer("rows")
                    < 4 * max(1, rows_gpu.vectors(plan, c.integer("lanes")))
                ),
            ),
            Constraint(
                "the values kept do not fit into registers",
                lambda c: (
                    c["keep"] != "registers" or rows_gpu.kept_bytes(plan, c) <= _register_bytes(c.integer("work_group"))
                ),
            ),
            Constraint(
                "the loops over registers are unrolled as a whole",
                lambda c: c["keep"] != "registers" or c["unroll"] == 1,
            ),
            Constraint(
                "local memory is too small",
                lambda c: (
                    rows_gpu.shared_bytes(plan, c)
                    + (c["keep"] == "local") * c.integer("work_group") * rows_gpu.kept_bytes(plan, c)
                    <= target.local_memory
                ),
            ),
        ),
    )


def _widest(plan: Plan) -> int:
    """Elements of the large operands in 16 bytes: 8 of a half, else 4."""
    read = [plan.program.tensors[r.tensor] for r in plan.chain.reads if plan.chain.is_wide(r)]
    largest = max((t.size for t in read), default=0)
    return 8 if max((t.dtype.itemsize for t in read if 8 * t.size >= largest), default=4) == 2 else 4


def _register_bytes(group: int) -> int:
    """Bytes of registers that a work-item may fill with kept values."""
    return 4 * min(96, REGISTERS // group - 24)


def _gpu_default(plan: Plan, target: Target) -> Configuration:
    space = _gpu_space(plan, target)
    most = max(int(n) for n in space.parameters[1].values)
    lanes = 1 if plan.across else max(int(w) for w in space.parameters[0].values)
    steps = rows_gpu.vectors(plan, lanes)
    # About 16 words per member, so that several loads are under way; more members where rows are few.
    words = max(1, plan.live_bytes() // 4) * lanes
    team = power_below(max(1, ceil_div(steps * words, 16) * 2 - 1))
    while team < steps and team * rows_gpu.lines(plan, lanes) < 512 * target.compute_units:
        team *= 2
    if plan.across:
        rows = min(32, power_below(plan.vector.extent))
        while rows > 8 and rows_gpu.lines(plan, lanes) < rows * target.compute_units:
            rows //= 2
        group = min(most, max(rows, min(rows * team, most)))
        if group < 128 <= most:
            rows = min(power_below(plan.vector.extent), rows * (128 // group))
            group = max(group, rows)
    else:
        group = min(most, max(team, 128))
        rows = max(1, group // min(team, group))
    rows = max(1, min(rows, group))
    values: dict[str, int | str] = {"lanes": lanes, "work_group": group, "rows": rows, "unroll": 1}
    for keep in ("registers", "local", "nothing"):
        chosen = Configuration.of({**values, "keep": keep, "unroll": 4 if keep == "nothing" else 1})
        if space.violated(chosen) is None:
            return chosen
    return next(iter(space))


ROWS = Rows()
