"""Winograd convolution in stages: transformed data and products of the whole image lie in memory between the kernels.

    V = transformed data;  M[position] = V[position] * U[position] for every position;  y = transformed back, epilogue

The products are one batched GEMM, lowered by the `contract` family.
"""

from __future__ import annotations

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contract import CONTRACT
from tilewright.dsl.families.shared import CACHE_LINE, Geometry, decode, round_up
from tilewright.dsl.families.winograd_convolution import Tiling
from tilewright.dsl.families.winograd_kernels import (
    DATA,
    GROUP,
    PRODUCTS,
    TILE,
    WEIGHTS,
    Writer,
    channels,
    data_channels,
    group_size,
    kernel,
    products_tile,
    weights_panels,
)
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import Call, Index, Program, Read, Reduce, Statement, Tensor, reads
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.dsl.writer import Source, affine, argument, index_type, storing_helpers, variable


def batched_product(
    dtype: DType, sizes: tuple[int, int, int, int, int], data: Tensor, weights: Tensor, products: Tensor
) -> Program:
    """``m[x,g,t,o] = sum(c) v[x,g,t,c] * u[x,g,c,o]`` for sizes (x, g, t, o, c)."""
    x, g, t, o, c = (Index(name, n) for name, n in zip("xgtoc", sizes, strict=True))

    def read(tensor: Tensor, *indices: Index) -> Read:
        return Read(tensor.name, tuple(Affine.index(i.name) for i in indices), dtype)

    body = Call("mul", (read(data, x, g, t, c), read(weights, x, g, c, o)), dtype)
    statement = Statement(products.name, (x, g, t, o), Reduce("sum", (c,), body, dtype))
    return Program("winograd", (data, weights), (products,), (statement,))


def product_program(t: Tiling, target: Target) -> Program:
    """The batched GEMM between the transforms, with its operands where the transforms put and seek them.

    On CPUs channels lie together, since vectors run along them; on GPUs whatever lies together in the images does.
    """
    c = t.c
    sizes = t.positions, c.g, t.tiles, c.column.extent, c.depth.extent
    shapes = (sizes[0], c.g, t.tiles, c.depth.extent), (sizes[0], c.g, t.tiles, c.column.extent)
    cpu = target.shape is Shape.CPU
    data = _stage(DATA, c.dtype, shapes[0], cpu or _channels_together(t))
    products = _stage(
        PRODUCTS, c.dtype, shapes[1], cpu or abs(t.address((Affine(),) * len(c.slides)).coefficient(c.column.name)) == 1
    )
    o, d = c.column.extent, c.depth.extent
    weights = Tensor(WEIGHTS, c.dtype, (sizes[0], c.g, d, o), (d * o, t.positions * d * o, o, 1))
    return batched_product(c.dtype, sizes, data, weights, products)


def _stage(name: str, dtype: DType, shape: tuple[int, int, int, int], channels_together: bool) -> Tensor:
    _, groups, tiles, channels = shape
    # Positions lie a line further apart, so that a tile's stores do not all fall into one set of the cache.
    position = groups * tiles * channels + CACHE_LINE // dtype.itemsize
    inner = (channels, 1) if channels_together else (1, tiles)
    return Tensor(name, dtype, shape, (position, tiles * channels, *inner))


def _channels_together(t: Tiling) -> bool:
    tensors = t.c.program.tensors
    steps = [abs(tensors[r.tensor].address(r.index).coefficient(t.c.depth.name)) for r in reads(t.c.data)]
    return min((s for s in steps if s), default=0) == 1


def lower(t: Tiling, target: Target, configuration: Configuration) -> tuple[Lowering, dict[str, str]]:
    """The launches with the given configuration of the `contract` family for the products, and helper functions."""
    program = product_program(t, target)
    data, products = program.inputs[0], program.outputs[0]
    stages = tuple(Scratch(s.name, s.dtype, s.span) for s in (*program.inputs, products))
    ctype = index_type(t.c.program, max(s.size for s in stages))
    helpers = storing_helpers(t.c.output.dtype, (1, target.lanes(t.c.dtype.itemsize)))
    product = CONTRACT.lower(program, target, configuration)
    launches = (
        weights_panels(t, target, ctype, helpers, t.c.column.extent),
        _data(t, target, ctype, helpers, data),
        *product.launches,
        _products(t, target, ctype, helpers, products),
    )
    return Lowering(launches, (*stages, *product.scratch)), helpers


def _tiles(w: Writer, channel: Index, channels_together: bool) -> Geometry:
    """Declare group, tile and, on GPUs, the channel of a work-item; on CPUs an item has all channels of a tile."""
    tiles, groups, target = w.tiling.tiles, w.tiling.c.g, w.target
    if target.shape is Shape.CPU:
        w.body.line(f"const {w.ctype} {TILE} = get_global_id(0), {GROUP} = get_global_id(1);")
        geometry = Geometry((tiles, groups), (1, 1))
    else:
        size, total = group_size(target), tiles * groups * channel.extent
        geometry = Geometry((round_up(total, size),), (size,))
        w.body.line(f"const {w.ctype} flat = get_global_id(0);")
        w.body.line(f"if (flat >= {total}) return;")
        inner = [(TILE, tiles), (variable(channel.name), channel.extent)]
        decode(w.body, "flat", [(GROUP, groups), *(inner if channels_together else inner[::-1])], w.ctype)
    w.group(GROUP)
    w.coordinates(TILE)
    return geometry


def _place(w: Writer, stage: Tensor, channel: Index, position: Affine) -> str:
    """Pointer to the current tile and channel at a position of a stage."""
    names = {"<group>": GROUP, "<tile>": TILE, "<channel>": variable(channel.name)}
    index = position, *(Affine.index(name) for name in names)
    return f"{argument(stage.name)} + {affine(stage.address(index), {**w.names, **names})}"


def _data(t: Tiling, target: Target, ctype: str, helpers: dict[str, str], stage: Tensor) -> Launch:
    w = Writer(t, target, Source(), ctype, helpers)
    geometry = _tiles(w, t.c.depth, stage.strides[3] == 1)
    data_channels(w, lambda n: _place(w, stage, t.c.depth, n))
    return kernel("winograd_data", w, geometry, reads(t.c.data), (DATA,), (DATA,))


def _products(t: Tiling, target: Target, ctype: str, helpers: dict[str, str], stage: Tensor) -> Launch:
    w, column = Writer(t, target, Source(), ctype, helpers), t.c.column
    geometry = _tiles(w, column, stage.strides[3] == 1)
    each = channels(w, column, "0", str(column.extent))
    each(lambda at: products_tile(at, lambda n: _place(at, stage, column, n)))
    output = t.c.output.name
    return kernel("winograd_output", w, geometry, t.c.epilogue_reads(), (PRODUCTS,), (output,))
