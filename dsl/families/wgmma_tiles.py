"""Which tiles a work-group computes, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tilewright.dsl.families.contraction import NAMES, decompose
from tilewright.dsl.families.wgmma_plan import Plan
from tilewright.dsl.writer import Source


@contextmanager
def each_tile(p: Plan, body: Source) -> Iterator[None]:
    """Declare group, m0 and n0 of every tile of this work-group around what is written inside.

    Tiles go in bands of `band` rows of tiles, column by column within a band, so that work-groups that run at the same
    time read few different parts of both operands and find them in the cache.
    """
    rows, columns = p.grid
    if p.groups == p.tiles:
        header, first = "", "const int tile = get_group_id(0);"
    else:
        header = f"for (int tile = get_group_id(0); tile < {p.tiles}; tile += {p.groups})"
        first = ""
    with body.block(header):
        if first:
            body.line(first)
        body.line(f"const int group = tile / {rows * columns}, within = tile % {rows * columns};")
        body.line(f"const int band = within / {p.band * columns}, in_band = within % {p.band * columns};")
        body.line(f"const int band_rows = min({rows} - band * {p.band}, {p.band});")
        body.line(f"const {p.ctype} m0 = (band * {p.band} + in_band % band_rows) * {p.tile_m};")
        body.line(f"const {p.ctype} n0 = in_band / band_rows * {p.tile_n};")
        for text in decompose("group", p.c.groups, lambda i: NAMES[i.name], p.ctype):
            body.line(text)
        yield
