"""One pass over keys on CPUs: a work-item takes a block of rows through all keys, in vector code.

    transpose the rows of q once
    for every block of keys:
        scores   rows in the lanes: register tiles of keys x vectors of rows; k's elements are broadcast
        maximum, exponentials and their sums: lane by lane, so without any reduction across a vector
        products columns in the lanes: register tiles of rows x vectors of columns; weights are broadcast
    finish every row, store

Neither k nor v needs another layout for that: k is read element by element, v along its columns. Where they cannot be
read so (f16, expressions, columns that are scattered or no whole number of vectors), blocks of them are copied first.
The running sums are rescaled when a block's products join them, so that sums are as short as a block (see
contract_cpu.py on blocked sums).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_algebra import KEY
from tilewright.dsl.families.attention_form import Attention
from tilewright.dsl.families.attention_pass import DEPTH, MAXIMUM, PRODUCT, TOTAL
from tilewright.dsl.families.attention_text import (
    FLAT,
    along_lanes,
    base_address,
    declare_batch,
    declare_range,
    declare_rows,
    expressions,
    in_place,
    names_of,
    rows_along_lanes,
    weight,
)
from tilewright.dsl.families.shared import Geometry, banner, ceil_div, kernel_name, launch, round_up
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Expr, substitute_indices
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.writer import (
    LANE,
    Source,
    argument,
    index_type,
    load,
    multiply_add,
    store,
    vector_type,
)


@dataclass(frozen=True)
class Tile:
    """A pass with the numbers of one configuration."""

    a: Attention
    target: Target
    lanes: int
    """Rows in a vector of scores."""
    vectors: int
    """Vectors of rows per work-item."""
    keys: int
    """Keys of a register tile of scores."""
    block: int
    """Keys of a block, a multiple of those of a tile."""
    item_rows: int
    """Rows of a register tile of products."""
    item_columns: int
    """Vectors of columns of a register tile of products."""
    copy_k: bool
    copy_v: bool
    ctype: str

    @property
    def rows(self) -> int:
        """Rows per work-item."""
        return self.lanes * self.vectors

    @property
    def column_lanes(self) -> int:
        """Columns in a vector."""
        return column_lanes(self.a, self.target)

    @property
    def width(self) -> int:
        """Columns with those that fill up the last vector."""
        return round_up(self.a.e, self.column_lanes)

    @property
    def vector(self) -> str:
        """C type of a vector of scores."""
        return vector_type(DType.F32, self.lanes)

    @property
    def column_vector(self) -> str:
        """C type of a vector of columns."""
        return vector_type(DType.F32, self.column_lanes)

    def extents(self) -> dict[str, int]:
        """How far each C variable runs; rows beyond the last one are computed, but not stored."""
        first = round_up(self.a.m, self.rows) - self.lanes + 1
        return {**self.a.extents(), FLAT: first}


def column_lanes(a: Attention, target: Target) -> int:
    """The widest vector that the columns fill at least half."""
    lanes = target.lanes(4)
    while lanes > 1 and lanes // 2 >= a.e:
        lanes //= 2
    return lanes


def reads_keys_in_place(a: Attention) -> bool:
    """Whether k's elements can be broadcast from where they lie."""
    found = None if a.depth is None else in_place(a, a.keys, a.depth)
    return a.depth is None or (found is not None and found.dtype is DType.F32)


def reads_values_in_place(a: Attention, target: Target) -> bool:
    """Whether vectors of v's columns can be loaded from where they lie."""
    found = in_place(a, a.values, a.column)
    if found is None or a.e % column_lanes(a, target):
        return False
    return a.program.tensors[found.tensor].address(found.index).coefficient(a.column.name) == 1


def lower(a: Attention, target: Target, configuration: Configuration) -> Lowering:
    """The kernel of one configuration."""
    tile = Tile(
        a,
        target,
        lanes=configuration.integer("lanes"),
        vectors=configuration.integer("vectors"),
        keys=configuration.integer("keys"),
        block=configuration.integer("block"),
        item_rows=configuration.integer("item_rows"),
        item_columns=configuration.integer("item_columns"),
        copy_k=bool(configuration["copy_k"]),
        copy_v=bool(configuration["copy_v"]),
        ctype=index_type(a.program),
    )
    body = Source()
    helpers: dict[str, str] = {}
    _kernel(tile, body, helpers)
    geometry = Geometry((ceil_div(a.m, tile.rows), a.g), (1, 1))
    top = banner("attention", a.program, configuration)
    program = replace(a.program, intermediates=())
    return Lowering((launch(kernel_name("attention", program), program, geometry, body, helpers, top),))


def _kernel(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    a, v = tile.a, tile.ctype
    body.line(f"const {v} row0 = ({v})get_global_id(0) * {tile.rows}, group = ({v})get_global_id(1);")
    body.line(f"const int rows = min({tile.rows}, (int)({a.m} - row0));")
    declare_batch(a, body, "group", v)
    declare_range(a, body, tile.rows, tile.block, tile.keys, v)
    body.line(f"float scores[{tile.block * tile.rows}], sums[{tile.rows * tile.width}], scales[{tile.rows}];")
    with body.loop("e", tile.rows * tile.width):
        body.line("sums[e] = 0;")
    if a.depth:
        _transpose_query(tile, body, helpers)
    for vector in range(tile.vectors):
        body.line(f"{tile.vector} maximum{vector} = -INFINITY, total{vector} = 0;")
    if tile.copy_k:
        body.line(f"float keys_copy[{tile.block * a.d}];")
    if tile.copy_v:
        body.line(f"float values_copy[{tile.block * tile.width}];")
    with body.block(f"for ({v} key0 = first_key; key0 < end_key; key0 += {tile.block})"):
        body.line(f"const int keys = min({tile.block}, (int)(end_key - key0));")
        if tile.copy_k:
            _copy_keys(tile, body, helpers)
        if tile.copy_v:
            _copy_values(tile, body, helpers)
        if a.depth:
            _scores(tile, body, helpers)
        _weights(tile, body, helpers)
        _products(tile, body, helpers)
    _finish(tile, body, helpers)


def _transpose_query(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """`query[depth][row]`; rows beyond the last one repeat it."""
    a = tile.a
    body.line(f"float query[{a.d * tile.rows}];")
    with body.loop("r", tile.rows):
        flat = f"min(row0 + r, ({tile.ctype}){a.m - 1})" if a.m % tile.rows else "row0 + r"
        body.line(f"const {tile.ctype} row = {flat};")
        declare_rows(a, body, "row", tile.ctype)
        with body.loop("depth", a.d):
            render = expressions(a, 1, helpers, names_of(a), a.extents(), body)
            body.line(f"query[depth * {tile.rows} + r] = {render(a.query)};")


def _copy_keys(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """`keys_copy[key][depth]`."""
    a = tile.a
    assert a.depth
    with body.block("for (int j = 0; j < keys; ++j)"):
        body.line(f"const {tile.ctype} key = key0 + j;")
        _copy_row(tile, body, helpers, "keys_copy", a.keys, a.depth.name, (a.d, a.d, tile.target.lanes(4)))


def _copy_values(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """`values_copy[key][column]`, with zeros in the columns beyond the last one."""
    a = tile.a
    with body.block("for (int j = 0; j < keys; ++j)"):
        body.line(f"const {tile.ctype} key = key0 + j;")
        _copy_row(tile, body, helpers, "values_copy", a.values, a.column.name, (a.e, tile.width, tile.column_lanes))
        if tile.width > a.e:
            with body.block(f"for (int e = {a.e}; e < {tile.width}; ++e)"):
                body.line(f"values_copy[j * {tile.width} + e] = 0;")


def _copy_row(
    tile: Tile, body: Source, helpers: dict[str, str], to: str, value: Expr, along: str, sizes: tuple[int, int, int]
) -> None:
    """Row `j` of a copy: `sizes` are its elements, the distance of two rows, and the lanes of a vector."""
    a = tile.a
    count, pitch, lanes = sizes
    names = names_of(a)
    at = names[along]
    whole = count - count % lanes
    for width, first, end in ((lanes, 0, whole), (1, whole, count)):
        if first == end:
            continue
        with body.block(f"for (int {at} = {first}; {at} < {end}; {at} += {width})"):
            moved = substitute_indices(value, along_lanes(along)) if width > 1 else value
            extent = {**a.extents(), along: end - width + 1}
            text = expressions(a, width, helpers, names, extent, body)(moved)
            place = f"j * {pitch} + {at}"
            body.line(f"vstore{width}({text}, 0, {to} + {place});" if width > 1 else f"{to}[{place}] = {text};")


# --- scores -----------------------------------------------------------------------------------------------------------


def _scores(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """`scores[key][row]` of the block, before masks and the like."""
    a = tile.a
    pointer, step, along = _key_source(tile, body, helpers)
    rest = a.n % tile.keys
    if a.n >= tile.keys:
        with body.block(f"for (int j = 0; j + {tile.keys} <= keys; j += {tile.keys})"):
            _score_tile(tile, body, tile.keys, (pointer, step, along))
    if rest:
        with body.block(f"if (keys % {tile.keys})"):
            body.line(f"const int j = keys - {rest};")
            _score_tile(tile, body, rest, (pointer, step, along))


def _key_source(tile: Tile, body: Source, helpers: dict[str, str]) -> tuple[str, int, int]:
    """Pointer to the block's first key, and the steps from key to key and along the depth."""
    a = tile.a
    assert a.depth
    if tile.copy_k:
        return "keys_copy", a.d, 1
    read = in_place(a, a.keys, a.depth)
    assert read is not None
    address = a.program.tensors[read.tensor].address(read.index)
    step = address.coefficient(KEY)
    start = f"{base_address(a, read, a.depth, helpers)} + key0 * {step}"
    body.line(f"__global const float* k = {argument(read.tensor)} + {start};")
    return "k", step, address.coefficient(DEPTH)


def _score_tile(tile: Tile, body: Source, keys: int, source: tuple[str, int, int]) -> None:
    a, lanes = tile.a, tile.lanes
    pointer, step, along = source
    every = [(t, v) for t in range(keys) for v in range(tile.vectors)]
    body.line(f"{tile.vector} {', '.join(f's{t}_{v} = 0' for t, v in every)};")
    with body.loop("depth", a.d):
        for v in range(tile.vectors):
            body.line(f"const {tile.vector} q{v} = {_load(lanes, f'query + depth * {tile.rows} + {v * lanes}')};")
        for t in range(keys):
            at = f"(j + {t}) * {step} + depth * {along}"
            body.line(f"const {tile.vector} k{t} = ({tile.vector})({pointer}[{at}]);")
            for v in range(tile.vectors):
                body.line(f"s{t}_{v} = {multiply_add(tile.target.fma, f'k{t}', f'q{v}', f's{t}_{v}')};")
    for t, v in every:
        body.line(_store(lanes, f"s{t}_{v}", f"scores + (j + {t}) * {tile.rows} + {v * lanes}"))


def _load(lanes: int, place: str) -> str:
    return f"vload{lanes}(0, {place})" if lanes > 1 else f"*({place})"


def _store(lanes: int, value: str, place: str) -> str:
    return f"vstore{lanes}({value}, 0, {place});" if lanes > 1 else f"*({place}) = {value};"


# --- weights ----------------------------------------------------------------------------------------------------------


def _weights(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """Finish the scores, move the maxima on, and turn scores into weights."""
    a, lanes, vectors = tile.a, tile.lanes, range(tile.vectors)
    places = [f"scores + j * {tile.rows} + {v * lanes}" for v in vectors]
    for v in vectors:
        body.line(f"{tile.vector} top{v} = maximum{v};")
    with body.block("for (int j = 0; j < keys; ++j)"):
        body.line(f"const {tile.ctype} key = key0 + j;")
        for v in vectors:
            with body.block(""):
                body.line(f"const {tile.ctype} row = row0 + {v * lanes};")
                score = substitute_indices(a.score, rows_along_lanes(a, tile.extents()))
                dot = _load(lanes, places[v])
                render = expressions(a, lanes, helpers, names_of(a), tile.extents(), body, dot=dot)
                body.line(f"const {tile.vector} s = {render(score)};")
                body.line(_store(lanes, "s", places[v]))
                body.line(f"top{v} = s > top{v} ? s : top{v};")
    for v in vectors:
        # Where every score so far is -inf, weights are taken relative to 0: they are 0 then, not NaN.
        body.line(f"const {tile.vector} base{v} = top{v} == -INFINITY ? ({tile.vector})(0) : top{v};")
        body.line(f"const {tile.vector} scale{v} = {weight(a, f'maximum{v}', f'base{v}', tile.vector)};")
        body.line(f"{tile.vector} part{v} = 0;")
    with body.block("for (int j = 0; j < keys; ++j)"):
        for v in vectors:
            body.line(f"const {tile.vector} w{v} = {weight(a, _load(lanes, places[v]), f'base{v}', tile.vector)};")
            body.line(f"part{v} += w{v};")
            body.line(_store(lanes, f"w{v}", places[v]))
    for v in vectors:
        body.line(f"total{v} = total{v} * scale{v} + part{v};")
        body.line(f"maximum{v} = top{v};")
        body.line(_store(lanes, f"scale{v}", f"scales + {v * lanes}"))


# --- products ---------------------------------------------------------------------------------------------------------


def _products(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """``sums[row][column] = sums * scale + weights * values``."""
    a = tile.a
    if not tile.copy_v:
        read = in_place(a, a.values, a.column)
        assert read is not None
        body.line(f"const {tile.ctype} v = {base_address(a, read, a.column, helpers)};")
    with body.block(f"for (int r = 0; r < rows; r += {tile.item_rows})"):
        vectors = tile.width // tile.column_lanes
        rest = vectors % tile.item_columns
        whole = (vectors - rest) * tile.column_lanes
        if whole:
            with body.loop("column", whole, step=tile.item_columns * tile.column_lanes):
                _product_tile(tile, body, tile.item_columns)
        if rest:
            with body.block(""):
                body.line(f"const int column = {whole};")
                _product_tile(tile, body, rest)


def _product_tile(tile: Tile, body: Source, columns: int) -> None:
    lanes, vector = tile.column_lanes, tile.column_vector
    every = [(r, c) for r in range(tile.item_rows) for c in range(columns)]
    body.line(f"{vector} {', '.join(f'o{r}_{c} = 0' for r, c in every)};")
    with body.block("for (int j = 0; j < keys; ++j)"):
        for c in range(columns):
            body.line(f"const {vector} v{c} = {_values(tile, c * lanes)};")
        for r in range(tile.item_rows):
            body.line(f"const {vector} w{r} = ({vector})(scores[j * {tile.rows} + r + {r}]);")
            for c in range(columns):
                body.line(f"o{r}_{c} = {multiply_add(tile.target.fma, f'w{r}', f'v{c}', f'o{r}_{c}')};")
    for r, c in every:
        place = f"sums + (r + {r}) * {tile.width} + column + {c * lanes}"
        body.line(_store(lanes, f"o{r}_{c} + {_load(lanes, place)} * scales[r + {r}]", place))


def _values(tile: Tile, offset: int) -> str:
    """C text of a vector of the values of key `j` of the block."""
    a, lanes = tile.a, tile.column_lanes
    if tile.copy_v:
        return _load(lanes, f"values_copy + j * {tile.width} + column + {offset}")
    read = in_place(a, a.values, a.column)
    assert read is not None
    tensor = a.program.tensors[read.tensor]
    step = tensor.address(read.index).coefficient(KEY)
    address = Affine.of({"~v": 1, "~j": step, "~c": 1, LANE: 1}, offset)
    names = {"~v": "v", "~j": "(key0 + j)", "~c": "column"}
    return load(argument(read.tensor), address, names, tensor.dtype, lanes)


# --- output -----------------------------------------------------------------------------------------------------------


def _finish(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """Compute and store the output's elements of every row."""
    a, lanes = tile.a, tile.lanes
    body.line(f"float totals[{tile.rows}], maxima[{tile.rows}], voids[{tile.rows}];")
    for v in range(tile.vectors):
        # Over nothing but -inf the maximum is -inf, and the weights are NaN.
        body.line(f"const {tile.vector} void{v} = maximum{v} == -INFINITY ? ({tile.vector})(NAN) : ({tile.vector})(0);")
        for value, to in ((f"total{v} + void{v}", "totals"), (f"maximum{v}", "maxima"), (f"void{v}", "voids")):
            body.line(_store(lanes, value, f"{to} + {v * lanes}"))
    with body.block("for (int r = 0; r < rows; ++r)"):
        body.line(f"const {tile.ctype} row = row0 + r;")
        declare_rows(a, body, "row", tile.ctype)
        whole = a.e - a.e % tile.column_lanes
        if whole:
            with body.loop("column", whole, step=tile.column_lanes):
                _output(tile, body, helpers, tile.column_lanes, whole)
        if a.e > whole:
            with body.block(f"for (int column = {whole}; column < {a.e}; ++column)"):
                _output(tile, body, helpers, 1, a.e)


def _output(tile: Tile, body: Source, helpers: dict[str, str], lanes: int, end: int) -> None:
    """Store `lanes` elements of row `row`, from `column` (below `end`) on."""
    a = tile.a
    names = names_of(a)
    body.line(f"const {vector_type(DType.F32, lanes)} sum = {_load(lanes, f'sums + r * {tile.width} + column')};")
    splat = f"({vector_type(DType.F32, lanes)})"
    results = {MAXIMUM: f"{splat}(maxima[r])", TOTAL: f"{splat}(totals[r])", PRODUCT: "(sum + voids[r])"}
    moved = substitute_indices(a.value, along_lanes(a.column.name))
    extent = {**a.extents(), a.column.name: end - lanes + 1}
    render = expressions(a, lanes, helpers, names, extent, body, prefix="y", results=results)
    value = render.converted(render(moved), a.value.dtype, a.output.dtype)
    body.line(f"const {vector_type(a.output.dtype, lanes)} result = {value};")
    address = a.address.substitute(along_lanes(a.column.name))
    body.line(store(argument(a.output.name), address, names, a.output.dtype, lanes, "result"))
