"""Which tiles a work-group computes, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tilewright.dsl.families.matrix_tiles import write_place
from tilewright.dsl.families.wgmma_plan import Plan
from tilewright.dsl.writer import Source


@contextmanager
def each_tile(p: Plan, body: Source) -> Iterator[None]:
    """Declare group, m0 and n0 of every tile of this work-group around what is written inside."""
    if p.groups == p.tiles:
        header, first = "", "const int tile = get_group_id(0);"
    else:
        header = f"for (int tile = get_group_id(0); tile < {p.tiles}; tile += {p.groups})"
        first = ""
    with body.block(header):
        if first:
            body.line(first)
        write_place(body, p.c, p.ctype, p.grid, p.band, (p.tile_m, p.tile_n))
        yield
