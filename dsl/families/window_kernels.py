"""The kernels of the `window` family, which describes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.reduce import accumulator
from tilewright.dsl.families.settle import Check, checks_of, settle
from tilewright.dsl.families.shared import (
    Dimension,
    banner,
    ceil_div,
    cpu_geometry,
    decode,
    gpu_geometry,
    kernel_name,
    launch,
    renderer,
    share,
    stored,
)
from tilewright.dsl.families.window import WRITTEN_OUT, Plan
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import REDUCTION_IDENTITY, Call, Const, Expr, Reduce, reads, substitute_indices
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.dsl.writer import (
    LANE,
    Expressions,
    Source,
    affine,
    index_type,
    multiply_add,
    variable,
    vector_type,
)

MOST_BORDERS = 6
"""Most tiles of a row that are written out for the border."""


@dataclass(frozen=True)
class Place:
    """Where a tile starts along `Plan.across`: a number, or a C variable if None."""

    start: int | None
    checked: bool
    """Whether reads may lie outside along `across`."""


def write(plan: Plan, target: Target, configuration: Configuration) -> Launch:
    """The kernel of one configuration."""
    kernel = _Kernel(plan, target, configuration)
    if target.shape is Shape.CPU:
        items = kernel.cpu()
        geometry = cpu_geometry(items)
    else:
        items = kernel.gpu()
        geometry = gpu_geometry(items, configuration.integer("work_group"))
    top = banner("window", plan.program, configuration)
    return launch(kernel_name("window", plan.program), plan.program, geometry, kernel.body, kernel.helpers, top)


class _Kernel:
    """Writes tiles and the loops around them."""

    def __init__(self, plan: Plan, target: Target, configuration: Configuration) -> None:
        assert plan.across is not None
        self.plan = plan
        self.target = target
        self.configuration = configuration
        self.across = plan.across
        self.lanes = configuration.integer("lanes")
        self.vectors = configuration.integer("vectors")
        self.pixels = configuration.integer("pixels")
        self.span = plan.span(configuration)
        self.tiles = ceil_div(self.across.extent, self.span)
        self.ctype = index_type(plan.program)
        self.body = Source()
        self.helpers: dict[str, str] = {}
        self.names = {name: variable(name) for name in (*plan.loops.extents(), plan.vector.name)}
        written = plan.taps_along * self.pixels * self.vectors * len(plan.reduces)
        self.taps = plan.taps if written <= WRITTEN_OUT else ()
        self.looped = tuple(d for d in plan.loops.reduced if d not in self.taps)
        self.checks = {e: checks_of(e.body, plan.program, plan.loops.checks) for e in plan.reduces}
        self.before, self.after = self._borders(written)

    # --- tiles ------------------------------------------------------------------------------------------------------

    def start(self, tile: int) -> int:
        """The first output of a tile; the last tile starts early rather than run over the end."""
        return min(tile * self.span, self.across.extent - self.span)

    def _borders(self, written: int) -> tuple[int, int]:
        """How many tiles at either end need range checks along `across`."""
        along = {c for found in self.checks.values() for c in found if c.position.coefficient(self.across.name)}
        extents = {d.name: d.extent for d in self.plan.loops.reduced}

        def free(tile: int) -> bool:
            start = self.start(tile)
            for c in along:
                first = c.position.substitute({self.across.name: Affine((), start)})
                last = c.position.substitute({self.across.name: Affine((), start + self.span - 1)})
                if any(name not in extents for name in first.names):
                    return False
                ends = (*first.range(extents), *last.range(extents))
                if min(ends) < 0 or max(ends) >= c.size:
                    return False
            return True

        before = next((k for k in range(self.tiles) if free(k)), self.tiles)
        after = next((k for k in range(self.tiles - before) if free(self.tiles - 1 - k)), 0)
        return before, after

    def row(self, tile: str) -> None:
        """The tile whose number is in the C variable `tile`: written out at a border, general inside."""
        border = self.before + self.after
        written = self.plan.taps_along * self.pixels * self.vectors * len(self.plan.reduces)
        fixed = border <= MOST_BORDERS and (border + 1) * written <= 4 * WRITTEN_OUT and bool(self.taps)
        if fixed and border == self.tiles == 1:
            self.tile(Place(0, True))
            return
        places = [*range(self.before), *range(self.tiles - self.after, self.tiles)]
        inner = self.tiles - border
        branches: list[tuple[str, Place]] = []
        if fixed:
            branches += [(f"{tile} == {k}", Place(self.start(k), True)) for k in places]
        elif border:
            tests = [f"{tile} < {self.before}"] if self.before else []
            tests += [f"{tile} >= {self.tiles - self.after}"] if self.after else []
            branches.append((" || ".join(tests), Place(None, True)))
        if inner:
            branches.append(("", Place(None, False)))
        self._branches(branches, tile)

    def _branches(self, branches: list[tuple[str, Place]], tile: str) -> None:
        for number, (test, place) in enumerate(branches):
            last = number == len(branches) - 1
            word = "" if number == 0 else "else "
            header = f"{word}if ({test})" if test and not last else word.strip()
            with self.body.block(header):
                if place.start is None:
                    self._declare_start(tile)
                self.tile(place)

    def _declare_start(self, tile: str) -> None:
        name, last = self.names[self.across.name], self.across.extent - self.span
        text = f"{tile} * {self.span}"
        if self.across.extent % self.span:
            text = f"min({text}, ({self.ctype}){last})"
        self.body.line(f"const {self.ctype} {name} = {text};")

    def tile(self, place: Place) -> None:
        """One tile, or if vectors run free of the window, one per vector of the block."""
        if self.plan.tile is None:
            self._tile(place)
            return
        v, step, extent = self.names[self.plan.vector.name], self.vectors * self.lanes, self.plan.vector.extent
        block = min(self.configuration.integer("block"), extent)
        header = f"for ({self.ctype} {v}_at = {v}_first; {v}_at < {v}_end; {v}_at += {step})"
        if block == step == extent:
            header = ""
        with self.body.block(header):
            if header and extent % step == 0:
                self.body.line(f"const {self.ctype} {v} = {v}_at;")
            else:
                at = f"{v}_at" if header else f"{v}_first"
                self.body.line(f"const {self.ctype} {v} = min({at}, ({self.ctype}){extent - step});")
            self._tile(place)

    def _tile(self, place: Place) -> None:
        plan = self.plan
        fresh = self.expressions({}, "")
        for j, e in enumerate(plan.reduces):
            kind, start = vector_type(accumulator(e), self.lanes), fresh.identity(e.kind, e.dtype)
            names = [f"{self.acc(j, t, m)} = {start}" for t, m in self._outputs()]
            self.body.line(f"{kind} {', '.join(names)};")
        with self._loops():
            self._taps(place)
        for t, m in self._outputs():
            self._store(place, t, m)

    def _outputs(self) -> list[tuple[int, int]]:
        return list(itertools.product(range(self.pixels), range(self.vectors)))

    def acc(self, j: int, pixel: int, vector: int) -> str:
        """The accumulator of reduction `j` for one vector of the tile."""
        name = f"acc{j}_{pixel}" if len(self.plan.reduces) > 1 else f"acc{pixel}"
        return f"{name}_{vector}" if self.vectors > 1 else name

    @contextmanager
    def _loops(self) -> Iterator[None]:
        with ExitStack() as stack:
            for d in self.looped:
                stack.enter_context(self.body.loop(self.names[d.name], d.extent, ctype=self.ctype))
            yield

    # --- taps -------------------------------------------------------------------------------------------------------

    def _taps(self, place: Place) -> None:
        """The taps of one step of the outer reduced loops, under one range check where they share it."""
        sides = {
            frozenset(c for c in group if self._aside(c)) for found in self.checks.values() for group in found.groups
        } - {frozenset()}
        if len(sides) != 1:
            self._written(place, frozenset(), True)
            return
        (shared,) = sides
        tests = [f"(uint)({affine(c.position, self.names)}) < {c.size}u" for c in sorted(shared, key=str)]
        with self.body.block(f"if ({' && '.join(tests)})"):
            self._written(place, shared, True)
        outside = Source()
        kept, self.body = self.body, outside
        try:
            self._written(place, shared, False)
        finally:
            self.body = kept
        if outside.text.strip():
            with self.body.block("else"):
                self.body.line(outside.text.rstrip("\n"))

    def _aside(self, c: Check) -> bool:
        """Whether a check is the same for the whole tile and all its taps."""
        moving = {self.across.name, *(d.name for d in self.taps)}
        return not moving & set(c.position.names) and (self.plan.vector.name not in c.position.names)

    def _written(self, place: Place, shared: frozenset[Check], verdict: bool) -> None:
        """Every tap for every output of the tile, in the order of the memory that the first read walks over."""
        settled: dict[Expr, tuple[int, ...]] = {}
        expressions = self.expressions(settled, "x")
        for m in range(self.vectors):
            steps = []
            for t in range(self.pixels):
                for taps in itertools.product(*(range(d.extent) for d in self.taps)):
                    where = self._where(place, t, m)
                    where.update({d.name: Affine((), n) for d, n in zip(self.taps, taps, strict=True)})
                    steps.append((order(self.plan, where), t, where))
            for _, t, where in sorted(steps, key=lambda step: step[0]):
                for j, e in enumerate(self.plan.reduces):
                    known = dict.fromkeys(shared, verdict)
                    if not place.checked:
                        known.update({c: True for c in self.checks[e] if c.position.coefficient(self.across.name)})
                    result = settle(e.body, self.plan.program, self.plan.loops.checks, where, known, self.lanes)
                    settled.update(result.checks)
                    accumulate(self.body, expressions, e, self.acc(j, t, m), result.value, self.target.fma)

    def _where(self, place: Place, pixel: int, vector: int) -> dict[str, Affine]:
        """What the loop variables are at one vector of the tile, in terms of the C variables and the lane."""
        lane = {LANE: 1} if self.lanes > 1 else {}
        v, offset = self.plan.vector.name, vector * self.lanes
        if self.plan.tile is None:
            start = Affine.index(v) if place.start is None else Affine((), place.start)
            return {v: start + Affine.of(lane, offset)}
        t = self.plan.tile.name
        start = Affine.index(t) if place.start is None else Affine((), place.start)
        return {v: Affine.of({v: 1, **lane}, offset), t: start + pixel}

    def expressions(self, checks: Mapping[Expr, tuple[int, ...]], prefix: str) -> Expressions:
        """A renderer whose reads need the range checks in `checks`."""
        source = self.body if prefix else None
        return renderer(self.plan.program, self.names, checks, self.lanes, self.helpers, source, prefix)

    def _store(self, place: Place, pixel: int, vector: int) -> None:
        where = self._where(place, pixel, vector)
        number = f"{pixel}" if self.vectors == 1 else f"{pixel}_{vector}"
        expressions = self.expressions(self.plan.loops.moved(where), f"out{number}_")
        finished: dict[Expr, str] = {
            substitute_indices(e, where): self.acc(j, pixel, vector) for j, e in enumerate(self.plan.reduces)
        }
        expressions.reduce = finished.__getitem__
        ((target, value),) = self.plan.loops.values.items()
        address = self.plan.loops.writes[target].substitute(where)
        tensor = self.plan.program.tensors[target]
        stored(expressions, self.body, tensor, address, substitute_indices(value, where), number)

    # --- whole kernels ----------------------------------------------------------------------------------------------

    def cpu(self) -> int:
        """One work-item per block of channels and run of rows; returns the number of work-items."""
        plan, body, ctype = self.plan, self.body, self.ctype
        extent = plan.vector.extent
        block = min(self.configuration.integer("block"), extent) if plan.tile is not None else extent
        blocks = ceil_div(extent, block) if plan.tile is not None else 1
        within = self._within_a_tile()
        outer = [d for d in plan.outer if d not in within]
        rows = math.prod(d.extent for d in outer)
        budget = max(1, (self.configuration.integer("grain") << 10) // plan.item_bytes)
        one = self.span * (block if plan.tile is not None else 1) * math.prod(d.extent for d in within)
        run = max(1, min(self.tiles, budget // one))
        slabs = max(1, min(rows, budget // (one * self.tiles)))
        runs, slab_count = ceil_div(self.tiles, run), ceil_div(rows, slabs)
        body.line(f"const {ctype} item = ({ctype})get_global_id(0);")
        parts = [("slab", slab_count), ("part", runs), ("block", blocks)]
        decode(body, "item", parts, ctype, ("slab", "part", "block"))
        if plan.tile is not None:
            v = self.names[plan.vector.name]
            body.line(f"const {ctype} {v}_first = {f'block * {block}' if blocks > 1 else '0'};")
            whole = blocks == 1 or extent % block == 0
            end = f"{v}_first + {block}" if whole else f"min({v}_first + {block}, ({ctype}){extent})"
            body.line(f"const {ctype} {v}_end = {end};")
        with share(body, ctype, "flat", "slab", slabs, rows):
            decode(body, "flat", [(self.names[d.name], d.extent) for d in outer], ctype)
            with share(body, ctype, "tile", "part", run, self.tiles), ExitStack() as stack:
                for d in within:
                    stack.enter_context(body.loop(self.names[d.name], d.extent, ctype=ctype))
                self.row("tile")
        return slab_count * runs * blocks

    def _within_a_tile(self) -> tuple[Dimension, ...]:
        """The groups of channels, if their weights stay in the cache while a CPU walks over all groups of each tile.

        The channels of a pixel are then read and written as one run; one group after the other, each of the lines that
        hold them would be fetched several times.
        """
        plan = self.plan
        if plan.side is None or plan.tile is None or not plan.has_narrow_groups:
            return ()
        tile, tensors = plan.tile.name, plan.program.tensors
        still = {r.tensor for e in plan.reduces for r in reads(e.body) if not any(a.coefficient(tile) for a in r.index)}
        weights = sum(tensors[name].size * tensors[name].dtype.itemsize for name in still)
        return (plan.side,) if 2 * weights <= self.target.l2_bytes else ()

    def gpu(self) -> int:
        """One work-item per run of vectors along which the window slides; returns the number of work-items."""
        plan, body, ctype = self.plan, self.body, self.ctype
        parts = [(self.names[d.name], d.extent) for d in plan.outer] + [("tile", self.tiles)]
        count = math.prod(n for _, n in parts)
        body.line(f"const {ctype} flat = ({ctype})get_global_id(0);")
        with body.block(f"if (flat < {count})"):
            decode(body, "flat", parts, ctype)
            self.row("tile")
        return count


def order(plan: Plan, where: Mapping[str, Affine]) -> int:
    """Where in memory the first read that slides lies, loop variables being as in `where`, relative to other taps."""
    found = reads(plan.reduces[0].body)
    if not found or plan.across is None:
        return 0
    across = plan.across.name
    first = next((r for r in found if any(position.coefficient(across) for position in r.index)), found[0])
    return plan.program.tensors[first.tensor].address(first.index).substitute(where).constant


def accumulate(body: Source, expressions: Expressions, e: Reduce, total: str, value: Expr, fma: str) -> None:
    """Write the statement that adds one tap's value to the accumulator `total` of `e`; nothing for its identity."""
    if _is_identity(e, value):
        return
    exact = e.kind == "sum" and e.dtype.is_float and isinstance(value, Call) and value.function == "mul"
    if exact and isinstance(value, Call) and all(a.dtype is e.dtype for a in (*value.args, value)):
        a, b = (expressions(arg) for arg in value.args)
        body.line(f"{total} = {multiply_add(fma, a, b, total)};")
        return
    text = expressions.converted(expressions(value), value.dtype, e.dtype)
    body.line(expressions.accumulate(e.kind, total, text, e.dtype))


def _is_identity(e: Reduce, value: Expr) -> bool:
    """Whether accumulating `value` changes nothing."""
    return isinstance(value, Const) and float(value.value) == REDUCTION_IDENTITY[e.kind]
