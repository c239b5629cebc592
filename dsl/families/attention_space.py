"""What may be chosen for one pass over keys on GPUs: the space of both lowerings, and the choice without tuning."""

from __future__ import annotations

from tilewright.dsl.families import attention_gpu, attention_matrix
from tilewright.dsl.families.attention_form import Attention
from tilewright.dsl.families.attention_fragments import products_of, row_registers
from tilewright.dsl.families.attention_plan import Plan
from tilewright.dsl.families.shared import ceil_div, round_up
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space, Value
from tilewright.dsl.target import Target

LONG_PASS = 384
"""Keys from which on a pass by part of a GPU takes longer than scores in memory: on an H100, 12 passes of one row over
1024 keys took 124 microseconds against 61 by separate kernels; 12 of 197 rows over 197 keys 34 against 55."""
LONG_BYTES = 2 << 20
"""The same for keys and values that matrix instructions pass: 32 passes of one row over 4096 keys of 128 columns in
f16, 2 MB each, took 51 microseconds on an H100, by separate kernels 55."""
GROUP_REGISTERS = 60_000
"""(guess) Registers a work-group's items may need together on GPUs (65,536 on NVIDIA's)."""
ITEM_REGISTERS = 250
"""(guess) Registers that a work-item may need (255 on NVIDIA's)."""
EASY_REGISTERS = 200
"""(guess) As many by the same estimate hardly ever spill: compilers take up to 50 more, to load ahead."""
BLOCKS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
PLAIN_BLOCKS = (16, 32, 64, 128)


def refusal(a: Attention, target: Target) -> str | None:
    """Why a GPU should not, or cannot, compute this in one pass."""
    if a.n > LONG_PASS and a.g * ceil_div(a.m, 32) < target.compute_units and _takes_long(a, target):
        return "so few rows leave the device idle while they pass the keys"
    if not _fits(a, target):
        return "the smallest block of rows and keys does not fit the device's local memory"
    return None


def _fits(a: Attention, target: Target) -> bool:
    """Whether any configuration is legal; the one of least local memory is, if any by matrix instructions is."""
    every = space(a, target)
    common: dict[str, tuple[Value, ...]] = {"split": (1,), "stages": (1,), "query": ("local",)}
    limits = [{**common, "unit": ("plain",), "tile_m": PLAIN_BLOCKS, "tile_n": PLAIN_BLOCKS}]
    if products_of(a, target) is not None:
        least: dict[str, tuple[Value, ...]] = {"tile_m": (16,), "tile_n": (16,), "item_n": (1,), "pad_local": (0,)}
        limits.append({**common, **least, "unit": ("matrix",)})
    return any(next(iter(every.restricted(limit)), None) is not None for limit in limits)


def _takes_long(a: Attention, target: Target) -> bool:
    """Whether a work-group's keys and values are more than part of a GPU passes in the time of several kernels."""
    products = products_of(a, target)
    return products is None or a.n * (a.d + a.e) * products.instruction.operand.itemsize > LONG_BYTES


def space(a: Attention, target: Target) -> Space:
    """Blocks of rows and keys, and how a work-group shares them."""
    matrix = products_of(a, target) is not None
    return Space(
        (
            Parameter("tile_m", BLOCKS if matrix else PLAIN_BLOCKS, "rows of a work-group, typically 64"),
            Parameter("tile_n", BLOCKS if matrix else PLAIN_BLOCKS, "keys staged at a time, typically 32 or 64"),
            Parameter("item_m", (1, 2, 4, 8), "rows of a work-item (2 or 4 with matrix instructions)"),
            Parameter("item_n", (1, 2, 4, 8), "keys of a work-item within a block (plain products)"),
            Parameter("pad_local", (0, 1, 4), "spare elements per row of local memory (plain products)"),
            Parameter("unit", ("plain", "matrix") if matrix else ("plain",), "what computes products", before="plain"),
            Parameter("split", (1, 2, 4, 8) if matrix else (1,), "parts of a block summed apart", before=1),
            Parameter("stages", (1, 2, 3, 4) if matrix else (1,), "blocks of keys in local memory", before=1),
            Parameter("query", ("local", "registers") if matrix else ("local",), "where q stays", before="local"),
        ),
        (*_plain_constraints(a, target), *_matrix_constraints(a, target)) if matrix else _plain_constraints(a, target),
    )


def default(a: Attention, target: Target) -> Configuration:
    """The choice without tuning."""
    if products_of(a, target) is not None:
        found = _matrix_default(a, target)
        if found is not None:
            return found
    return _plain_default(a, target)


# --- plain products ---------------------------------------------------------------------------------------------------


def _plain_constraints(a: Attention, target: Target) -> tuple[Constraint, ...]:
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

    def powers(c: Configuration) -> bool:
        return c.integer("tile_m") in PLAIN_BLOCKS and c.integer("tile_n") in PLAIN_BLOCKS

    def fixed(c: Configuration) -> bool:
        return (c["split"], c["stages"], c["query"]) == (1, 1, "local")

    return _of_unit(
        "plain",
        Constraint("blocks of plain products are powers of two up to 128", powers),
        Constraint("plain products have one block in local memory, beside q", fixed),
        Constraint("an item's part must divide the block", whole),
        Constraint("the work-group's size is not allowed on this device", group),
        Constraint("the blocks need more local memory than there is", local),
        Constraint("an item's scores and sums would spill", registers),
        Constraint("a block is larger than what there is", reaches),
    )


def _of_unit(unit: str, *constraints: Constraint) -> tuple[Constraint, ...]:
    """Constraints on the configurations of one lowering alone."""

    def limited(constraint: Constraint) -> Constraint:
        return Constraint(constraint.reason, lambda c: c["unit"] != unit or constraint.holds(c))

    return tuple(limited(constraint) for constraint in constraints)


def _plain_default(a: Attention, target: Target) -> Configuration:
    """The first of a list of blocks, the best of large ones first, that fits and leaves no device idle."""
    every = space(a, target)
    wanted = ((128, 32, 8, 4), (64, 32, 4, 4), (32, 32, 4, 2), (32, 32, 2, 2), (16, 32, 2, 2), (16, 16, 1, 2))
    names = ("tile_m", "tile_n", "item_m", "item_n")
    rest = {"pad_local": 4, "unit": "plain", "split": 1, "stages": 1, "query": "local"}
    for values in wanted:
        found = Configuration.of({**dict(zip(names, values, strict=True)), **rest})
        blocks = ceil_div(a.m, values[0]) * a.g
        wasteful = values[0] > 16 and _waste(a.m, values[0]) > _waste(a.m, values[0] // 2) + 0.1
        enough = values[0] <= 32 or blocks >= 2 * target.compute_units
        if enough and not wasteful and every.violated(found) is None:
            return found
    return next(iter(every))


def _waste(extent: int, block: int) -> float:
    """The share of a dimension's blocks that lies beyond its end."""
    return 1 - extent / round_up(extent, block)


# --- matrix instructions ----------------------------------------------------------------------------------------------


def _matrix_constraints(a: Attention, target: Target) -> tuple[Constraint, ...]:
    def plan(c: Configuration) -> Plan:
        found = attention_matrix.plan_of(a, target, c)
        assert found is not None
        return found

    def fixed(c: Configuration) -> bool:
        return (c["item_n"], c["pad_local"]) == (1, 0)

    def rows(c: Configuration) -> bool:
        p = plan(c)
        per_item = len(row_registers(p.c))
        return p.item_m % per_item == 0 and p.tiles_m <= 2 and p.tile_m % (p.tiles_m * p.instruction.m) == 0

    def keys(c: Configuration) -> bool:
        p = plan(c)
        return p.tile_n % p.split == 0 and p.keys % (2 * p.instruction.n) == 0 and p.keys % p.instruction.k == 0

    def group(c: Configuration) -> bool:
        return plan(c).items <= min(target.max_work_group, 1024)

    def local(c: Configuration) -> bool:
        return sum(plan(c).sizes.values()) <= target.local_memory

    def registers(c: Configuration) -> bool:
        p = plan(c)
        return p.registers <= ITEM_REGISTERS and p.items * p.registers <= GROUP_REGISTERS

    def reaches(c: Configuration) -> bool:
        p = plan(c)
        return p.tile_m - 16 * p.tiles_m < a.m and p.tile_n - 16 * p.split < a.n

    return _of_unit(
        "matrix",
        Constraint("matrix instructions have no item_n and no pad_local (1 and 0)", fixed),
        Constraint("the work-group's rows are no whole number of instructions' rows", rows),
        Constraint("a part of a block is no whole number of pairs of instructions", keys),
        Constraint("the work-group's size is not allowed on this device", group),
        Constraint("the blocks need more local memory than there is", local),
        Constraint("an item's scores and sums would spill", registers),
        Constraint("a block is larger than what there is", reaches),
    )


def _matrix_default(a: Attention, target: Target) -> Configuration | None:
    """The first of the candidates that leaves no device idle and no registers spilled."""
    every = space(a, target)
    for tile_m, keys, item_m, split, where in _candidates(a, target):
        waves = a.g * ceil_div(a.m, tile_m) / target.compute_units
        if (tile_m >= 64 and waves < tile_m / 64) or 2 * a.m <= tile_m > 16:
            continue
        chosen = {"tile_m": tile_m, "item_m": item_m, "split": split, "query": where}
        chosen["tile_n"] = min(keys, round_up(a.n, 16 * split))
        chosen["stages"] = 1 if keys > 64 else 2
        found = Configuration.of({**chosen, "item_n": 1, "pad_local": 0, "unit": "matrix"})
        plan = attention_matrix.plan_of(a, target, found)
        if plan and plan.registers <= EASY_REGISTERS and every.violated(found) is None:
            return found
    return None


def _candidates(a: Attention, target: Target) -> list[tuple[int, int, int, int, str]]:
    """tile_m, tile_n, item_m, split and query: large blocks of rows first; where rows are few, lanes share keys.

    On an H100 with 64 columns, 12 heads of 197 rows took 9.9 microseconds (f16) in blocks of 32 rows by two parts, 8.7
    if all keys were one block, and 10.2 in blocks of 64 rows. 768 heads took 57 in blocks of 128 rows and 60 in blocks
    of 64. With split operands both took 205, and smaller blocks need fewer registers.
    """
    products = products_of(a, target)
    assert products is not None
    narrow = products.instruction.operand.itemsize == 2
    tile_n = 64 if narrow else 32
    large = [] if products.splits else [(128, tile_n, 4, 1, "registers")]
    many = [(64, tile_n, 2, 1, "registers"), (64, 32, 2, 1, "local"), (64, 16, 2, 1, "local")]
    whole = [(32, round_up(a.n, 32), 2, 2, "registers")] if narrow and a.n <= BLOCKS[-1] else []
    some = [(32, 64, 2, 2, "registers"), (32, 32, 2, 2, "local"), (32, 16, 2, 1, "local")]
    few = [(16, 64, 2, 4, "registers"), (16, 64, 2, 4, "local"), (16, 32, 2, 2, "local")]
    return [*large, *many, *whole, *some, *few]
