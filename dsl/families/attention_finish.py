"""The end of one pass over keys by matrix instructions: parts combined, elements finished and stored."""

from __future__ import annotations

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_fragments import row_masks, row_registers
from tilewright.dsl.families.attention_pass import MAXIMUM, PRODUCT, TOTAL
from tilewright.dsl.families.attention_plan import Plan, Scores, base_text, weight_text
from tilewright.dsl.families.attention_text import along_lanes, declare_rows, expressions, names_of
from tilewright.dsl.families.shared import is_aligned
from tilewright.dsl.program import Call, Expr, Read, substitute_indices, transform
from tilewright.dsl.writer import LANE, Source, affine, argument, literal, store, vector_type

BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"
RECIPROCAL = Read("~reciprocal", (), DType.F32)
"""1 / total, as it stands in an element's value: one division for each row, not for each element."""


def combine_split(p: Plan, scores: Scores, body: Source) -> None:
    """Bring the sums of all parts of the keys to the first part's lanes, through the memory of k and v.

    A lane finds what belongs to it under its own number: all parts' fragments lie alike.
    """
    lanes = p.groups_m * p.instruction.lanes
    rows = len(row_registers(p.c))
    each = p.tiles_m * (p.tiles_e * p.c.count + 2 * rows)
    body.line("__local float* const exchange = (__local float*)staged_memory;")
    body.line(f"const int own = item % {lanes};")
    body.line(BARRIER)
    with body.block("if (part > 0)"):
        body.line(f"__local float* const mine = exchange + (part - 1) * {each * lanes} + own;")
        with body.loop("i", p.tiles_m, unroll=True):
            for h in range(rows):
                body.line(f"mine[(i * {2 * rows} + {2 * h}) * {lanes}] = tops[i][{h}];")
                body.line(f"mine[(i * {2 * rows} + {2 * h + 1}) * {lanes}] = totals[i][{h}];")
            with body.loop("c", p.tiles_e, unroll=True):
                for r in range(p.c.count):
                    body.line(f"mine[({_sum_slot(p, rows)} + {r}) * {lanes}] = sums[i][c][{r}];")
    body.line(BARRIER)
    with body.block("if (part == 0)"), body.loop("other", p.split - 1):
        body.line(f"__local const float* const theirs = exchange + other * {each * lanes} + own;")
        with body.loop("i", p.tiles_m, unroll=True):
            for h, registers in enumerate(row_registers(p.c).values()):
                _join(p, scores, body, h, registers)


def _sum_slot(p: Plan, rows: int) -> str:
    return f"{p.tiles_m * 2 * rows} + (i * {p.tiles_e} + c) * {p.c.count}"


def _join(p: Plan, scores: Scores, body: Source, h: int, registers: tuple[int, ...]) -> None:
    """Add another part's totals and sums of one row to the own ones, relative to the larger maximum."""
    lanes, rows = p.groups_m * p.instruction.lanes, len(row_registers(p.c))
    with body.block(""):
        body.line(f"const float top = theirs[(i * {2 * rows} + {2 * h}) * {lanes}];")
        body.line(f"const float most = fmax(tops[i][{h}], top);")
        body.line(f"const float base = {base_text(p.a, scores, 'most')};")
        body.line(f"const float here = {weight_text(p.a, scores, p.target, f'tops[i][{h}]')};")
        body.line(f"const float there = {weight_text(p.a, scores, p.target, 'top')};")
        body.line(f"tops[i][{h}] = most;")
        total = f"theirs[(i * {2 * rows} + {2 * h + 1}) * {lanes}]"
        body.line(f"totals[i][{h}] = totals[i][{h}] * here + {total} * there;")
        with body.loop("c", p.tiles_e, unroll=True):
            for r in registers:
                place = f"theirs[({_sum_slot(p, rows)} + {r}) * {lanes}]"
                body.line(f"sums[i][c][{r}] = sums[i][c][{r}] * here + {place} * there;")


def finish(p: Plan, scores: Scores, body: Source, helpers: dict[str, str]) -> None:
    """Combine the totals of the lanes of a row, then compute and store every element."""
    a = p.a
    with body.loop("i", p.tiles_m, unroll=True):
        for h, (offset, registers) in enumerate(row_registers(p.c).items()):
            with body.block(""):
                body.line(f"float total = totals[i][{h}];")
                for mask in row_masks(p.c):
                    with body.block(""):
                        body.line("float other;")
                        body.line(f"TW_SHUFFLE_XOR(other, total, {mask});")
                        body.line("total += other;")
                # Over nothing but -inf the maximum is -inf, and the weights are NaN.
                body.line(f"total += tops[i][{h}] == -INFINITY ? NAN : 0.0f;")
                body.line("const float reciprocal = 1.0f / total;")
                factor = literal(scores.factor, DType.F32)
                body.line(f"const float top = tops[i][{h}]{f' * {factor}' if scores.bare else ''};")
                body.line(f"const {p.ctype} row = {p.row_text(offset, clamped=False)};")
                tests = [f"row < {a.m}"] if a.m % p.tile_m else []
                tests += ["part == 0"] if p.split > 1 else []
                with body.block(f"if ({' && '.join(tests)})" if tests else ""):
                    declare_rows(a, body, "row", p.ctype)
                    with body.loop("c", p.tiles_e, unroll=True):
                        _row_of_tile(p, body, helpers, registers)


def _row_of_tile(p: Plan, body: Source, helpers: dict[str, str], registers: tuple[int, ...]) -> None:
    """Store the elements of one row of column tile `c`, in pairs where two registers are neighbours in memory."""
    a = p.a
    pairs = a.address.coefficient(a.column.name) == 1 and not a.address.bends(a.column.name) and a.e % 2 == 0
    columns = {p.c.offset(r)[1]: r for r in registers}
    pairs = pairs and all((column ^ 1) in columns for column in columns)
    for column, r in sorted(columns.items()):
        if pairs and column % 2:
            continue
        with body.block(""):
            offset = f" + {column}" if column else ""
            body.line(f"const int column = c * {p.instruction.n} + lane_column{offset};")
            with body.block(f"if (column < {a.e})" if p.columns > a.e else ""):
                if pairs:
                    _pair(p, body, helpers, r, columns[column ^ 1])
                else:
                    _single(p, body, helpers, r)


def _single(p: Plan, body: Source, helpers: dict[str, str], r: int) -> None:
    a, names = p.a, names_of(p.a)
    results = {MAXIMUM: "top", TOTAL: "total", RECIPROCAL: "reciprocal", PRODUCT: f"sums[i][c][{r}]"}
    render = expressions(a, 1, helpers, names, a.extents(), body, prefix="y", results=results)
    value = render.converted(render(_element(a.value)), a.value.dtype, a.output.dtype)
    body.line(store(argument(a.output.name), a.address, names, a.output.dtype, 1, value))


def _pair(p: Plan, body: Source, helpers: dict[str, str], first: int, second: int) -> None:
    a, names = p.a, names_of(p.a)
    results = {e: f"(float2)({name})" for e, name in ((MAXIMUM, "top"), (TOTAL, "total"), (RECIPROCAL, "reciprocal"))}
    results[PRODUCT] = f"(float2)(sums[i][c][{first}], sums[i][c][{second}])"
    wide = along_lanes(a.column.name)
    render = expressions(a, 2, helpers, names, a.extents(), body, prefix="y", results=results)
    value = render.converted(render(substitute_indices(_element(a.value), wide)), a.value.dtype, a.output.dtype)
    body.line(f"const {vector_type(a.output.dtype, 2)} result = {value};")
    address = a.address.substitute(wide)
    whole = is_aligned(a.output, address, 2, {a.column.name: 2})
    if whole and p.instruction.pack and p.instruction.operand is a.output.dtype:
        start = affine(address.without(LANE), names)
        place = f"*(__global uint*)({argument(a.output.name)} + {start})"
        body.line(f"{place} = {p.instruction.pack}(result.x, result.y);")
        return
    body.line(store(argument(a.output.name), address, names, a.output.dtype, 2, "result", whole))


def _element(value: Expr) -> Expr:
    """An element's value with divisions by the total turned into products."""

    def change(e: Expr) -> Expr:
        match e:
            case Call(function="div", args=(x, y)) if y == TOTAL:
                return Call("mul", (x, RECIPROCAL), e.dtype)
            case _:
                return e

    return transform(value, change)
