"""In which order work-groups go through the tiles of a product."""

from __future__ import annotations

from tilewright.dsl.families.contraction import NAMES, Contraction, decompose
from tilewright.dsl.writer import Source


def write_place(
    body: Source, c: Contraction, ctype: str, grid: tuple[int, int], band: int, tile: tuple[int, int]
) -> None:
    """Declare group, m0 and n0 of the tile number `tile`, of ``grid`` tiles of ``tile`` rows and columns.

    Tiles go in bands of `band` rows of tiles, column by column within a band, so that work-groups that run at the same
    time read few different parts of both operands and find them in the cache.
    """
    rows, columns = grid
    body.line(f"const int group = tile / {rows * columns}, within = tile % {rows * columns};")
    body.line(f"const int band = within / {band * columns}, in_band = within % {band * columns};")
    body.line(f"const int band_rows = min({rows} - band * {band}, {band});")
    body.line(f"const {ctype} m0 = (band * {band} + in_band % band_rows) * {tile[0]};")
    body.line(f"const {ctype} n0 = in_band / band_rows * {tile[1]};")
    for text in decompose("group", c.groups, lambda i: NAMES[i.name], ctype):
        body.line(text)
