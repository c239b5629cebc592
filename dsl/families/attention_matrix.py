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

import math
from dataclasses import replace

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_algebra import bounds_of
from tilewright.dsl.families.attention_finish import combine_split, finish
from tilewright.dsl.families.attention_form import Attention
from tilewright.dsl.families.attention_fragments import products_of, row_masks, row_registers
from tilewright.dsl.families.attention_operands import keys_tile, query_tile, values_tile, weights_tile
from tilewright.dsl.families.attention_plan import Plan, Scores, scores_of
from tilewright.dsl.families.attention_repair import declare_flag, repair
from tilewright.dsl.families.attention_staging import keys_block, query_block, stage, values_block
from tilewright.dsl.families.attention_text import (
    declare_batch,
    declare_range,
    declare_rows,
    expressions,
    extreme,
    names_of,
)
from tilewright.dsl.families.shared import Geometry, banner, ceil_div, kernel_name, launch
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.writer import Source, index_type, literal, multiply_add

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
    body.line(f"const float steepness = {literal(_steepness(p.a, scores), DType.F32)};")
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
        combine_split(p, body)
    finish(p, scores, body, helpers)
    if p.products.splits:
        repair(p, body, helpers)


def _steepness(a: Attention, scores: Scores) -> float:
    """The factor of what `scores` holds within the weights, which are powers of two."""
    factor = a.factor * (scores.factor if scores.bare else 1.0)
    return factor / math.log(2) if a.exponential == "exp" else factor


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
    rows = len(row_registers(p.c))
    body.line(f"float sums[{p.tiles_m}][{p.tiles_e}][{p.c.count}];")
    body.line(f"float tops[{p.tiles_m}][{rows}], totals[{p.tiles_m}][{rows}];")
    with body.loop("i", p.tiles_m, unroll=True):
        for h in range(rows):
            body.line(f"tops[i][{h}] = -INFINITY, totals[i][{h}] = 0;")
        _clear(p, body, "sums", p.tiles_e)


def _clear(p: Plan, body: Source, name: str, tiles: int) -> None:
    """Zeros in the accumulators of row tile `i`."""
    with body.loop("j", tiles, unroll=True):
        body.line(" ".join(f"{name}[i][j][{r}] = 0;" for r in range(p.c.count)))


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
    _scores(p, body, helpers)
    _masked(p, scores, body, helpers)
    _weights(p, body)
    body.line(f"TW_WAIT({2 * (p.stages - 1)});")
    body.line(BARRIER)
    if p.stages == 1:
        with body.block(f"if ({ahead} < end_key)"):
            _fetch_keys(p, body, helpers, "", ahead)
        body.line("TW_COMMIT();")
    _sums(p, body, helpers)


# --- scores -----------------------------------------------------------------------------------------------------------


def _scores(p: Plan, body: Source, helpers: dict[str, str]) -> None:
    """`scores[tile of rows][tile of keys][register]`: the product of q and k."""
    splits, count = p.products.splits, p.instruction.a.count
    names = ("scores", "small") if splits else ("scores",)
    for name in names:
        body.line(f"float {name}[{p.tiles_m}][{p.tiles_n}][{p.c.count}];")
    with body.loop("i", p.tiles_m, unroll=True):
        for name in names:
            _clear(p, body, name, p.tiles_n)
    slot = "" if p.stages == 1 else f" + slot * {p.tile_n * p.pitch_d}"
    body.line(f"const {_pointer(p)} k_block = keys{slot} + part * {p.keys * p.pitch_d};")
    with body.loop("k", p.depth // p.instruction.k, unroll=True):
        query = "held[k]"
        if not p.held:
            query = "q"
            body.line(f"uint q[{p.tiles_m}][{count}];")
            query_tile(p, body, helpers, query)
        if splits:
            body.line(f"uint q_high[{p.tiles_m}][{count}], q_low[{p.tiles_m}][{count}];")
            with body.loop("i", p.tiles_m, unroll=True), body.loop("r", count, unroll=True):
                split_in_two(body, helpers, f"{query}[i][r]", "q_high[i][r]", "q_low[i][r]")
        with body.loop("j", p.tiles_n, 2, unroll=True):
            keys_tile(p, body, "k_block")
            to = ("scores[i][j + {t}]", "small[i][j + {t}]")
            _multiply(p, body, helpers, (f"{query}[i]", "q_high[i]", "q_low[i]"), to)
    if splits:
        with body.loop("i", p.tiles_m, unroll=True), body.loop("j", p.tiles_n, unroll=True):
            body.line(" ".join(f"scores[i][j][{r}] += small[i][j][{r}];" for r in range(p.c.count)))


def split_in_two(body: Source, helpers: dict[str, str], bits: str, high: str, low: str) -> None:
    """Set two operands to the parts of a float: the bits that an instruction multiplies, and the rest."""
    helpers["tw_high_part"] = "static inline uint tw_high_part(uint bits) { return (bits + 0x1000u) & 0xffffe000u; }"
    body.line(f"{high} = tw_high_part({bits});")
    body.line(f"{low} = as_uint(as_float({bits}) - as_float({high}));")


def _multiply(
    p: Plan, body: Source, helpers: dict[str, str], operand: tuple[str, str, str], to: tuple[str, str]
) -> None:
    """Multiply operand a of every row tile `i` with `b[0]` and `b[1]`.

    ``operand`` is it as a whole, its high and its low part; ``to`` are templates with {t} of the accumulators for the
    product and for its small parts.
    """
    (whole, high, low), (large, small) = operand, to
    name, count = p.instruction.name, p.instruction.b.count
    if p.products.splits:
        body.line(f"uint b_high[2][{count}], b_low[2][{count}];")
        with body.loop("t", 2, unroll=True), body.loop("r", count, unroll=True):
            split_in_two(body, helpers, "b[t][r]", "b_high[t][r]", "b_low[t][r]")
    with body.loop("i", p.tiles_m, unroll=True):
        for t in range(2):
            if p.products.splits:
                body.line(f"{name}({small.format(t=t)}, {low}, b_high[{t}]);")
                body.line(f"{name}({small.format(t=t)}, {high}, b_low[{t}]);")
                body.line(f"{name}({large.format(t=t)}, {high}, b_high[{t}]);")
            else:
                body.line(f"{name}({large.format(t=t)}, {whole}, b[{t}]);")


def _pointer(p: Plan) -> str:
    return f"__local {'float' if p.itemsize == 4 else 'ushort'}*"


# --- masks and weights ------------------------------------------------------------------------------------------------


def _masked(p: Plan, scores: Scores, body: Source, helpers: dict[str, str]) -> None:
    """Scores from products where they are not `bare`, and -inf where a mask or the end of the keys is."""
    ragged = bool(p.a.n % p.tile_n)
    if scores.bare and not ragged and not scores.masks:
        return
    whole = []
    if scores.bare and scores.bounded:
        bounds = bounds_of(p.a.score)
        whole = [f"key0 + {p.tile_n} <= {p.a.n}"] if ragged else []
        whole += [f"key0 + {p.tile_n - 1} <= {extreme(p.a, b, p.tile_m, False, p.ctype)}" for b in bounds.last]
        whole += [f"key0 >= {extreme(p.a, b, p.tile_m, True, p.ctype)}" for b in bounds.first]
    with body.block(f"if (!({' && '.join(whole)}))" if whole else ""), body.loop("i", p.tiles_m, unroll=True):
        for row, registers in row_registers(p.c).items():
            with body.block(""):
                body.line(f"const {p.ctype} row = {p.row_text(row, clamped=True)};")
                declare_rows(p.a, body, "row", p.ctype)
                with body.loop("j", p.tiles_n, unroll=True):
                    for r in registers:
                        with body.block(""):
                            _mask_one(p, scores, body, helpers, r)


def _mask_one(p: Plan, scores: Scores, body: Source, helpers: dict[str, str], r: int) -> None:
    column = p.c.offset(r)[1]
    place = f"scores[i][j][{r}]"
    offset = f" + {column}" if column else ""
    body.line(f"const {p.ctype} key = key0 + part * {p.keys} + j * {p.instruction.n} + lane_column{offset};")
    names, factor = names_of(p.a), literal(scores.factor, DType.F32)
    dot = place if scores.bare or scores.factor == 1.0 else f"({place} * {factor})"
    inside = [f"key < {p.a.n}"] if p.a.n % p.tile_n else []
    body.line("float score = -INFINITY;")
    with body.block(f"if ({' && '.join(inside)})" if inside else ""):
        render = expressions(p.a, 1, helpers, names, p.a.extents(), body, dot=dot)
        if scores.bare:
            tests = [render(e) if holds else f"!{render(e)}" for e, holds in scores.masks]
            body.line(f"score = {' && '.join(tests) or '1'} ? {place} : -INFINITY;")
        else:
            body.line(f"score = {render(p.a.score)};")
    body.line(f"{place} = score;")


def _weights(p: Plan, body: Source) -> None:
    """Weights in place of the scores, and totals and sums relative to the new maxima."""
    steep = "steepness"
    exp2 = p.target.exp2
    if p.products.splits:
        body.line(f"float scales[{p.tiles_m}][{len(row_registers(p.c))}];")
    with body.loop("i", p.tiles_m, unroll=True):
        for h, registers in enumerate(row_registers(p.c).values()):
            with body.block(""):
                body.line(f"float top = tops[i][{h}];")
                with body.loop("j", p.tiles_n, unroll=True):
                    for r in registers:
                        body.line(f"top = fmax(top, scores[i][j][{r}]);")
                for mask in row_masks(p.c):
                    with body.block(""):
                        body.line("float other;")
                        body.line(f"TW_SHUFFLE_XOR(other, top, {mask});")
                        body.line("top = fmax(top, other);")
                # Where every score so far is -inf, weights are taken relative to 0: they are 0 then, not NaN.
                body.line(f"const float base = top == -INFINITY ? 0.0f : -{steep} * top;")
                old = multiply_add(p.target.fma, f"tops[i][{h}]", steep, "base")
                body.line(f"const float scale = {exp2}({old});")
                body.line("float sum = 0;")
                with body.loop("j", p.tiles_n, unroll=True):
                    for r in registers:
                        each = multiply_add(p.target.fma, f"scores[i][j][{r}]", steep, "base")
                        body.line(f"scores[i][j][{r}] = {exp2}({each});")
                        body.line(f"sum += scores[i][j][{r}];")
                body.line(f"tops[i][{h}] = top;")
                body.line(f"totals[i][{h}] = {multiply_add(p.target.fma, f'totals[i][{h}]', 'scale', 'sum')};")
                if p.products.splits:
                    body.line(f"scales[i][{h}] = scale;")
                    continue
                with body.loop("c", p.tiles_e, unroll=True):
                    body.line(" ".join(f"sums[i][c][{r}] *= scale;" for r in registers))


# --- sums -------------------------------------------------------------------------------------------------------------


def _sums(p: Plan, body: Source, helpers: dict[str, str]) -> None:
    """``sums[tile of rows][tile of columns][register] += weights * values``."""
    steps, count = p.keys // p.instruction.k, p.instruction.a.count
    slot = "" if p.stages == 1 else f" + slot * {p.tile_n * p.pitch_e}"
    body.line(f"const {_pointer(p)} v_block = values{slot} + part * {p.keys * p.pitch_e};")
    if not p.products.splits:
        with body.loop("k", steps, unroll=True):
            body.line(f"uint w[{p.tiles_m}][{count}];")
            weights_tile(p, body, helpers, "w")
            with body.loop("j", p.tiles_e, 2, unroll=True):
                values_tile(p, body, "v_block")
                _multiply(p, body, helpers, ("w[i]", "", ""), ("sums[i][j + {t}]", ""))
        return
    body.line(f"uint w_high[{steps}][{p.tiles_m}][{count}], w_low[{steps}][{p.tiles_m}][{count}];")
    with body.loop("k", steps, unroll=True):
        body.line(f"uint w[{p.tiles_m}][{count}];")
        weights_tile(p, body, helpers, "w")
        with body.loop("i", p.tiles_m, unroll=True), body.loop("r", count, unroll=True):
            split_in_two(body, helpers, "w[i][r]", "w_high[k][i][r]", "w_low[k][i][r]")
    with body.loop("j", p.tiles_e, 2, unroll=True):
        body.line(f"float added[{p.tiles_m}][2][{p.c.count}], small[{p.tiles_m}][2][{p.c.count}];")
        with body.loop("i", p.tiles_m, unroll=True), body.loop("t", 2, unroll=True):
            body.line(" ".join(f"added[i][t][{r}] = small[i][t][{r}] = 0;" for r in range(p.c.count)))
        with body.loop("k", steps, unroll=True):
            values_tile(p, body, "v_block")
            to = ("added[i][{t}]", "small[i][{t}]")
            _multiply(p, body, helpers, ("", "w_high[k][i]", "w_low[k][i]"), to)
        with body.loop("i", p.tiles_m, unroll=True), body.loop("t", 2, unroll=True):
            for h, registers in enumerate(row_registers(p.c).values()):
                for r in registers:
                    total = multiply_add(
                        p.target.fma,
                        f"sums[i][j + t][{r}]",
                        f"scales[i][{h}]",
                        f"(added[i][t][{r}] + small[i][t][{r}])",
                    )
                    body.line(f"sums[i][j + t][{r}] = {total};")
