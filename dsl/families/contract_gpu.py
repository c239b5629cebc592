"""Contractions on GPUs: a work-group computes a tile of the product, with both operands staged in local memory.

    for every tile_k of the depth:
        all work-items copy a tile of A and a tile of B into local memory (range checks and any expression happen here)
        barrier
        every work-item multiplies its item_m x item_n part out of local memory
        barrier
    epilogue, store

Consecutive work-items copy consecutive elements along the operand's contiguous direction, so that global loads join.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dsl.families.contraction import (
    NAMES,
    Contraction,
    LoopNames,
    checked,
    decompose,
    element,
    multiply_add,
)
from tilewright.dsl.families.shared import SUM_BLOCK
from tilewright.dsl.lowering import Launch, Lowering
from tilewright.dsl.program import Index, Program, Read, reads
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.text import statement_text
from tilewright.dsl.writer import Expressions, Source, affine, argument, index_type, store, storing_helpers
from tilewright.dsl.writer import element as memory_element


@dataclass(frozen=True)
class Tile:
    """A contraction with the numbers of one configuration."""

    c: Contraction
    program: Program
    target: Target
    tile_m: int
    tile_n: int
    tile_k: int
    item_m: int
    item_n: int
    pad: int
    ctype: str
    text: str

    @property
    def across(self) -> int:
        """Work-items along the columns."""
        return self.tile_n // self.item_n

    @property
    def items(self) -> int:
        """Work-items of a work-group."""
        return self.across * (self.tile_m // self.item_m)

    @property
    def scalar(self) -> str:
        """OpenCL type of an accumulator."""
        return self.c.dtype.opencl


def local_bytes(configuration: Configuration, itemsize: int) -> int:
    """Local memory of one work-group."""
    pad = configuration.integer("pad_local")
    width = configuration.integer("tile_m") + configuration.integer("tile_n") + 2 * pad
    return configuration.integer("tile_k") * width * itemsize


def lower(c: Contraction, program: Program, target: Target, configuration: Configuration) -> Lowering:
    """The kernel of one configuration."""
    tile = Tile(
        c,
        program,
        target,
        configuration.integer("tile_m"),
        configuration.integer("tile_n"),
        configuration.integer("tile_k"),
        configuration.integer("item_m"),
        configuration.integer("item_n"),
        configuration.integer("pad_local"),
        index_type(program),
        str(configuration),
    )
    names = tuple(dict.fromkeys([*(r.tensor for r in reads(c.statement.value)), c.statement.target]))
    helpers = storing_helpers(c.output.tensor.dtype, (1,))
    body = Source()
    parameters = ", ".join(_parameter(tile, n) for n in names)
    attributes = f"__attribute__((reqd_work_group_size({tile.items}, 1, 1)))\n"
    with body.block(f"{attributes}__kernel void contract({parameters})"):
        _kernel(tile, body, helpers)
    src = Source()
    src.line(f"// {statement_text(c.statement)}")
    src.line(f"// contract: {c.m} rows x {c.n} columns x {c.k} deep, {c.g} groups; {tile.text}")
    for text in helpers.values():
        src.line(text)
    src.line(body.text)
    blocks = -(-c.m // tile.tile_m), -(-c.n // tile.tile_n)
    size = (blocks[0] * tile.items, blocks[1], c.g)
    launch = Launch("contract", src.text, size, (tile.items, 1, 1), names, (c.statement.target,), c.in_place)
    return Lowering((launch,))


def _parameter(tile: Tile, name: str) -> str:
    const = "" if name == tile.c.statement.target else "const "
    return f"__global {const}{tile.program.tensors[name].dtype.opencl}* restrict {argument(name)}"


def _kernel(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    c = tile.c
    body.line(f"__local {tile.scalar} local_a[{tile.tile_k}][{tile.tile_m + tile.pad}];")
    body.line(f"__local {tile.scalar} local_b[{tile.tile_k}][{tile.tile_n + tile.pad}];")
    body.line("const int item = get_local_id(0);")
    body.line(f"const int column_item = item % {tile.across}, row_item = item / {tile.across};")
    body.line(f"const {tile.ctype} m0 = get_group_id(0) * {tile.tile_m}, n0 = get_group_id(1) * {tile.tile_n};")
    body.line(f"const {tile.ctype} group = get_group_id(2);")
    for text in decompose("group", c.groups, lambda i: NAMES[i.name], tile.ctype):
        body.line(text)
    _each(tile, body, f"{tile.scalar} sums[{tile.item_m}][{tile.item_n}];", "sums[i][j] = 0;")
    blocked = c.k > 2 * SUM_BLOCK and c.dtype.is_float
    if blocked:
        _each(tile, body, f"{tile.scalar} totals[{tile.item_m}][{tile.item_n}];", "totals[i][j] = 0;")
    with body.loop("k0", c.k, step=tile.tile_k, ctype=tile.ctype):
        _stage(tile, body, "a", helpers)
        _stage(tile, body, "b", helpers)
        body.line("barrier(CLK_LOCAL_MEM_FENCE);")
        _multiply(tile, body)
        body.line("barrier(CLK_LOCAL_MEM_FENCE);")
        if blocked:
            with body.block(f"if ((k0 + {tile.tile_k}) % {SUM_BLOCK} == 0)"):
                _each(tile, body, "", "totals[i][j] += sums[i][j]; sums[i][j] = 0;")
    if blocked:
        _each(tile, body, "", "sums[i][j] += totals[i][j];")
    _store(tile, body, helpers)


def _each(tile: Tile, body: Source, before: str, text: str) -> None:
    """`before`, then `text` for every (i, j) of the item's tile."""
    if before:
        body.line(before)
    with body.loop("i", tile.item_m, unroll=True), body.loop("j", tile.item_n, unroll=True):
        body.line(text)


def _stage(tile: Tile, body: Source, which: str, helpers: dict[str, str]) -> None:
    """Copy one operand's tile into local memory."""
    c = tile.c
    operand, indices, extent, size, start = (
        (c.a, c.rows, c.m, tile.tile_m, "m0") if which == "a" else (c.b, c.columns, c.n, tile.tile_n, "n0")
    )
    along_k = _contiguous_along_depth(tile, which)
    with body.block(f"for (int e = item; e < {tile.tile_k * size}; e += {tile.items})"):
        if along_k:
            body.line(f"const int k = e % {tile.tile_k}, at = e / {tile.tile_k};")
        else:
            body.line(f"const int at = e % {size}, k = e / {size};")
        body.line(f"const {tile.ctype} flat = {start} + at, depth = k0 + k;")
        body.line(f"{tile.scalar} value = 0;")
        with body.block(f"if (flat < {extent} && depth < {c.k})"):
            for text in (*_parts("flat", indices, tile), *_parts("depth", c.depth, tile)):
                body.line(text)
            body.line(f"value = {element(c, operand.value, NAMES, tile.program, helpers)};")
        body.line(f"local_{which}[k][at] = value;")


def _parts(flat: str, indices: tuple[Index, ...], tile: Tile) -> list[str]:
    return decompose(flat, indices, lambda i: NAMES[i.name], tile.ctype)


def _contiguous_along_depth(tile: Tile, which: str) -> bool:
    """Whether the operand's smallest step in memory is along the depth rather than along its rows or columns."""
    c = tile.c
    operand, indices = (c.a, c.rows) if which == "a" else (c.b, c.columns)
    places = [c.access(r) for r in reads(operand.value)]

    def least(group: tuple[Index, ...]) -> int:
        steps = [abs(p.address.coefficient(i.name)) for p in places for i in group]
        return min((s for s in steps if s), default=1 << 62)

    return least(c.depth) < least(indices)


def _multiply(tile: Tile, body: Source) -> None:
    body.line("#pragma unroll 4")
    with body.loop("k", tile.tile_k):
        body.line(f"{tile.scalar} a[{tile.item_m}], b[{tile.item_n}];")
        rows, columns = tile.tile_m // tile.item_m, tile.across
        with body.loop("i", tile.item_m, unroll=True):
            body.line(f"a[i] = local_a[k][row_item + i * {rows}];")
        with body.loop("j", tile.item_n, unroll=True):
            body.line(f"b[j] = local_b[k][column_item + j * {columns}];")
        with body.loop("i", tile.item_m, unroll=True), body.loop("j", tile.item_n, unroll=True):
            body.line(f"sums[i][j] = {multiply_add(tile.target, tile.c.dtype, 'a[i]', 'b[j]', 'sums[i][j]')};")


def _store(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    c = tile.c

    def read(r: Read) -> str:
        place = c.access(r)
        return checked(place, memory_element(argument(r.tensor), affine(place.address, NAMES), r.dtype), NAMES)

    tensors, fast = tile.program.tensors, tile.program.fast_math
    render = Expressions(read, LoopNames(), tensors, lambda _: "sums[i][j]", helpers=helpers, fast=fast)
    with body.loop("i", tile.item_m, unroll=True), body.loop("j", tile.item_n, unroll=True):
        body.line(f"const {tile.ctype} row = m0 + row_item + i * {tile.tile_m // tile.item_m};")
        body.line(f"const {tile.ctype} column = n0 + column_item + j * {tile.across};")
        with body.block(f"if (row < {c.m} && column < {c.n})"):
            for text in (*_parts("row", c.rows, tile), *_parts("column", c.columns, tile)):
                body.line(text)
            value, output = render(c.statement.value), c.output.tensor
            body.line(store(argument(output.name), c.output.address, NAMES, output.dtype, 1, value))
