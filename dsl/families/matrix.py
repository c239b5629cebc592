"""The `matrix` family: contractions by matrix instructions of one sub-group (tensor cores, and what others have).

`matrix_plan.py` holds the numbers of a configuration, `matrix_loading.py` says how operands get to local memory,
`matrix_kernel.py` writes the kernel; here are the space of configurations and the choice made without tuning.
"""

from __future__ import annotations

from functools import partial

from tilewright.dsl.families import matrix_kernel
from tilewright.dsl.families.contract_split import joined, split_values, split_view
from tilewright.dsl.families.contraction import Contraction, recognise, views_of
from tilewright.dsl.families.matrix_loading import MOST_PIECES, copies, ways
from tilewright.dsl.families.matrix_operands import Products, products, sides
from tilewright.dsl.families.matrix_plan import Tile, instruction
from tilewright.dsl.families.matrix_storing import CHUNK
from tilewright.dsl.families.reduce import REDUCE
from tilewright.dsl.families.shared import ceil_div, computes_indices
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Target

_LEAST = 8
"""Least rows, columns and depth: below that instructions would multiply little but zeros."""
REGISTERS = 184
"""(guess) Registers for sums and fragments that leave a work-item enough for addresses."""
GROUP_REGISTERS = 60_000
"""(guess) Registers of a work-group's items together."""
_SHAPES = (
    (128, 128, 2, 4, 1.0), (128, 64, 2, 2, 0.92), (64, 128, 2, 2, 0.92), (64, 64, 2, 2, 0.8), (32, 128, 1, 4, 0.7),
    (128, 32, 4, 1, 0.7), (64, 32, 4, 1, 0.6), (32, 64, 2, 2, 0.6), (32, 32, 2, 1, 0.45),
)  # fmt: skip
"""Tiles worth a thought without tuning: rows, columns, sub-groups along both, and (guess) how busy they keep a unit."""


_UNLOADED = "{} does not lie in memory in a way that this loads"
_UNEVEN = "the work-items cannot share the copies of {} evenly"
_SPLIT = "parts of the depth that are summed side by side (split-k)"


class Matrix:
    """Contractions for matrix instructions."""

    name = "matrix"

    def refusal(self, program: Program, target: Target) -> str | None:
        """Why the instructions cannot compute the program, or None."""
        if target.matrix is None:
            return "the device has no matrix instructions"
        found = computes_indices(program) or recognise(program)
        if isinstance(found, str):
            return found
        kind = products(found[0], program)
        if isinstance(kind, str):
            return kind
        if instruction(target, kind) is None:
            return f"the device has no matrix instruction for {kind.kind}"
        if min(found[0].m, found[0].n, found[0].k) < _LEAST:
            return f"it has fewer than {_LEAST} rows, columns or steps of depth"
        return None

    def space(self, program: Program, target: Target) -> Space:
        """Tiles, sub-groups, stages, how operands are loaded, the order of tiles, and parts of the depth."""
        views = views_of(program)
        kind = products(views[0], program)
        assert not isinstance(kind, str)

        def tile(c: Configuration) -> Tile:  # sizes, which are the same for every view
            return Tile.of(views[0], program, target, c)

        def loadable(c: Configuration, which: int) -> bool:
            way = c["load_b" if which else "load_a"]
            view = split_view(program, c.integer("view"), c.integer("split_k"))[1]
            return way in ways(sides(view, kind)[which])

        def shared(c: Configuration, which: int) -> bool:
            t = Tile.of(views[c.integer("view")], program, target, c)
            o = t.b if which else t.a
            lines = o.way in ("panels", "elements") or t.items % o.pieces == 0
            return lines and copies(t, o) <= MOST_PIECES

        def whole(c: Configuration) -> bool:
            t = tile(c)
            return t.tile_m % (t.warps_m * t.instruction.m) == 0 and t.tile_n % (t.warps_n * CHUNK) == 0

        def registers(c: Configuration) -> bool:
            t = tile(c)
            return t.registers <= REGISTERS and (t.registers + 56) * t.items <= GROUP_REGISTERS

        def group(c: Configuration) -> bool:
            return tile(c).items <= min(target.max_work_group, 512)

        def local(c: Configuration) -> bool:
            return tile(c).pipeline_bytes <= target.local_memory

        def results(c: Configuration) -> bool:
            return tile(c).result_bytes <= target.local_memory

        def reaches(c: Configuration) -> bool:
            view = views[c.integer("view")]
            return c.integer("tile_m") < 2 * max(view.m, 16) and c.integer("tile_n") < 2 * max(view.n, 17)

        rows, columns, depth = (
            tuple(i.name for i in group) for group in (views[0].rows, views[0].columns, views[0].depth)
        )
        depths = tuple(nbytes // kind.operand.itemsize for nbytes in (64, 128))
        found = Space(
            (
                Parameter("view", tuple(range(len(views))), "which operand's own indices are the rows"),
                Parameter("tile_m", (16, 32, 64, 128, 256), "rows of a work-group's tile", "tile", rows),
                Parameter("tile_n", (32, 64, 128, 256), "columns of a work-group's tile", "tile", columns),
                Parameter("tile_k", depths, "depth of a step", "tile", depth),
                Parameter("warps_m", (1, 2, 4), "sub-groups along the rows"),
                Parameter("warps_n", (1, 2, 4), "sub-groups along the columns"),
                Parameter("stages", (2, 3, 4, 5), "steps of the depth in local memory, loaded ahead"),
                Parameter("load_a", _ways(views, kind, 0), "how A gets to local memory"),
                Parameter("load_b", _ways(views, kind, 1), "how B gets to local memory (weights: panels, packed once)"),
                Parameter("band", (1, 4, 8), "rows of tiles that are gone through column by column"),
                Parameter("split_k", split_values(views[0]), _SPLIT, "split", depth),
            ),
            (
                Constraint("the tile is larger than the product", reaches, sized=True),
                Constraint("a sub-group computes whole instructions and 32 columns at a time", whole),
                Constraint("the work-group's size is not allowed on this device", group),
                *(Constraint(_UNLOADED.format("AB"[n]), partial(loadable, which=n)) for n in (0, 1)),
                *(Constraint(_UNEVEN.format("AB"[n]), partial(shared, which=n)) for n in (0, 1)),
                Constraint("a work-item's sums would not fit its registers", registers),
                Constraint("the stages need more local memory than there is", local),
                Constraint("the results need more local memory than there is", results),
            ),
            (("local_bytes", lambda c: tile(c).local_bytes), ("work_group", lambda c: tile(c).items)),
        )  # fmt: skip
        return found

    def default(self, program: Program, target: Target) -> Configuration:
        """The configuration that a model of waves and products takes to be the fastest."""
        space = self.space(program, target)
        best: tuple[float, Configuration] | None = None
        for number, view in enumerate(views_of(program)):
            for configuration, cost in _candidates(program, number, view, target):
                if (best is None or cost < best[0]) and space.violated(configuration) is None:
                    best = cost, configuration
        return best[1] if best is not None else next(iter(space))

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """The kernels of one configuration."""
        found, view = split_view(program, configuration.integer("view"), configuration.integer("split_k"))
        if found is None:
            return matrix_kernel.lower(Tile.of(view, program, target, configuration))
        product = matrix_kernel.lower(Tile.of(view, found.product, target, configuration))
        return joined(found, product, REDUCE.lower(found.total, target, REDUCE.default(found.total, target)))


MATRIX = Matrix()


def _ways(views: tuple[Contraction, ...], kind: Products, which: int) -> tuple[str, ...]:
    """Every way in which an operand of some view can be loaded."""
    found = {way for v in views for way in ways(sides(v, kind)[which])}
    return tuple(way for way in ("pieces", "lines", "panels", "elements") if way in found)


def _candidates(program: Program, number: int, view: Contraction, target: Target) -> list[tuple[Configuration, float]]:
    """Configurations with what they should take, in products of a unit that is always busy."""
    kind = products(view, program)
    assert not isinstance(kind, str)
    load_a, load_b = (ways(side)[0] for side in sides(view, kind))
    single = "elements" in (load_a, load_b)  # a work-item keeps few addresses
    depth = (64 if single and kind.operand.itemsize == 2 else 128) // kind.operand.itemsize
    found = []
    for tile_m, tile_n, warps_m, warps_n, busy in _SHAPES:
        for parts in split_values(view):
            tiles = view.g * ceil_div(view.m, tile_m) * ceil_div(view.n, tile_n) * parts
            waves = max(1.0, tiles / target.compute_units)
            if tiles > target.compute_units:
                waves = (
                    ceil_div(tiles, target.compute_units * 2) * 2 if busy < 1 else ceil_div(tiles, target.compute_units)
                )
            steps = ceil_div(ceil_div(view.k, parts), depth) + 3
            copied = sum(n * depth for n, way in ((tile_m, load_a), (tile_n, load_b)) if way == "elements")
            many = copied > MOST_PIECES * warps_m * warps_n * 32
            cost = waves * steps * depth * tile_m * tile_n / busy * (4 if many else 1)
            cost += view.g * view.m * view.n * (8.0 * parts + 2e4 / max(view.m * view.n, 1)) * (parts > 1)
            values = {
                "view": number, "tile_m": tile_m, "tile_n": tile_n, "tile_k": depth, "warps_m": warps_m,
                "warps_n": warps_n, "stages": 3, "load_a": load_a, "load_b": load_b, "band": 4, "split_k": parts,
            }  # fmt: skip
            found.append((Configuration.of(values), cost))
    return found
