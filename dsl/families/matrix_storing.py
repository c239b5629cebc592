"""From the accumulators to memory: every sub-group lays its results out in local memory, 32 columns at a time.

There neighbouring work-items find neighbouring elements of the output, whose epilogue they compute in vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.contraction import NAMES, Access, Contraction, LoopNames, conditions, decompose
from tilewright.dsl.families.matrix_operands import Products
from tilewright.dsl.families.shared import is_aligned, unrounded
from tilewright.dsl.program import Index, Program, Read
from tilewright.dsl.writer import LANE, Expressions, Source, argument, literal, load, store, vector_type

_INLINE = "static inline __attribute__((always_inline))"
"""A call would make the compiler wait for every product before the next is started."""
CHUNK = 32
"""Columns of results that a sub-group lays out in local memory at a time before it stores them."""
PITCH = CHUNK + 8
"""Elements between rows there: four rows of eight columns lie in different banks."""
ROWS = 16
"""Rows of a sub-group's results."""


class Storing(Protocol):
    """What is asked of a configuration whose results are stored."""

    @property
    def c(self) -> Contraction:
        """The contraction."""

    @property
    def program(self) -> Program:
        """Its program."""

    @property
    def products(self) -> Products:
        """How its products are computed."""

    @property
    def ctype(self) -> str:
        """Type of addresses and flattened indices."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """The buffers of the kernel, in order."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The kernel's parameters in C."""

    def factor(self, which: str, row: str, helpers: dict[str, str]) -> str:
        """C expression of an operand's element."""


@dataclass(frozen=True)
class Direction:
    """Along what the vectors of the results lie."""

    by_column: bool
    width: int
    inner: Index | None
    """The index along which they lie, if they are vectors."""


def direction(p: Storing) -> Direction:
    """The direction in which the output is contiguous, with vectors where no element of one needs a check."""
    address, c = p.c.output.address, p.c
    by_column = not (c.rows and address.coefficient(c.rows[-1].name) == 1)
    indices = c.columns if by_column else c.rows
    if not indices or indices[-1].extent % 4:
        return Direction(by_column, 1, None)
    inner = indices[-1]
    places = [c.access(r) for r in c.epilogue_reads()]
    plain = all(inner.name not in place.checked_names and not place.address.bends(inner.name) for place in places)
    if not plain or address.coefficient(inner.name) != 1:
        return Direction(by_column, 1, None)
    wide = c.output.tensor.dtype.itemsize == 2 and inner.extent % 8 == 0
    return Direction(by_column, 8 if wide else 4, inner)


def storing_function(p: Storing, helpers: dict[str, str]) -> str:
    """The function that computes the epilogue of 16 rows by 32 columns of results and stores it."""
    d = direction(p)
    source = Source()
    if p.products.splits:
        _plain_product(p, source, helpers)
    parameters = [*p.parameters, "__local const float* mine", "const int lane", "const int group"]
    parameters += [f"const {p.ctype} m0", f"const {p.ctype} n0"]
    with source.block(f"{_INLINE} void store_results({', '.join(parameters)})"):
        for text in decompose("group", p.c.groups, lambda i: NAMES[i.name], p.ctype):
            source.line(text)
        source.line("#pragma unroll 2")
        with source.block(f"for (int at = lane; at < {ROWS * CHUNK // d.width}; at += 32)"):
            if d.by_column:
                per_row = CHUNK // d.width
                source.line(f"const int i = at / {per_row}, j = at % {per_row} * {d.width};")
            else:
                per_column = ROWS // d.width
                source.line(f"const int i = at % {per_column} * {d.width}, j = at / {per_column};")
            source.line(f"const {p.ctype} row = m0 + i, column = n0 + j;")
            with source.block(f"if (row < {p.c.m} && column < {p.c.n})"):
                for text in decompose("row", p.c.rows, lambda i: NAMES[i.name], p.ctype):
                    source.line(text)
                for text in decompose("column", p.c.columns, lambda i: NAMES[i.name], p.ctype):
                    source.line(text)
                _one(p, d, source, helpers)
    return source.text


def _plain_product(p: Storing, source: Source, helpers: dict[str, str]) -> None:
    """The function that sums the products of one row and one column as they are."""
    c, ctype = p.c, p.ctype
    places = f"const int group, const {ctype} row, const {ctype} column"
    with source.block(f"{_INLINE} float plain_product({', '.join(p.parameters)}, {places})"):
        for flat, indices in (("group", c.groups), ("row", c.rows), ("column", c.columns)):
            for text in decompose(flat, indices, lambda i: NAMES[i.name], ctype):
                source.line(text)
        source.line("float sum = 0;")
        source.line("#pragma unroll 1")
        with source.loop("depth", c.k, ctype=ctype):
            for text in decompose("depth", c.depth, lambda i: NAMES[i.name], ctype):
                source.line(text)
            a, b = p.factor("a", "row", helpers), p.factor("b", "column", helpers)
            source.line(f"sum += {a} * {b};")
        source.line("return sum;")


def _mend(p: Storing, d: Direction, source: Source) -> None:
    """Compute sums again that are not finite: infinities have no two parts whose products are theirs."""
    names = ", ".join(argument(t) for t in p.tensors)
    place = "row, column + v" if d.by_column else "row + v, column"
    lanes = [f"sums.s{v}" for v in range(d.width)] if d.width > 1 else ["sums"]
    zeros = " + ".join(f"({lane} - {lane})" for lane in lanes)
    with source.block(f"if ({zeros} != 0)"):
        source.line(f"float each[{d.width}] = {{{', '.join(lanes)}}};")
        source.line("#pragma unroll 1")
        with source.block(f"for (int v = 0; v < {d.width}; ++v)"):
            source.line(f"if (each[v] - each[v] != 0) each[v] = plain_product({names}, group, {place});")
        mended = ", ".join(f"each[{v}]" for v in range(d.width))
        source.line(f"sums = ({vector_type(p.c.dtype, d.width)})({mended});")


def _one(p: Storing, d: Direction, source: Source, helpers: dict[str, str]) -> None:
    """One vector of results: its epilogue and its store."""
    c, width = p.c, d.width
    place = {} if d.inner is None else {d.inner.name: Affine.of({d.inner.name: 1, LANE: 1})}
    multiples = {} if d.inner is None else {d.inner.name: width}
    float_type = vector_type(c.dtype, width)
    local = f"mine + i * {PITCH} + j"
    if width == 1:
        source.line(f"float sums = *({local});")
    elif d.by_column:
        source.line(f"{float_type} sums = *(__local const {float_type}*)({local});")
    else:
        lanes = ", ".join(f"mine[(i + {n}) * {PITCH} + j]" for n in range(width))
        source.line(f"{float_type} sums = ({float_type})({lanes});")

    if p.products.splits:
        _mend(p, d, source)

    def read(r: Read) -> str:
        found = c.access(r)
        address = found.address.substitute(place)
        whole = is_aligned(found.tensor, address, width, multiples)
        value = load(argument(found.tensor.name), address, NAMES, r.dtype, width, whole)
        return _guarded(found, value, width)

    tensors, fast = p.program.tensors, p.program.fast_math
    render = Expressions(read, LoopNames(), tensors, lambda _: "sums", width, helpers=helpers, source=source, fast=fast)
    output = c.output.tensor
    value = unrounded(c.statement.value, output.dtype)
    text = render.converted(render(value), value.dtype, output.dtype)
    address = c.output.address.substitute(place)
    whole = is_aligned(output, address, width, multiples)
    source.line(store(argument(output.name), address, NAMES, output.dtype, width, text, whole))


def _guarded(place: Access, value: str, width: int) -> str:
    if not place.checks:
        return value
    pad = literal(place.tensor.pad, place.tensor.dtype)
    outside = pad if width == 1 else f"({vector_type(place.tensor.dtype, width)})({pad})"
    return f"(({conditions(place.checks, NAMES)}) ? {value} : {outside})"
