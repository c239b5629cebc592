"""Recognises convolutions of stride and dilation 1 among contractions, and cuts their outputs into tiles.

    y[batch, group, o, p...] = epilogue( sum(c, r...) D[batch, group, c, p + r ...] * W[group, o, c, r...] )

D and W are any pointwise expressions. What makes a contraction a convolution is that D knows an output index p and a
reduced index r by their sum alone: every position in it has the same coefficient for both. Padding, images of any
strides, channels-last or not, and one to three sliding dimensions are then all the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import recognise as recognise_contraction
from tilewright.dsl.families.shared import computes_indices
from tilewright.dsl.families.winograd_transforms import MAX_POINTS, Filtering, amplification, filtering
from tilewright.dsl.program import (
    Cast,
    Expr,
    Index,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    checked_dimensions,
    children,
    extents,
    reads,
    substitute_indices,
    walk,
)

MAX_AMPLIFICATION = 10.0
"""By what rounding errors may grow: F(4, 3) in two dimensions is below it, F(6, 3) far beyond (see `amplification`)."""

Position = tuple[Affine, ...]
"""A place in a tile, per sliding dimension: a constant, or the index `WITHIN` gives for that dimension."""

WITHIN = ("<within 0>", "<within 1>", "<within 2>")
"""Pseudo indices: places within a tile."""


@dataclass(frozen=True)
class Slide:
    """A sliding dimension: an output index and the tap index that is added to it."""

    output: Index
    tap: Index


@dataclass(frozen=True)
class Convolution:
    """A statement seen as a convolution; index tuples are listed outermost first."""

    program: Program
    statement: Statement
    reduce: Reduce
    data: Expr
    weights: Expr
    slides: tuple[Slide, ...]
    batch: tuple[Index, ...]
    """Output indices of the data alone that do not slide."""
    groups: tuple[Index, ...]
    """Output indices that both operands have."""
    column: Index
    """The output channels: an output index of the weights alone (of extent 1 if there is none)."""
    depth: Index
    """The input channels of one group."""

    @property
    def dtype(self) -> DType:
        """Type of the sums."""
        return self.reduce.dtype

    @property
    def g(self) -> int:
        """Number of groups."""
        return math.prod(i.extent for i in self.groups)

    @property
    def output(self) -> Tensor:
        """The tensor that is written."""
        return self.program.tensors[self.statement.target]

    def epilogue_reads(self) -> list[Read]:
        """Reads outside the sum."""
        return _reads_outside(self.statement.value)

    def sizes(self) -> tuple[int, ...]:
        """The values of m that `Tiling` takes: those that keep rounding errors in bounds."""
        taps = [s.tap.extent for s in self.slides]
        found = (m for m in (2, 4, 6) if m + max(taps) - 1 <= MAX_POINTS)
        return tuple(m for m in found if math.prod(amplification(m, r) for r in taps) <= MAX_AMPLIFICATION)


@dataclass(frozen=True)
class Tiling:
    """A convolution whose outputs are cut into tiles of m in every sliding dimension.

    In code that works on tiles, a sliding output index stands for the tile's coordinate in that dimension.
    """

    c: Convolution
    m: int

    @cached_property
    def filters(self) -> tuple[Filtering, ...]:
        """The matrices of each sliding dimension."""
        return tuple(filtering(self.m, s.tap.extent) for s in self.c.slides)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Elements of a transformed tile, per sliding dimension."""
        return tuple(self.m + s.tap.extent - 1 for s in self.c.slides)

    @property
    def positions(self) -> int:
        """Elements of a transformed tile."""
        return math.prod(self.widths)

    @cached_property
    def tile_indices(self) -> tuple[Index, ...]:
        """What a tile is told by: batch indices, then its coordinate in each sliding dimension."""
        return (*self.c.batch, *(Index(s.output.name, -(-s.output.extent // self.m)) for s in self.c.slides))

    @property
    def tiles(self) -> int:
        """Tiles of one group."""
        return math.prod(i.extent for i in self.tile_indices)

    def extents(self) -> dict[str, int]:
        """Extent of every index of the statement, with tile coordinates for sliding outputs, and of `WITHIN`."""
        within = dict(zip(WITHIN, self.widths, strict=False))
        return extents(self.c.statement) | {i.name: i.extent for i in self.tile_indices} | within

    def at(self, offset: Position) -> dict[str, Affine]:
        """The indices of the element `offset` of a tile; taps are 0, so this is also where the data lies."""
        places = zip(self.c.slides, offset, strict=True)
        moved = {s.output.name: Affine.of({s.output.name: self.m}) + k for s, k in places}
        return moved | {s.tap.name: Affine() for s in self.c.slides}

    def data(self, offset: Position) -> Expr:
        """The data under element `offset` of a tile."""
        return substitute_indices(self.c.data, self.at(offset))

    def data_checks(self, value: Expr) -> dict[Read, tuple[int, ...]]:
        """The range checks that the reads of some `data` need for some tile."""
        tensors, extent = self.c.program.tensors, self.extents()
        return {r: checked_dimensions(r.index, tensors[r.tensor].shape, extent) for r in reads(value)}

    def weights(self, tap: Position) -> Expr:
        """The weights of one tap."""
        place = {s.tap.name: k for s, k in zip(self.c.slides, tap, strict=True)}
        return substitute_indices(self.c.weights, place)

    def value(self, offset: Position) -> tuple[Expr, dict[Read, tuple[int, ...]]]:
        """The statement's value at output `offset` of a tile, and its reads' range checks.

        The reductions in it are left as they are; the output must lie within the tensor (see `inside`).
        """
        c, extent, place = self.c, extents(self.c.statement), self.at(offset)
        checks = {
            _moved(r, place): checked_dimensions(r.index, c.program.tensors[r.tensor].shape, extent)
            for r in c.epilogue_reads()
        }
        return substitute_indices(c.statement.value, place), checks

    def address(self, offset: Position) -> Affine:
        """Where output `offset` of a tile is stored."""
        place = self.at(offset)
        known = {i.name: Affine.index(i.name) if i.extent > 1 else Affine() for i in self.c.statement.indices}
        return self.c.output.address(tuple((known | place)[i.name] for i in self.c.statement.indices))

    def inside(self, offset: Position) -> tuple[tuple[Affine, int], ...]:
        """Pairs of a position and the size below which it must be for output `offset` of a tile to exist."""
        place, extent = self.at(offset), self.extents() | dict.fromkeys(WITHIN, self.m)
        sized = [(place[s.output.name], s.output.extent) for s in self.c.slides]
        return tuple((position, size) for position, size in sized if position.range(extent)[1] >= size)

    def each_position(self) -> Iterator[Position]:
        """All places of a transformed tile, the last dimension fastest."""
        return product(*([Affine((), k) for k in range(n)] for n in self.widths))

    def number(self, offset: Position) -> Affine:
        """The position's number in the order of `each_position`."""
        return flat(offset, self.widths)


def flat(offset: Position, sizes: Sequence[int]) -> Affine:
    """A place in an array of the given sizes as one number, the last dimension fastest."""
    total = Affine()
    for k, size in zip(offset, sizes, strict=True):
        total = total * size + k
    return total


def _reads_outside(e: Expr) -> list[Read]:
    if isinstance(e, Read):
        return [e]
    return [] if isinstance(e, Reduce) else [r for part in children(e) for r in _reads_outside(part)]


def _moved(r: Read, place: Mapping[str, Affine]) -> Read:
    return Read(r.tensor, tuple(a.substitute(place) for a in r.index), r.dtype)


def recognise(program: Program) -> Convolution | str:
    """The program as a convolution of stride and dilation 1, or why it is none."""
    views = computes_indices(program) or recognise_contraction(program)
    if isinstance(views, str):
        return views
    view = views[0]
    s, reduce = view.statement, view.reduce
    if reduce.dtype not in (DType.F32, DType.F64):
        return f"its sums are {reduce.dtype.value}, not f32 or f64"
    if _is_whole(s.value, reduce):
        return "its sums are meant to be whole numbers, which sums over tiles are not"
    for data, weights in ((view.a.value, view.b.value), (view.b.value, view.a.value)):
        slides = _slides(s, reduce, data, weights)
        if slides:
            return _convolution(program, s, reduce, data, weights, slides)
    return "no window of stride and dilation 1 slides along its outputs"


def _is_whole(value: Expr, reduce: Reduce) -> bool:
    """Whether a sum is turned into an integer before anything else is done with it."""
    return any(isinstance(e, Cast) and e.arg == reduce and not e.dtype.is_float for e in walk(value))


def _slides(s: Statement, reduce: Reduce, data: Expr, weights: Expr) -> tuple[Slide, ...]:
    """Pairs of an output index of the data alone and a reduced index that occur in the data as their sum only."""
    of_weights = _names(weights)
    places = [a for r in reads(data) for a in r.index]
    free = [i for i in s.indices if i.name not in of_weights]
    found: list[Slide] = []
    for tap in reduce.indices:
        if tap.extent < 2 or tap.name not in of_weights:
            continue
        for output in free:
            same = all(a.coefficient(output.name) == a.coefficient(tap.name) for a in places)
            if same and any(a.coefficient(tap.name) for a in places):
                found.append(Slide(output, tap))
                free.remove(output)
                break
    return tuple(sorted(found, key=lambda slide: s.indices.index(slide.output)))


def _names(e: Expr) -> set[str]:
    return {name for r in reads(e) for a in r.index for name in a.names}


def _convolution(
    program: Program, s: Statement, reduce: Reduce, data: Expr, weights: Expr, slides: tuple[Slide, ...]
) -> Convolution | str:
    in_data, in_weights = _names(data), _names(weights)
    outputs, taps = {x.output.name for x in slides}, {x.tap.name for x in slides}
    gone = {i.name: Affine() for i in (*s.indices, *reduce.indices) if i.extent == 1 and i.name not in outputs | taps}
    left = [i for i in s.indices if i.name not in outputs and i.name not in gone]
    columns = [i for i in left if i.name not in in_data]
    depth = [i for i in reduce.indices if i.name not in taps and i.name not in gone]
    if len(columns) > 1 or len(depth) > 1:
        return "its channels have several indices, or its window a stride or a dilation"
    for r in reads(data):
        needed = checked_dimensions(r.index, program.tensors[r.tensor].shape, extents(s))
        if any(i.name in r.index[d].names for d in needed for i in depth):
            return "its input channels need range checks"
    c = Convolution(
        program,
        Statement(s.target, s.indices, substitute_indices(s.value, gone)),
        replace(reduce, body=substitute_indices(reduce.body, gone)),
        substitute_indices(data, gone),
        substitute_indices(weights, gone),
        slides,
        batch=tuple(i for i in left if i.name in in_data and i.name not in in_weights),
        groups=tuple(i for i in left if i.name in in_data and i.name in in_weights),
        column=columns[0] if columns else Index("<column>", 1),
        depth=depth[0] if depth else Index("<depth>", 1),
    )
    if not c.sizes():
        return f"its window of {' x '.join(str(x.tap.extent) for x in slides)} taps is too long"
    return c
