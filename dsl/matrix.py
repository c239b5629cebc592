"""Matrix instructions as data: what a group of lanes multiplies together, and where each lane's elements lie.

A fragment's layout is linear over bits (the "linear layouts" of Zhou et al., "Linear Layouts: Robust Code Generation of
Efficient Tensor Computation Using F2", 2025): every bit of an element's number in its register, of the register's
number and of the lane's number adds a fixed step to the element's position in the tile. `docs/devices.md` shows how
the instructions of several vendors are written this way.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dsl.dtypes import DType
from tilewright.dsl.warpgroup import WarpgroupUnit

Step = tuple[int, int]
"""What a bit adds to (outer, depth) of an operand, or to (row, column) of the accumulators."""


@dataclass(frozen=True)
class Fragment:
    """One operand's or the accumulators' part of a matrix instruction, spread over lanes and registers."""

    registers: tuple[Step, ...]
    """Per bit of the register's number, lowest first."""
    lanes: tuple[Step, ...]
    """Per bit of the lane's number, lowest first."""
    packed: tuple[Step, ...] = ()
    """Per bit of the element's number within one register, lowest first."""

    @property
    def count(self) -> int:
        """Registers per lane."""
        return 1 << len(self.registers)

    def offset(self, register: int, element: int = 0) -> Step:
        """Position of a register's element relative to where lane bits alone would put it."""
        rows, columns = 0, 0
        for number, steps in ((register, self.registers), (element, self.packed)):
            for bit, (row, column) in enumerate(steps):
                if number >> bit & 1:
                    rows, columns = rows + row, columns + column
        return rows, columns

    def lane_text(self, lane: str, axis: int) -> str:
        """C expression for the lane's part of the position along axis 0 or 1."""
        parts = []
        bit = 0
        steps = [s[axis] for s in self.lanes]
        while bit < len(steps):
            run = bit + 1
            while run < len(steps) and steps[bit] and steps[run] == steps[bit] << (run - bit):
                run += 1
            if steps[bit]:
                field = lane if bit == 0 else f"({lane} >> {bit})"
                if run < len(steps):
                    field = f"({field} & {(1 << (run - bit)) - 1})"
                parts.append(field if steps[bit] == 1 else f"{field} * {steps[bit]}")
            bit = run
        return " + ".join(parts) or "0"


@dataclass(frozen=True)
class MatrixInstruction:
    """``c[m,n] += sum(k) a[m,k] * b[k,n]`` as one instruction of `lanes` work-items with consecutive local ids."""

    name: str
    """The C macro ``NAME(c, a, b)`` over private arrays of registers: float c[], uint a[], uint b[]."""
    products: str
    """Precision of a product: ``tf32`` (f32 operands cut to 10 bits of mantissa), ``fp16``, ``bf16`` or ``fp32``."""
    operand: DType
    """Type of an operand's elements; several narrow ones share a 32-bit register."""
    m: int
    n: int
    k: int
    a: Fragment
    """Positions (row, depth)."""
    b: Fragment
    """Positions (column, depth)."""
    c: Fragment
    """Positions (row, column), one f32 per register."""
    text: str
    """Definition of the macro."""
    setup: str = ""
    """Declarations that it needs at the top of a kernel, with ITEMS for the work-group's size."""
    pack: str = ""
    """A function or macro defined by `text` that rounds floats, as many as share a register, lowest element first, to
    a ``uint`` register of an operand; empty if there is none."""

    @property
    def lanes(self) -> int:
        """Work-items that execute it together."""
        return 1 << len(self.c.lanes)


@dataclass(frozen=True)
class MatrixLoad:
    """Loads 8x8 blocks of 16-bit elements (or 8x4 of 32-bit ones) from local memory, four at once.

    Lane ``8*i + j`` gives the address of row j of block i; afterwards register i of lane l holds the 32 bits at row
    ``l / 4``, byte ``l % 4 * 4`` of block i. The transposed form exists for 16-bit elements: register i then holds
    elements ``(l % 4 * 2, l / 4)`` and the one below.
    """

    name: str
    """Macro ``NAME(r0, r1, r2, r3, address)``, where `address` is a pointer to local memory."""
    transposed: str
    """Likewise with each block transposed."""
    text: str


@dataclass(frozen=True)
class AsyncCopy:
    """Copies from global to local memory that go on while the work-item computes, waited for in groups.

    Macros: ``TW_COPY16(to, from, valid)`` and ``TW_COPY4`` (bytes; zeros where not valid), ``TW_COMMIT()`` closes a
    group, ``TW_WAIT(n)`` waits until at most n groups are open; a barrier must follow before others read.
    """

    text: str


@dataclass(frozen=True)
class MatrixUnit:
    """Everything a device has for products of matrices."""

    instructions: tuple[MatrixInstruction, ...]
    copy: AsyncCopy
    load: MatrixLoad | None = None
    shuffle: str = ""
    """Definition of the macro ``TW_SHUFFLE_XOR(to, from, mask)``: the float `to` becomes the `from` of the lane whose
    number differs in the bits of `mask`, a constant; empty if there is none."""
    setup: str = ""
    """Declarations that `shuffle`, `load` and `copy` need at the top of a kernel, with ITEMS as above."""
    warpgroup: WarpgroupUnit | None = None
    """Instructions of several sub-groups together."""
    together: bool = False
    """True if all groups of lanes of a work-group must execute what stands above at the same time."""
