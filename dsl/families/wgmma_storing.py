"""From a team's accumulators to local memory, from where `matrix_storing.py` computes the epilogue and stores."""

from __future__ import annotations

from tilewright.dsl.families.matrix_storing import CHUNK, PITCH, ROWS
from tilewright.dsl.families.wgmma_plan import Plan
from tilewright.dsl.warpgroup import GROUP_ROWS
from tilewright.dsl.writer import Source, argument


def write_storing(p: Plan, body: Source) -> None:
    """Store all sums of a team's tile; `sums0`, `sums1`, ... hold 64 rows each."""
    body.line(f"__local float* const mine = results + (item >> 5) * {ROWS * PITCH};")
    body.line(f"__local float* const put = mine + (lane >> 2) * {PITCH} + (lane & 3) * 2;")
    for block in range(p.blocks):
        body.line(
            f"const {p.ctype} row{block} = m0 + team * {p.blocks * GROUP_ROWS} + {block * GROUP_ROWS} + warp * 16;"
        )
        for chunk in range(p.tile_n // CHUNK):
            with body.block(f"if (row{block} < {p.c.m} && n0 + {chunk * CHUNK} < {p.c.n})"):
                for j in range(CHUNK // 8):
                    at = 4 * (chunk * CHUNK // 8 + j)
                    for half in range(2):
                        place = f"put + {8 * half * PITCH + 8 * j}"
                        pair = ", ".join(f"sums{block}[{at + 2 * half + v}]" for v in range(2))
                        body.line(f"*(__local float2*)({place}) = (float2)({pair});")
                body.line("TW_WARP_SYNC();")
                body.line(f"store_results({_arguments(p, block, chunk)});")
                body.line("TW_WARP_SYNC();")


def _arguments(p: Plan, block: int, chunk: int) -> str:
    names = [argument(t) for t in p.tensors]
    return ", ".join([*names, "mine", "lane", "group", f"row{block}", f"n0 + {chunk * CHUNK}"])
