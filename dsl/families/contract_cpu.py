"""Contractions on CPUs: one work-item computes register tiles of the product in vector code.

    for each register tile of item_m rows x item_n vectors of columns:
        accumulators = 0
        for every depth index:  load item_n vectors of B, broadcast item_m elements of A, multiply-add
        epilogue, store

B is packed into panels of one tile's width, so that the inner loop reads it as one stream; weights are packed once,
ahead of time. A is read in place through one pointer per row (for a convolution: one per pixel); where the pointer
would leave the image it is turned to a row of pad values instead, so the inner loop has no range checks. The idea of
turning pointers rather than copying patches is that of Dukhan, "The Indirect Convolution Algorithm" (2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.contract_packing import CPU_KERNEL, KEEP_LOOP, Panels, pack
from tilewright.dsl.families.contraction import (
    NAMES,
    Access,
    Contraction,
    LoopNames,
    checked,
    conditions,
    decompose,
    linear_stride,
    multiply_add,
    parted,
)
from tilewright.dsl.families.shared import CACHE_LINE
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import Index, Program, Read, reads
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.text import statement_text
from tilewright.dsl.writer import (
    LANE,
    Expressions,
    Source,
    affine,
    argument,
    element,
    index_type,
    load,
    store,
    storing_helpers,
    vector_type,
)

SUM_BLOCK = 64
"""Terms of the depth that are summed on their own: with 256, resnet50's outputs are 9e-5 of the largest from those in
f64, with 64 they are 7e-5, for 1 to 3% of a product's time."""
WALKS = {
    "m": ("row_block", "column_block", "group"),
    "n": ("column_block", "row_block", "group"),
    "g": ("column_block", "group", "row_block"),
}
"""The order of work-items for each value of `order`, neighbours first."""
PAD_ROW_LIMIT = 16384
"""Longest row of pad values, in elements; beyond it the pointer's step is set to 0 instead."""


@dataclass(frozen=True)
class Tile:
    """A contraction with the numbers of one configuration."""

    c: Contraction
    program: Program
    target: Target
    rows: int
    """Rows of a register tile."""
    vectors: int
    """Vectors of columns in a register tile."""
    lanes: int
    tiles: int
    """Register tiles, one below the other, per work-item."""
    unroll: int
    pack_a: bool
    pack_b: bool
    interior: bool
    """Whether tiles that never leave the image have a loop of their own."""
    order: str
    """Which blocks neighbouring work-items walk: rows (m), columns (n), or columns and groups (g)."""
    ctype: str
    text: str
    """The configuration, for the kernel's comment."""
    ahead: int = 0
    """Cache lines of B's next panel that each turn of the inner loop asks for; 0 for none."""
    sum_block: int = SUM_BLOCK
    """Terms that are summed on their own where there are more than two blocks of them."""

    @property
    def width(self) -> int:
        """Columns of a register tile."""
        return self.vectors * self.lanes

    @property
    def row_blocks(self) -> int:
        """Work-items along the rows."""
        return -(-self.c.m // (self.rows * self.tiles))

    @property
    def column_blocks(self) -> int:
        """Work-items along the columns; also panels of B."""
        return -(-self.c.n // self.width)

    @property
    def panel_lines(self) -> int:
        """Cache lines of one panel of B."""
        return -(-self.c.k * self.width * self.c.dtype.itemsize // CACHE_LINE)

    @property
    def turns(self) -> int:
        """Turns of the inner loop for one register tile, the odd rest not counted."""
        inner = self.c.depth[-1].extent if self.c.depth else 1
        if self.pack_a:
            inner = self.c.k
        return max(1, self.c.k // inner * (inner // min(self.unroll, inner)))

    @property
    def vector(self) -> str:
        """OpenCL type of an accumulator."""
        return vector_type(self.c.dtype, self.lanes)

    @property
    def scalar(self) -> str:
        """OpenCL type of an accumulator's element."""
        return self.c.dtype.opencl

    @property
    def a(self) -> Access:
        """Where A is read in place (only without pack_a)."""
        assert self.c.a.read is not None
        return self.c.access(self.c.a.read)

    @property
    def b(self) -> Access:
        """Where B is read in place (only without pack_b)."""
        assert self.c.b.read is not None
        return self.c.access(self.c.b.read)


def lower(c: Contraction, program: Program, target: Target, configuration: Configuration) -> Lowering:
    """The kernels of one configuration: packing of A and B where asked for, then the product."""
    tile = tile_of(c, program, target, configuration)
    launches, scratch = [], []
    helpers = storing_helpers(c.output.tensor.dtype, (1, tile.lanes))
    if tile.pack_a:
        panels = tile.row_blocks * tile.tiles
        scratch.append(Scratch("packed_a", c.dtype, c.g * panels * c.k * tile.rows))
        a = Panels(c, program, c.a, "packed_a", c.rows, c.m, panels, tile.rows, tile.ctype)
        launches.append(pack(a, helpers))
    if tile.pack_b:
        scratch.append(Scratch("packed_b", c.dtype, c.g * tile.column_blocks * c.k * tile.width))
        b = Panels(c, program, c.b, "packed_b", c.columns, c.n, tile.column_blocks, tile.width, tile.ctype)
        launches.append(pack(b, helpers))
    if _turned(tile):
        fill = tile.a.tensor.pad
        scratch.append(Scratch("pad_row", tile.a.tensor.dtype, _pad_row(tile), fill=fill))
    launches.append(_product(tile, helpers))
    # One program for all kernels: every compilation has a fixed cost beside that of its text.
    source = "".join(f"{text}\n" for text in helpers.values()) + "".join(launch.source for launch in launches)
    return Lowering(tuple(replace(launch, source=source) for launch in launches), tuple(scratch))


def tile_of(c: Contraction, program: Program, target: Target, configuration: Configuration) -> Tile:
    """A contraction with the numbers of one configuration."""
    rows, width = configuration.integer("item_m"), configuration.integer("item_n") * target.lanes(c.dtype.itemsize)
    packed = max(configuration.integer("pack_a") * (c.m + rows), configuration.integer("pack_b") * (c.n + width))
    tile = Tile(
        c,
        program,
        target,
        rows=configuration.integer("item_m"),
        vectors=configuration.integer("item_n"),
        lanes=target.lanes(c.dtype.itemsize),
        tiles=configuration.integer("tiles_m"),
        unroll=configuration.integer("unroll_k"),
        pack_a=bool(configuration["pack_a"]),
        pack_b=bool(configuration["pack_b"]),
        interior=bool(configuration["interior"]),
        order=str(configuration["order"]),
        ctype=index_type(program, c.g * c.k * packed),
        text=str(configuration),
    )
    return asking_ahead(tile, tile.row_blocks * tile.tiles) if configuration["prefetch"] else tile


def asking_ahead(tile: Tile, visits: int) -> Tile:
    """A tile that asks for B's next panel while it works, where `visits` register tiles share a panel.

    Panels follow one another in memory, but the processor's own prefetching does not see that the next one is due only
    after the last register tile of this one.
    """
    return replace(tile, ahead=-(-tile.panel_lines // (tile.turns * visits)))


def _turned(tile: Tile) -> bool:
    """Whether pointers into A may have to be turned to the pad row."""
    return not tile.pack_a and bool(tile.a.checks)


# --- the product ----------------------------------------------------------------------------------------------------


def _product(tile: Tile, helpers: dict[str, str]) -> Launch:
    c = tile.c
    names = _arguments(tile)
    parameters = [_parameter(tile, n) for n in names]
    body = Source()
    with body.block(f"{CPU_KERNEL} contract({', '.join(parameters)})"):
        blocks = {"row_block": tile.row_blocks, "column_block": tile.column_blocks, "group": c.g}
        walked = WALKS[tile.order]
        ids = ", ".join(f"{name} = get_global_id({d})" for d, name in enumerate(walked))
        body.line(f"const {tile.ctype} {ids}, n0 = column_block * {tile.width};")
        for text in decompose("group", c.groups, lambda i: NAMES[i.name], tile.ctype):
            body.line(text)
        with body.block(f"for (int tile = 0; tile < {tile.tiles}; ++tile)" if tile.tiles > 1 else ""):
            at = f"row_block * {tile.tiles} + tile" if tile.tiles > 1 else "row_block"
            body.line(f"const {tile.ctype} row_tile = {at}, m0 = row_tile * {tile.rows};")
            if tile.tiles > 1:
                body.line(f"if (m0 >= {c.m}) break;")
            register_tile(tile, body, helpers)
    src = Source()
    src.line(f"// {statement_text(c.statement)}".replace("\\", ""))
    src.line(f"// contract: {c.m} rows x {c.n} columns x {c.k} deep, {c.g} groups; {tile.text}")
    src.line(body.text)
    first, second, third = (blocks[name] for name in walked)
    size = (first, second, third)
    return Launch("contract", src.text, size, (1, 1, 1), names, (c.statement.target,), c.in_place)


def register_tile(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """Compute and store one register tile.

    Declared are `group` and the indices that it is made of, `row_tile` and its first row `m0`, `column_block` and its
    first column `n0`.
    """
    _accumulate(tile, body)
    _store(tile, body, helpers)


def _arguments(tile: Tile) -> tuple[str, ...]:
    c = tile.c
    names = dict.fromkeys(["packed_a"] if tile.pack_a else [r.tensor for r in reads(c.a.value)])
    names.update(dict.fromkeys(["packed_b"] if tile.pack_b else [r.tensor for r in reads(c.b.value)]))
    names.update(dict.fromkeys(r.tensor for r in c.epilogue_reads()))
    if _turned(tile):
        names["pad_row"] = None
    names[c.statement.target] = None
    return tuple(names)


def _parameter(tile: Tile, name: str) -> str:
    if name == tile.c.statement.target:
        return f"__global {tile.c.output.tensor.dtype.opencl}* restrict {argument(name)}"
    if name in ("packed_a", "packed_b"):
        return f"__global const {tile.scalar}* restrict {argument(name)}"
    dtype = tile.a.tensor.dtype if name == "pad_row" else tile.program.tensors[name].dtype
    # The pad row and A stand in for each other, so neither may be restrict.
    free = name == "pad_row" or (_turned(tile) and name == tile.a.tensor.name)
    return f"__global const {dtype.opencl}* {'' if free else 'restrict '}{argument(name)}"


def _accumulate(tile: Tile, body: Source) -> None:
    """Declare the accumulators and write the loops over the depth."""
    for kind in ("c", "total") if _blocked(tile) else ("c",):
        zeros = ", ".join(f"{name} = 0" for name in _sums(tile, kind))
        body.line(f"{tile.vector} {zeros};")
    if tile.pack_b:
        panel = f"(group * {tile.column_blocks} + column_block) * ({tile.ctype}){tile.c.k * tile.width}"
        body.line(f"__global const {tile.scalar}* b = {argument('packed_b')} + {panel};")
        if tile.ahead:
            share, line = tile.turns * tile.ahead, CACHE_LINE // tile.c.dtype.itemsize
            start = f"b + {tile.c.k * tile.width} + row_tile * {share * line}"
            body.line(f"__global const {tile.scalar}* ahead = row_tile * {share} < {tile.panel_lines} ? {start} : b;")
    else:
        outer, _ = parted(tile.b.address, [i.name for i in (*tile.c.columns, *tile.c.depth)])
        body.line(f"__global const {tile.scalar}* b = {argument(tile.b.tensor.name)} + n0 + {affine(outer, NAMES)};")
    if tile.pack_a:
        panel = f"(group * {tile.row_blocks * tile.tiles} + row_tile) * ({tile.ctype}){tile.c.k * tile.rows}"
        body.line(f"__global const {tile.scalar}* a = {argument('packed_a')} + {panel};")
        _loops(tile, body, replace(tile.c, depth=_merged_depth(tile)).depth, turned=False)
        return
    _row_bases(tile, body)
    if not tile.a.checks:
        _loops(tile, body, tile.c.depth, turned=False)
    elif tile.interior:
        with body.block(f"if ({_interior(tile)})"):
            _loops(tile, body, tile.c.depth, turned=False)
        with body.block("else"):
            _loops(tile, body, _checked_depth(tile), turned=True)
    else:
        _loops(tile, body, _checked_depth(tile), turned=True)


def _blocked(tile: Tile) -> bool:
    """Whether the depth is summed in blocks."""
    return tile.c.k > 2 * tile.sum_block and tile.c.dtype.is_float


def _sums(tile: Tile, kind: str) -> list[str]:
    return [f"{kind}{i}_{j}" for i in range(tile.rows) for j in range(tile.vectors)]


def _flush(tile: Tile, body: Source) -> None:
    """Move a block's sums to the totals."""
    for total, part in zip(_sums(tile, "total"), _sums(tile, "c"), strict=True):
        body.line(f"{total} += {part}; {part} = 0;")


def _flush_level(depth: tuple[Index, ...], sum_block: int) -> int:
    """After how many of the depth's loops, counted from outside, a block of sums ends: as soon as it is long enough."""
    steps = 1
    for level in range(len(depth) - 1, 0, -1):
        steps *= depth[level].extent
        if steps >= sum_block // 4:
            return level
    return 0


def _merged_depth(tile: Tile) -> tuple[Index, ...]:
    """With both operands packed the depth is one run; B in place keeps its loops."""
    return (Index("k", tile.c.k),) if tile.pack_b else tile.c.depth


def _checked_depth(tile: Tile) -> tuple[Index, ...]:
    """Depth indices with one at the end that no range check depends on."""
    depth = tile.c.depth
    return depth if depth and depth[-1].name not in tile.a.checked_names else (*depth, Index("1", 1))


def _row_names(tile: Tile, row: int) -> LoopNames:
    return LoopNames({i.name: f"i_{i.name}_{row}" for i in tile.c.rows})


def _row_indices(tile: Tile, body: Source, row: int) -> None:
    """Declare the row indices of one row; rows beyond the last one repeat it (they are not stored)."""
    flat = f"m0 + {row}" if tile.c.m % tile.rows == 0 else f"min(m0 + {row}, ({tile.ctype}){tile.c.m - 1})"
    names = _row_names(tile, row)
    if len(tile.c.rows) > 1:
        body.line(f"const {tile.ctype} m_{row} = {flat};")
        flat = f"m_{row}"
    for text in decompose(flat, tile.c.rows, lambda i: names[i.name], tile.ctype):
        body.line(text)


def _row_bases(tile: Tile, body: Source) -> None:
    outer, _ = parted(tile.a.address, [i.name for i in tile.c.depth])
    for row in range(tile.rows):
        _row_indices(tile, body, row)
        body.line(f"const {tile.ctype} base_{row} = {affine(outer, _row_names(tile, row))};")


def _interior(tile: Tile) -> str:
    """C condition that no row of the tile leaves the tensor at any depth."""
    extent = {i.name: i.extent for i in tile.c.depth}
    tests = []
    for position, size in tile.a.checks:
        outer, inner = parted(position, extent)
        low, high = inner.range(extent)
        for row in range(tile.rows):
            at = affine(outer, _row_names(tile, row))
            tests.append(f"{at} >= {-low} && {at} < {size - high}")
    return " && ".join(dict.fromkeys(tests))


def _pad_row(tile: Tile) -> int:
    """Elements of the pad row: one inner loop's reach where that is short, else 1."""
    last = _checked_depth(tile)[-1]
    reach = (last.extent - 1) * abs(tile.a.address.coefficient(last.name)) + 1
    return reach if reach <= PAD_ROW_LIMIT and tile.a.address.coefficient(last.name) >= 0 else 1


def _loops(tile: Tile, body: Source, depth: tuple[Index, ...], turned: bool) -> None:
    """The depth loops; with `turned`, pointers that leave the tensor go to the pad row."""
    depth = depth or (Index("1", 1),)
    outer, inner = depth[:-1], depth[-1]
    flush = _flush_level(depth, tile.sum_block) if _blocked(tile) else -1

    def level(number: int) -> None:
        if number < len(outer):
            body.line(KEEP_LOOP)
            with body.loop(NAMES[outer[number].name], outer[number].extent, ctype=tile.ctype):
                level(number + 1)
                if flush == number + 1:
                    _flush(tile, body)
            return
        _pointers(tile, body, tuple(i.name for i in outer), inner, turned)
        _inner(tile, body, inner, turned)

    level(0)
    if _blocked(tile):
        # What the last block left joins the totals, which go on under the sums' names.
        for total, part in zip(_sums(tile, "total"), _sums(tile, "c"), strict=True):
            body.line(f"{part} += {total};")


def _pointers(tile: Tile, body: Source, bound: tuple[str, ...], inner: Index, turned: bool) -> None:
    if not tile.pack_b:
        _, walked = parted(tile.b.address, bound)
        body.line(f"__global const {tile.scalar}* bk = b + {affine(walked, NAMES)};")
    if tile.pack_a:
        return
    a = tile.a
    dtype, source = a.tensor.dtype.opencl, argument(a.tensor.name)
    _, walked = parted(a.address, bound)
    for row in range(tile.rows):
        place = f"{source} + base_{row}" + (f" + {affine(walked, NAMES)}" if walked.terms else "")
        if not turned:
            body.line(f"__global const {dtype}* a{row} = {place};")
            continue
        body.line(f"const int in{row} = {conditions(a.checks, _row_names(tile, row))};")
        body.line(f"__global const {dtype}* a{row} = in{row} ? {place} : {argument('pad_row')};")
        if _pad_row(tile) == 1 and inner.extent > 1:
            body.line(f"const {tile.ctype} step{row} = in{row} ? {a.address.coefficient(inner.name)} : 0;")


def _inner(tile: Tile, body: Source, inner: Index, turned: bool) -> None:
    """The innermost loop: `unroll` steps at a time, then the rest."""
    unroll = min(tile.unroll, inner.extent)
    whole = inner.extent - inner.extent % unroll
    if whole > unroll:
        with _long_loop(tile, body, whole, unroll):
            for u in range(unroll):
                _step_of_depth(tile, body, inner, f"k + {u}" if u else "k", turned)
            _ask_ahead(tile, body)
    else:
        for u in range(whole):
            _step_of_depth(tile, body, inner, str(u), turned)
        _ask_ahead(tile, body)
    if inner.extent - whole == 1:
        _step_of_depth(tile, body, inner, str(whole), turned)
    elif inner.extent > whole:
        with body.block(f"for ({tile.ctype} k = {whole}; k < {inner.extent}; ++k)"):
            _step_of_depth(tile, body, inner, "k", turned)
    if tile.pack_b:
        body.line(f"b += {inner.extent * tile.width};")
    if tile.pack_a:
        body.line(f"a += {inner.extent * tile.rows};")


def _ask_ahead(tile: Tile, body: Source) -> None:
    """Ask for the next lines of B's next panel."""
    line = CACHE_LINE // tile.c.dtype.itemsize
    for number in range(tile.ahead):
        body.line(f"prefetch(ahead + {number * line}, 1);")
    if tile.ahead:
        body.line(f"ahead += {tile.ahead * line};")


@contextmanager
def _long_loop(tile: Tile, body: Source, count: int, step: int) -> Iterator[None]:
    """A loop of `k` over the depth, in blocks where it is so long that its sums should be."""
    if not _blocked(tile) or count < 2 * tile.sum_block:
        with body.loop("k", count, step=step, ctype=tile.ctype):
            yield
        return
    block = tile.sum_block - tile.sum_block % step
    with body.loop("k0", count, step=block, ctype=tile.ctype):
        end = f"min(k0 + {block}, ({tile.ctype}){count})" if count % block else f"k0 + {block}"
        with body.block(f"for ({tile.ctype} k = k0; k < {end}; k += {step})"):
            yield
        _flush(tile, body)


def _step_of_depth(tile: Tile, body: Source, inner: Index, k: str, turned: bool) -> None:
    """One depth index: the outer product of a column of A and a row of B."""
    c = tile.c
    with body.block(""):
        stream, pitch = ("b", tile.width) if tile.pack_b else ("bk", tile.b.address.coefficient(inner.name))
        for j in range(tile.vectors):
            value = f"vload{tile.lanes}(0, {stream} + {_times(k, pitch)} + {j * tile.lanes})"
            if tile.lanes == 1:
                value = f"{stream}[{_times(k, pitch)} + {j}]"
            body.line(f"const {tile.vector} b{j} = {value};")
        for row in range(tile.rows):
            body.line(f"const {tile.vector} x{row} = ({tile.vector})({_a_element(tile, inner, row, k, turned)});")
            for j in range(tile.vectors):
                body.line(f"c{row}_{j} = {multiply_add(tile.target, c.dtype, f'x{row}', f'b{j}', f'c{row}_{j}')};")


def _a_element(tile: Tile, inner: Index, row: int, k: str, turned: bool) -> str:
    if tile.pack_a:
        return f"a[({k}) * {tile.rows} + {row}]"
    step: int | str = tile.a.address.coefficient(inner.name)
    if turned and _pad_row(tile) == 1 and inner.extent > 1:
        step = f"step{row}"
    return f"({tile.scalar}){element(f'a{row}', _times(k, step), tile.a.tensor.dtype)}"


def _times(k: str, step: int | str) -> str:
    """A depth times a step; the product of two numbers is written out, because C would make it an `int`."""
    return str(int(k) * step) if k.isdigit() and isinstance(step, int) else f"({k}) * {step}"


# --- epilogue and store ---------------------------------------------------------------------------------------------


def _store(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """Apply the epilogue and store: in vectors where memory allows it, element by element at the right edge."""
    c = tile.c
    if not _stores_vectors(tile):
        _store_elements(tile, body, helpers)
    elif c.n % tile.lanes == 0:
        _store_vectors(tile, body, helpers)
    else:
        with body.block(f"if (n0 + {tile.width} <= {c.n})"):
            _store_vectors(tile, body, helpers)
        with body.block("else"):
            _store_elements(tile, body, helpers)


def _stores_vectors(tile: Tile) -> bool:
    """Whether the output's columns are contiguous and the epilogue's reads contiguous or constant along them."""
    c = tile.c
    places = [c.output, *(c.access(r) for r in c.epilogue_reads())]
    steps = [linear_stride(p.address, c.columns) for p in places]
    return steps[0] == 1 and all(s in (0, 1) and not p.checks for p, s in zip(places, steps, strict=True))


def _store_vectors(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    c, lanes = tile.c, tile.lanes
    columns = [i.name for i in c.columns]
    for row in range(tile.rows):
        with body.block(f"if (m0 + {row} < {c.m})" if c.m % tile.rows else ""):
            if tile.pack_a:
                _row_indices(tile, body, row)
            names = _row_names(tile, row)
            for j in range(tile.vectors):
                guard = f"if (n0 + {j * lanes} < {c.n}) " if c.n % tile.width else ""
                body.line(guard + _vector_store(tile, names, columns, row, j, helpers))


def _vector_store(tile: Tile, names: LoopNames, columns: list[str], row: int, j: int, helpers: dict[str, str]) -> str:
    c, lanes = tile.c, tile.lanes

    names = LoopNames({**names, "<n0>": "n0"})

    def place(a: Access) -> Affine:
        base = parted(a.address, columns)[0]
        moves = linear_stride(a.address, c.columns) != 0
        return base + Affine.of({"<n0>": 1, LANE: 1}, j * lanes) if moves else base

    def read(r: Read) -> str:
        a = c.access(r)
        return load(argument(r.tensor), place(a), names, r.dtype, lanes)

    fast = tile.program.fast_math
    render = Expressions(read, names, tile.program.tensors, lambda _: f"c{row}_{j}", lanes, helpers, fast=fast)
    output = c.output.tensor
    return store(argument(output.name), place(c.output), names, output.dtype, lanes, render(c.statement.value))


def _store_elements(tile: Tile, body: Source, helpers: dict[str, str]) -> None:
    """One loop over the tile's elements, for edges and for outputs whose columns are scattered in memory."""
    c, lanes = tile.c, tile.lanes
    body.line(f"{tile.scalar} values[{tile.rows}][{tile.width}];")
    for row in range(tile.rows):
        for j in range(tile.vectors):
            to = f"&values[{row}][{j * lanes}]"
            body.line(f"vstore{lanes}(c{row}_{j}, 0, {to});" if lanes > 1 else f"*{to} = c{row}_{j};")
    rows = f"min({tile.rows}, (int)({c.m} - m0))" if c.m % tile.rows else str(tile.rows)
    columns = f"min({tile.width}, (int)({c.n} - n0))" if c.n % tile.width else str(tile.width)
    with body.block(f"for (int row = 0; row < {rows}; ++row)"):
        for text in decompose("(m0 + row)", c.rows, lambda i: NAMES[i.name], tile.ctype):
            body.line(text)
        with body.block(f"for (int lane = 0; lane < {columns}; ++lane)"):
            for text in decompose("(n0 + lane)", c.columns, lambda i: NAMES[i.name], tile.ctype):
                body.line(text)

            def read(r: Read) -> str:
                a = c.access(r)
                return checked(a, element(argument(r.tensor), affine(a.address, NAMES), r.dtype), NAMES)

            tensors, fast = tile.program.tensors, tile.program.fast_math
            render = Expressions(read, NAMES, tensors, lambda _: "values[row][lane]", helpers=helpers, fast=fast)
            value, output = render(c.statement.value), c.output.tensor
            body.line(store(argument(output.name), c.output.address, NAMES, output.dtype, 1, value))
