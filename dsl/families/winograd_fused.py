"""Winograd convolution on CPUs, fused: a work-item takes blocks of tiles through all stages while they are in cache.

    for each block of tiles:
        transform the data of all input channels                                    [position][tile][channel]
        for each panel of output channels:
            for each position: products by the register tiles of `contract_cpu`     [position][tile][panel's channel]
            transform back, epilogue, store

Each work-item has memory of its own for the two arrays and uses it again for every block, so that they stay in the
second-level cache; weights stream through once per block, panel by panel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tilewright.dsl.families import contract_cpu
from tilewright.dsl.families.contraction import NAMES, Contraction, decompose, recognise
from tilewright.dsl.families.shared import CACHE_LINE, Geometry, ceil_div
from tilewright.dsl.families.winograd_convolution import Tiling
from tilewright.dsl.families.winograd_kernels import (
    DATA,
    GROUP,
    PRODUCTS,
    TILE,
    WEIGHTS,
    Writer,
    data_channels,
    kernel,
    panel_of,
    products_tile,
    weights_panels,
)
from tilewright.dsl.families.winograd_staged import batched_product
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import Program, Tensor, reads
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.writer import Source, affine, argument, index_type, storing_helpers, variable

SUM_BLOCK = 16
"""Input channels that are summed on their own: the last transform magnifies what rounding does to these sums."""
ITEMS_PER_UNIT = 4
"""Work-items per core that share out the blocks: enough to even out what else the cores do."""


@dataclass(frozen=True)
class Plan:
    """How the work is cut: sizes in tiles, channels and elements."""

    t: Tiling
    target: Target
    rows: int
    """Tiles of a register tile."""
    block: int
    """Tiles of a block."""
    width: int
    """Output channels of a panel."""
    splits: int
    """Work-items among which the panels are shared out; each transforms the data for itself."""
    prefetch: bool
    """Whether the products of a position ask for the weights of the next one."""

    @property
    def panels(self) -> int:
        """Panels of output channels in one group."""
        return ceil_div(self.t.c.column.extent, self.width)

    @property
    def share(self) -> int:
        """Panels of one work-item."""
        return ceil_div(self.panels, self.splits)

    @property
    def blocks(self) -> int:
        """Blocks of tiles in one group."""
        return ceil_div(self.t.tiles, self.block)

    @property
    def run(self) -> int:
        """Neighbouring blocks that one work-item computes."""
        wanted = ceil_div(ITEMS_PER_UNIT * self.target.compute_units, self.splits * self.t.c.g)
        return ceil_div(self.blocks, min(self.blocks, wanted))

    @property
    def items(self) -> tuple[int, int, int]:
        """Work-items: runs of blocks, splits of the panels, groups."""
        return ceil_div(self.blocks, self.run), self.splits, self.t.c.g

    @property
    def data_position(self) -> int:
        """Elements from one position to the next in a block's transformed data."""
        return self.block * self.t.c.depth.extent + CACHE_LINE // self.t.c.dtype.itemsize

    @property
    def product_position(self) -> int:
        """Elements from one position to the next in a panel's products."""
        return self.block * self.width + CACHE_LINE // self.t.c.dtype.itemsize


def plan_of(t: Tiling, target: Target, configuration: Configuration) -> Plan:
    """The cut of one configuration."""
    rows = configuration.integer("item_m")
    return Plan(
        t,
        target,
        rows,
        block=rows * configuration.integer("tiles"),
        width=configuration.integer("item_n") * target.lanes(t.c.dtype.itemsize),
        splits=configuration.integer("splits"),
        prefetch=bool(configuration["prefetch"]),
    )


def lower(t: Tiling, target: Target, configuration: Configuration) -> tuple[Lowering, dict[str, str]]:
    """The launches of one configuration (weights, everything else), and helper functions."""
    p = plan_of(t, target, configuration)
    items = math.prod(p.items)
    scratch = (
        Scratch(WEIGHTS, t.c.dtype, t.c.g * p.panels * t.positions * t.c.depth.extent * p.width),
        Scratch(DATA, t.c.dtype, items * t.positions * p.data_position),
        Scratch(PRODUCTS, t.c.dtype, items * t.positions * p.product_position),
    )
    ctype = index_type(t.c.program, max(s.size for s in scratch))
    helpers = storing_helpers(t.c.output.dtype, (1, target.lanes(t.c.dtype.itemsize)))
    launches = (
        weights_panels(t, target, ctype, helpers, p.width),
        _fused(p, ctype, helpers, configuration.integer("unroll_k")),
    )
    return Lowering(launches, scratch), helpers


def _fused(p: Plan, ctype: str, helpers: dict[str, str], unroll: int) -> Launch:
    t = p.t
    w = Writer(t, p.target, Source(), ctype, helpers)
    body, scalar = w.body, t.c.dtype.opencl
    runs, splits, _ = p.items
    body.line(f"const {ctype} run = get_global_id(0), split = get_global_id(1), {GROUP} = get_global_id(2);")
    body.line(f"const {ctype} own = ({GROUP} * {splits} + split) * {runs} + run;")
    body.line(f"__global {scalar}* restrict data = {argument(DATA)} + own * {t.positions * p.data_position};")
    body.line(
        f"__global {scalar}* restrict products = {argument(PRODUCTS)} + own * {t.positions * p.product_position};"
    )
    w.group(GROUP)
    last = f"min(run * {p.run} + {p.run}, ({ctype}){p.blocks})"
    with body.block(f"for ({ctype} block = run * {p.run}; block < {last}; ++block)"):
        body.line(f"const {ctype} count = min(({ctype}){p.block}, {t.tiles} - block * {p.block});")
        body.line(f"const {ctype} row_tiles = (count + {p.rows - 1}) / {p.rows};")
        _block_data(p, w)
        end = f"min(split * {p.share} + {p.share}, ({ctype}){p.panels})"
        with body.block(f"for ({ctype} panel = split * {p.share}; panel < {end}; ++panel)"):
            _panel_products(p, w, unroll)
            _panel_outputs(p, w)
    inputs = (*reads(t.c.data), *t.c.epilogue_reads())
    output = t.c.output.name
    scratch = (WEIGHTS, DATA, PRODUCTS)
    return kernel("winograd", w, Geometry(p.items, (1, 1, 1)), inputs, scratch, (DATA, PRODUCTS, output))


def _block_data(p: Plan, w: Writer) -> None:
    """Transform a block's data; register tiles that reach beyond the last tile repeat it."""
    depth = p.t.c.depth
    with w.body.block(f"for ({w.ctype} row = 0; row < row_tiles * {p.rows}; ++row)"):
        w.body.line(f"const {w.ctype} {TILE} = min(block * {p.block} + row, ({w.ctype}){p.t.tiles - 1});")
        w.coordinates(TILE)
        to = f"data + row * {depth.extent} + {variable(depth.name)}"
        data_channels(w, lambda n: f"{to} + {affine(n * p.data_position, w.names)}")


def _panel_products(p: Plan, w: Writer, unroll: int) -> None:
    """The products of a panel at every position."""
    t, body = p.t, w.body
    tile = _register_tile(p, unroll)
    scalar, size = t.c.dtype.opencl, t.positions * t.c.depth.extent * p.width
    with body.block(""):
        body.line(f"__global const {scalar}* {argument(DATA + '_block')} = data;")
        body.line(f"__global {scalar}* restrict {argument(PRODUCTS + '_panel')} = products;")
        offset = f"({GROUP} * {p.panels} + panel) * ({w.ctype}){size}"
        body.line(f"__global const {scalar}* {argument('packed_b')} = {argument(WEIGHTS)} + {offset};")
        body.line(f"const {w.ctype} column_block = 0, n0 = 0;")
        with body.loop("group", t.positions, ctype=w.ctype):
            for text in decompose("group", tile.c.groups, lambda i: NAMES[i.name], w.ctype):
                body.line(text)
            with body.block(f"for ({w.ctype} row_tile = 0; row_tile < row_tiles; ++row_tile)"):
                body.line(f"const {w.ctype} m0 = row_tile * {p.rows};")
                contract_cpu.register_tile(tile, body, w.helpers)


def _register_tile(p: Plan, unroll: int) -> contract_cpu.Tile:
    """The products of one panel as a contraction: a group per position, a row per tile of the block."""
    t, n, depth = p.t, p.t.positions, p.t.c.depth.extent
    data = Tensor(DATA + "_block", t.c.dtype, (n, 1, p.block, depth), (p.data_position, 0, depth, 1))
    weights = Tensor(WEIGHTS + "_panel", t.c.dtype, (n, 1, depth, p.width))
    products = Tensor(PRODUCTS + "_panel", t.c.dtype, (n, 1, p.block, p.width), (p.product_position, 0, p.width, 1))
    program = batched_product(t.c.dtype, (n, 1, p.block, p.width, depth), data, weights, products)
    values = {
        "item_m": p.rows,
        "item_n": p.width // p.target.lanes(t.c.dtype.itemsize),
        "tiles_m": 1,
        "unroll_k": unroll,
        "pack_a": 0,
        "pack_b": 1,
        "prefetch": 0,
        "interior": 0,
        "order": "m",
    }
    tile = contract_cpu.tile_of(_view(program, weights), program, p.target, Configuration.of(values))
    if p.prefetch:
        tile = contract_cpu.asking_ahead(tile, p.block // p.rows)
    return replace(tile, sum_block=SUM_BLOCK)


def _view(program: Program, weights: Tensor) -> Contraction:
    """The product seen with the output channels as its columns."""
    views = recognise(program)
    assert not isinstance(views, str)
    return next(v for v in views if v.b.read is not None and v.b.read.tensor == weights.name)


def _panel_outputs(p: Plan, w: Writer) -> None:
    """Transform the products of a panel back and store the outputs."""
    column = p.t.c.column
    with w.body.block(f"for ({w.ctype} row = 0; row < count; ++row)"):
        w.body.line(f"const {w.ctype} {TILE} = block * {p.block} + row;")
        w.coordinates(TILE)
        start = f"products + row * {p.width} + ({variable(column.name)} - panel * {p.width})"
        with panel_of(w, p.width) as each:
            each(lambda at: products_tile(at, lambda n: f"{start} + {affine(n * p.product_position, w.names)}"))
