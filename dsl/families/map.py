"""Pointwise programs: element by element, with broadcasting, copies and changes of layout.

    for every output element:  y[i] = f(x0[..], x1[..], ...)

Dimensions that lie together in all tensors become one loop. The vector runs along the output's innermost dimension;
operands are loaded as vectors, broadcast or gathered by their stride there. Where a size does not divide, the last
vector starts early and writes a few elements a second time (the same values), so that there is no scalar remainder.

CPU: one work-item walks rows of vectors, about `grain` KiB of memory. If the output's innermost dimension is not the
inputs' (a transposition), each vector's columns are walked down the other way, so that every cache line that a gather
touches is used by the next ones.
GPU: neighbouring work-items own neighbouring vectors of 16 bytes, each item several of them, a work-group apart; where
rows are long, a work-group stays within one, so that positions are decoded once per group. A transposition goes through
local memory: a work-group reads a tile along the operand's rows and writes it along the output's; tiles are one element
wider than they are, so that neither way meets one bank twice (Ruetsch and Micikevicius, Optimizing matrix transpose in
CUDA, 2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.shared import (
    Collapsed,
    Dimension,
    aligned,
    aligned_widths,
    collapse,
    needs_f64,
    power_above,
    power_below,
    same_outputs,
)
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Program, Read, Reduce, walk
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target

NEAR = 4
"""Up to this stride, in elements, neighbours along the vector share a cache line well enough."""
STREAMED = 16 << 20
"""(guess) Bytes of an output of which little would be left in a CPU's caches when it is read next."""
GRAINS = (2, 4, 8, 16, 32, 64, 128, 256)
"""KiB of memory that one work-item of a CPU may walk over."""


class Map:
    """Vector code for programs without reductions."""

    name = "map"

    def refusal(self, program: Program, target: Target) -> str | None:
        """A reduction, outputs of different sizes, or an element type the device lacks."""
        if any(isinstance(n, Reduce) for s in program.statements for n in walk(s.value)):
            return "it has a reduction"
        if any(i.extent == 0 for s in program.statements for i in s.indices):
            return "it has no elements"
        return same_outputs(program) or needs_f64(program, target)

    def space(self, program: Program, target: Target) -> Space:
        """Vector width, and how much each work-item does."""
        plan = Plan.of(program)
        inner = (plan.inner.name,)
        if target.shape is Shape.CPU:
            return Space(
                (
                    Parameter(
                        "lanes",
                        plan.widths(16),
                        "elements per vector; the native width or twice that is typical",
                        "vector",
                        inner,
                        sized=True,
                    ),
                    Parameter("unroll", (1, 2, 4), "vectors per step of the innermost loop", "unroll", inner),
                    Parameter("grain", GRAINS, "KiB of memory per work-item; 16 to 64 keeps it within a near cache"),
                    Parameter(
                        "stream",
                        (0, 1) if target.streaming_stores else (0,),
                        "1: outputs are written past the caches; for those that are larger",
                    ),
                ),
                (
                    Constraint(
                        "a step of the innermost loop is longer than the loop",
                        lambda c: c["unroll"] == 1 or c.integer("unroll") * c.integer("lanes") <= plan.inner.extent,
                        sized=True,
                    ),
                    Constraint(
                        "a transposing copy walks down one vector at a time",
                        lambda c: c["unroll"] == 1 or not plan.transposes,
                    ),
                ),
            )
        return _tile_space(plan, target) if plan.crossing else _gpu_space(plan, target)

    def default(self, program: Program, target: Target) -> Configuration:
        """The native width; items as large as leaves every core several of them."""
        plan = Plan.of(program)
        if target.shape is Shape.CPU:
            return _cpu_default(plan, target)
        return _tile_default(plan, target) if plan.crossing else _gpu_default(plan, target)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """One launch."""
        from tilewright.dsl.families import map_cpu, map_gpu

        plan = Plan.of(program)
        if target.shape is Shape.CPU:
            return Lowering((map_cpu.cpu(plan, configuration),))
        write = map_gpu.tiles if plan.crossing else map_gpu.vectors
        return Lowering((write(plan, configuration),))


@dataclass(frozen=True)
class Plan:
    """A program as loops: everything but the innermost, and that."""

    program: Program
    loops: Collapsed
    outer: tuple[Dimension, ...]
    inner: Dimension
    """The vector's dimension."""
    transposes: bool
    """An operand's innermost dimension is `outer[-1]` rather than `inner`."""

    @staticmethod
    def of(program: Program) -> Plan:
        """The loops of a program that `Map` does not refuse."""
        loops = collapse(program, aligned(program))
        kept = list(loops.kept) or [Dimension("<one>", 1)]
        inner = kept.pop()
        across = _across(program, loops, inner.name)
        if across is not None:
            kept.sort(key=lambda d: d.name == across)
        return Plan(program, loops, tuple(kept), inner, across is not None)

    @property
    def elements(self) -> int:
        """Elements of one output."""
        return self.inner.extent * math.prod(d.extent for d in self.outer)

    @property
    def element_bytes(self) -> int:
        """Bytes moved per output element, broadcast operands aside."""
        moved = [self.program.tensors[name].dtype.itemsize for name in self.loops.writes]
        for read in self.loops.reads:
            if self.program.tensors[read.tensor].address(read.index).coefficient(self.inner.name):
                moved.append(self.program.tensors[read.tensor].dtype.itemsize)
        return sum(moved)

    @property
    def crossing(self) -> tuple[Read, ...]:
        """The reads that are contiguous along `outer[-1]` and far apart along `inner`."""
        if not self.transposes:
            return ()
        inner, across = self.inner.name, self.outer[-1].name
        found = []
        for read in self.loops.reads:
            address = self.program.tensors[read.tensor].address(read.index)
            bends = address.bends(inner) or address.bends(across)
            if not bends and address.coefficient(across) == 1 and abs(address.coefficient(inner)) > NEAR:
                found.append(read)
        return tuple(found)

    @property
    def itemsizes(self) -> tuple[int, ...]:
        """Bytes per element of every tensor that is written, or read as vectors."""
        names = dict.fromkeys(self.loops.writes)
        for read in self.loops.reads:
            if (
                self.program.tensors[read.tensor].address(read.index).coefficient(self.inner.name)
                or read in self.crossing
            ):
                names[read.tensor] = None
        return tuple(self.program.tensors[name].dtype.itemsize for name in names)

    @property
    def main_itemsize(self) -> int:
        """Bytes per element of the tensors that most of the traffic is for: those of at least 1/8 of the elements."""
        tensors = [self.program.tensors[name] for name in (*self.loops.writes, *(r.tensor for r in self.loops.reads))]
        return max(t.dtype.itemsize for t in tensors if 8 * t.size >= self.elements)

    @property
    def addresses(self) -> tuple[Affine, ...]:
        """Where each output is written and each operand read."""
        tensors = self.program.tensors
        return (*self.loops.writes.values(), *(tensors[r.tensor].address(r.index) for r in self.loops.reads))

    def widths(self, most: int) -> tuple[int, ...]:
        """Vector widths of a CPU that fit the innermost dimension."""
        widest = min(most, power_below(self.inner.extent))
        return tuple(w for w in (1, 2, 4, 8, 16) if w <= widest and (w > 1 or widest < 4))

    def tile(self, side: int) -> tuple[int, int]:
        """Sizes of a tile along `inner` and across it: `side` squared elements, also where one dimension is short."""
        inner, across = power_above(self.inner.extent), power_above(self.outer[-1].extent)
        first = min(side, inner)
        second = min(4 * side, side * side // first, across)
        return min(4 * side, side * side // second, inner), second

    def tile_bytes(self, side: int) -> int:
        """Local memory for the tiles of all reads that cross."""
        inner, across = self.tile(side)
        sizes = [register_size(r.dtype) for r in self.crossing]
        return inner * (across + 1) * sum(sizes)


def _across(program: Program, loops: Collapsed, inner: str) -> str | None:
    """The dimension along which a gathered operand is contiguous, if there is such an operand."""
    for read in loops.reads:
        address = program.tensors[read.tensor].address(read.index)
        if abs(address.coefficient(inner)) > NEAR:
            for d in loops.kept:
                if abs(address.coefficient(d.name)) == 1:
                    return d.name
    return None


def _cpu_default(plan: Plan, target: Target) -> Configuration:
    sizes = {plan.program.tensors[name].dtype.itemsize for name in plan.loops.writes}
    # Tiles that are turned in registers have sides of a cache line.
    wanted = max(1, 64 // max(sizes)) if plan.crossing else target.lanes(max(sizes))
    lanes = max(min(wanted, plan.widths(16)[-1]), plan.widths(16)[0])
    total = plan.elements * plan.element_bytes
    share = total // (2 * target.compute_units) >> 10
    grain = max((g for g in GRAINS if g <= min(share, 64)), default=GRAINS[0])
    unroll = 1 if plan.transposes or plan.inner.extent < 2 * lanes else 2
    stream = int(target.streaming_stores and plan.elements * min(sizes) >= STREAMED)
    return Configuration.of({"lanes": lanes, "unroll": unroll, "grain": grain, "stream": stream})


def register_size(dtype: DType) -> int:
    """Bytes of an element in local memory, where it lies as in registers."""
    return 4 if dtype in (DType.F16, DType.BF16, DType.BOOL) else dtype.itemsize


# --- GPU ------------------------------------------------------------------------------------------------------------


def _groups(target: Target) -> tuple[int, ...]:
    return tuple(n for n in (64, 128, 256, 512) if n <= target.max_work_group) or (1,)


def _gpu_space(plan: Plan, target: Target) -> Space:
    inner = (plan.inner.name,)
    return Space(
        (
            Parameter("lanes", _gpu_widths(plan), "elements per vector; 16 bytes of them", "vector", inner, sized=True),
            Parameter("work_group", _groups(target), "work-items per work-group, typically 128 to 256"),
            Parameter("items", (1, 2, 4, 8), "vectors per work-item, a work-group apart; 4", "item", inner),
        ),
        (
            Constraint(
                "a work-item holds more than 256 elements",
                lambda c: c["items"] == 1 or c.integer("items") * c.integer("lanes") * len(plan.itemsizes) <= 256,
            ),
        ),
    )


def _gpu_widths(plan: Plan) -> tuple[int, ...]:
    widest = min(max(4, 16 // min(plan.itemsizes)), power_below(plan.inner.extent))
    return tuple(w for w in (1, 2, 4, 8, 16) if w <= widest)


def _gpu_default(plan: Plan, target: Target) -> Configuration:
    """16 bytes per vector, and several vectors per item once the device is full."""
    most = max(1, 16 // plan.main_itemsize)
    alone = all(d.extent == 1 for d in plan.outer)
    fitting = [w for w in _gpu_widths(plan) if w <= most]
    lanes = fitting[-1] if alone else aligned_widths(fitting, plan.inner, plan.addresses)[-1]
    group = min(256, _groups(target)[-1])
    room = max(1, 48 // (lanes * len(plan.itemsizes)))
    filled = max(1, plan.elements // (lanes * 4096 * target.compute_units))
    items = max(n for n in (1, 2, 4) if n == 1 or n <= min(room, filled))
    return Configuration.of({"lanes": lanes, "work_group": group, "items": items})


def _tile_space(plan: Plan, target: Target) -> Space:
    both = (plan.inner.name, plan.outer[-1].name)
    whole = [w for w in (1, 2, 4) if all(d.extent % w == 0 for d in (plan.inner, plan.outer[-1]))]
    widths = tuple(w for w in whole if w == 1 or w * max(plan.itemsizes) <= 16)
    return Space(
        (
            Parameter("lanes", widths, "elements per access; 4 bytes of them or more", "vector", both, sized=True),
            Parameter("tile", (8, 16, 32, 64), "side of the tile that is turned in local memory; 32 or 64"),
            Parameter("work_group", _groups(target), "work-items per work-group, typically 256"),
        ),
        (
            Constraint(
                "a row of the tile is longer than the work-group",
                lambda c: max(plan.tile(c.integer("tile"))) <= c.integer("work_group") * c.integer("lanes"),
            ),
            Constraint(
                "a vector is longer than the tile", lambda c: min(plan.tile(c.integer("tile"))) >= c.integer("lanes")
            ),
            Constraint(
                "the tiles do not fit into local memory",
                lambda c: plan.tile_bytes(c.integer("tile")) <= target.local_memory,
            ),
        ),
    )


def _tile_default(plan: Plan, target: Target) -> Configuration:
    space = _tile_space(plan, target)
    group = min(256, _groups(target)[-1])
    wanted = max(1, 4 // max(plan.itemsizes))

    def cost(c: Configuration) -> tuple[int, int, int]:
        # Rows of 64 elements are moved in whole sectors and several accesses per item are under way, as long as
        # several groups fit a unit's local memory.
        side = 64 if plan.tile_bytes(64) <= min(target.local_memory // 2, 24 << 10) else 32
        return (
            abs(c.integer("lanes") - wanted),
            abs(c.integer("tile") - side),
            abs(c.integer("work_group") - group),
        )

    return min(space, key=cost)


MAP = Map()
