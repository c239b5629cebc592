"""What a configuration of the `wgmma` family should take, for the choice that is made without tuning."""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.dsl.families.contract_split import split_values
from tilewright.dsl.families.contraction import Contraction
from tilewright.dsl.families.matrix_operands import Products
from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.families.wgmma_plan import Plan
from tilewright.dsl.space import Value
from tilewright.dsl.target import Target

# (guess) per compute unit and clock: products of 16-bit elements from H100's data sheet; bytes that arrive as measured
# on it with tiles of 128 x 128, 128 x 192, 128 x 256 and 256 x 128, which all wait for them
_PRODUCTS = 2048
_BYTES = 37
_RATES = {"pieces": 34, "turned": 25}
"""Bytes per clock where work-items copy."""
_MEMORY = 14
"""Bytes per clock and compute unit between memory and caches."""
_SHAPES = (
    (128, 256, 2), (256, 128, 2), (128, 192, 2), (128, 128, 2), (128, 96, 2), (128, 64, 2), (64, 128, 1), (64, 64, 1),
    (64, 32, 1),
)  # fmt: skip
"""Rows, columns and teams of tiles, those that load least first."""
_START, _END = 2500, 1500
"""Clocks before a work-group's first product and after its last one."""
_CARRY = 170
"""Clocks per step in which sums are carried over to f32 totals, where products are split; measured likewise."""
_LAUNCH = 7000
"""Clocks that one more kernel takes, however small."""


def candidates(c: Contraction, target: Target, kind: Products) -> Iterator[dict[str, Value]]:
    """Configurations worth an estimate, without view and ways of loading."""
    for tile_m, tile_n, teams in _SHAPES:
        tiles = c.g * ceil_div(c.m, tile_m) * ceil_div(c.n, tile_n)
        stages = next((s for s in (8, 6, 5, 4, 3) if _fits(tile_m, tile_n, teams, s, kind, target)), 3)
        band = 8 if tile_m == 256 else 16
        for parts in split_values(c):
            # the next tile's copies hide an epilogue; where work-items split operands, fresh work-groups were faster
            resident = 1 if tiles * parts > target.compute_units and not kind.splits else 0
            yield {
                "tile_m": tile_m,
                "tile_n": tile_n,
                "teams": teams,
                "stages": min(stages, 6),
                "band": band,
                "resident": resident,
                "split_k": parts,
            }


def _fits(tile_m: int, tile_n: int, teams: int, stages: int, kind: Products, target: Target) -> bool:
    stage = (tile_m + tile_n * (2 if kind.splits else 1)) * 128
    return stages * (stage + 16) + 1024 + teams * 4 * 16 * 40 * 4 <= target.local_memory


def estimate(p: Plan, parts: int) -> float:
    """Clocks that the device takes, were it alone with this product."""
    steps = ceil_div(p.steps, parts)
    rate = _PRODUCTS if p.products.operand.itemsize == 2 else _PRODUCTS / 2 / (3 if p.products.splits else 1)
    multiply = p.tile_m * p.tile_n * p.products.depth / rate
    multiply += _CARRY if p.products.splits else 0
    load = p.stage_bytes / _RATES.get(p.load_a, _BYTES)
    store = p.tile_m * p.tile_n / 24
    waves = ceil_div(p.tiles * parts, p.target.compute_units)
    whole = _START + _END + waves * (steps * max(multiply, load) + store)
    traffic = _MEMORY * p.target.compute_units
    if parts > 1:
        whole += _LAUNCH + 2 * 4 * parts * p.c.g * p.c.m * p.c.n / traffic
    for which, way in (("a", p.load_a), ("b", p.load_b)):
        if way == "panels":
            # half of them are weights, which are packed ahead of all runs
            panels = p.panels(which).scratch
            whole += 0.5 * (_LAUNCH + 2 * panels.size * panels.dtype.itemsize / traffic)
    return whole
