"""What Winograd convolution costs, in cycles of one core, roughly: to choose tiles and blocks without measuring.

A core does two multiply-adds of vectors per cycle in the products; a transform spends a few cycles per position and
vector, for loads, stores and arithmetic; what does not stay in the second-level cache comes at a few bytes per cycle.
"""

from __future__ import annotations

import math

from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.families.winograd_convolution import Convolution, Tiling
from tilewright.dsl.families.winograd_fused import Plan
from tilewright.dsl.target import Target

TRANSFORM = 6.0
"""Cycles per position of a tile and vector of channels, measured with AVX2."""
STREAM = 16.0
"""(guess) Bytes per cycle from the third-level cache."""
FAR = 4.0
"""(guess) Bytes per cycle of a core's share of memory: between runs of a network the weights do not stay in caches."""


def waste(c: Convolution) -> str | None:
    """Why the convolution has too few channels: its transforms would cost more than the multiplications they save."""
    inputs, outputs = c.depth.extent, c.column.extent
    taps = math.prod(s.tap.extent for s in c.slides)
    for m in c.sizes():
        t = Tiling(c, m)
        made = m ** len(c.slides)
        saved = inputs * outputs * (made * taps - t.positions) / 2
        if saved >= TRANSFORM * t.positions * (inputs + outputs):
            return None
    return f"{inputs} to {outputs} channels do not pay for transforming them"


def size_cost(t: Tiling, target: Target) -> float:
    """Cycles of all cores together for tiles of this size, however they are cut into blocks."""
    c, lanes = t.c, target.lanes(t.c.dtype.itemsize)
    inputs, outputs = c.depth.extent, c.column.extent
    products = t.tiles * inputs * outputs / (2 * lanes)
    transforms = TRANSFORM * t.tiles * (inputs + outputs) / lanes
    weights = inputs * outputs * c.dtype.itemsize / FAR
    return c.g * t.positions * (products + transforms + weights)


def cut_cost(p: Plan) -> float:
    """Cycles of the core that has the most to do."""
    t, c = p.t, p.t.c
    size, lanes = c.dtype.itemsize, p.target.lanes(c.dtype.itemsize)
    inputs, outputs = c.depth.extent, p.share * p.width
    tiles = min(p.block, ceil_div(t.tiles, p.rows) * p.rows)
    data = TRANSFORM * tiles * inputs / lanes
    products = tiles * inputs * outputs / (2 * lanes)
    output = TRANSFORM * tiles * outputs / lanes
    weights = inputs * outputs * size / STREAM
    # Data that does not stay in the cache is read anew for every panel.
    again = p.share * tiles * inputs * size / STREAM if t.positions * tiles * inputs * size > p.target.l2_bytes else 0.0
    item = t.positions * (data + products + output + weights + again)
    return ceil_div(p.blocks * p.splits * c.g, p.target.compute_units) * item
