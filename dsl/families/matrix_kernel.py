"""The kernel of a contraction for matrix instructions.

    start the copies of the first stages - 1 steps
    for every step of the depth:
        wait for its copies; barrier; start those of the step stages - 1 further on
        every sub-group multiplies its part of the tile out of local memory, fragment by fragment
    lay the results out in local memory, epilogue, store

Products of f32 are three of TF32 (Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while
surpassing the FP32 theoretical peak performance", 2022): an element is the sum of an upper and a lower part, and the
product of the lower parts is left out. Matrix instructions cut what they accumulate off, so the sums of every step join
totals that are rounded. Where parts of infinities have made a NaN, the element is computed again one by one.
"""

from __future__ import annotations

from contextlib import ExitStack

from tilewright.dsl.families.matrix_loading import write_load, write_setup
from tilewright.dsl.families.matrix_pack import pack
from tilewright.dsl.families.matrix_plan import Loaded, Tile
from tilewright.dsl.families.matrix_storing import CHUNK, PITCH, storing_function
from tilewright.dsl.families.matrix_tiles import write_place
from tilewright.dsl.families.shared import banner, kernel_name
from tilewright.dsl.lowering import Launch, Lowering
from tilewright.dsl.matrix import Fragment, MatrixInstruction, Step
from tilewright.dsl.writer import Source, argument, storing_helpers

_SPLIT = """static inline uint tw_upper_bits(uint bits) { return (bits + 0x1000u) & 0xffffe000u; }
static inline uint tw_lower_bits(uint bits, uint upper) {
    return as_uint(as_float(bits) - as_float(upper)) + 0x1000u;
}"""
"""Rounding to TF32 to nearest; of the rest, the instruction itself cuts off what is left after rounding."""


def lower(t: Tile) -> Lowering:
    """The launches of one configuration: packing where there are panels, then the product."""
    launches, scratch = [], []
    for operand in (t.a, t.b):
        if operand.way == "panels":
            panels = t.panels(operand)
            launches.append(pack(panels, kernel_name("matrix", t.program, f"_pack_{operand.which}")))
            scratch.append(panels.scratch)
    return Lowering((*launches, _product(t)), tuple(scratch))


def _product(t: Tile) -> Launch:
    name = kernel_name("matrix", t.program)
    helpers: dict[str, str] = {}
    for dtype in (t.products.operand, t.c.output.tensor.dtype):
        helpers |= storing_helpers(dtype, (1, 4, 8))
    storing = storing_function(t, helpers)
    body = Source()
    with body.block(
        f"__attribute__((reqd_work_group_size({t.items}, 1, 1)))\n__kernel void {name}({', '.join(t.parameters)})"
    ):
        _kernel(t, body, helpers)
    unit = t.unit
    src = Source()
    src.line(f"#define ITEMS {t.items}")
    texts = [
        t.instruction.text,
        unit.copy.text,
        unit.load.text if unit.load else "",
        _SPLIT if t.products.splits else "",
    ]
    for text in (*texts, *helpers.values(), storing):
        if text:
            src.line(text.rstrip("\n"))
    src.line(banner("matrix", t.program, t.configuration))
    src.line(body.text)
    size = (t.groups * t.items,)
    return Launch(name, src.text, size, (t.items,), t.tensors, (t.c.statement.target,), t.c.in_place)


# --- the loop -------------------------------------------------------------------------------------------------------


def _kernel(t: Tile, body: Source, helpers: dict[str, str]) -> None:
    lanes = t.instruction.lanes
    for setup in (t.instruction.setup, t.unit.setup):
        if setup:
            body.line(setup)
    body.line(f"__local uint4 memory[{-(-t.local_bytes // 16)}];")
    body.line("__local char* const tiles = (__local char*)memory;")
    body.line(f"const int item = get_local_id(0), lane = item % {lanes}, warp = item / {lanes};")
    body.line(f"const int warp_m = warp / {t.warps_n}, warp_n = warp % {t.warps_n};")
    body.line("const int tile = get_group_id(0);")
    write_place(body, t.c, t.ctype, t.grid, t.band, (t.tile_m, t.tile_n))
    for operand in (t.a, t.b):
        write_setup(t, operand, body)
    rows, columns = t.blocks
    count = t.instruction.c.count
    totals = ["sums", "totals"] if t.products.splits else ["sums"]
    for name in totals:
        body.line(f"float {name}[{rows}][{columns}][{count}];")
    _each(t, body, " ".join(f"{name}[i][j][r] = 0;" for name in totals))
    _lane_places(t, body)
    ahead = t.stages - 1
    with body.block(f"for (int next = 0; next < {ahead}; ++next)"):
        with body.block(f"if (next < {t.steps})"):
            _load(t, body, "next", helpers)
        body.line("TW_COMMIT();")
    body.line(f"int stage = 0, empty = {ahead};")
    with body.block(f"for (int step = 0; step < {t.steps}; ++step)"):
        body.line(f"TW_WAIT({t.stages - 2});")
        body.line("barrier(CLK_LOCAL_MEM_FENCE);")
        body.line(f"const int next = step + {ahead};")
        with body.block(f"if (next < {t.steps})"):
            _load(t, body, "empty", helpers)
        body.line("TW_COMMIT();")
        body.line(f"__local const char* const at = tiles + stage * {t.stage_bytes};")
        _multiply(t, body)
        if t.products.splits:
            _each(t, body, "totals[i][j][r] += sums[i][j][r]; sums[i][j][r] = 0;")
        for name in ("stage", "empty"):
            body.line(f"{name} = {name} + 1 == {t.stages} ? 0 : {name} + 1;")
    body.line("barrier(CLK_LOCAL_MEM_FENCE);")
    _store(t, body, totals[-1])


def _each(t: Tile, body: Source, text: str) -> None:
    rows, columns = t.blocks
    every = (("i", rows), ("j", columns), ("r", t.instruction.c.count))
    with ExitStack() as loops:
        for name, count in every:
            loops.enter_context(body.loop(name, count, unroll=True))
        body.line(text)


def _load(t: Tile, body: Source, slot: str, helpers: dict[str, str]) -> None:
    body.line(f"__local char* const to_a = tiles + {slot} * {t.stage_bytes};")
    body.line(f"__local char* const to_b = to_a + {t.a.nbytes};")
    for operand in (t.a, t.b):
        with body.block(""):
            write_load(t, operand, body, helpers)


# --- fragments ------------------------------------------------------------------------------------------------------


def _blockwise(t: Tile, o: Loaded) -> tuple[Step, Step] | None:
    """Steps of the four 8-row blocks that one matrix load brings, or None where elements are read one by one."""
    i = t.instruction
    fragment = i.a if o.which == "a" else i.b
    if t.unit.load is None or (not o.by_depth and o.itemsize != 2):
        return None
    steps = (*fragment.registers, (i.n, 0)) if o.which == "b" else fragment.registers
    return (steps[0], steps[1]) if len(steps) == 2 else None


def _lane_places(t: Tile, body: Source) -> None:
    """Where each lane reads its fragments, as bytes within a tile."""
    i = t.instruction
    for o, fragment, start in (
        (t.a, i.a, f"warp_m * {t.tile_m // t.warps_m}"),
        (t.b, i.b, f"warp_n * {t.tile_n // t.warps_n}"),
    ):
        steps = _blockwise(t, o)
        if steps is None:
            row, depth = (fragment.lane_text("lane", axis) for axis in (0, 1))
        else:
            along = ["(lane & 7)", "0"] if o.by_depth else ["0", "(lane & 7)"]
            row, depth = (
                f"{along[axis]} + (lane >> 3 & 1) * {steps[0][axis]} + (lane >> 4) * {steps[1][axis]}"
                for axis in (0, 1)
            )
        body.line(f"const int lane_{o.which} = {o.place(f'{start} + {row}', depth)};")


def _multiply(t: Tile, body: Source) -> None:
    i = t.instruction
    rows, columns = t.blocks
    with body.loop("k", t.tile_k // i.k, unroll=True):
        body.line(f"uint a[{rows}][{i.a.count}], b[{columns}][{i.b.count}];")
        _fragments(t, body, t.a, i.a, rows, i.m)
        _fragments(t, body, t.b, i.b, columns, i.n)
        if not t.products.splits:
            with body.loop("i", rows, unroll=True), body.loop("j", columns, unroll=True):
                body.line(f"{i.name}(sums[i][j], a[i], b[j]);")
            return
        for name, count, fragment in (("a", rows, i.a), ("b", columns, i.b)):
            body.line(f"uint rest_{name}[{count}][{fragment.count}];")
            with body.loop("i", count, unroll=True), body.loop("r", fragment.count, unroll=True):
                body.line(f"const uint upper = tw_upper_bits({name}[i][r]);")
                body.line(f"rest_{name}[i][r] = tw_lower_bits({name}[i][r], upper);")
                body.line(f"{name}[i][r] = upper;")
        with body.loop("i", rows, unroll=True), body.loop("j", columns, unroll=True):
            for left, right in (("rest_a", "b"), ("a", "rest_b"), ("a", "b")):
                body.line(f"{i.name}(sums[i][j], {left}[i], {right}[j]);")


def _fragments(t: Tile, body: Source, o: Loaded, fragment: Fragment, count: int, rows: int) -> None:
    """Read the fragments of one step of the instruction into registers."""
    i, name = t.instruction, o.which
    tile = "at" if name == "a" else f"at + {t.a.nbytes}"
    steps = _blockwise(t, o)
    if steps is not None:
        load = t.unit.load
        assert load is not None
        macro = load.name if o.by_depth else load.transposed
        pair = name == "b"
        with body.loop("i", count // 2 if pair else count, unroll=True):
            registers = [f"{name}[2 * i + {r // 2}][{r % 2}]" if pair else f"{name}[i][{r}]" for r in range(4)]
            offset = o.place(f"i * {2 * rows if pair else rows}", f"k * {i.k}")
            body.line(f"{macro}({', '.join(registers)}, {tile} + lane_{name} + {offset});")
        return
    with body.loop("i", count, unroll=True):
        for register in range(fragment.count):
            row, depth = fragment.offset(register)
            offset = o.place(f"i * {rows} + {row}", f"k * {i.k} + {depth}")
            body.line(f"{name}[i][{register}] = {_register(o, fragment, f'{tile} + lane_{name} + {offset}')};")


def _register(o: Loaded, fragment: Fragment, place: str) -> str:
    """A register's bits from local memory: a word, or two halves that lie apart."""
    if not fragment.packed or o.by_depth:
        return f"*(__local const uint*)({place})"
    step = o.pitch
    return f"(uint)*(__local const ushort*)({place}) | (uint)*(__local const ushort*)({place} + {step}) << 16"


# --- results --------------------------------------------------------------------------------------------------------


def _store(t: Tile, body: Source, sums: str) -> None:
    """Every sub-group lays out blocks of rows and `CHUNK` columns, and stores them with their epilogue."""
    i = t.instruction
    rows, columns = t.blocks
    per_chunk = CHUNK // i.n
    body.line(f"__local float* const mine = (__local float*)memory + warp * {i.m * PITCH};")
    row, column = (i.c.lane_text("lane", axis) for axis in (0, 1))
    body.line(f"__local float* const put = mine + ({row}) * {PITCH} + {column};")
    for block in range(rows):
        body.line(f"const {t.ctype} row{block} = m0 + warp_m * {rows * i.m} + {block * i.m};")
        for chunk in range(columns // per_chunk):
            with body.block(""):
                body.line(f"const {t.ctype} column0 = n0 + warp_n * {columns * i.n} + {chunk * CHUNK};")
                for j in range(per_chunk):
                    _put(i, body, f"{sums}[{block}][{chunk * per_chunk + j}]", j * i.n)
                body.line("barrier(CLK_LOCAL_MEM_FENCE);")
                names = ", ".join(argument(n) for n in t.tensors)
                body.line(f"store_results({names}, mine, lane, group, row{block}, column0);")
                body.line("barrier(CLK_LOCAL_MEM_FENCE);")


def _put(i: MatrixInstruction, body: Source, registers: str, column: int) -> None:
    pairs = i.c.registers[:1] == ((0, 1),)
    for register in range(0, i.c.count, 2 if pairs else 1):
        at = i.c.offset(register)
        place = f"put + {at[0] * PITCH + at[1] + column}"
        if pairs:
            both = f"(float2)({registers}[{register}], {registers}[{register + 1}])"
            body.line(f"*(__local float2*)({place}) = {both};")
        else:
            body.line(f"*({place}) = {registers}[{register}];")
