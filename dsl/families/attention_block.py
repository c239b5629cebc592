"""What one pass over keys by matrix instructions does with a block of keys: scores, masks, weights, sums.

Everything is unrolled over tiles, so that arrays are registers.
"""

from __future__ import annotations

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_algebra import bounds_of
from tilewright.dsl.families.attention_fragments import row_masks, row_registers
from tilewright.dsl.families.attention_operands import keys_tile, query_tile, values_tile, weights_tile
from tilewright.dsl.families.attention_plan import Plan, Scores, base_text, weight_text
from tilewright.dsl.families.attention_text import declare_rows, expressions, extreme, names_of
from tilewright.dsl.writer import Source, literal, multiply_add

LOADED_STEPS = 4
"""Steps of the depth that are unrolled where q is loaded in each: compilers load ahead as far as they see."""


def clear(p: Plan, body: Source, name: str, tiles: int) -> None:
    """Zeros in the accumulators of row tile `i`."""
    with body.loop("j", tiles, unroll=True):
        body.line(" ".join(f"{name}[i][j][{r}] = 0;" for r in range(p.c.count)))


def declare_scores(p: Plan, body: Source) -> None:
    """Declare what a block's steps hand on."""
    for name in _accumulators(p):
        body.line(f"float {name}[{p.tiles_m}][{p.tiles_n}][{p.c.count}];")
    if p.products.splits:
        body.line(f"float scales[{p.tiles_m}][{len(row_registers(p.c))}];")


def _accumulators(p: Plan) -> tuple[str, ...]:
    """The accumulators of scores; small products have their own."""
    return ("scores", "small") if p.products.splits else ("scores",)


# --- scores -----------------------------------------------------------------------------------------------------------


def compute_scores(p: Plan, body: Source, helpers: dict[str, str]) -> None:
    """`scores[tile of rows][tile of keys][register]`: the product of q and k."""
    splits, count = p.products.splits, p.instruction.a.count
    with body.loop("i", p.tiles_m, unroll=True):
        for name in _accumulators(p):
            clear(p, body, name, p.tiles_n)
    slot = "" if p.stages == 1 else f" + slot * {p.tile_n * p.pitch_d}"
    body.line(f"const {_pointer(p)} k_block = keys{slot} + part * {p.keys * p.pitch_d};")
    steps = p.depth // p.instruction.k
    if not p.held:
        body.line(f"#pragma unroll {min(steps, LOADED_STEPS)}")
    with body.loop("k", steps, unroll=p.held):
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
    # Sums that wait for one another are far apart.
    pairs = ((small, low, "b_high"), (small, high, "b_low"), (large, high, "b_high"))
    for accumulators, a, b in pairs if p.products.splits else ((large, whole, "b"),):
        with body.loop("i", p.tiles_m, unroll=True):
            for t in range(2):
                body.line(f"{name}({accumulators.format(t=t)}, {a}, {b}[{t}]);")


def _pointer(p: Plan) -> str:
    return f"__local {'float' if p.itemsize == 4 else 'ushort'}*"


# --- masks and weights ------------------------------------------------------------------------------------------------


def mask_scores(p: Plan, scores: Scores, body: Source, helpers: dict[str, str], ragged: bool) -> None:
    """Scores from products where they are not `bare`, and -inf where a mask or the end of the keys is."""
    if scores.bare and not ragged and not scores.masks:
        return
    whole = []
    if scores.bare and scores.bounded:
        bounds = bounds_of(p.a.score)
        whole = [f"key0 + {p.keys * p.split} <= {p.a.n}"] if ragged else []
        whole += [f"key0 + {p.keys * p.split - 1} <= {extreme(p.a, b, p.tile_m, False, p.ctype)}" for b in bounds.last]
        whole += [f"key0 >= {extreme(p.a, b, p.tile_m, True, p.ctype)}" for b in bounds.first]
    with body.block(f"if (!({' && '.join(whole)}))" if whole else ""), body.loop("i", p.tiles_m, unroll=True):
        for row, registers in row_registers(p.c).items():
            with body.block(""):
                body.line(f"const {p.ctype} row = {p.row_text(row, clamped=True)};")
                declare_rows(p.a, body, "row", p.ctype)
                with body.loop("j", p.tiles_n, unroll=True):
                    for r in registers:
                        with body.block(""):
                            _mask_one(p, scores, body, helpers, r, ragged)


def _mask_one(p: Plan, scores: Scores, body: Source, helpers: dict[str, str], r: int, ragged: bool) -> None:
    column = p.c.offset(r)[1]
    place = f"scores[i][j][{r}]"
    offset = f" + {column}" if column else ""
    body.line(f"const {p.ctype} key = key0 + part * {p.keys} + j * {p.instruction.n} + lane_column{offset};")
    names, factor = names_of(p.a), literal(scores.factor, DType.F32)
    dot = place if scores.bare or scores.factor == 1.0 else f"({place} * {factor})"
    inside = [f"key < {p.a.n}"] if ragged else []
    body.line("float score = -INFINITY;")
    with body.block(f"if ({' && '.join(inside)})" if inside else ""):
        render = expressions(p.a, 1, helpers, names, p.a.extents(), body, dot=dot)
        if scores.bare:
            tests = [render(e) if holds else f"!{render(e)}" for e, holds in scores.masks]
            body.line(f"score = {' && '.join(tests) or '1'} ? {place} : -INFINITY;")
        else:
            body.line(f"score = {render(p.a.score)};")
    body.line(f"{place} = score;")


def compute_weights(p: Plan, scores: Scores, body: Source) -> None:
    """Weights in place of the scores, and totals and sums relative to the new maxima."""
    with body.loop("i", p.tiles_m, unroll=True):
        for h, registers in enumerate(row_registers(p.c).values()):
            with body.block(""):
                _weights_of_row(p, scores, body, h, registers)
                if p.products.splits:
                    body.line(f"scales[i][{h}] = scale;")
                    continue
                with body.loop("c", p.tiles_e, unroll=True):
                    body.line(" ".join(f"sums[i][c][{r}] *= scale;" for r in registers))


def _weights_of_row(p: Plan, scores: Scores, body: Source, h: int, registers: tuple[int, ...]) -> None:
    """Those of row `h` of row tile `i`; declares `scale`, of what was summed before."""
    body.line(f"float top = tops[i][{h}];")
    with body.loop("j", p.tiles_n, unroll=True):
        for r in registers:
            body.line(f"top = fmax(top, scores[i][j][{r}]);")
    for mask in row_masks(p.c):
        with body.block(""):
            body.line("float other;")
            body.line(f"TW_SHUFFLE_XOR(other, top, {mask});")
            body.line("top = fmax(top, other);")
    body.line(f"const float base = {base_text(p.a, scores, 'top')};")
    body.line(f"const float scale = {weight_text(p.a, scores, p.target, f'tops[i][{h}]')};")
    body.line("float sum = 0;")
    with body.loop("j", p.tiles_n, unroll=True):
        for r in registers:
            each = f"scores[i][j][{r}]"
            body.line(f"{each} = {weight_text(p.a, scores, p.target, each)};")
            body.line(f"sum += scores[i][j][{r}];")
    body.line(f"tops[i][{h}] = top;")
    body.line(f"totals[i][{h}] = {multiply_add(p.target.fma, f'totals[i][{h}]', 'scale', 'sum')};")


# --- sums -------------------------------------------------------------------------------------------------------------


def compute_sums(p: Plan, body: Source, helpers: dict[str, str]) -> None:
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
