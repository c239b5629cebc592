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

On GPUs channels-last windows have a kernel of their own (`window_strips.py`). Convolutions within groups of few
channels are taken too: on CPUs those of groups no wider than a vector, where a contraction has few lanes busy, or loads
each input once per tap, while the taps of a tile share it here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.dsl.families.reduce import same_reductions
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
from tilewright.dsl.space import Configuration, Space
from tilewright.dsl.target import Shape, Target

GRAINS = (2, 4, 8, 16, 32, 64, 128, 256)
"""KiB of output that one work-item of a CPU may compute."""
WRITTEN_OUT = 192
"""Most taps of one tile that are written out; with more, loops run over them."""
NARROW = 32
"""Most channels of a group, in and out, that GPUs convolve directly."""


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
        lone = [i.name for e in found for i in e.indices if i.name not in slides and i.extent > 1]
        contracts = any(_contracts(e) for e in found)
        if (lone or contracts) and not _takes_groups(plan, target):
            if contracts:
                return "it is a contraction: its operands have output indices of their own"
            return f"its reduction over {', '.join(lone)} does not slide along an output index"
        return needs_f64(program, target)

    def space(self, program: Program, target: Target) -> Space:
        """The tile, and how much each work-item does."""
        from tilewright.dsl.families import window_space

        return window_space.space(Plan.of(program), target)

    def default(self, program: Program, target: Target) -> Configuration:
        """As many outputs per tile as registers hold beside a row of the window."""
        from tilewright.dsl.families import window_space

        return window_space.default(Plan.of(program), target)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """One launch."""
        from tilewright.dsl.families import window_kernels, window_strips

        plan = Plan.of(program)
        if target.shape is Shape.GPU and plan.tile is not None:
            return Lowering((window_strips.write(plan, target, configuration),))
        return Lowering((window_kernels.write(plan, target, configuration),))


def _takes_groups(plan: Plan, target: Target) -> bool:
    """Whether a convolution within groups is better computed directly than as so many small products."""
    if not plan.has_narrow_groups:
        return False
    return target.shape is Shape.GPU or plan.vector.extent <= target.lanes(plan.reduces[0].dtype.itemsize)


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
    def high(self) -> Dimension | None:
        """The second sliding dimension where `tile` is the first: the rows of an image."""
        return None if self.tile is None else next((d for d in reversed(self.outer) if self.sliding.get(d.name)), None)

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
    def down(self) -> tuple[Dimension, ...]:
        """The reduced dimensions that slide along `high`, and not along `across` as well."""
        names = self.sliding.get(self.high.name, ()) if self.high else ()
        return tuple(d for d in self.loops.reduced if d.name in names and d not in self.taps)

    @property
    def taps_down(self) -> int:
        """Number of taps along `high`."""
        return math.prod(d.extent for d in self.down)

    @property
    def inner(self) -> tuple[Dimension, ...]:
        """The reduced dimensions that slide along nothing: the channels within a group."""
        slide = {name for names in self.sliding.values() for name in names}
        return tuple(d for d in self.loops.reduced if d.name not in slide)

    @property
    def side(self) -> Dimension | None:
        """The output dimension that goes on where the vector's ends: groups of channels."""
        address = next(iter(self.loops.writes.values()))
        wanted = address.coefficient(self.vector.name) * self.vector.extent
        return next((d for d in self.outer if address.coefficient(d.name) == wanted and d != self.high), None)

    @property
    def has_narrow_groups(self) -> bool:
        """Whether it is a convolution within groups of few channels, images with channels last.

        One operand moves with the group and the window and has no index of the vector's, which is contiguous.
        """
        if self.tile is None or self.side is None or len(self.reduces) != 1 or self.reduces[0].kind != "sum":
            return False
        if math.prod(d.extent for d in self.inner) > NARROW or self.vector.extent > NARROW:
            return False
        (total,) = self.reduces
        moving = [r for r in reads(total.body) if any(a.coefficient(self.tile.name) for a in r.index)]
        names = [{n for a in r.index for n in a.names} for r in moving]
        return bool(moving) and all(self.side.name in own and self.vector.name not in own for own in names)

    @property
    def step(self) -> int:
        """How far the window moves in memory from one output of the tile to the next, in positions: its stride."""
        if self.across is None:
            return 1
        name = self.across.name
        return max((a.coefficient(name) for e in self.reduces for r in _places(e) for a in r.index), default=1)

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

    def pieces(self, lanes: int) -> int:
        """Vectors of this many elements side by side in memory: along the vector's dimension and `side`."""
        return ceil_div(self.vector.extent, lanes) * (self.side.extent if self.side else 1)

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


WINDOW = Window()
