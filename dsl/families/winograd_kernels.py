"""The transforms of Winograd convolution as OpenCL C: weights, data and products, for one channel or a vector of them.

    U[position] = G w G'       V[position] = B d B'       Y = A (sum over channels of U * V) A'

One tile is transformed at a time, dimension by dimension, by straight-line code. Vectors run along the channels, so
that range checks hold for a vector as a whole and images of any layout are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import count

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contract_packing import KEEP_LOOP
from tilewright.dsl.families.shared import Geometry, ceil_div, decode, power_below, round_up
from tilewright.dsl.families.winograd_convolution import WITHIN, Position, Tiling, flat
from tilewright.dsl.families.winograd_transforms import Matrix, Step, renamed, straight_line
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import Expr, Index, Read, checked_dimensions, reads, substitute_indices
from tilewright.dsl.target import Shape, Target
from tilewright.dsl.writer import (
    LANE,
    Expressions,
    Source,
    affine,
    argument,
    in_range,
    lanes_read,
    literal,
    multiply_add,
    store,
    variable,
    vector_type,
)

WEIGHTS, DATA, PRODUCTS = "winograd_weights", "winograd_data", "winograd_products"
"""Scratch: the transformed weights and data, and their products."""
WEIGHTS_RUN = 16
"""Input channels whose weights a work-item of a CPU transforms one after the other: they are neighbours in memory."""
GROUP, TILE = "part", "tile"
"""C variables: the number of the group, and of the tile within it."""


Place = Callable[[Affine], str]
"""Pointer to where the transformed element of a position's number lies for the current tile and channel."""


@dataclass(frozen=True)
class Writer:
    """Where the code of one kernel goes, and at what vector width it computes."""

    tiling: Tiling
    target: Target
    body: Source
    ctype: str
    helpers: dict[str, str]
    width: int = 1
    numbers: count[int] = field(default_factory=count)
    """Tells the variables of one kernel's transforms apart."""

    def at_width(self, width: int) -> Writer:
        """The same kernel at another vector width."""
        return replace(self, width=width)

    @property
    def dtype(self) -> DType:
        """Type of the sums."""
        return self.tiling.c.dtype

    @property
    def vector(self) -> str:
        """OpenCL type of what is transformed."""
        return vector_type(self.dtype, self.width)

    @property
    def names(self) -> Mapping[str, str]:
        """C variable of each index."""
        within = {name: f"within_{d}" for d, name in enumerate(WITHIN)}
        return {name: variable(name) for name in self.tiling.extents()} | within

    def expressions(
        self, checks: Mapping[Read, tuple[int, ...]], reduce: Callable[[Expr], str] | None = None
    ) -> Expressions:
        """Renders values whose reads are vectors along `LANE`; reads that are not in `checks` need none."""
        program = self.tiling.c.program
        tensors, fast = program.tensors, program.fast_math

        def read(r: Read) -> str:
            return lanes_read(r, tensors[r.tensor], self.names, checks.get(r, ()), self.width)

        return Expressions(read, self.names, tensors, reduce, self.width, self.helpers, fast=fast)

    def along(self, index: Index) -> dict[str, Affine]:
        """The index moved by the position in the vector."""
        return {index.name: Affine.of({index.name: 1, LANE: 1})} if self.width > 1 else {}

    def load(self, place: str) -> str:
        """A vector of transformed elements at a pointer."""
        return f"vload{self.width}(0, {place})" if self.width > 1 else f"*({place})"

    def store(self, value: str, place: str) -> None:
        """Write a vector of transformed elements to a pointer."""
        text = f"vstore{self.width}({value}, 0, {place});" if self.width > 1 else f"*({place}) = {value};"
        self.body.line(text)

    def coordinates(self, tile: str) -> None:
        """Declare the batch indices and tile coordinates of a tile's number."""
        decode(self.body, tile, [(variable(i.name), i.extent) for i in self.tiling.tile_indices], self.ctype)

    def group(self, number: str) -> None:
        """Declare the group indices of a group's number."""
        decode(self.body, number, [(variable(i.name), i.extent) for i in self.tiling.c.groups], self.ctype)


# --- one tile -------------------------------------------------------------------------------------------------------


def transform(
    w: Writer, matrices: Sequence[Matrix], load: Callable[[Position], str], keep: Callable[[Position, str], None]
) -> None:
    """Code that multiplies each dimension of a tile by a matrix.

    ``load`` gives the text of an element, ``keep`` writes what is done with the variable of a result. One dimension is
    written out at a time, in loops over the others: written out as a whole, a tile takes compilers several seconds.
    """
    sizes = [len(m[0]) for m in matrices]
    source = ""
    for axis, matrix in enumerate(matrices):
        made, last = [*sizes[:axis], len(matrix), *sizes[axis + 1 :]], axis == len(matrices) - 1
        array = f"t{next(w.numbers)}"
        if not last:
            w.body.line(f"{w.vector} {array}[{math.prod(made)}];")
        with ExitStack() as loops:
            for d in range(len(sizes)):
                if d != axis:
                    w.body.line(KEEP_LOOP)
                    loops.enter_context(w.body.loop(w.names[WITHIN[d]], sizes[d], ctype=w.ctype))
            places = [_along(axis, k, len(sizes)) for k in range(max(sizes[axis], made[axis]))]
            elements = [
                f"{source}[{affine(flat(at, sizes), w.names)}]" if axis else load(at) for at in places[: sizes[axis]]
            ]
            line = renamed(straight_line(matrix), [_declared(w, text) for text in elements], f"k{next(w.numbers)}_")
            for step in line.steps:
                w.body.line(f"const {w.vector} {step.name} = {_sum(w, step)};")
            for at, name in zip(places, line.results, strict=False):
                if last:
                    keep(at, name)
                else:
                    w.body.line(f"{array}[{affine(flat(at, made), w.names)}] = {name};")
        source, sizes = array, made


def _along(axis: int, k: int, count: int) -> Position:
    """The k-th place along an axis at the current place in the other dimensions."""
    return tuple(Affine((), k) if d == axis else Affine.index(WITHIN[d]) for d in range(count))


def _declared(w: Writer, value: str) -> str:
    name = f"d{next(w.numbers)}"
    w.body.line(f"const {w.vector} {name} = {value};")
    return name


def _sum(w: Writer, step: Step) -> str:
    """A step's value: additions for coefficients of ±1, multiply-adds for others, a term of its own first."""
    first = max(step.terms, key=lambda term: (abs(term[0]) == 1, term[0] == 1))
    text = {Fraction(1): first[1], Fraction(-1): f"(-{first[1]})"}.get(first[0])
    text = f"({_coefficient(w, first[0])} * {first[1]})" if text is None else text
    for coefficient, name in (term for term in step.terms if term is not first):
        if abs(coefficient) == 1:
            text = f"({text} {'+' if coefficient > 0 else '-'} {name})"
        else:
            text = f"({multiply_add(w.target.fma, _coefficient(w, coefficient), name, text)})"
    return text


def _coefficient(w: Writer, value: Fraction) -> str:
    text = literal(float(value), w.dtype)
    return text if w.width == 1 else f"({w.vector})({text})"


def data_tile(w: Writer, checked: bool, place: Place) -> None:
    """Transform the data under the current tile at the current input channel; `place` points to each position's result.

    With `checked`, elements outside the tensors become pad values; otherwise there are none (see `interior`).
    """
    t = w.tiling

    def load(offset: Position) -> str:
        value, lanes = t.data(offset), w.along(t.c.depth)
        checks = {_moved(r, lanes): needed for r, needed in t.data_checks(value).items()} if checked else {}
        render = w.expressions(checks)
        return render.converted(render(substitute_indices(value, lanes)), value.dtype, w.dtype)

    transform(w, [f.data for f in t.filters], load, lambda at, name: w.store(name, place(t.number(at))))


def interior(w: Writer) -> str:
    """C condition that the current tile's data needs no range checks; empty if no tile's does."""
    t = w.tiling
    tests: dict[str, None] = {}
    for offset in t.each_position():
        for r, needed in t.data_checks(t.data(offset)).items():
            for d in needed:
                tests[in_range(r.index, t.c.program.tensors[r.tensor], (d,), w.names)] = None
    return " && ".join(tests)


def weights_tile(w: Writer, place: Place) -> None:
    """Transform the weights of the current input and output channel."""
    t = w.tiling
    extent, tensors = t.extents(), t.c.program.tensors

    def load(tap: Position) -> str:
        value, lanes = t.weights(tap), w.along(t.c.column)
        checks = {_moved(r, lanes): checked_dimensions(r.index, tensors[r.tensor].shape, extent) for r in reads(value)}
        render = w.expressions(checks)
        return render.converted(render(substitute_indices(value, lanes)), value.dtype, w.dtype)

    transform(w, [f.taps for f in t.filters], load, lambda at, name: w.store(name, place(t.number(at))))


def products_tile(w: Writer, place: Place) -> None:
    """Transform the products of the current tile and output channel back, apply the epilogue and store."""
    t = w.tiling

    def keep(offset: Position, name: str) -> None:
        tests = [f"{affine(position, w.names)} < {size}" for position, size in t.inside(offset)]
        with w.body.block(f"if ({' && '.join(tests)})" if tests else ""):
            _store_output(w, offset, name)

    transform(w, [f.outputs for f in t.filters], lambda at: w.load(place(t.number(at))), keep)


def _store_output(w: Writer, offset: Position, name: str) -> None:
    t, tensor = w.tiling, w.tiling.c.output
    value, needed = t.value(offset)
    lanes = w.along(t.c.column)
    render = w.expressions({_moved(r, lanes): dims for r, dims in needed.items()}, lambda _: name)
    text = render.converted(render(substitute_indices(value, lanes)), value.dtype, tensor.dtype)
    w.body.line(f"const {vector_type(tensor.dtype, w.width)} value = {text};")
    address = t.address(offset).substitute(lanes)
    w.body.line(store(argument(tensor.name), address, w.names, tensor.dtype, w.width, "value"))


def _moved(r: Read, place: Mapping[str, Affine]) -> Read:
    return replace(r, index=tuple(a.substitute(place) for a in r.index))


# --- channels -------------------------------------------------------------------------------------------------------


Each = Callable[[Callable[[Writer], None]], None]
"""Writes code for every channel of a range: in vectors as far as they reach, then one by one."""


def channels(w: Writer, index: Index, first: str, end: str) -> Each:
    """Code for the channels from `first` to `end`; on GPUs a work-item has one channel, which is declared already.

    On CPUs the index's variable is declared here, and is `end` afterwards.
    """
    i, lanes = variable(index.name), w.target.lanes(w.dtype.itemsize)

    def write(one: Callable[[Writer], None]) -> None:
        if w.target.shape is Shape.GPU:
            one(w)
            return
        w.body.line(f"{w.ctype} {i} = {first};")
        if index.extent >= lanes > 1:
            with w.body.block(f"for (; {i} + {lanes} <= {end}; {i} += {lanes})"):
                one(w.at_width(lanes))
        if index.extent % lanes or lanes == 1:
            with w.body.block(f"for (; {i} < {end}; ++{i})"):
                one(w)

    return write


@contextmanager
def panel_of(w: Writer, width: int) -> Iterator[Each]:
    """A scope for the output channels of the current panel of `width`."""
    extent = w.tiling.c.column.extent
    end = (
        f"panel * {width} + {width}" if extent % width == 0 else f"min(panel * {width} + {width}, ({w.ctype}){extent})"
    )
    with w.body.block(""):
        yield channels(w, w.tiling.c.column, f"panel * {width}", end)


def data_channels(w: Writer, place: Place) -> None:
    """Transform the current tile's data, on CPUs for all input channels.

    Tiles inside the image have code of their own, without range checks.
    """
    depth = w.tiling.c.depth
    inside = interior(w)
    each = channels(w, depth, "0", str(depth.extent))
    if not inside or w.target.shape is Shape.GPU:
        with w.body.block(""):
            each(lambda at: data_tile(at, bool(inside), place))
        return
    for header, checked in ((f"if ({inside})", False), ("else", True)):
        with w.body.block(header):
            each(lambda at, checked=checked: data_tile(at, checked, place))  # type: ignore[misc]


# --- whole kernels --------------------------------------------------------------------------------------------------


def kernel(
    name: str,
    w: Writer,
    geometry: Geometry,
    inputs: Iterable[Read],
    scratch: tuple[str, ...],
    writes: tuple[str, ...],
) -> Launch:
    """A launch of what was written to `w.body`: it reads tensors and `scratch`, and writes some of it or the output."""
    tensors, output = w.tiling.c.program.tensors, w.tiling.c.output
    names = dict.fromkeys(r.tensor for r in inputs)
    parameters = [f"__global const {tensors[n].dtype.opencl}* restrict {argument(n)}" for n in names]
    for n in scratch:
        parameters.append(f"__global {'' if n in writes else 'const '}{w.dtype.opencl}* restrict {argument(n)}")
    arguments = (*names, *scratch)
    if output.name in writes:
        parameters.append(f"__global {output.dtype.opencl}* restrict {argument(output.name)}")
        arguments = (*arguments, output.name)
    fixed = ", ".join(str(n) for n in (*geometry.local_size, 1, 1)[:3])
    source = Source()
    with source.block(f"__attribute__((reqd_work_group_size({fixed})))\n__kernel void {name}({', '.join(parameters)})"):
        source.line(w.body.text.rstrip("\n"))
    return Launch(name, source.text, geometry.global_size, geometry.local_size, arguments, writes)


def weights_panels(t: Tiling, target: Target, ctype: str, helpers: dict[str, str], width: int) -> Launch:
    """The launch that transforms all weights into ``[group][panel][position][input channel][width]``.

    A panel holds `width` output channels; places beyond the last one become 0. It depends on the weights alone.
    """
    c, panels = t.c, ceil_div(t.c.column.extent, width)
    w = Writer(t, target, Source(), ctype, helpers)
    o, i = variable(c.column.name), variable(c.depth.name)
    if target.shape is Shape.GPU:
        size = group_size(target)
        geometry = Geometry((round_up(c.column.extent, size), c.depth.extent, c.g), (size, 1, 1))
        w.body.line(f"const {ctype} {o} = get_global_id(0), panel = {o} / {width};")
        w.body.line(f"const {ctype} {i} = get_global_id(1), {GROUP} = get_global_id(2);")
        w.body.line(f"if ({o} >= {c.column.extent}) return;")
        loop = ""
    else:
        geometry = Geometry((panels, ceil_div(c.depth.extent, WEIGHTS_RUN), c.g), (1, 1, 1))
        w.body.line(f"const {ctype} panel = get_global_id(0), {GROUP} = get_global_id(2);")
        w.body.line(f"const {ctype} first = get_global_id(1) * {WEIGHTS_RUN};")
        end = f"min(first + {WEIGHTS_RUN}, ({ctype}){c.depth.extent})"
        loop = f"for ({ctype} {i} = first; {i} < {end}; ++{i})"
    w.group(GROUP)
    with w.body.block(loop):
        _weights_channel(w, width, panels)
    return kernel("winograd_weights", w, geometry, reads(c.weights), (WEIGHTS,), (WEIGHTS,))


def _weights_channel(w: Writer, width: int, panels: int) -> None:
    """Transform the weights of the current input channel for the current panel."""
    t, c = w.tiling, w.tiling.c
    o, i, step = variable(c.column.name), variable(c.depth.name), c.depth.extent * width
    row = f"({GROUP} * {panels} + panel) * {t.positions * c.depth.extent} + {i}"
    w.body.line(f"const {w.ctype} start = ({row}) * ({w.ctype}){width} - panel * {width};")
    with panel_of(w, width) as write:
        write(
            lambda at: weights_tile(at, lambda n: f"{argument(WEIGHTS)} + start + {o} + {affine(n * step, at.names)}")
        )
        if c.column.extent % width and w.target.shape is Shape.CPU:
            beyond = f"for (; {o} < panel * {width} + {width}; ++{o})"
            with w.body.block(beyond), w.body.loop("n", t.positions, ctype=w.ctype):
                w.body.line(f"{argument(WEIGHTS)}[start + {o} + n * {step}] = 0;")


def group_size(target: Target) -> int:
    """Work-items of a work-group that transforms tiles on a GPU."""
    return power_below(max(1, min(128, target.max_work_group)))
