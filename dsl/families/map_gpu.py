"""The kernels of the `map` family for GPUs; the family describes them."""

from __future__ import annotations

import math
from collections.abc import Callable

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.map import Plan
from tilewright.dsl.families.shared import (
    Dimension,
    Geometry,
    banner,
    ceil_div,
    decode,
    gpu_geometry,
    kernel_name,
    launch,
    renderer,
    stored,
)
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import Expr, Read, substitute_indices
from tilewright.dsl.space import Configuration
from tilewright.dsl.writer import LANE, Expressions, Source, index_type, variable, vector_type

MOST_SPARE = 1.125
"""Work-items beyond the end of a row, relative to those within, that are accepted for decoding once per group."""
AHEAD = 16
"""Elements of a tile that a work-item reads before it keeps the first."""


class _Writer:
    """What both kernels have in common."""

    def __init__(self, plan: Plan, configuration: Configuration) -> None:
        self.plan = plan
        self.configuration = configuration
        self.lanes = configuration.integer("lanes")
        self.group = configuration.integer("work_group")
        self.body = Source()
        self.ctype = index_type(plan.program)
        self.helpers: dict[str, str] = {}
        self.names = {d.name: variable(d.name) for d in (*plan.outer, plan.inner)}
        self.multiples: dict[str, int] = {}

    def expressions(self, place: dict[str, Affine], names: dict[str, str], prefix: str) -> Expressions:
        """A renderer for vectors along `LANE`, with variables in the body."""
        plan = self.plan
        checks, extents = plan.loops.moved(place), plan.loops.extents()
        return renderer(
            plan.program, names, checks, self.lanes, self.helpers, self.body, prefix, extents, self.multiples
        )

    def store(self, expressions: Expressions, place: dict[str, Affine], writes: Source, number: str) -> None:
        """Store one vector of every output by lines in `writes`."""
        for target, value in self.plan.loops.values.items():
            address = self.plan.loops.writes[target].substitute(place)
            tensor = self.plan.program.tensors[target]
            moved = substitute_indices(value, place)
            stored(expressions, writes, tensor, address, moved, number, self.multiples)

    def launch(self, geometry: Geometry) -> Launch:
        """The finished kernel."""
        program = self.plan.program
        top = banner("map", program, self.configuration)
        return launch(kernel_name("map", program), program, geometry, self.body, self.helpers, top)


# --- vectors --------------------------------------------------------------------------------------------------------


def vectors(plan: Plan, configuration: Configuration) -> Launch:
    """Work-items own `items` vectors, a work-group apart. All reads of a work-item come before its first write."""
    writer = _Vectors(plan, configuration)
    count = ceil_div(plan.inner.extent, writer.lanes)
    pieces = ceil_div(count, writer.step)
    writer.body.line("const int local_id = (int)get_local_id(0);")
    writer.body.line(f"const {writer.ctype} group = ({writer.ctype})get_group_id(0);")
    if pieces * writer.step <= MOST_SPARE * count:
        writer.by_row(pieces)
        groups = pieces * math.prod(d.extent for d in plan.outer)
    else:
        total = count * math.prod(d.extent for d in plan.outer)
        writer.flat(count, total)
        groups = ceil_div(total, writer.step)
    return writer.launch(gpu_geometry(groups * writer.group, writer.group))


class _Vectors(_Writer):
    def __init__(self, plan: Plan, configuration: Configuration) -> None:
        super().__init__(plan, configuration)
        self.items = configuration.integer("items")
        self.step = self.items * self.group
        """Vectors per work-group."""
        self.whole = plan.inner.extent // self.lanes
        """Vectors of a row that do not run over its end."""

    def by_row(self, pieces: int) -> None:
        """A work-group stays within a row, whose position it decodes once."""
        extents = [(self.names[d.name], d.extent) for d in self.plan.outer]
        decode(self.body, "group", [*extents, ("piece", pieces)], self.ctype)
        self.body.line(f"const {self.ctype} first = piece * {self.step} + local_id;")
        full = self.whole == pieces * self.step
        if full or self.whole >= self.step:
            with self.body.block("" if full else f"if ((piece + 1) * {self.step} <= {self.whole})"):
                self._several([f"first + {k * self.group}" for k in range(self.items)])
        if not full:
            count = ceil_div(self.plan.inner.extent, self.lanes)
            header = (
                f"for ({self.ctype} vector = first; vector < min((piece + 1) * {self.step}, ({self.ctype}){count}); "
            )
            with (
                self.body.block("else" if self.whole >= self.step else ""),
                self.body.block(f"{header}vector += {self.group})"),
            ):
                self._one("vector")

    def flat(self, count: int, total: int) -> None:
        """Rows of `count` vectors are short: a work-group covers many of the `total` vectors."""
        self.body.line(f"const {self.ctype} first = group * {self.step} + local_id;")
        extents = [(self.names[d.name], d.extent) for d in self.plan.outer]
        if total >= self.step and self.whole == count:
            with self.body.block(f"if ((group + 1) * {self.step} <= {total})"):
                places = []
                for k in range(self.items):
                    self.body.line(f"const {self.ctype} flat{k} = first + {k * self.group};")
                    suffixed = [(f"{name}_{k}", extent) for name, extent in extents]
                    decode(self.body, f"flat{k}", [*suffixed, (f"vector{k}", count)], self.ctype)
                    places.append(f"vector{k}")
                self._several(places, suffixes=True)
        with self.body.block("else" if total >= self.step and self.whole == count else ""):
            self.body.line(f"const {self.ctype} end = min((group + 1) * {self.step}, ({self.ctype}){total});")
            with self.body.block(f"for ({self.ctype} flat = first; flat < end; flat += {self.group})"):
                decode(self.body, "flat", [*extents, ("vector", count)], self.ctype)
                self._one("vector")

    def _several(self, places: list[str], suffixes: bool = False) -> None:
        """Vectors at the given numbers within their rows, none of which runs over a row's end."""
        inner, writes = self.plan.inner.name, Source()
        self.multiples = {inner: self.lanes}
        place = {inner: Affine.of({inner: 1, LANE: 1 if self.lanes > 1 else 0})}
        for k, number in enumerate(places):
            v = f"{self.names[inner]}_{k}"
            self.body.line(f"const {self.ctype} {v} = ({number}) * {self.lanes};")
            names = {**self.names, inner: v}
            if suffixes:
                names.update({d.name: f"{self.names[d.name]}_{k}" for d in self.plan.outer})
            self.store(self.expressions(place, names, f"v{k}_"), place, writes, str(k))
        self.body.line(writes.text.rstrip("\n"))

    def _one(self, number: str) -> None:
        """The vector of the given number; one that would run over the row's end starts early."""
        inner, extent, writes = self.plan.inner.name, self.plan.inner.extent, Source()
        whole = extent % self.lanes == 0
        self.multiples = {inner: self.lanes} if whole else {}
        early = f"min({number} * {self.lanes}, ({self.ctype}){extent - self.lanes})"
        self.body.line(f"const {self.ctype} {self.names[inner]} = {f'{number} * {self.lanes}' if whole else early};")
        place = {inner: Affine.of({inner: 1, LANE: 1 if self.lanes > 1 else 0})}
        self.store(self.expressions(place, self.names, "v_"), place, writes, "")
        self.body.line(writes.text.rstrip("\n"))


# --- tiles ----------------------------------------------------------------------------------------------------------


def tiles(plan: Plan, configuration: Configuration) -> Launch:
    """A work-group per tile: operands that cross the output go through local memory."""
    return _Tiles(plan, configuration).write()


class _Tiles(_Writer):
    def __init__(self, plan: Plan, configuration: Configuration) -> None:
        super().__init__(plan, configuration)
        self.inner, self.across = plan.inner, plan.outer[-1]
        self.along, self.down = plan.tile(configuration.integer("tile"))
        """Elements of the tile along `inner` and across it."""
        self.pitch = self.down + 1
        self.multiples = {self.inner.name: self.lanes, self.across.name: self.lanes}

    def write(self) -> Launch:
        """The whole kernel."""
        body, ctype = self.body, self.ctype
        far = self.plan.outer[:-1]
        counts = (ceil_div(self.across.extent, self.down), ceil_div(self.inner.extent, self.along))
        for number, read in enumerate(self.plan.crossing):
            kind = vector_type(read.dtype, 1)
            body.line(f"__local {kind} tile{number}[{self.along * self.pitch}];")
        body.line("const int local_id = (int)get_local_id(0);")
        body.line(f"const {ctype} group = ({ctype})get_group_id(0);")
        extents = [(self.names[d.name], d.extent) for d in far]
        decode(body, "group", [*extents, ("block_across", counts[0]), ("block_along", counts[1])], ctype)
        body.line(f"const {ctype} across_first = block_across * {self.down};")
        body.line(f"const {ctype} along_first = block_along * {self.along};")
        self._phase(self._reading, self.down, self.along)
        body.line("barrier(CLK_LOCAL_MEM_FENCE);")
        self._phase(self._writing, self.along, self.down)
        groups = math.prod(d.extent for d in far) * math.prod(counts)
        return self.launch(gpu_geometry(groups * self.group, self.group))

    def _phase(self, write_steps: Callable[[list[tuple[str, str]]], None], row: int, rows: int) -> None:
        """Visit the tile row by row: `row` elements each, `rows` of them, several at a time.

        ``write_steps`` is given the C text of each step's row and the end of its variables' names.
        """
        body, columns = self.body, row // self.lanes
        apart = self.group // columns  # rows that the work-group covers at once
        steps = max(1, rows // apart)
        at_once = max(1, AHEAD // self.lanes)
        with body.block(""):
            body.line(f"const int column = local_id % {columns} * {self.lanes};")
            body.line(f"const int first_row = local_id / {columns};")
            with body.block(f"if (first_row < {rows})" if apart > rows else ""):
                for start in range(0, steps, at_once):
                    numbers = range(start, min(steps, start + at_once))
                    with body.block(""):
                        write_steps([(f"first_row + {k * apart}", f"_{k}") for k in numbers])

    def _names(self, suffix: str) -> dict[str, str]:
        """The C variables of loop variables; those of the tile's dimensions end in `suffix`."""
        own = {d.name: f"{self.names[d.name]}{suffix}" for d in (self.inner, self.across)}
        return {**self.names, **own}

    def _declare(self, suffix: str, places: dict[Dimension, str], vector: Dimension) -> None:
        """The position of a step, given its place in the tile; beyond the end, that of the last element or vector."""
        for d, first in ((self.inner, "along_first"), (self.across, "across_first")):
            text = f"{first} + {places[d]}"
            if d.extent % (self.along if d is self.inner else self.down):
                text = f"min({text}, ({self.ctype}){d.extent - (self.lanes if d is vector else 1)})"
            self.body.line(f"const {self.ctype} {self.names[d.name]}{suffix} = {text};")

    def _within(self, row: str) -> str:
        """The condition that a vector lies within the output, as a block's header, where tiles run over its end."""
        tests = []
        if self.inner.extent % self.along:
            tests.append(f"along_first + column < {self.inner.extent}")
        if self.across.extent % self.down:
            tests.append(f"across_first + {row} < {self.across.extent}")
        return f"if ({' && '.join(tests)})" if tests else ""

    def _reading(self, steps: list[tuple[str, str]]) -> None:
        """Read along the operands' rows, then keep what was read in the tiles."""
        place = {self.across.name: Affine.of({self.across.name: 1, LANE: 1 if self.lanes > 1 else 0})}
        kept: list[str] = []
        for row, suffix in steps:
            self._declare(suffix, {self.inner: row, self.across: "column"}, self.across)
            expressions = self.expressions(place, self._names(suffix), f"r{suffix}_")
            for number, read in enumerate(self.plan.crossing):
                value = expressions(substitute_indices(read, place))
                for lane in range(self.lanes):
                    one = value if self.lanes == 1 else f"{value}.s{lane}"
                    one = f"({one} & 1)" if read.dtype is DType.BOOL else one
                    kept.append(f"tile{number}[({row}) * {self.pitch} + column + {lane}] = {one};")
        for line in kept:
            self.body.line(line)

    def _writing(self, steps: list[tuple[str, str]]) -> None:
        """Compute and write along the output's rows, with the operands that cross taken from the tiles."""
        place = {self.inner.name: Affine.of({self.inner.name: 1, LANE: 1 if self.lanes > 1 else 0})}
        crossing: dict[Expr, int] = {substitute_indices(read, place): n for n, read in enumerate(self.plan.crossing)}
        writes = Source()
        for row, suffix in steps:
            self._declare(suffix, {self.inner: "column", self.across: row}, self.inner)
            expressions = self.expressions(place, self._names(suffix), f"w{suffix}_")
            expressions.read = _from_tiles(expressions.read, crossing, self._turned(row))
            with writes.block(self._within(row)):
                self.store(expressions, place, writes, suffix)
        self.body.line(writes.text.rstrip("\n"))

    def _turned(self, row: str) -> Callable[[int, DType], str]:
        """C text of a vector taken down the columns of a tile, given the tile's number and element type."""

        def text(number: int, dtype: DType) -> str:
            lanes = [f"tile{number}[(column + {lane}) * {self.pitch} + {row}]" for lane in range(self.lanes)]
            if self.lanes == 1:
                return lanes[0]
            vector = f"({vector_type(dtype, self.lanes)})({', '.join(lanes)})"
            return f"(-{vector})" if dtype is DType.BOOL else vector

        return text


def _from_tiles(
    read: Callable[[Read], str], crossing: dict[Expr, int], turned: Callable[[int, DType], str]
) -> Callable[[Read], str]:
    """`read` with the reads in `crossing` taken from tiles."""
    return lambda e: turned(crossing[e], e.dtype) if e in crossing else read(e)
