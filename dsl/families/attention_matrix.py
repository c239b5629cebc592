"""One pass over keys by matrix instructions: accumulators of scores become operands of the next product in registers.

    copy the rows of q, and the first blocks of k and v
    for every block of keys:
        wait for k; barrier; start copying a block ahead
        scores   of each lane group's rows and keys, in accumulators
        maxima   over the lane's own scores, then over the lanes of its row
        weights  in place of the scores, then packed as the next product's operand
        wait for v; barrier
        sums     += weights * values
    combine the parts of split blocks through local memory, finish, store

The division of work is that of Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning"
(2023, arXiv:2307.08691): a group of lanes has rows to itself and passes all keys, so that nothing but q, k and v goes
through local memory. Where there are few rows, groups of lanes share the keys of a block (`split`).

Products of f32 values split in two parts, x = high + low with `high` rounded to the instruction's bits, are
high*high + (high*low + low*high), in accumulators of their own so that small terms are not lost to large ones (Ootomo &
Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance",
2022, arXiv:2203.03341). Matrix instructions may cut where they add, therefore a block's sums start from zero and are
added to the totals in f32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_block import (
    clear,
    compute_scores,
    compute_sums,
    compute_weights,
    declare_scores,
    mask_scores,
)
from tilewright.dsl.families.attention_finish import combine_split, finish
from tilewright.dsl.families.attention_form import Attention
from tilewright.dsl.families.attention_fragments import products_of, row_registers
from tilewright.dsl.families.attention_operands import query_tile
from tilewright.dsl.families.attention_plan import Plan, Scores, last_keys, scores_of, steepness
from tilewright.dsl.families.attention_repair import declare_flag, repair
from tilewright.dsl.families.attention_staging import keys_block, query_block, stage, values_block
from tilewright.dsl.families.attention_text import (
    declare_batch,
    declare_range,
)
from tilewright.dsl.families.shared import Geometry, banner, ceil_div, kernel_name, launch
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.writer import Source, index_type, literal

BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"


def plan_of(a: Attention, target: Target, c: Configuration) -> Plan | None:
    """The numbers of a configuration; None if the device has no instruction for the program."""
    products = products_of(a, target)
    if products is None:
        return None
    return Plan(
        a,
        target,
        products,
        tile_m=c.integer("tile_m"),
        tile_n=c.integer("tile_n"),
        item_m=c.integer("item_m"),
        split=c.integer("split"),
        stages=c.integer("stages"),
        held=c["query"] == "registers",
        ctype=index_type(a.program),
    )


def lower(a: Attention, target: Target, configuration: Configuration) -> Lowering:
    """The kernel of one configuration."""
    p = plan_of(a, target, configuration)
    assert p is not None
    body = Source()
    helpers = {"tw_macros": p.unit.copy.text + p.unit.shuffle + p.instruction.text}
    if p.unit.load:
        helpers["tw_macros"] += p.unit.load.text
    _kernel(p, body, helpers)
    geometry = Geometry((ceil_div(a.m, p.tile_m) * p.items, a.g), (p.items, 1))
    products = f"{p.instruction.products} products" + (" of split operands" if p.products.splits else "")
    top = banner("attention", a.program, configuration, products)
    program = replace(a.program, intermediates=())
    return Lowering((launch(kernel_name("attention", program), program, geometry, body, helpers, top),))


def _kernel(p: Plan, body: Source, helpers: dict[str, str]) -> None:
    scores = scores_of(p.a)
    _declare(p, body)
    body.line(f"const float steepness = {literal(steepness(p.a, scores), DType.F32)};")
    stage_query = query_block(p)
    with body.block(""):
        stage(stage_query, body, helpers, "query", "row0")
    body.line("TW_COMMIT();")
    for slot in range(max(1, p.stages - 1)):
        with body.block(f"if (first_key + {slot * p.tile_n} < end_key)"):
            _fetch_keys(p, body, helpers, str(slot), f"first_key + {slot * p.tile_n}")
        body.line("TW_COMMIT();")
        if p.stages > 1:
            with body.block(f"if (first_key + {slot * p.tile_n} < end_key)"):
                _fetch_values(p, body, helpers, str(slot), f"first_key + {slot * p.tile_n}")
            body.line("TW_COMMIT();")
    if p.products.splits:
        declare_flag(body)
        body.line(BARRIER)
    if p.held:
        body.line(f"TW_WAIT({max(1, 2 * (p.stages - 1))});")
        body.line(BARRIER)
        steps = p.depth // p.instruction.k
        body.line(f"uint held[{steps}][{p.tiles_m}][{p.instruction.a.count}];")
        with body.loop("k", steps, unroll=True):
            query_tile(p, body, helpers, "held[k]")
    if p.stages > 1:
        body.line("int slot = 0;")
    with body.block(f"for ({p.ctype} key0 = first_key; key0 < end_key; key0 += {p.tile_n})"):
        _block_of_keys(p, scores, body, helpers)
        if p.stages > 1:
            body.line(f"slot = slot == {p.stages - 1} ? 0 : slot + 1;")
    if p.split > 1:
        combine_split(p, scores, body)
    finish(p, scores, body, helpers)
    if p.products.splits:
        repair(p, body, helpers)


def _declare(p: Plan, body: Source) -> None:
    """Local memory, the item's place, and what it sums up."""
    element = "float" if p.itemsize == 4 else "ushort"
    for text in (p.unit.setup, p.instruction.setup):
        if text:
            body.line(text.replace("ITEMS", str(p.items)).rstrip("\n"))
    for name, size in p.sizes.items():
        body.line(f"__local uint4 {name}_memory[{size // 16}];")
    body.line(f"__local {element}* const query = (__local {element}*)query_memory;")
    body.line(f"__local {element}* const keys = (__local {element}*)staged_memory;")
    body.line(f"__local {element}* const values = keys + {p.stages * p.tile_n * p.pitch_d};")
    lanes = p.instruction.lanes
    body.line(f"const int item = get_local_id(0), lane = item % {lanes};")
    body.line(f"const int down = item / {lanes} % {p.groups_m}, part = item / {lanes * p.groups_m};")
    body.line(f"const int lane_row = {p.c.lane_text('lane', 0)}, lane_column = {p.c.lane_text('lane', 1)};")
    body.line(f"const {p.ctype} row0 = ({p.ctype})get_group_id(0) * {p.tile_m};")
    body.line(f"const {p.ctype} group = ({p.ctype})get_global_id(1);")
    declare_batch(p.a, body, "group", p.ctype)
    declare_range(p.a, body, p.tile_m, p.tile_n, p.tile_n, p.ctype)
    if p.idles and not p.unit.together:
        body.line(f"const int busy = row0 + down * {p.tiles_m * p.instruction.m} < {p.a.m};")
    rows = len(row_registers(p.c))
    body.line(f"float sums[{p.tiles_m}][{p.tiles_e}][{p.c.count}];")
    body.line(f"float tops[{p.tiles_m}][{rows}], totals[{p.tiles_m}][{rows}];")
    with body.loop("i", p.tiles_m, unroll=True):
        for h in range(rows):
            body.line(f"tops[i][{h}] = -INFINITY, totals[i][{h}] = 0;")
        clear(p, body, "sums", p.tiles_e)


def _fetch_keys(p: Plan, body: Source, helpers: dict[str, str], slot: str, first: str) -> None:
    place = "keys" if p.stages == 1 else f"keys + {slot} * {p.tile_n * p.pitch_d}"
    stage(keys_block(p), body, helpers, place, first)


def _fetch_values(p: Plan, body: Source, helpers: dict[str, str], slot: str, first: str) -> None:
    place = "values" if p.stages == 1 else f"values + {slot} * {p.tile_n * p.pitch_e}"
    stage(values_block(p), body, helpers, place, first)


def _block_of_keys(p: Plan, scores: Scores, body: Source, helpers: dict[str, str]) -> None:
    """One turn of the loop. Copies are closed in groups: those of k and of v, in turn, one block after the other."""
    body.line(f"TW_WAIT({max(0, 2 * p.stages - 3)});")
    body.line(BARRIER)
    ahead = f"key0 + {max(1, p.stages - 1) * p.tile_n}"
    if p.stages == 1:
        with body.block(""):
            _fetch_values(p, body, helpers, "", "key0")
        body.line("TW_COMMIT();")
    else:
        body.line(f"const int free = slot == 0 ? {p.stages - 1} : slot - 1;")
        for fetch in (_fetch_keys, _fetch_values):
            with body.block(f"if ({ahead} < end_key)"):
                fetch(p, body, helpers, "free", ahead)
            body.line("TW_COMMIT();")
    last = last_keys(p)
    if last == p.tile_n:
        _compute(p, scores, body, helpers, ahead, p.a.n % p.tile_n != 0)
        return
    with body.block(f"if (key0 + {p.tile_n} <= {p.a.n})"):
        _compute(p, scores, body, helpers, ahead, False)
    with body.block("else"):
        _compute(replace(p, taken=last), scores, body, helpers, ahead, p.a.n % p.tile_n != last)


def _compute(p: Plan, scores: Scores, body: Source, helpers: dict[str, str], ahead: str, ragged: bool) -> None:
    """A block's scores, weights and sums; `ragged` if there may be fewer keys than are computed."""
    declare_scores(p, body)
    with _busy(p, body):
        compute_scores(p, body, helpers)
        mask_scores(p, scores, body, helpers, ragged)
        compute_weights(p, scores, body)
    body.line(f"TW_WAIT({2 * (p.stages - 1)});")
    body.line(BARRIER)
    if p.stages == 1:
        with body.block(f"if ({ahead} < end_key)"):
            _fetch_keys(p, body, helpers, "", ahead)
        body.line("TW_COMMIT();")
    with _busy(p, body):
        compute_sums(p, body, helpers)


def _busy(p: Plan, body: Source) -> AbstractContextManager[None]:
    """A block that groups of lanes without a row leave out, where they may."""
    return body.block("if (busy)" if p.idles and not p.unit.together else "")
