"""Rows that split operands cannot give, computed by plain products: where inputs are infinite or close to it.

The low part of an infinite value is inf - inf, and a value within half a unit of the largest float rounds to infinity.
Sums that such a value enters are NaN where plain products may give infinities, or numbers (a key whose score is -inf
has weight 0). No sum of anything else is. So a work-group that finds a sum that is not finite computes its rows again:
every work-item a few columns of a row, in two passes over the keys. That is slow, and right.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_pass import MAXIMUM, PRODUCT, TOTAL
from tilewright.dsl.families.attention_plan import Plan
from tilewright.dsl.families.attention_text import declare_rows, expressions, names_of, weight
from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.program import Expr
from tilewright.dsl.writer import Source, argument, multiply_add, store

COLUMNS = 8
"""Columns of a work-item."""


def declare_flag(body: Source) -> None:
    """Declare `broken`, which one work-item clears; a barrier must follow before others set it."""
    body.line("__local int broken;")
    with body.block("if (item == 0)"):
        body.line("broken = 0;")


def repair(p: Plan, body: Source, helpers: dict[str, str]) -> None:
    """Compute the work-group's rows again if any of its sums is not finite, after these were stored."""
    body.line("float check = 0;")
    with body.loop("i", p.tiles_m, unroll=True), body.loop("c", p.tiles_e, unroll=True):
        for r in range(p.c.count):
            body.line(f"check = {multiply_add(p.target.fma, f'sums[i][c][{r}]', '0.0f', 'check')};")
    with body.block("if (check != 0)"):
        body.line("broken = 1;")
    body.line("barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);")
    pieces = ceil_div(p.a.e, COLUMNS)
    with body.block("if (broken)"), body.block(f"for (int e = item; e < {p.tile_m * pieces}; e += {p.items})"):
        body.line(f"const int first = e % {pieces} * {COLUMNS};")
        body.line(f"const {p.ctype} row = row0 + e / {pieces};")
        with body.block(f"if (row < {p.a.m})" if p.a.m % p.tile_m else ""):
            declare_rows(p.a, body, "row", p.ctype)
            _row(p, body, helpers)


def _row(p: Plan, body: Source, helpers: dict[str, str]) -> None:
    """The columns from `first` on of the row `row`."""
    a = p.a
    body.line("float top = -INFINITY;")
    with _keys(p, body):
        _score(p, body, helpers)
        body.line("top = score > top ? score : top;")
    body.line("const float base = top == -INFINITY ? 0.0f : top;")
    body.line(f"float total = 0, parts[{COLUMNS}];")
    with body.loop("c", COLUMNS, unroll=True):
        body.line("parts[c] = 0;")
    with _keys(p, body):
        _score(p, body, helpers)
        body.line(f"const float w = {weight(a, 'score', 'base', 'float', True)};")
        body.line("total += w;")
        with body.loop("c", COLUMNS, unroll=True):
            body.line(f"const int column = min(first + c, {a.e - 1});")
            value = _rendered(p, body, helpers, a.values, "v")
            body.line(f"parts[c] = {multiply_add(p.target.fma, 'w', value, 'parts[c]')};")
    # Over nothing but -inf the maximum is -inf, and the weights are NaN.
    body.line("const float nothing = top == -INFINITY ? NAN : 0.0f;")
    with body.loop("c", COLUMNS, unroll=True):
        body.line("const int column = first + c;")
        with body.block(f"if (column < {a.e})" if a.e % COLUMNS else ""):
            names = names_of(a)
            results = {MAXIMUM: "top", TOTAL: "(total + nothing)", PRODUCT: "(parts[c] + nothing)"}
            render = expressions(a, 1, helpers, names, a.extents(), body, prefix="y", results=results)
            value = render.converted(render(a.value), a.value.dtype, a.output.dtype)
            body.line(store(argument(a.output.name), a.address, names, a.output.dtype, 1, value))


def _keys(p: Plan, body: Source) -> AbstractContextManager[None]:
    """The loop over the keys that may count for the group's rows."""
    end = f"min(end_key, ({p.ctype}){p.a.n})"
    return body.block(f"for ({p.ctype} key = first_key; key < {end}; ++key)")


def _score(p: Plan, body: Source, helpers: dict[str, str]) -> None:
    """Declare `score`, of `row` and `key`."""
    a = p.a
    body.line("float product = 0;")
    with body.loop("depth", a.d):
        query = _rendered(p, body, helpers, a.query, "q")
        keys = _rendered(p, body, helpers, a.keys, "k")
        body.line(f"product = {multiply_add(p.target.fma, query, keys, 'product')};")
    render = expressions(a, 1, helpers, names_of(a), a.extents(), body, dot="product")
    body.line(f"const float score = {render(a.score)};")


def _rendered(p: Plan, body: Source, helpers: dict[str, str], value: Expr, prefix: str) -> str:
    render = expressions(p.a, 1, helpers, names_of(p.a), p.a.extents(), body, prefix=prefix)
    return render.converted(render(value), value.dtype, DType.F32)
