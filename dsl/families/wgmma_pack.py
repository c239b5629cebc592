"""Panels: an operand written in the order in which the warpgroup instructions read its tiles from local memory.

    panels[group][block of rows][tile of the depth][part][row][128 bytes, swizzled]

``part`` is 0 alone, or 0 and 1 for the upper and the lower TF32 part of f32 elements. A block's tile is consecutive, so
that one bulk copy brings it. What lies beyond the operand is 0. Weights are packed once, ahead of all runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import NAMES, decompose, element
from tilewright.dsl.families.matrix_operands import Side, along_depth
from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.lowering import Launch, Scratch
from tilewright.dsl.program import Program, reads
from tilewright.dsl.warpgroup import ROW_BYTES
from tilewright.dsl.writer import Source, argument, storing_helpers

_ITEMS = 256

_SPLIT = """static inline float tw_tf32(float v) {
    const uint bits = as_uint(v);
    return (bits & 0x7f800000u) == 0x7f800000u ? v : as_float((bits + 0x1000u) & 0xffffe000u);
}
static inline float tw_upper(float v) { return as_float(as_uint(v) & 0xffffe000u); }
static inline float tw_lower(float v) { return tw_tf32(isfinite(v) ? v - tw_upper(v) : v); }"""
"""Rounding to TF32 (to nearest, ties away from zero), and cutting off, whose remainder is exact.

The sum of both parts of what is not finite is the same again.
"""


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
    def slab(self) -> int:
        """Rows that a work-group packs; blocks are whole slabs."""
        return 64 if self.rows % 64 == 0 else 32

    @property
    def tiles(self) -> int:
        """Tiles of the depth."""
        return ceil_div(self.side.c.k, self.side.products.depth)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile with all parts."""
        return self.parts * self.rows * ROW_BYTES

    def element(self, row: str, depth: str) -> str:
        """C expression of the element at (group, row, depth) from all its parts."""
        itemsize = self.side.products.operand.itemsize
        line, piece = ROW_BYTES // itemsize, 16 // itemsize
        tile = f"(((long)group * {self.blocks} + {row} / {self.rows}) * {self.tiles} + {depth} / {line})"
        within = f"(({depth} % {line} / {piece}) ^ ({row} & 7)) * {piece} + {depth} % {piece}"
        place = f"{tile} * {self.tile_bytes // itemsize} + {row} % {self.rows} * {line} + {within}"
        parts = [f"{argument(self.name)}[{place} + {part * self.rows * line}]" for part in range(self.parts)]
        return f"({' + '.join(parts)})"

    @property
    def scratch(self) -> Scratch:
        """The memory for them."""
        dtype = self.side.products.operand
        size = self.side.c.g * self.blocks * self.tiles * self.tile_bytes // dtype.itemsize
        return Scratch(self.name, dtype, size)


def pack(p: Panels, kernel: str) -> Launch:
    """The kernel that fills the panels: a work-group per tile of some rows, which goes through local memory."""
    c, side, dtype = p.side.c, p.side, p.side.products.operand
    inputs = tuple(dict.fromkeys(r.tensor for r in reads(side.operand.value)))
    helpers = storing_helpers(dtype, (8,))
    parameters = [f"__global const {p.program.tensors[n].dtype.opencl}* restrict {argument(n)}" for n in inputs]
    parameters.append(f"__global {dtype.opencl}* restrict {argument(p.name)}")
    slabs = p.blocks * p.rows // p.slab
    body = Source()
    attributes = f"__attribute__((reqd_work_group_size({_ITEMS}, 1, 1)))\n"
    with body.block(f"{attributes}__kernel void {kernel}({', '.join(parameters)})"):
        body.line(f"__local float elements[{p.slab}][{side.products.depth + 1}];")
        body.line("const int item = get_local_id(0);")
        body.line(f"const {p.ctype} slab = get_group_id(0) % {slabs}, tile = get_group_id(0) / {slabs};")
        body.line(f"const {p.ctype} group = get_group_id(1);")
        for text in decompose("group", c.groups, lambda i: NAMES[i.name], p.ctype):
            body.line(text)
        _gather(p, body, helpers)
        body.line("barrier(CLK_LOCAL_MEM_FENCE);")
        _write(p, body)
    src = Source()
    src.line(f"// Operand of {c.m} x {c.n} x {c.k} as swizzled tiles of {p.rows} rows.")
    for text in (*helpers.values(), _SPLIT):
        src.line(text)
    src.line(body.text)
    size = (slabs * p.tiles * _ITEMS, c.g)
    return Launch(kernel, src.text, size, (_ITEMS, 1), (*inputs, p.name), (p.name,))


def _gather(p: Panels, body: Source, helpers: dict[str, str]) -> None:
    """The slab's elements into local memory; neighbouring work-items read neighbours in memory."""
    c, side = p.side.c, p.side
    depths = side.products.depth
    body.line("#pragma unroll")
    with body.block(f"for (int e = item; e < {p.slab * depths}; e += {_ITEMS})"):
        if along_depth(side):
            body.line(f"const int row = e / {depths}, column = e % {depths};")
        else:
            body.line(f"const int row = e % {p.slab}, column = e / {p.slab};")
        body.line(f"const {p.ctype} flat = slab * {p.slab} + row, depth = tile * {depths} + column;")
        body.line("float value = 0;")
        with body.block(f"if (flat < {side.extent} && depth < {c.k})"):
            for text in decompose("flat", side.indices, lambda i: NAMES[i.name], p.ctype):
                body.line(text)
            for text in decompose("depth", c.depth, lambda i: NAMES[i.name], p.ctype):
                body.line(text)
            body.line(f"value = {element(c, side.operand.value, NAMES, p.program, helpers)};")
        body.line("elements[row][column] = value;")


def _write(p: Panels, body: Source) -> None:
    """The slab's pieces at their swizzled places: neighbouring work-items write a row."""
    dtype = p.side.products.operand
    scalars, row_scalars = p.tile_bytes // dtype.itemsize, ROW_BYTES // dtype.itemsize
    per_block = p.rows // p.slab
    block = f"((long)group * {p.blocks} + slab / {per_block}) * {p.tiles} + tile"
    start = f"slab % {per_block} * {p.slab * row_scalars}"
    body.line(f"__global {dtype.opencl}* const to = {argument(p.name)} + ({block}) * {scalars} + {start};")
    count = 16 // dtype.itemsize
    with body.block(f"for (int piece = item; piece < {p.slab * 8}; piece += {_ITEMS})"):
        body.line("const int row = piece / 8;")
        body.line(f"__local const float* const v = &elements[row][piece % 8 * {count}];")
        body.line(f"const int at = row * {row_scalars} + ((piece % 8) ^ (row & 7)) * {count};")
        values = [f"v[{i}]" for i in range(count)]
        if dtype is DType.F16:
            body.line(f"vstorea_half8((float8)({', '.join(values)}), 0, to + at);")
        elif dtype is DType.BF16:
            body.line(f"*(__global ushort8*)(to + at) = tw_bf16_float8((float8)({', '.join(values)}));")
        elif p.parts == 1:
            # an operand that the kernel itself splits stays as it is
            rounded = ", ".join(v if p.side.products.splits else f"tw_tf32({v})" for v in values)
            body.line(f"*(__global float4*)(to + at) = (float4)({rounded});")
        else:
            upper = ", ".join(f"tw_upper({v})" for v in values)
            lower = ", ".join(f"tw_lower({v})" for v in values)
            body.line(f"*(__global float4*)(to + at) = (float4)({upper});")
            body.line(f"*(__global float4*)(to + {p.rows * row_scalars} + at) = (float4)({lower});")
