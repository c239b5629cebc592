"""The `attention` family: softmax-weighted sums in one kernel, without the scores ever being in memory.

`attention_form.py` says what a program must look like; `attention_cpu.py`, `attention_gpu.py` (plain products) and
`attention_matrix.py` (matrix instructions) write the kernels. Spaces of configurations and the choices that are made
without tuning are here for CPUs, in `attention_space.py` for GPUs.
"""

from __future__ import annotations

from tilewright.dsl.families import attention_cpu, attention_gpu, attention_matrix, attention_space
from tilewright.dsl.families.attention_form import Attention, recognise
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target


class AttentionFamily:
    """Sums over keys that are weighted with the softmax of scores."""

    name = "attention"

    def refusal(self, program: Program, target: Target) -> str | None:
        """Why the program is no such sum, or None."""
        found = recognise(program)
        if isinstance(found, str):
            return found
        return attention_space.refusal(found, target) if target.shape is Shape.GPU else None

    def space(self, program: Program, target: Target) -> Space:
        """Blocks of rows and keys, register tiles, and what is copied."""
        make = _cpu_space if target.shape is Shape.CPU else attention_space.space
        return make(_form(program), target)

    def default(self, program: Program, target: Target) -> Configuration:
        """The configuration that a model of registers and caches prefers."""
        make = _cpu_default if target.shape is Shape.CPU else attention_space.default
        return make(_form(program), target)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """The kernel of one configuration."""
        if target.shape is Shape.CPU:
            return attention_cpu.lower(_form(program), target, configuration)
        lower = attention_matrix.lower if configuration["unit"] == "matrix" else attention_gpu.lower
        return lower(_form(program), target, configuration)


ATTENTION = AttentionFamily()


def _form(program: Program) -> Attention:
    found = recognise(program)
    if isinstance(found, str):
        raise ValueError(f"program {program.name} is no softmax-weighted sum: {found}")
    return found


# --- CPUs -------------------------------------------------------------------------------------------------------------


def _cpu_space(a: Attention, target: Target) -> Space:
    most = _lanes(a, target)
    registers = target.vector_registers
    limit = registers + registers // 8

    def scores(c: Configuration) -> bool:
        keys, vectors = c.integer("keys"), c.integer("vectors")
        return keys * vectors + vectors + 1 <= limit

    def products(c: Configuration) -> bool:
        rows, columns = c.integer("item_rows"), c.integer("item_columns")
        return rows * columns + columns + 1 <= limit

    def whole(c: Configuration) -> bool:
        rows = c.integer("lanes") * c.integer("vectors")
        return c.integer("block") % c.integer("keys") == 0 and rows % c.integer("item_rows") == 0

    def reaches(c: Configuration) -> bool:
        rows = c.integer("lanes") * c.integer("vectors")
        wide = (c.integer("item_columns") - 1) * attention_cpu.column_lanes(a, target) < a.e
        return wide and rows < 2 * max(a.m, 1) and c.integer("block") < 2 * max(a.n, 16)

    def keys_in_place(c: Configuration) -> bool:
        return bool(c["copy_k"]) or attention_cpu.reads_keys_in_place(a)

    def values_in_place(c: Configuration) -> bool:
        return bool(c["copy_v"]) or attention_cpu.reads_values_in_place(a, target)

    widths = (max(1, most // 2), most) if most > 1 else (1,)
    return Space(
        (
            Parameter("lanes", widths, "rows in a vector of scores: all lanes, fewer where there are few rows"),
            Parameter("vectors", (1, 2, 3, 4), "vectors of rows per work-item"),
            Parameter("keys", (2, 4, 6, 8, 12, 16), "keys of a register tile of scores (4-6 AVX2, 8-12 AVX-512)"),
            Parameter("block", (16, 32, 48, 64, 96, 128, 192, 256), "keys between two looks at the maximum"),
            Parameter("item_rows", (1, 2, 4, 6, 8, 12), "rows of a register tile of products"),
            Parameter("item_columns", (1, 2, 3, 4, 6), "vectors of columns of a register tile of products"),
            Parameter("copy_k", (0, 1) if a.depth else (0,), "copy blocks of k first"),
            Parameter("copy_v", (0, 1), "copy blocks of v first"),
        ),
        (
            Constraint("the scores' register tile needs more vector registers than there are", scores),
            Constraint("the products' register tile needs more vector registers than there are", products),
            Constraint("register tiles must divide their blocks", whole),
            Constraint("a block is larger than what there is", reaches),
            Constraint("k can only be read in place as f32 without checks", keys_in_place),
            Constraint("v can only be read in place where its columns are contiguous whole vectors", values_in_place),
        ),
    )


def _cpu_default(a: Attention, target: Target) -> Configuration:
    lanes = _lanes(a, target)
    vectors = 2 if _waste(a.m, 2 * lanes) <= _waste(a.m, lanes) + 0.1 and a.m > lanes else 1
    wide = target.vector_registers >= 32
    keys = {1: 16, 2: 12}[vectors] if wide else {1: 8, 2: 6}[vectors]
    block = 96 if vectors == 2 else 64
    while block >= 2 * max(a.n, 16):
        keys, block = (keys, 48) if block == 96 else (8 if wide else 4, 16 if block <= 32 else 32)
    count = -(-a.e // attention_cpu.column_lanes(a, target))
    columns = next(c for c in (4, 3, 2, 1) if c <= count and (wide or c <= 2))
    rows = (lanes * vectors) if lanes * vectors < 4 else 6 if not wide and columns == 2 else 4
    while (lanes * vectors) % rows:
        rows -= 2
    return Configuration.of(
        {
            "lanes": lanes,
            "vectors": vectors,
            "keys": keys,
            "block": block,
            "item_rows": rows,
            "item_columns": columns,
            "copy_k": int(not attention_cpu.reads_keys_in_place(a)),
            "copy_v": int(not attention_cpu.reads_values_in_place(a, target)),
        }
    )


def _lanes(a: Attention, target: Target) -> int:
    """The widest vector that the rows fill at least half."""
    lanes = target.lanes(4)
    while lanes > 1 and lanes // 2 >= a.m:
        lanes //= 2
    return lanes


def _waste(extent: int, block: int) -> float:
    """The share of a dimension's blocks that lies beyond its end."""
    return 1 - extent / (-(-extent // block) * block)
