"""Panels: an operand in the order in which work-groups load its tiles, converted to the type of its products.

    panels[group][block of rows][step of the depth][row][depth]

What lies beyond the operand is 0. Weights are packed once, ahead of all runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import NAMES, decompose, element
from tilewright.dsl.families.matrix_operands import PIECE, Side, along_depth
from tilewright.dsl.families.shared import ceil_div, round_up
from tilewright.dsl.lowering import Launch, Scratch
from tilewright.dsl.program import Program, reads
from tilewright.dsl.writer import Source, argument, storing_helpers

_ITEMS = 128


@dataclass(frozen=True)
class Panels:
    """An operand and the panels it is packed into."""

    side: Side
    program: Program
    name: str
    """Of the scratch."""
    rows: int
    """Rows of a block."""
    depth: int
    """Depth of a step."""
    ctype: str

    @property
    def blocks(self) -> int:
        """Blocks of rows."""
        return ceil_div(self.side.extent, self.rows)

    @property
    def steps(self) -> int:
        """Steps of the depth."""
        return ceil_div(self.side.c.k, self.depth)

    @property
    def scratch(self) -> Scratch:
        """The memory for them."""
        size = self.side.c.g * self.blocks * self.steps * self.rows * self.depth
        return Scratch(self.name, self.side.products.operand, size)

    def address(self, row: str, depth: str) -> str:
        """Element offset of (group, row, depth)."""
        tile = f"((long)group * {self.blocks} + ({row}) / {self.rows}) * {self.steps} + ({depth}) / {self.depth}"
        return f"(({tile}) * {self.rows} + ({row}) % {self.rows}) * {self.depth} + ({depth}) % {self.depth}"


def pack(p: Panels, kernel: str) -> Launch:
    """The kernel that fills the panels: a work-item per 16 bytes."""
    c, side, dtype = p.side.c, p.side, p.side.products.operand
    inputs = tuple(dict.fromkeys(r.tensor for r in reads(side.operand.value)))
    vector = PIECE // dtype.itemsize
    helpers = storing_helpers(dtype, (vector,))
    parameters = [f"__global const {p.program.tensors[n].dtype.opencl}* restrict {argument(n)}" for n in inputs]
    parameters.append(f"__global {dtype.opencl}* restrict {argument(p.name)}")
    rows, pieces = p.blocks * p.rows, p.steps * p.depth // vector
    body = Source()
    attributes = f"__attribute__((reqd_work_group_size({_ITEMS}, 1, 1)))\n"
    with body.block(f"{attributes}__kernel void {kernel}({', '.join(parameters)})"):
        body.line(f"const {p.ctype} item = get_global_id(0), group = get_global_id(1);")
        body.line(f"if (item >= {rows * pieces}) return;")
        if along_depth(side):
            body.line(f"const {p.ctype} first = item % {pieces} * {vector}, flat = item / {pieces};")
        else:
            body.line(f"const {p.ctype} flat = item % {rows}, first = item / {rows} * {vector};")
        for text in decompose("group", c.groups, lambda i: NAMES[i.name], p.ctype):
            body.line(text)
        body.line(f"float v[{vector}];")
        with body.loop("e", vector, unroll=True):
            body.line(f"const {p.ctype} depth = first + e;")
            body.line("v[e] = 0;")
            with body.block(f"if (flat < {side.extent} && depth < {c.k})"):
                for text in decompose("flat", side.indices, lambda i: NAMES[i.name], p.ctype):
                    body.line(text)
                for text in decompose("depth", c.depth, lambda i: NAMES[i.name], p.ctype):
                    body.line(text)
                body.line(f"v[e] = {element(c, side.operand.value, NAMES, p.program, helpers)};")
        values = f"(float{vector})({', '.join(f'v[{i}]' for i in range(vector))})"
        to = f"{argument(p.name)} + {p.address('flat', 'first')}"
        if dtype is DType.F16:
            body.line(f"vstorea_half{vector}({values}, 0, {to});")
        else:
            value = f"tw_bf16_float{vector}({values})" if dtype is DType.BF16 else values
            body.line(f"*(__global {dtype.opencl}{vector}*)({to}) = {value};")
    src = Source()
    src.line(f"// Operand {p.name[-1].upper()} of {c.m} x {c.n} x {c.k} in tiles of {p.rows} x {p.depth}.")
    for text in helpers.values():
        src.line(text)
    src.line(body.text)
    size = (round_up(rows * pieces, _ITEMS), c.g)
    return Launch(kernel, src.text, size, (_ITEMS, 1), (*inputs, p.name), (p.name,))
