"""Windows: pooling, depthwise convolution, stencils: short reductions whose indices slide along the outputs'.

    acc_j = identity; for every tap:  acc_j = acc_j (+) body_j(output index * step + tap - pad);   y[i] = f(acc_0, ...)

The vector runs along the output's innermost dimension. Either that is free of the window (channels last): a tile is
then some `pixels` along the next sliding dimension times some vectors of channels; or the window slides along it
(channels first): a tile is then a run of vectors.

Range checks cost nothing where they can be settled while generating: a row of outputs is cut into tiles, the few that
touch the border are written out at their fixed places (taps that fall outside vanish), and all others run as one loop
without checks. What remains is a check per row of the window, which holds for the tile as a whole.
The taps along the tile are written out in the order of the memory they read, so that each element is loaded once for
all outputs of the tile that use it, and few registers are live.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.dsl.families.reduce import accumulator, same_reductions
from tilewright.dsl.families.shared import (
    Collapsed,
    Dimension,
    aligned,
    ceil_div,
    collapse,
    computes_indices,
    needs_f64,
    power_below,
)
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Call, Inside, Program, Read, Reduce, all_indices, reads, walk
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target

GRAINS = (2, 4, 8, 16, 32, 64, 128, 256)
"""KiB of output that one work-item of a CPU may compute."""
WRITTEN_OUT = 192
"""Most taps of one tile that are written out; with more, loops run over them."""
BLOCKS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
"""Elements of the vector's dimension that a work-item walks over at each tile."""


class Window:
    """Short reductions that slide along the outputs."""

    name = "window"

    def refusal(self, program: Program, target: Target) -> str | None:
        """Anything but one statement whose reductions, all over the same ranges, slide along output indices."""
        if len(program.statements) != 1 or program.intermediates:
            return "it has several statements"
        computed = computes_indices(program)
        if computed:
            return computed
        s = program.statements[0]
        found = [n for n in walk(s.value) if isinstance(n, Reduce)]
        if not found:
            return "it has no reduction"
        if any(isinstance(inner, Reduce) for n in found for inner in walk(n.body)):
            return "it has a reduction within a reduction"
        if len({tuple(i.extent for i in n.indices) for n in found}) != 1:
            return "its reductions run over different ranges"
        if any(i.extent == 0 for i in all_indices(s)):
            return "it has an empty range"
        plan = Plan.of(program)
        if plan.across is None:
            return "no reduction slides along an output index"
        own = {i.name for i in s.indices}
        slides = {n for e in found for r in _places(e) for a in r.index if own & set(a.names) for n in a.names}
        if lone := [i.name for e in found for i in e.indices if i.name not in slides]:
            return f"its reduction over {', '.join(lone)} does not slide along an output index"
        if any(_contracts(e) for e in found):
            return "it is a contraction: its operands have output indices of their own"
        return needs_f64(program, target)

    def space(self, program: Program, target: Target) -> Space:
        """The tile, and how much each work-item does."""
        plan = Plan.of(program)
        gpu = target.shape is Shape.GPU
        tile = plan.tile_extent
        vector = (plan.vector.name,)
        pixels = tuple(n for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16) if n <= tile)
        parameters = [
            Parameter(
                "lanes",
                plan.widths(4 if gpu else 16),
                "elements per vector; the native width is typical",
                "vector",
                vector,
                sized=True,
            ),
            Parameter(
                "pixels",
                pixels,
                "outputs per tile along the sliding dimension; 4 to 8",
                "item",
                () if plan.tile is None else (plan.tile.name,),
                sized=True,
            ),
            Parameter(
                "vectors", (1, 2, 4), "vectors per tile; 1, or 2 where registers are plenty", "item", vector, sized=True
            ),
        ]
        if gpu:
            groups = tuple(n for n in (32, 64, 128, 256) if n <= target.max_work_group) or (1,)
            parameters.append(Parameter("work_group", groups, "work-items per work-group, typically 64 to 256"))
        else:
            blocks = (*tuple(n for n in BLOCKS if n < plan.vector.extent), plan.vector.extent)
            parameters.append(Parameter("grain", GRAINS, "KiB of output per work-item; 8 to 64"))
            if plan.tile is not None:
                parameters.append(
                    Parameter(
                        "block",
                        blocks,
                        "elements along the vector per work-item; what keeps inputs in the cache",
                        "tile",
                        vector,
                        sized=True,
                    )
                )
        return Space(tuple(parameters), _constraints(plan))

    def default(self, program: Program, target: Target) -> Configuration:
        """As many outputs per tile as registers hold beside a row of the window."""
        plan = Plan.of(program)
        gpu = target.shape is Shape.GPU
        size = max(accumulator(e).itemsize for e in plan.reduces)
        lanes = min(1 if gpu else target.lanes(size), plan.widths(16)[-1])
        values: dict[str, int] = {"lanes": lanes, "vectors": 1, "pixels": 1}
        registers = target.vector_registers if not gpu else 16
        room = max(1, (registers - 3 - plan.taps_along) // len(plan.reduces))
        if plan.tile is not None:
            # Vectors that fill a cache line; a short row as one tile, so that no output is computed twice.
            short = plan.tile.extent <= 8 and plan.tile.extent <= room
            wide = not gpu and not short and target.vector_bytes < 64 and 2 * lanes <= plan.vector.extent
            values["vectors"] = 2 if wide else 1
            most = 4 if gpu or wide else 8
            values["pixels"] = _even(plan.tile.extent, min(most, max(1, room // values["vectors"])))
        elif not gpu:
            most = min(4, room, plan.vector.extent // lanes)
            values["vectors"] = max(n for n in (1, 2, 4) if n <= max(1, most))
        if gpu:
            values["work_group"] = power_below(max(1, min(128, target.max_work_group)))
            return Configuration.of(values)
        share = plan.outputs * plan.item_bytes // (4 * target.compute_units) >> 10
        values["grain"] = max((g for g in GRAINS if g <= min(share, 32)), default=GRAINS[0])
        if plan.tile is not None:
            values["block"] = _block(plan, target)
        return Configuration.of(values)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """One launch."""
        from tilewright.dsl.families import window_kernels

        return Lowering((window_kernels.write(Plan.of(program), target, configuration),))


@dataclass(frozen=True)
class Plan:
    """A window program as loops."""

    program: Program
    loops: Collapsed
    reduces: tuple[Reduce, ...]
    vector: Dimension
    tile: Dimension | None
    """The sliding dimension of a tile's pixels, where the vector's dimension does not slide itself."""
    outer: tuple[Dimension, ...]
    sliding: dict[str, tuple[str, ...]]
    """For each output dimension, the reduced ones that slide along it."""

    @staticmethod
    def of(program: Program) -> Plan:
        """The loops of a program whose reductions all have the same ranges."""
        loops = collapse(program, same_reductions(aligned(program)))
        value = next(iter(loops.values.values()))
        reduces = tuple(dict.fromkeys(n for n in walk(value) if isinstance(n, Reduce)))
        sliding = _sliding(loops, reduces)
        kept = list(loops.kept)
        vector = kept.pop() if kept else Dimension("<one>", 1)
        tile = None
        if not sliding.get(vector.name):
            tile = next((d for d in reversed(kept) if sliding.get(d.name)), None)
        outer = tuple(d for d in kept if d != tile)
        return Plan(program, loops, reduces, vector, tile, outer, sliding)

    @property
    def across(self) -> Dimension | None:
        """The dimension along which a tile slides: the pixels', or the vector's; None if nothing slides."""
        return self.tile or (self.vector if self.sliding.get(self.vector.name) else None)

    @property
    def taps(self) -> tuple[Dimension, ...]:
        """The reduced dimensions that slide along `across`."""
        names = self.sliding.get(self.across.name, ()) if self.across else ()
        return tuple(d for d in self.loops.reduced if d.name in names)

    @property
    def taps_along(self) -> int:
        """Number of taps along the tile."""
        return math.prod(d.extent for d in self.taps)

    @property
    def tile_extent(self) -> int:
        """Extent of the pixels' dimension, 1 if a tile is a run of vectors."""
        return self.tile.extent if self.tile else 1

    @property
    def outputs(self) -> int:
        """Output elements."""
        return math.prod(d.extent for d in self.loops.kept)

    @property
    def item_bytes(self) -> int:
        """Bytes per output element."""
        return self.program.outputs[0].dtype.itemsize

    def widths(self, most: int) -> tuple[int, ...]:
        """Vector widths that fit the vector's dimension."""
        return tuple(w for w in (1, 2, 4, 8, 16) if w <= min(most, power_below(self.vector.extent)))

    def span(self, configuration: Configuration) -> int:
        """Outputs of one tile along `across`."""
        if self.tile is not None:
            return configuration.integer("pixels")
        return configuration.integer("vectors") * configuration.integer("lanes")


def _places(e: Reduce) -> list[Read | Inside]:
    return [n for n in walk(e.body) if isinstance(n, Read | Inside)]


def _contracts(e: Reduce) -> bool:
    """Whether `e` sums a product of reads of which each has an output index that another lacks."""
    if e.kind != "sum" or not isinstance(e.body, Call) or e.body.function != "mul":
        return False
    bound = {i.name for i in e.indices}
    own = [{name for a in r.index for name in a.names} - bound for r in reads(e.body)]
    return any(a - b and b - a for a in own for b in own)


def _sliding(loops: Collapsed, reduces: tuple[Reduce, ...]) -> dict[str, tuple[str, ...]]:
    """The reduced dimensions that share a position of some read with each output dimension."""
    reduced = {d.name for d in loops.reduced}
    found: dict[str, dict[str, None]] = {}
    for read in (r for e in reduces for r in _places(e)):
        for position in read.index:
            names = position.names
            for name in names:
                if name not in reduced:
                    found.setdefault(name, {}).update({n: None for n in names if n in reduced})
    return {name: tuple(taps) for name, taps in found.items() if taps}


def _constraints(plan: Plan) -> tuple[Constraint, ...]:
    return (
        Constraint(
            "the tile's vectors are longer than the vector's dimension",
            lambda c: c["vectors"] == 1 or c.integer("vectors") * c.integer("lanes") <= plan.vector.extent,
            sized=True,
        ),
        Constraint(
            "more than 32 accumulators",
            lambda c: c.integer("vectors") * c.integer("pixels") * len(plan.reduces) <= max(32, len(plan.reduces)),
        ),
        Constraint(
            "a block that is not whole tiles",
            lambda c: (
                "block" not in c
                or c["block"] == plan.vector.extent
                or c.integer("block") % (c.integer("vectors") * c.integer("lanes")) == 0
            ),
        ),
    )


def _even(extent: int, most: int) -> int:
    """The tile of at most `most` outputs that computes the fewest outputs twice, the larger of equals."""
    allowed = [n for n in (1, 2, 3, 4, 5, 6, 7, 8) if n <= min(most, extent)]
    return min(allowed, key=lambda n: (ceil_div(extent, n) * n * (1 + 0.5 / n), -n))


def _block(plan: Plan, target: Target) -> int:
    """Channels such that the window's rows of a tile stay in the first-level cache."""
    extent = plan.vector.extent
    if extent <= 128:
        return extent
    return 64


WINDOW = Window()
