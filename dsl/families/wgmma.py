"""The `wgmma` family: contractions by instructions that several sub-groups execute together, fed by copy engines.

`wgmma_form.py` says what it needs of a contraction, `wgmma_kernel.py` writes the kernel; here are the space of
configurations and the choice that is made without tuning.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.dsl.families import wgmma_kernel
from tilewright.dsl.families.contract_split import joined, split_values, split_view
from tilewright.dsl.families.contraction import Contraction, recognise, views_of
from tilewright.dsl.families.matrix_operands import Products, Side, in_pieces, in_turn, products, sides, tiles
from tilewright.dsl.families.reduce import REDUCE
from tilewright.dsl.families.shared import ceil_div, computes_indices
from tilewright.dsl.families.wgmma_model import candidates, estimate
from tilewright.dsl.families.wgmma_plan import Plan, warpgroups
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Program, reads
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Target
from tilewright.dsl.warpgroup import GROUP_ROWS

_SPLIT = "parts of the depth that are summed side by side (split-k); more than 1 for few tiles of great depth"
_LEAST = 32
"""Least rows, columns and depth: below that an instruction computes more zeros than anything else."""
_MOST_REPEATS = 2
"""How often panels may hold an element: 3x3 convolutions would be nine times their image."""
_SUMS = 128
"""(guess) Sums that a work-item may hold; with these and a whole group of work-items that load, a work-group takes all
registers of a compute unit."""
_TURNED = 8192
"""(guess) Elements of A per step that 128 work-items may have on their way to registers, twice."""
_SPLIT_SUMS = 96
"""(guess) The same where work-items hold parts of A as well beside a whole group that loads."""


_SMALLEST = Configuration.of(
    {
        "view": 0, "tile_m": GROUP_ROWS, "tile_n": _LEAST, "teams": 1, "stages": 3, "load_a": "panels",
        "load_b": "panels", "band": 1, "resident": 0, "split_k": 1,
    }
)  # fmt: skip
"""The configuration that takes least local memory."""


class Wgmma:
    """Contractions for warpgroup instructions."""

    name = "wgmma"

    def refusal(self, program: Program, target: Target) -> str | None:
        """Why the instructions cannot compute the program, or None."""
        if target.matrix is None or target.matrix.warpgroup is None:
            return "the device has no matrix instructions for groups of sub-groups"
        found = computes_indices(program) or recognise(program)
        if isinstance(found, str):
            return found
        kind = products(found[0], program)
        if isinstance(kind, str):
            return kind
        if min(found[0].m, found[0].n, found[0].k) < _LEAST:
            return f"it has fewer than {_LEAST} rows, columns or steps of depth"
        if not any(_ways_a(v, kind, target) and _ways_b(v, kind, target) for v in found):
            return "its operands lie in memory in a way that could be loaded by single elements only"
        if Plan.of(found[0], program, target, _SMALLEST).local_bytes > target.local_memory:
            return "its smallest tiles need more local memory than there is"
        return None

    def space(self, program: Program, target: Target) -> Space:
        """Tiles, stages, how operands are loaded, and the order of tiles."""
        views = views_of(program)

        def plan(c: Configuration) -> Plan:
            return Plan.of(views[c.integer("view")], program, target, c)

        measures = (("local_bytes", lambda c: plan(c).local_bytes), ("work_group", lambda c: plan(c).items))
        return Space(_parameters(program, target), _constraints(program, target, plan), measures)

    def default(self, program: Program, target: Target) -> Configuration:
        """The configuration that a model of waves, copies and products takes to be the fastest."""
        space, views, kind = self.space(program, target), views_of(program), _kind(program)
        best: tuple[float, Configuration] | None = None
        for number, view in enumerate(views):
            ways_a, ways_b = _ways_a(view, kind, target), _ways_b(view, kind, target)
            if not ways_a or not ways_b:
                continue
            for values in candidates(view, target, kind):
                chosen = {**values, "view": number, "load_a": ways_a[0], "load_b": ways_b[0]}
                configuration = Configuration.of(chosen)
                if space.violated(configuration) is not None:
                    continue
                cost = estimate(Plan.of(view, program, target, configuration), configuration.integer("split_k"))
                if best is None or cost < best[0]:
                    best = cost, configuration
        return best[1] if best is not None else next(iter(space))

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """The kernels of one configuration."""
        parts = configuration.integer("split_k")
        found, view = split_view(program, configuration.integer("view"), parts)
        if found is None:
            return wgmma_kernel.lower(Plan.of(view, program, target, configuration))
        product = wgmma_kernel.lower(Plan.of(view, found.product, target, configuration))
        return joined(found, product, REDUCE.lower(found.total, target, REDUCE.default(found.total, target)))


WGMMA = Wgmma()


def _parameters(program: Program, target: Target) -> tuple[Parameter, ...]:
    """The choices that are possible for some view."""
    views, kind = views_of(program), _kind(program)
    usable = [n for n, v in enumerate(views) if _ways_a(v, kind, target) and _ways_b(v, kind, target)]
    rows, columns, depth = (tuple(i.name for i in group) for group in (views[0].rows, views[0].columns, views[0].depth))
    most_m, most_n = max(views[n].m for n in usable), max(views[n].n for n in usable)
    heights = tuple(t for t in (64, 128, 256) if t < 2 * max(most_m, GROUP_ROWS))
    widths = tuple(t for t in warpgroups(target)[1].widths(kind.instruction) if t < 2 * max(most_n, _LEAST))
    most_tiles = max(v.g * ceil_div(v.m, heights[0]) * ceil_div(v.n, widths[0]) for v in views)
    resident = (0, 1, 2) if most_tiles > target.compute_units else (0,)
    ways_a = tuple(dict.fromkeys(w for n in usable for w in _ways_a(views[n], kind, target)))
    ways_b = tuple(dict.fromkeys(w for n in usable for w in _ways_b(views[n], kind, target)))
    return (
        Parameter("view", tuple(usable), "which operand's own indices are the rows"),
        Parameter("tile_m", heights, "rows of a work-group's tile", "tile", rows, sized=True),
        Parameter("tile_n", widths, "columns of a work-group's tile", "tile", columns, sized=True),
        Parameter("teams", (1, 2), "groups of 128 work-items that share the tile's rows"),
        Parameter("stages", (3, 4, 5, 6, 8), "steps of the depth that are loaded ahead"),
        Parameter("load_a", ways_a, "copies of boxes (tiles) or 16 bytes (pieces), of packed panels, or turned"),
        Parameter("load_b", ways_b, "copies of boxes (tiles), or of packed panels (weights: once)"),
        Parameter("band", (1, 4, 8, 16), "rows of tiles that are gone through column by column"),
        Parameter("resident", resident, "work-groups per compute unit for all tiles; 0: a work-group per tile"),
        Parameter("split_k", split_values(views[0]), _SPLIT, "split", depth),
    )


def _constraints(program: Program, target: Target, plan: Callable[[Configuration], Plan]) -> tuple[Constraint, ...]:
    kind = _kind(program)

    def loadable(c: Configuration) -> bool:
        view = split_view(program, c.integer("view"), c.integer("split_k"))[1]
        return c["load_a"] in _ways_a(view, kind, target) and c["load_b"] in _ways_b(view, kind, target)

    def whole(c: Configuration) -> bool:
        return c.integer("tile_m") % (GROUP_ROWS * c.integer("teams")) == 0

    def boxed(c: Configuration) -> bool:
        view = split_view(program, c.integer("view"), c.integer("split_k"))[1]
        boxes = tiles(sides(view, kind)[1]) if c["load_b"] == "tiles" else None
        return boxes is None or boxes.depth_major or c.integer("tile_n") % kind.depth == 0

    def registers(c: Configuration) -> bool:
        return plan(c).registers <= (_SPLIT_SUMS if kind.splits and plan(c).copies else _SUMS)

    def waiting(c: Configuration) -> bool:
        return c["load_a"] != "turned" or c.integer("tile_m") * kind.depth <= _TURNED

    def local(c: Configuration) -> bool:
        return max(1, c.integer("resident")) * plan(c).local_bytes <= target.local_memory

    def persists(c: Configuration) -> bool:
        resident = c.integer("resident")
        return resident == 0 or plan(c).tiles > resident * target.compute_units

    return (
        Constraint("the operands do not lie in memory in a way that this loads", loadable),
        Constraint("a team computes whole instructions of 64 rows", whole),
        Constraint("boxes of columns are as wide as the depth of a step", boxed),
        Constraint("a work-item's sums would not fit its registers", registers),
        Constraint("a work-item's elements on their way would not fit its registers", waiting),
        Constraint("the stages need more local memory than there is", local),
        Constraint("every tile has a work-group of its own anyway", persists, sized=True),
    )


def _kind(program: Program) -> Products:
    found = products(views_of(program)[0], program)
    if isinstance(found, str):
        raise ValueError(f"program {program.name} has products that no instruction computes: {found}")
    return found


def _repeats(side: Side) -> float:
    """How often panels hold an element of what the operand reads."""
    size = sum(side.c.access(r).tensor.size for r in reads(side.operand.value))
    return side.c.g * side.c.k * side.extent / max(size, 1)


def _ways_a(c: Contraction, kind: Products, target: Target) -> tuple[str, ...]:
    """How A can be loaded, the best way first."""
    side = sides(c, kind)[0]
    found = []
    boxes = tiles(side)
    if boxes is not None and boxes.depth_major and warpgroups(target)[1].maps is not None:
        found.append("tiles")
    if in_pieces(side):
        found.append("pieces")
    if _repeats(side) <= _MOST_REPEATS:
        found.append("panels")
    if in_turn(side):
        found.append("turned")
    return tuple(found)


def _ways_b(c: Contraction, kind: Products, target: Target) -> tuple[str, ...]:
    """How B can be loaded, the best way first."""
    side = sides(c, kind)[1]
    found = []
    if not kind.splits and tiles(side) is not None and warpgroups(target)[1].maps is not None:
        found.append("tiles")
    if _repeats(side) <= _MOST_REPEATS:
        found.append("panels")
    return tuple(found)
