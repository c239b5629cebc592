"""One pass over keys on GPUs: a work-group takes a block of rows through all keys, with k and v staged in local memory.

    stage the rows of q
    for every block of keys:
        stage k; barrier
        scores   every item computes its item_m x item_n part; row maxima of the parts go to local memory; barrier
        maxima   one item per row moves its maximum on and leaves the scale of what was summed before; barrier
        weights  of the own scores to local memory; stage v where k was; barrier
        products every item adds to its item_m rows x columns of the sums; barrier
    combine the parts' totals, finish, store

Staged tensors are transposed so that what an item reads in one step of a product lies together: `query[depth][row]`,
`staged[depth][key]`, `weights[key][row]`, `staged[key][column]`. k and v share their memory, and so do the weights and
what the items of a row exchange; a barrier stands between every use and the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilewright.dsl.families.attention_algebra import KEY
from tilewright.dsl.families.attention_form import Attention
from tilewright.dsl.families.attention_pass import DEPTH, MAXIMUM, PRODUCT, TOTAL
from tilewright.dsl.families.attention_text import (
    declare_batch,
    declare_range,
    declare_rows,
    expressions,
    names_of,
    weight,
)
from tilewright.dsl.families.shared import Geometry, banner, ceil_div, kernel_name, launch, round_up
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Expr, reads
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.writer import Source, argument, index_type, multiply_add, store

BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"


@dataclass(frozen=True)
class Tile:
    """A pass with the numbers of one configuration."""

    a: Attention
    target: Target
    tile_m: int
    """Rows of a work-group."""
    tile_n: int
    """Keys of a block."""
    item_m: int
    """Rows of a work-item."""
    item_n: int
    """Keys of a work-item within a block."""
    pad: int
    """Spare elements behind each row of local memory."""
    ctype: str

    @property
    def across(self) -> int:
        """Work-items that share a row."""
        return self.tile_n // self.item_n

    @property
    def items(self) -> int:
        """Work-items of a work-group."""
        return self.across * (self.tile_m // self.item_m)

    @property
    def columns(self) -> int:
        """Columns of a work-item."""
        return ceil_div(self.a.e, self.across)

    @property
    def width(self) -> int:
        """Columns with those that fill up the last work-item's."""
        return self.columns * self.across

    @property
    def pitch_m(self) -> int:
        """Distance of two rows of local memory that hold an element for each row of the group."""
        return self.tile_m + self.pad

    @property
    def pitch_n(self) -> int:
        """The same for each key of a block."""
        return self.tile_n + self.pad

    @property
    def pitch_e(self) -> int:
        """The same for each column."""
        return self.width + self.pad

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of each array in local memory."""
        exchange = self.tile_m * (self.across + 1)
        return {
            "query": self.a.d * self.pitch_m,
            "staged": max(self.a.d * self.pitch_n, self.tile_n * self.pitch_e),
            "weights": max(self.tile_n * self.pitch_m, exchange),
            "maxima": self.tile_m,
            "scales": self.tile_m,
        }


def tile_of(a: Attention, target: Target, c: Configuration) -> Tile:
    """The numbers of a configuration."""
    rows, keys = (c.integer("tile_m"), c.integer("item_m")), (c.integer("tile_n"), c.integer("item_n"))
    pad, ctype = c.integer("pad_local"), index_type(a.program)
    return Tile(a, target, rows[0], keys[0], rows[1], keys[1], pad, ctype)


def local_bytes(tile: Tile) -> int:
    """Local memory of one work-group."""
    return sum(4 * round_up(n, 4) for n in tile.sizes.values())


def lower(a: Attention, target: Target, configuration: Configuration) -> Lowering:
    """The kernel of one configuration."""
    tile = tile_of(a, target, configuration)
    body = Source()
    helpers: dict[str, str] = {}
    _kernel(tile, body, helpers)
    geometry = Geometry((ceil_div(a.m, tile.tile_m) * tile.items, a.g), (tile.items, 1))
    top = banner("attention", a.program, configuration)
    program = replace(a.program, intermediates=())
    return Lowering((launch(kernel_name("attention", program), program, geometry, body, helpers, top),))


def _kernel(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    a, v = tile.a, tile.ctype
    for name, size in tile.sizes.items():
        if size:
            # Vectors, so that the compiler knows the alignment and joins what an item reads.
            body.line(f"__local float4 {name}_memory[{ceil_div(size, 4)}];")
            body.line(f"__local float* const {name} = (__local float*){name}_memory;")
    body.line("const int item = get_local_id(0);")
    body.line(f"const int across = item % {tile.across}, down = item / {tile.across};")
    body.line(f"const {v} row0 = ({v})get_group_id(0) * {tile.tile_m}, group = ({v})get_global_id(1);")
    declare_batch(a, body, "group", v)
    declare_range(a, body, tile.tile_m, tile.tile_n, tile.tile_n, v)
    if a.depth:
        _stage_query(tile, body, helpers)
    with body.block(f"for (int r = item; r < {tile.tile_m}; r += {tile.items})"):
        body.line("maxima[r] = -INFINITY;")
    body.line(f"float sums[{tile.item_m}][{tile.columns}], totals[{tile.item_m}];")
    with body.loop("i", tile.item_m, unroll=True):
        body.line("totals[i] = 0;")
        with body.loop("c", tile.columns, unroll=True):
            body.line("sums[i][c] = 0;")
    with body.block(f"for ({v} key0 = first_key; key0 < end_key; key0 += {tile.tile_n})"):
        if a.depth:
            _stage_keys(tile, body, helpers)
        body.line(BARRIER)
        _scores(tile, body, helpers)
        body.line(BARRIER)
        _maxima(tile, body)
        body.line(BARRIER)
        _weights(tile, body)
        _stage_values(tile, body, helpers)
        body.line(BARRIER)
        _products(tile, body)
        body.line(BARRIER)
    _finish(tile, body, helpers)


# --- staging ----------------------------------------------------------------------------------------------------------


def _stage_query(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """`query[depth][row]`; rows beyond the last one repeat it."""
    a = tile.a
    with body.block(f"for (int e = item; e < {tile.tile_m * a.d}; e += {tile.items})"):
        body.line(f"const int depth = e % {a.d}, r = e / {a.d};")
        flat = f"min(row0 + r, ({tile.ctype}){a.m - 1})" if a.m % tile.tile_m else "row0 + r"
        body.line(f"const {tile.ctype} row = {flat};")
        declare_rows(a, body, "row", tile.ctype)
        render = expressions(a, 1, helpers, names_of(a), a.extents(), body)
        body.line(f"query[depth * {tile.pitch_m} + r] = {render(a.query)};")


def _stage_keys(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """`staged[depth][key]`."""
    a = tile.a
    place = f"staged[depth * {tile.pitch_n} + j]"
    _stage(tile, body, helpers, a.keys, ("depth", a.d, a.d), place, _moves_faster(a, a.keys, DEPTH))


def _stage_values(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """`staged[key][column]`, with zeros beyond the last key and the last column."""
    a = tile.a
    place = f"staged[j * {tile.pitch_e} + column]"
    fast = _moves_faster(a, a.values, a.column.name)
    _stage(tile, body, helpers, a.values, ("column", a.e, tile.width), place, fast)


def _stage(
    tile: Tile,
    body: Source,
    helpers: dict[str, str],
    value: Expr,
    other: tuple[str, int, int],
    place: str,
    other_first: bool,
) -> None:
    """Copy a block of an operand: `other` is the index beside the key, with its extent and that of the copy.

    Neighbouring items copy neighbours along the index that moves less in memory.
    """
    a = tile.a
    name, extent, count = other
    with body.block(f"for (int e = item; e < {tile.tile_n * count}; e += {tile.items})"):
        if other_first:
            body.line(f"const int {name} = e % {count}, j = e / {count};")
        else:
            body.line(f"const int j = e % {tile.tile_n}, {name} = e / {tile.tile_n};")
        body.line(f"const {tile.ctype} key = key0 + j;")
        body.line("float value = 0;")
        tests = [f"key < {a.n}"] if a.n % tile.tile_n else []
        tests += [f"{name} < {extent}"] if count > extent else []
        with body.block(f"if ({' && '.join(tests)})" if tests else ""):
            render = expressions(a, 1, helpers, names_of(a), a.extents(), body)
            body.line(f"value = {render(value)};")
        body.line(f"{place} = value;")


def _moves_faster(a: Attention, value: Expr, other: str) -> bool:
    """Whether memory moves less along `other` than along the keys."""
    places = [a.program.tensors[r.tensor].address(r.index) for r in reads(value)]

    def least(name: str) -> int:
        return min((abs(c) for p in places if (c := p.coefficient(name))), default=1 << 62)

    return least(other) <= least(KEY)


# --- scores and weights -----------------------------------------------------------------------------------------------


def _scores(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """The item's scores, and their maxima in `weights[row][across]`; keys beyond the last one have -inf."""
    a = tile.a
    body.line(f"float scores[{tile.item_m}][{tile.item_n}];")
    with body.loop("i", tile.item_m, unroll=True), body.loop("j", tile.item_n, unroll=True):
        body.line("scores[i][j] = 0;")
    if a.depth:
        body.line("#pragma unroll 4")
        with body.loop("depth", a.d):
            body.line(f"float q[{tile.item_m}], k[{tile.item_n}];")
            with body.loop("i", tile.item_m, unroll=True):
                body.line(f"q[i] = query[depth * {tile.pitch_m} + down * {tile.item_m} + i];")
            with body.loop("j", tile.item_n, unroll=True):
                body.line(f"k[j] = staged[depth * {tile.pitch_n} + across * {tile.item_n} + j];")
            with body.loop("i", tile.item_m, unroll=True), body.loop("j", tile.item_n, unroll=True):
                body.line(f"scores[i][j] = {multiply_add(tile.target.fma, 'q[i]', 'k[j]', 'scores[i][j]')};")
    with body.loop("i", tile.item_m, unroll=True):
        body.line(f"const {tile.ctype} row = {_row(tile, 'i')};")
        declare_rows(a, body, "row", tile.ctype)
        body.line("float top = -INFINITY;")
        with body.loop("j", tile.item_n, unroll=True):
            body.line(f"const {tile.ctype} key = key0 + across * {tile.item_n} + j;")
            if a.n % tile.tile_n:
                body.line("float score = -INFINITY;")
            with body.block(f"if (key < {a.n})" if a.n % tile.tile_n else ""):
                render = expressions(a, 1, helpers, names_of(a), a.extents(), body, dot="scores[i][j]")
                text = render(a.score)
                body.line(f"score = {text};" if a.n % tile.tile_n else f"scores[i][j] = {text};")
            if a.n % tile.tile_n:
                body.line("scores[i][j] = score;")
            body.line("top = scores[i][j] > top ? scores[i][j] : top;")
        body.line(f"weights[(down * {tile.item_m} + i) * {tile.across + 1} + across] = top;")


def _row(tile: Tile, i: str) -> str:
    """The row of an item's number `i`; those beyond the last one repeat it."""
    row = f"row0 + down * {tile.item_m} + {i}"
    return f"min({row}, ({tile.ctype}){tile.a.m - 1})" if tile.a.m % tile.tile_m else row


def _maxima(tile: Tile, body: Source) -> None:
    """Move the rows' maxima on, and leave the scale of what was summed relative to the old ones."""
    with body.block(f"for (int r = item; r < {tile.tile_m}; r += {tile.items})"):
        body.line("const float old = maxima[r];")
        body.line("float top = old;")
        with body.loop("t", tile.across):
            body.line(f"const float other = weights[r * {tile.across + 1} + t];")
            body.line("top = other > top ? other : top;")
        body.line("maxima[r] = top;")
        body.line(f"scales[r] = {weight(tile.a, 'old', '(top == -INFINITY ? 0.0f : top)', 'float', True)};")


def _weights(tile: Tile, body: Source) -> None:
    """`weights[key][row]`, and the totals and sums relative to the new maxima."""
    with body.loop("i", tile.item_m, unroll=True):
        body.line(f"const int r = down * {tile.item_m} + i;")
        # Where every score so far is -inf, weights are taken relative to 0: they are 0 then, not NaN.
        body.line("const float top = maxima[r], base = top == -INFINITY ? 0.0f : top, scale = scales[r];")
        body.line("float part = 0;")
        with body.loop("j", tile.item_n, unroll=True):
            body.line(f"scores[i][j] = {weight(tile.a, 'scores[i][j]', 'base', 'float', True)};")
            body.line("part += scores[i][j];")
        body.line("totals[i] = totals[i] * scale + part;")
        with body.loop("c", tile.columns, unroll=True):
            body.line("sums[i][c] *= scale;")
    with body.loop("j", tile.item_n, unroll=True), body.loop("i", tile.item_m, unroll=True):
        place = f"(across * {tile.item_n} + j) * {tile.pitch_m} + down * {tile.item_m} + i"
        body.line(f"weights[{place}] = scores[i][j];")


def _products(tile: Tile, body: Source) -> None:
    """``sums[row][column] += weights * values``."""
    body.line("#pragma unroll 4")
    with body.loop("j", tile.tile_n):
        body.line(f"float w[{tile.item_m}], v[{tile.columns}];")
        with body.loop("i", tile.item_m, unroll=True):
            body.line(f"w[i] = weights[j * {tile.pitch_m} + down * {tile.item_m} + i];")
        with body.loop("c", tile.columns, unroll=True):
            body.line(f"v[c] = staged[j * {tile.pitch_e} + {_column(tile)}];")
        with body.loop("i", tile.item_m, unroll=True), body.loop("c", tile.columns, unroll=True):
            body.line(f"sums[i][c] = {multiply_add(tile.target.fma, 'w[i]', 'v[c]', 'sums[i][c]')};")


def _column(tile: Tile) -> str:
    """Where column `c` of an item lies: in runs of up to four, which are one load, and the items' runs side by side."""
    run = 4 if tile.columns % 4 == 0 else 2 if tile.columns % 2 == 0 else 1
    if run == 1:
        return f"c * {tile.across} + across"
    return f"c / {run} * {run * tile.across} + across * {run} + c % {run}"


# --- output -----------------------------------------------------------------------------------------------------------


def _finish(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """Combine the totals of the items of a row, then compute and store every element."""
    a = tile.a
    # After a last barrier of the loop (or none at all, with no keys) the weights' memory is free.
    with body.loop("i", tile.item_m, unroll=True):
        body.line(f"weights[(down * {tile.item_m} + i) * {tile.across + 1} + across] = totals[i];")
    body.line(BARRIER)
    with body.loop("i", tile.item_m, unroll=True):
        body.line(f"const int r = down * {tile.item_m} + i;")
        body.line("float total = 0;")
        with body.loop("t", tile.across):
            body.line(f"total += weights[r * {tile.across + 1} + t];")
        # Over nothing but -inf the maximum is -inf, and the weights are NaN.
        body.line("const float nothing = maxima[r] == -INFINITY ? NAN : 0.0f;")
        body.line(f"const {tile.ctype} row = row0 + r;")
        with body.block(f"if (row < {a.m})" if a.m % tile.tile_m else ""):
            declare_rows(a, body, "row", tile.ctype)
            with body.loop("c", tile.columns, unroll=True):
                body.line(f"const int column = {_column(tile)};")
                with body.block(f"if (column < {a.e})" if tile.width > a.e else ""):
                    _element(tile, body, helpers)


def _element(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """Store the element at `row` and `column`."""
    a = tile.a
    names = names_of(a)
    results = {MAXIMUM: "maxima[r]", TOTAL: "(total + nothing)", PRODUCT: "(sums[i][c] + nothing)"}
    render = expressions(a, 1, helpers, names, a.extents(), body, prefix="y", results=results)
    value = render.converted(render(a.value), a.value.dtype, a.output.dtype)
    body.line(store(argument(a.output.name), a.address, names, a.output.dtype, 1, value))
