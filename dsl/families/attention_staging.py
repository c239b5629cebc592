"""Blocks of q, k and v on their way to local memory, for one pass over keys by matrix instructions.

A block is rows of `width` operands, `pitch` apart. What memory holds in the operand's type is copied asynchronously, 16
bytes at a time where rows allow it; everything else is computed and stored by the work-items. Rows beyond the last one
and what fills a row up are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_algebra import scaled
from tilewright.dsl.families.attention_pass import DEPTH
from tilewright.dsl.families.attention_plan import Plan
from tilewright.dsl.families.attention_text import declare_rows, expressions, names_of
from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.program import Expr, Read, Tensor, checked_dimensions
from tilewright.dsl.writer import Names, Source, affine, argument, storing_helpers

PIECE = 16
"""Bytes of a wide copy."""
COPIES = 8
"""Copies of a work-item that are unrolled; compilers keep an address in registers for each."""


@dataclass(frozen=True)
class Block:
    """An operand's rows in local memory."""

    plan: Plan
    value: Expr
    """Its elements, without constant factors."""
    along: str
    """The index within a row."""
    variable: str
    """The C variable of that index."""
    row: str
    """The C variable of the row: `row` or `key`."""
    rows: int
    limit: int
    """Rows that there are in all."""
    extent: int
    """Elements of a row."""
    width: int
    """The same with zeros."""
    pitch: int


def query_block(p: Plan) -> Block:
    """The rows of q that a work-group takes."""
    value = scaled(p.a.query)[0]
    return Block(p, value, DEPTH, "depth", "row", p.tile_m, p.a.m, p.a.d, p.depth, p.pitch_d)


def keys_block(p: Plan) -> Block:
    """A block of k."""
    value = scaled(p.a.keys)[0]
    return Block(p, value, DEPTH, "depth", "key", p.tile_n, p.a.n, p.a.d, p.depth, p.pitch_d)


def values_block(p: Plan) -> Block:
    """A block of v."""
    along = p.a.column.name
    return Block(p, p.a.values, along, "column", "key", p.tile_n, p.a.n, p.a.e, p.columns, p.pitch_e)


def bytes_copied(b: Block) -> int:
    """Bytes that one asynchronous copy moves: 16, 4, or 0 if the operand has to be computed."""
    tensor, address = _source(b)
    operand = b.plan.instruction.operand
    if tensor is None or tensor.dtype is not operand or address.bends(b.along):
        return 0
    each = PIECE // operand.itemsize
    steps = [c for t, c in address.terms if t != b.along]
    if address.coefficient(b.along) == 1 and all(n % each == 0 for n in (b.extent, address.constant, *steps)):
        return PIECE
    return 4 if operand.itemsize == 4 else 0


def _source(b: Block) -> tuple[Tensor | None, Affine]:
    """The tensor that the operand is read from and where, or None if it is no plain read."""
    if not isinstance(b.value, Read):
        return None, Affine()
    tensor = b.plan.a.program.tensors[b.value.tensor]
    if checked_dimensions(b.value.index, tensor.shape, b.plan.a.extents()):
        return None, Affine()
    return tensor, tensor.address(b.value.index)


def stage(b: Block, source: Source, helpers: dict[str, str], place: str, first: str) -> None:
    """Write the copy of the rows from number `first` on to local memory at `place` (both C text)."""
    size = bytes_copied(b)
    per = size // b.plan.itemsize if size else 1
    pieces = b.width // per
    count, items = b.rows * pieces, b.plan.items
    even = items % pieces == 0
    if even and pieces > 1:
        # Every item stays in its column.
        source.line(f"const int {b.variable} = item % {pieces} * {per};")
    source.line(f"#pragma unroll {min(ceil_div(count, items), COPIES) if size else 1}")
    with source.block(f"for (int t = 0; t < {ceil_div(count, items)}; ++t)"):
        if even:
            start = "item" if pieces == 1 else f"item / {pieces}"
            source.line(f"const int r = {start} + t * {items // pieces};")
            if pieces == 1:
                source.line(f"const int {b.variable} = 0;")
        else:
            source.line(f"const int r = (item + t * {items}) / {pieces};")
            source.line(f"const int {b.variable} = (item + t * {items}) % {pieces} * {per};")
        with source.block(f"if (r < {b.rows})" if count % items else ""):
            _one(b, source, helpers, size, f"{place} + r * {b.pitch} + {b.variable}", first)


def _one(b: Block, source: Source, helpers: dict[str, str], size: int, place: str, first: str) -> None:
    """One item's copy to `place`, of what is at the variables `r` and `b.variable`."""
    p = b.plan
    source.line(f"const {p.ctype} {b.row} = {first} + r;")
    valid = [f"{b.row} < {b.limit}"] if b.limit % b.rows else []
    valid += [f"{b.variable} < {b.extent}"] if b.width > b.extent else []
    if b.row == "row":
        declare_rows(p.a, source, "row", p.ctype)
    if size:
        tensor, address = _source(b)
        assert tensor is not None
        names = Names(names_of(p.a), p.a.program.tensors, p.a.extents(), helpers)
        origin = f"{argument(tensor.name)} + {affine(address, names)}"
        source.line(f"TW_COPY{size}({place}, {origin}, {' && '.join(valid) or '1'});")
        return
    source.line("float value = 0;")
    with source.block(f"if ({' && '.join(valid)})" if valid else ""):
        render = expressions(p.a, 1, helpers, names_of(p.a), p.a.extents(), source)
        text = render.converted(render(b.value), b.value.dtype, DType.F32)
        source.line(f"value = {text};")
    match p.instruction.operand:
        case DType.F16:
            source.line(f"vstore_half(value, 0, (__local half*)({place}));")
        case DType.BF16:
            helpers |= storing_helpers(DType.BF16, (1,))
            source.line(f"*({place}) = tw_bf16_float(value);")
        case _:
            source.line(f"*({place}) = value;")
