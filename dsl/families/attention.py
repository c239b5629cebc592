"""The `attention` family: softmax-weighted sums in one kernel, without the scores ever being in memory.

`attention_form.py` says what a program must look like, `attention_cpu.py` and `attention_gpu.py` write the kernels;
here are the spaces of configurations and the choice that is made without tuning.
"""

from __future__ import annotations

from tilewright.dsl.families import attention_cpu, attention_gpu
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
        return _gpu_refusal(found, target) if target.shape is Shape.GPU else None

    def space(self, program: Program, target: Target) -> Space:
        """Blocks of rows and keys, register tiles, and what is copied."""
        make = _cpu_space if target.shape is Shape.CPU else _gpu_space
        return make(_form(program), target)

    def default(self, program: Program, target: Target) -> Configuration:
        """The configuration that a model of registers and caches prefers."""
        make = _cpu_default if target.shape is Shape.CPU else _gpu_default
        return make(_form(program), target)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """The kernel of one configuration."""
        lower = attention_cpu.lower if target.shape is Shape.CPU else attention_gpu.lower
        return lower(_form(program), target, configuration)


ATTENTION = AttentionFamily()

LONG_PASS = 384
"""Keys from which on a pass by part of a GPU takes longer than scores in memory: on an H100, 12 passes of one row over
1024 keys took 124 microseconds against 61 by separate kernels; 12 of 197 rows over 197 keys 34 against 55."""
GROUP_REGISTERS = 60_000
"""(guess) Registers a work-group's items may need together on GPUs (65,536 on NVIDIA's)."""


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


# --- GPUs -------------------------------------------------------------------------------------------------------------


def _gpu_refusal(a: Attention, target: Target) -> str | None:
    """Why a GPU should not, or cannot, compute this in one pass."""
    if a.n > LONG_PASS and a.g * -(-a.m // 32) < target.compute_units:
        return "so few rows leave the device idle while they pass the keys"
    if next(iter(_gpu_space(a, target)), None) is None:
        return "the smallest block of rows and keys does not fit the device's local memory"
    return None


def _gpu_space(a: Attention, target: Target) -> Space:
    def whole(c: Configuration) -> bool:
        return c.integer("tile_m") % c.integer("item_m") == 0 and c.integer("tile_n") % c.integer("item_n") == 0

    def group(c: Configuration) -> bool:
        items = attention_gpu.tile_of(a, target, c).items
        return max(target.sub_group, 1) <= items <= min(target.max_work_group, 1024)

    def local(c: Configuration) -> bool:
        return attention_gpu.local_bytes(attention_gpu.tile_of(a, target, c)) <= target.local_memory

    def registers(c: Configuration) -> bool:
        tile = attention_gpu.tile_of(a, target, c)
        each = tile.item_m * (tile.item_n + tile.columns + 1) + tile.item_n + tile.columns
        return each <= 160 and tile.items * (each + 32) <= GROUP_REGISTERS

    def reaches(c: Configuration) -> bool:
        return c.integer("tile_m") < 2 * max(a.m, 16) and c.integer("tile_n") < 2 * max(a.n, 16)

    return Space(
        (
            Parameter("tile_m", (16, 32, 64, 128), "rows of a work-group, typically 64"),
            Parameter("tile_n", (16, 32, 64, 128), "keys staged at a time, typically 32 or 64"),
            Parameter("item_m", (1, 2, 4, 8), "rows of a work-item"),
            Parameter("item_n", (1, 2, 4, 8), "keys of a work-item within a block"),
            Parameter("pad_local", (0, 1, 4), "spare elements per row of local memory, against bank conflicts"),
        ),
        (
            Constraint("an item's part must divide the block", whole),
            Constraint("the work-group's size is not allowed on this device", group),
            Constraint("the blocks need more local memory than there is", local),
            Constraint("an item's scores and sums would spill", registers),
            Constraint("a block is larger than what there is", reaches),
        ),
    )


def _gpu_default(a: Attention, target: Target) -> Configuration:
    """The first of a list of blocks, the best of large ones first, that fits and leaves no device idle."""
    space = _gpu_space(a, target)
    wanted = ((128, 32, 8, 4), (64, 32, 4, 4), (32, 32, 4, 2), (32, 32, 2, 2), (16, 32, 2, 2), (16, 16, 1, 2))
    names = ("tile_m", "tile_n", "item_m", "item_n")
    for values in wanted:
        found = Configuration.of({**dict(zip(names, values, strict=True)), "pad_local": 4})
        blocks = -(-a.m // values[0]) * a.g
        wasteful = values[0] > 16 and _waste(a.m, values[0]) > _waste(a.m, values[0] // 2) + 0.1
        enough = values[0] <= 32 or blocks >= 2 * target.compute_units
        if enough and not wasteful and space.violated(found) is None:
            return found
    return next(iter(space))
