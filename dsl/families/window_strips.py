"""The `window` family's kernel for GPUs where memory is contiguous free of the window: images with channels last.

    each work-item: one vector of channels, `pixels` outputs along the sliding dimension times `rows` along the second

    acc[u][t] = identity
    for every input that a tile touches, in the order of memory:  x = load once
        for every (u, t) and tap that reads it:  acc[u][t] = acc[u][t] (+) body(x, weights of the tap)
    y[u][t] = f(acc[u][t])

A work-group owns `channels` vectors side by side and a run of neighbouring tiles, so that what tiles share of the
input (its rim) is read from memory once and comes from the nearest cache after that; a row of 8 vectors of 16 bytes
is a cache line. Tiles at the end of a dimension start early and compute some outputs twice.

In grouped convolutions the vector are output channels of one group, and the work-items beside each other take the
next groups. The channels of the input that a group sums over are loaded as vectors and used one by one.

Positions that may lie outside the image are known while generating, tap by tap: within a tile these are its first and
last columns and rows. They are read at the nearest position inside and replaced by the pad value, so that no load
waits for a branch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.reduce import accumulator
from tilewright.dsl.families.settle import Check, checks_of, settle
from tilewright.dsl.families.shared import (
    banner,
    ceil_div,
    decode,
    gpu_geometry,
    is_aligned,
    kernel_name,
    launch,
    renderer,
    stored,
)
from tilewright.dsl.families.window import Plan
from tilewright.dsl.families.window_kernels import accumulate, order
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import Expr, Read, Tensor, substitute_indices
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.writer import (
    LANE,
    Expressions,
    Source,
    affine,
    index_type,
    lanes_read,
    literal,
    variable,
    vector_type,
)

WRITTEN_OUT = 512
"""Most taps of a tile that are written out; with more, loops run over the window's rows, or over all of it."""


def write(plan: Plan, target: Target, configuration: Configuration) -> Launch:
    """The kernel of one configuration."""
    kernel = _Strips(plan, target, configuration)
    groups = kernel.whole()
    geometry = gpu_geometry(groups * kernel.group, kernel.group)
    top = banner("window", plan.program, configuration)
    return launch(kernel_name("window", plan.program), plan.program, geometry, kernel.body, kernel.helpers, top)


class _Strips:
    """Writes the tile of a work-item and what finds it."""

    def __init__(self, plan: Plan, target: Target, configuration: Configuration) -> None:
        assert plan.tile is not None
        self.plan = plan
        self.target = target
        self.tile = plan.tile
        self.lanes, self.pixels, self.rows, self.beside, self.group = (
            configuration.integer(name) for name in ("lanes", "pixels", "rows", "channels", "work_group")
        )
        self.ctype = index_type(plan.program)
        self.body = Source()
        self.helpers: dict[str, str] = {}
        self.names = {name: variable(name) for name in (*plan.loops.extents(), plan.vector.name)}
        self.multiples = {plan.vector.name: self.lanes} if plan.vector.extent % self.lanes == 0 else {}
        self.places: dict[tuple[Affine, int], tuple[str, str]] = {}
        self.looped = self._looped()
        self.loads = 0
        self.chunks: dict[Read, str] = {}

    def _looped(self) -> tuple[str, ...]:
        """The reduced dimensions that loops run over, outermost first; the others are written out."""
        plan, looped = self.plan, []
        extents = {d.name: d.extent for d in plan.loops.reduced}
        count = self.pixels * self.rows * len(plan.reduces) * math.prod(extents.values())
        along = [d.name for d in plan.taps]
        for name in [*(n for n in extents if n not in along), *along]:
            if count <= WRITTEN_OUT:
                break
            looped.append(name)
            count //= max(1, extents[name])
        return tuple(looped)

    # --- the work-item's place --------------------------------------------------------------------------------------

    def whole(self) -> int:
        """The whole kernel; returns the number of work-groups."""
        plan, body, ctype = self.plan, self.body, self.ctype
        extent, high = plan.vector.extent, plan.high
        side = [(self.names[d.name], d.extent) for d in plan.outer if d == plan.side]
        pieces = plan.pieces(self.lanes)
        blocks = ceil_div(pieces, self.beside)
        parts = [(self.names[d.name], d.extent) for d in plan.outer if d not in (high, plan.side)]
        parts += [("down", ceil_div(high.extent, self.rows))] if high else []
        parts.append(("along", ceil_div(self.tile.extent, self.pixels)))
        tiles = math.prod(n for _, n in parts)
        each = self.group // self.beside
        body.line("const int local_id = (int)get_local_id(0);")
        body.line(f"const {ctype} group = ({ctype})get_group_id(0);")
        decode(body, "group", [("run", ceil_div(tiles, each)), ("block", blocks)], ctype)
        body.line(f"const {ctype} piece = block * {self.beside} + local_id % {self.beside};")
        body.line(f"const {ctype} flat = run * {each} + local_id / {self.beside};")
        tests = [f"piece < {pieces}"] if pieces % self.beside else []
        tests += [f"flat < {tiles}"] if tiles % each else []
        tests += [f"local_id < {each * self.beside}"] if each * self.beside < self.group else []
        with body.block(f"if ({' && '.join(tests)})" if tests else ""):
            decode(body, "flat", parts, ctype)
            decode(body, "piece", [*side, ("part", ceil_div(extent, self.lanes))], ctype)
            self._start(plan.vector.name, "part", self.lanes, extent)
            self._start(self.tile.name, "along", self.pixels, self.tile.extent)
            if high:
                self._start(high.name, "down", self.rows, high.extent)
            self._tile()
        return ceil_div(tiles, each) * blocks

    def _start(self, name: str, number: str, size: int, extent: int) -> None:
        """Declare where the tile starts along a dimension; the last one starts early rather than run over the end."""
        text = f"{number} * {size}"
        if extent % size:
            text = f"min({text}, ({self.ctype}){extent - size})"
        self.body.line(f"const {self.ctype} {self.names[name]} = {text};")

    # --- one tile ---------------------------------------------------------------------------------------------------

    def _outputs(self) -> list[tuple[int, int]]:
        return list(itertools.product(range(self.rows), range(self.pixels)))

    def _where(self, row: int, pixel: int) -> dict[str, Affine]:
        """What the loop variables are at one output of the tile, in terms of the C variables and the lane."""
        lane = {LANE: 1} if self.lanes > 1 else {}
        v, t = self.plan.vector.name, self.tile.name
        where = {v: Affine.of({v: 1, **lane}), t: Affine.index(t) + pixel}
        if self.plan.high:
            where[self.plan.high.name] = Affine.index(self.plan.high.name) + row
        return where

    def _acc(self, j: int, row: int, pixel: int) -> str:
        return f"acc{j}_{row}_{pixel}" if len(self.plan.reduces) > 1 else f"acc_{row}_{pixel}"

    def _tile(self) -> None:
        plan = self.plan
        fresh = self._expressions({}, "")
        for j, e in enumerate(plan.reduces):
            kind, start = vector_type(accumulator(e), self.lanes), fresh.identity(e.kind, e.dtype)
            self.body.line(f"{kind} {', '.join(f'{self._acc(j, *at)} = {start}' for at in self._outputs())};")
        extents = {d.name: d.extent for d in plan.loops.reduced}
        with ExitStack() as stack:
            for name in self.looped:
                stack.enter_context(self.body.loop(self.names[name], extents[name], ctype=self.ctype))
            self._taps()
        self._stores()

    def _taps(self) -> None:
        """Every tap of every output of the tile, in the order of the memory that the first read walks over."""
        plan = self.plan
        written = [d for d in plan.loops.reduced if d.name not in self.looped]
        checks = {e: checks_of(e.body, plan.program, plan.loops.checks) for e in plan.reduces}
        left: dict[Expr, tuple[int, ...]] = {}
        expressions = self._expressions(left, "x")
        steps = []
        for row, pixel in self._outputs():
            for taps in itertools.product(*(range(d.extent) for d in written)):
                where = self._where(row, pixel)
                where.update({d.name: Affine((), n) for d, n in zip(written, taps, strict=True)})
                steps.append((self._turn(where, row), row, pixel, where))
        for _, row, pixel, where in sorted(steps, key=lambda step: step[:3]):
            for j, e in enumerate(plan.reduces):
                known = {c: True for c in checks[e] if self._is_inside(c, where)}
                result = settle(e.body, plan.program, plan.loops.checks, where, known, self.lanes)
                left.update(result.checks)
                accumulate(self.body, expressions, e, self._acc(j, row, pixel), result.value, self.target.fma)

    def _turn(self, where: Mapping[str, Affine], row: int) -> tuple[int, ...]:
        """When the tap of one output has its turn: row by row of the input, then channel by channel of a group.

        So few of the weights, each of which a row of outputs uses, are live at once.
        """
        plan = self.plan
        inner = tuple(where[d.name].constant for d in plan.inner if d.name in where)
        along = {d.name: Affine() for d in (*plan.taps, *plan.inner)}
        start = {**where, **along, self.tile.name: Affine.index(self.tile.name)}
        return (order(plan, start) if inner else 0, *inner, order(plan, where), row)

    def _is_inside(self, check: Check, where: Mapping[str, Affine]) -> bool:
        """Whether a position lies inside wherever the tile starts."""
        low, high = self._range(check.position.substitute(where))
        return low >= 0 and high < check.size

    def _range(self, position: Affine) -> tuple[int, int]:
        """The values of a position over all tiles."""
        plan = self.plan
        extents = {**plan.loops.extents(), LANE: self.lanes}
        starts = {plan.vector.name: self.lanes, self.tile.name: self.pixels}
        starts |= {plan.high.name: self.rows} if plan.high else {}
        return position.range({**extents, **{n: extents.get(n, 1) - size + 1 for n, size in starts.items()}})

    def _stores(self) -> None:
        """The outputs of the tile, after all that their values read."""
        writes = Source()
        ((target, value),) = self.plan.loops.values.items()
        tensor, address = self.plan.program.tensors[target], self.plan.loops.writes[target]
        checks: dict[Expr, tuple[int, ...]] = {}
        expressions = self._expressions(checks, "out")
        for row, pixel in self._outputs():
            where = self._where(row, pixel)
            checks.update(self.plan.loops.moved(where))
            finished: dict[Expr, str] = {
                substitute_indices(e, where): self._acc(j, row, pixel) for j, e in enumerate(self.plan.reduces)
            }
            expressions.reduce = finished.__getitem__
            moved = substitute_indices(value, where)
            number = f"{row}_{pixel}"
            stored(expressions, writes, tensor, address.substitute(where), moved, number, self.multiples)
        self.body.line(writes.text.rstrip("\n"))

    # --- reads ------------------------------------------------------------------------------------------------------

    def _expressions(self, checks: Mapping[Expr, tuple[int, ...]], prefix: str) -> Expressions:
        """A renderer whose reads need the range checks in `checks`; with a prefix, each is loaded once."""
        source = self.body if prefix else None
        made = renderer(
            self.plan.program, self.names, checks, self.lanes, self.helpers, source, prefix, {}, self.multiples
        )
        made.read = lambda e: self._read(e, checks[e])
        self.places, self.chunks = {}, {}
        return made

    def _read(self, e: Read, checks: tuple[int, ...]) -> str:
        """C text of what one vector of outputs reads: a vector, or one number for all lanes."""
        tensor = self.plan.program.tensors[e.tensor]
        if self.lanes == 1 or any(a.coefficient(LANE) or a.atoms for a in e.index):
            return self._loaded(e, checks, self.lanes)
        d, width = _chunk(e, tensor)
        if width == 1 or d in checks:
            return self._loaded(e, checks, self.lanes)
        component = e.index[d].constant % width
        index = list(e.index)
        index[d] = Affine.of({LANE: 1}, index[d].constant - component)
        chunk = replace(e, index=tuple(index))
        if chunk not in self.chunks:
            text = self._loaded(chunk, checks, width)
            self.chunks[chunk] = f"chunk{len(self.chunks)}"
            self.body.line(f"const {vector_type(e.dtype, width)} {self.chunks[chunk]} = {text};")
        return f"({vector_type(e.dtype, self.lanes)})({self.chunks[chunk]}.s{component:x})"

    def _loaded(self, e: Read, checks: tuple[int, ...], width: int) -> str:
        """C text of a load; where it may lie outside, that of its place nearest to it, and the pad value instead."""
        tensor = self.plan.program.tensors[e.tensor]
        index = list(e.index)
        names = dict(self.names)
        tests = []
        for d in checks:
            if index[d].coefficient(LANE) or index[d].atoms:
                whole = is_aligned(tensor, tensor.address(e.index), width, self.multiples)
                return lanes_read(e, tensor, names, checks, width, whole)
            at, inside = self._nearest(index[d], tensor.shape[d])
            tests.append(inside)
            index[d] = Affine.index(at)
            names[at] = at
        moved = replace(e, index=tuple(index))
        whole = is_aligned(tensor, tensor.address(moved.index), width, self.multiples)
        value = lanes_read(moved, tensor, names, (), width, whole)
        if not tests:
            return value
        self.loads += 1
        loaded = f"at{self.loads}"
        self.body.line(f"const {vector_type(e.dtype, width)} {loaded} = {value};")
        pad = literal(tensor.pad, tensor.dtype)
        return f"(({' && '.join(tests)}) ? {loaded} : {_splat(pad, e, width)})"

    def _nearest(self, position: Affine, size: int) -> tuple[str, str]:
        """C variables of the position inside ``0 .. size-1`` nearest to one, and of whether that is it."""
        key = position, size
        if key not in self.places:
            text, number = affine(position, self.names), len(self.places)
            low, high = self._range(position)
            near = text if low >= 0 else f"max({text}, ({self.ctype})0)"
            near = near if high < size else f"min({near}, ({self.ctype}){size - 1})"
            self.body.line(f"const {self.ctype} near{number} = {near};")
            self.body.line(f"const int inside{number} = near{number} == {text};")
            self.places[key] = f"near{number}", f"inside{number}"
        return self.places[key]


def _splat(scalar: str, e: Read, lanes: int) -> str:
    """A pad value as a register value of the read."""
    if lanes == 1:
        return scalar
    kind = vector_type(e.dtype, lanes)
    return f"({kind})(-({scalar}))" if e.dtype.value == "bool" else f"({kind})({scalar})"


def _chunk(e: Read, tensor: Tensor) -> tuple[int, int]:
    """A dimension in which a read stands at a fixed place and memory is contiguous, and how many are loaded at once.

    The read is one number for all lanes. A width of 1 if there is no such dimension, or nothing is gained.
    """
    for d, (position, n, stride) in enumerate(zip(e.index, tensor.shape, tensor.strides, strict=True)):
        if stride == 1 and not position.terms and 0 <= position.constant < n and e.dtype is not DType.BOOL:
            widths = [w for w in (8, 4, 2) if n % w == 0 and w * tensor.dtype.itemsize <= 16]
            return d, next(iter(widths), 1)
    return 0, 1
