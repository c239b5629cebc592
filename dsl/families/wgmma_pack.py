"""Panels: an operand written in the order in which the warpgroup instructions read its tiles from local memory.

    panels[group][block of rows][tile of the depth][part][row][128 bytes, swizzled]

``part`` is 0 alone, or 0 and 1 for the upper and the lower TF32 part of f32 elements. A block's tile is consecutive, so
that one bulk copy brings it. What lies beyond the operand is 0. Weights are packed once, ahead of all runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import NAMES, decompose, element
from tilewright.dsl.families.shared import ceil_div, round_up
from tilewright.dsl.families.wgmma_form import Side
from tilewright.dsl.lowering import Launch, Scratch
from tilewright.dsl.program import Program, reads
from tilewright.dsl.warpgroup import ROW_BYTES
from tilewright.dsl.writer import Source, argument, storing_helpers

_ITEMS = 128
_SECTOR = 32
"""Bytes that a work-item writes: a whole sector of the cache, which the swizzle keeps together."""

_SPLIT = """static inline float tw_tf32(float v) {
    const uint bits = as_uint(v);
    return (bits & 0x7f800000u) == 0x7f800000u ? v : as_float((bits + 0x1000u) & 0xffffe000u);
}
static inline float tw_upper(float v) { return as_float(as_uint(v) & 0xffffe000u); }"""
"""Rounding to TF32 (to nearest, ties away from zero), and cutting off, whose remainder is exact."""


@dataclass(frozen=True)
class Panels:
    """An operand and the panels it is packed into."""

    side: Side
    program: Program
    name: str
    """Of the scratch."""
    rows: int
    """Rows of a block."""
    parts: int
    """TF32 parts of an element: 1 or 2."""
    ctype: str

    @property
    def blocks(self) -> int:
        """Blocks of rows."""
        return ceil_div(self.side.extent, self.rows)

    @property
    def tiles(self) -> int:
        """Tiles of the depth."""
        return ceil_div(self.side.c.k, self.side.products.depth)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile with all parts."""
        return self.parts * self.rows * ROW_BYTES

    @property
    def scratch(self) -> Scratch:
        """The memory for them."""
        dtype = self.side.products.operand
        size = self.side.c.g * self.blocks * self.tiles * self.tile_bytes // dtype.itemsize
        return Scratch(self.name, dtype, size)


def pack(p: Panels, kernel: str) -> Launch:
    """The kernel that fills the panels."""
    c, side, dtype = p.side.c, p.side, p.side.products.operand
    inputs = tuple(dict.fromkeys(r.tensor for r in reads(side.operand.value)))
    helpers = storing_helpers(dtype, (8,))
    parameters = [f"__global const {p.program.tensors[n].dtype.opencl}* restrict {argument(n)}" for n in inputs]
    parameters.append(f"__global {dtype.opencl}* restrict {argument(p.name)}")
    rows, sectors = p.blocks * p.rows, p.tiles * ROW_BYTES // _SECTOR
    body = Source()
    attributes = f"__attribute__((reqd_work_group_size({_ITEMS}, 1, 1)))\n"
    with body.block(f"{attributes}__kernel void {kernel}({', '.join(parameters)})"):
        body.line(f"const {p.ctype} item = get_global_id(0), group = get_global_id(1);")
        with body.block(f"if (item >= {rows * sectors})"):
            body.line("return;")
        if _along_depth(side):
            body.line(f"const {p.ctype} sector = item % {sectors}, flat = item / {sectors};")
        else:
            body.line(f"const {p.ctype} flat = item % {rows}, sector = item / {rows};")
        for text in decompose("group", c.groups, lambda i: NAMES[i.name], p.ctype):
            body.line(text)
        _gather(p, body, helpers)
        _write(p, body)
    src = Source()
    src.line(f"// Operand of {c.m} x {c.n} x {c.k} as swizzled tiles of {p.rows} rows.")
    for text in (*helpers.values(), _SPLIT):
        src.line(text)
    src.line(body.text)
    size = (round_up(rows * sectors, _ITEMS), c.g)
    return Launch(kernel, src.text, size, (_ITEMS, 1), (*inputs, p.name), (p.name,))


def _along_depth(side: Side) -> bool:
    """Whether the operand's smallest step in memory is along the depth."""
    places = [side.c.access(r) for r in reads(side.operand.value)]

    def least(names: list[str]) -> int:
        steps = [abs(p.address.coefficient(name)) for p in places for name in names]
        return min((s for s in steps if s), default=1 << 62)

    return least([i.name for i in side.c.depth]) < least([i.name for i in side.indices])


def _gather(p: Panels, body: Source, helpers: dict[str, str]) -> None:
    """The elements of a sector into `v`."""
    c, side = p.side.c, p.side
    count = _SECTOR // side.products.operand.itemsize
    body.line(f"float v[{count}];")
    with body.loop("e", count, unroll=True):
        body.line(f"const {p.ctype} depth = sector * {count} + e;")
        body.line("v[e] = 0;")
        with body.block(f"if (flat < {side.extent} && depth < {c.k})"):
            for text in decompose("flat", side.indices, lambda i: NAMES[i.name], p.ctype):
                body.line(text)
            for text in decompose("depth", c.depth, lambda i: NAMES[i.name], p.ctype):
                body.line(text)
            body.line(f"v[e] = {element(c, side.operand.value, NAMES, p.program, helpers)};")


def _write(p: Panels, body: Source) -> None:
    """The sector's two pieces at their swizzled places."""
    dtype = p.side.products.operand
    row, per_row = f"flat % {p.rows}", ROW_BYTES // _SECTOR
    body.line(f"const {p.ctype} row = {row}, block = flat / {p.rows}, tile = sector / {per_row};")
    tile = f"((long)group * {p.blocks} + block) * {p.tiles} + tile"
    scalar = f"{p.tile_bytes // dtype.itemsize}"
    body.line(
        f"__global {dtype.opencl}* to = {argument(p.name)} + ({tile}) * {scalar} + row * {ROW_BYTES // dtype.itemsize};"
    )
    piece = 16 // dtype.itemsize
    for half in range(2):
        body.line(f"const int at{half} = ((sector % {per_row} * 2 + {half}) ^ (row & 7)) * {piece};")
        values = [f"v[{half * piece + i}]" for i in range(piece)]
        if dtype is DType.F16:
            body.line(f"vstorea_half8((float8)({', '.join(values)}), 0, to + at{half});")
        elif dtype is DType.BF16:
            body.line(f"*(__global ushort8*)(to + at{half}) = tw_bf16_float8((float8)({', '.join(values)}));")
        elif p.parts == 1:
            # an operand that the kernel itself splits stays as it is
            rounded = ", ".join(v if p.side.products.splits else f"tw_tf32({v})" for v in values)
            body.line(f"*(__global float4*)(to + at{half}) = (float4)({rounded});")
        else:
            upper = ", ".join(f"tw_upper({v})" for v in values)
            lower = ", ".join(f"tw_tf32({v} - tw_upper({v}))" for v in values)
            body.line(f"*(__global float4*)(to + at{half}) = (float4)({upper});")
            body.line(f"*(__global float4*)(to + {p.rows * 32} + at{half}) = (float4)({lower});")
