"""How fragments of matrix instructions serve one pass over keys: which instruction, and what becomes of the scores.

The scores of a block leave an instruction as its accumulators, and their weights enter the next one as its operand a.
No element has to move to another lane if the depth of the second product is numbered the way the lanes hold it: every
bit of a's depth then stands for the bit of the scores' column that the same lane, or a register of it, holds. The rows
of the values are read in that order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_form import Attention
from tilewright.dsl.matrix import Fragment, MatrixInstruction, Step
from tilewright.dsl.program import reads
from tilewright.dsl.target import Target

NARROW = (DType.F16, DType.BF16)


@dataclass(frozen=True)
class Products:
    """How both products of a pass are computed."""

    instruction: MatrixInstruction
    splits: bool
    """True if f32 operands are split into two of fewer bits each, and three products taken of these."""


def products_of(a: Attention, target: Target) -> Products | None:
    """The instruction for a program's types and precision; None if the device has none that fits.

    Operands that are stored in a narrow type are multiplied in it, and weights rounded to it, if the output is narrow
    too or the program allows as much (tf32 has as many bits as f16). Everything else is f32: rounded to tf32 where
    the program allows that, else split.
    """
    unit = target.matrix
    if unit is None or not unit.shuffle or not a.depth:
        return None
    tensors = a.program.tensors
    stored = {tensors[r.tensor].dtype for e in (a.query, a.keys, a.values) for r in reads(e)}
    usable = [i for i in unit.instructions if key_steps(i) is not None]
    rounded = a.program.precision == "tf32"
    if len(stored) == 1 and (a.output.dtype in stored or (rounded and stored == {DType.F16})):
        for instruction in usable:
            if instruction.operand in NARROW and instruction.operand in stored:
                return Products(instruction, False)
    for instruction in usable:
        if instruction.operand is DType.F32:
            return Products(instruction, instruction.products == "tf32" and not rounded)
    return None


def key_steps(instruction: MatrixInstruction) -> Mapping[int, int] | None:
    """Which key of a step each bit of the second product's depth stands for; None if lanes would have to exchange."""
    a, c = instruction.a, instruction.c
    if len(a.lanes) != len(c.lanes):
        return None
    steps = {}
    for (row, depth), (same, column) in zip(a.lanes, c.lanes, strict=True):
        if row != same or bool(depth) != bool(column):
            return None
        if depth:
            steps[depth] = column
    own = [column for _, column in c.registers if column]
    tile = instruction.n
    while tile < instruction.k:
        own.append(tile)
        tile *= 2
    depths = [depth for _, depth in (*a.packed, *a.registers) if depth]
    if len(own) != len(depths) or any(row and column for row, column in (*a.registers, *c.registers)):
        return None
    return {**steps, **dict(zip(depths, own, strict=True))}


def moved(fragment: Fragment, steps: Mapping[int, int]) -> Fragment:
    """The fragment with its depth given as keys."""

    def change(parts: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple((outer, steps[depth] if depth else 0) for outer, depth in parts)

    return replace(
        fragment,
        registers=change(fragment.registers),
        lanes=change(fragment.lanes),
        packed=change(fragment.packed),
    )


def weight_registers(instruction: MatrixInstruction) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
    """For each register of operand a: the (tile, register) of the accumulators that its elements come from."""
    steps = key_steps(instruction)
    assert steps is not None
    operand = moved(instruction.a, steps)
    places = {instruction.c.offset(r): r for r in range(instruction.c.count)}
    for register in range(operand.count):
        found = []
        for element in range(1 << len(operand.packed)):
            row, key = operand.offset(register, element)
            found.append((key // instruction.n, places[(row, key % instruction.n)]))
        yield register, tuple(found)


def row_registers(c: Fragment) -> dict[int, tuple[int, ...]]:
    """The accumulators' registers by the row that they hold, relative to the lane's first one."""
    rows: dict[int, list[int]] = {}
    for register in range(c.count):
        rows.setdefault(c.offset(register)[0], []).append(register)
    return {row: tuple(registers) for row, registers in sorted(rows.items())}


def row_masks(c: Fragment) -> tuple[int, ...]:
    """The bits of a lane's number that lead to the other lanes of its row."""
    return tuple(1 << bit for bit, (row, _) in enumerate(c.lanes) if not row)


def loads_as_blocks(fragment: Fragment, itemsize: int) -> bool:
    """Whether `MatrixLoad` fills each register of an operand with a block of local memory."""
    each = 4 // itemsize
    lanes = ((0, each), (0, 2 * each), (1, 0), (2, 0), (4, 0))
    return fragment.lanes == lanes and fragment.packed == ((0, 1),) * (each - 1) and itemsize in (2, 4)
