"""The kernel of a contraction by warpgroup instructions: some work-items load, the others multiply and store.

    stages in local memory, each with two barriers: full (what was loaded has come) and empty (it has been read)
    loading work-items: see `wgmma_loading.py`
    computing work-items, in teams of 128 with 64, 128, ... rows of the tile each:
        for every tile:
            for every step of the depth: wait until full, start the products, and once those of the step before are
                through, say that its stage is empty
            epilogue and stores: see `wgmma_storing.py`

f32 by three TF32 products: with a = a1 + a2 and b = b1 + b2, both parts in TF32, a*b = a2*b1 + a1*b2 + a1*b1 up to
2^-22 of it. The instructions cut off what they add to a sum, rather than round it, so that sums are carried over to
ordinary ones after every step. Infinities have no such parts: sums that are not finite are computed again, one by one.
"""

from __future__ import annotations

from tilewright.dsl.families.matrix_storing import PITCH, storing_function
from tilewright.dsl.families.shared import banner, kernel_name
from tilewright.dsl.families.wgmma_loading import write_loading
from tilewright.dsl.families.wgmma_pack import pack
from tilewright.dsl.families.wgmma_plan import Plan, warpgroups
from tilewright.dsl.families.wgmma_storing import write_storing
from tilewright.dsl.families.wgmma_tiles import each_tile
from tilewright.dsl.lowering import Launch, Lowering
from tilewright.dsl.warpgroup import GROUP_ROWS, ROW_BYTES, TILE_ALIGNMENT, WarpgroupInstruction
from tilewright.dsl.writer import Source, storing_helpers


def lower(p: Plan) -> Lowering:
    """The launches of one configuration: packing where operands are loaded as panels, then the products."""
    launches, scratch = [], []
    for which, way in (("a", p.load_a), ("b", p.load_b)):
        if way == "panels":
            panels = p.panels(which)
            launches.append(pack(panels, kernel_name("wgmma", p.program, f"_panels_{which}")))
            scratch.append(panels.scratch)
    if p.maps is not None:
        scratch.append(p.maps)
    return Lowering((*launches, _product(p)), tuple(scratch))


def _product(p: Plan) -> Launch:
    kernel = kernel_name("wgmma", p.program)
    helpers = storing_helpers(p.c.output.tensor.dtype, (1, 4, 8))
    storing = storing_function(p, helpers)
    body = Source()
    attributes = f"__attribute__((reqd_work_group_size({p.items}, 1, 1)))\n"
    with body.block(f"{attributes}__kernel void {kernel}({', '.join(p.parameters)})"):
        _start(p, body)
        with body.block(f"if (item >= {p.computing})"):
            write_loading(p, body)
        with body.block("else"):
            _compute(p, body)
    source = Source()
    source.line(
        banner("wgmma", p.program, p.configuration, f"{p.c.m} rows, {p.c.n} columns, {p.c.k} deep, {p.c.g} groups")
    )
    source.line(p.unit.text)
    source.line(_instruction(p).text)
    source.line(warpgroups(p.target)[0].copy.text)
    for text in helpers.values():
        source.line(text)
    source.line(storing)
    source.line(body.text)
    names = p.tensors
    written = (p.c.statement.target, *(["tensor_maps"] if p.maps else []))
    return Launch(kernel, source.text, (p.groups * p.items,), (p.items,), names, written, p.c.in_place)


def _instruction(p: Plan) -> WarpgroupInstruction:
    return p.unit.find(p.products.instruction, p.tile_n, p.b_depth_major, p.products.splits)


def _start(p: Plan, body: Source) -> None:
    """Local memory, and its barriers ready for everybody."""
    body.line(f"__local uint4 room[{p.pipeline_bytes // 16}];")
    body.line(f"__local float results[{p.computing // 32 * 16 * PITCH}] __attribute__((aligned(16)));")
    body.line(f"const uint base = ((uint)(size_t)room + {TILE_ALIGNMENT - 1}) & {~(TILE_ALIGNMENT - 1) & 0xFFFFFFFF}u;")
    body.line(f"const uint full = base + {p.stages * p.stage_bytes}, empty = full + {8 * p.stages};")
    body.line("const int item = get_local_id(0);")
    arrivals = p.loading + 1 if p.copies else 1
    with body.block("if (item == 0)"):
        with body.loop("i", p.stages):
            body.line(f"TW_BAR_INIT(full + 8 * i, {arrivals});")
            body.line(f"TW_BAR_INIT(empty + 8 * i, {p.computing // 32});")
        body.line("TW_BAR_VISIBLE();")
    body.line("barrier(CLK_LOCAL_MEM_FENCE);")


def _compute(p: Plan, body: Source) -> None:
    sums = p.tile_n // 2
    body.line("const int team = item >> 7, warp = item >> 5 & 3, lane = item & 31;")
    body.line("int stage = 0, parity = 0;")
    with each_tile(p, body):
        for block in range(p.blocks):
            body.line(f"float sums{block}[{sums}];")
            if p.products.splits:
                _each(body, sums, f"sums{block}[i] = 0;")
        if p.products.splits:
            _split_steps(p, body)
        else:
            _steps(p, body)
        write_storing(p, body)


def _each(body: Source, count: int, text: str) -> None:
    with body.loop("i", count, unroll=True):
        body.line(text)


def _wait(p: Plan, body: Source) -> None:
    body.line("TW_BAR_WAIT(full + 8 * stage, parity);")
    body.line(f"const uint from = base + stage * {p.stage_bytes};")
    far = p.products.depth * ROW_BYTES
    body.line(f"const ulong b = TW_DESCRIPTOR(from + {p.a_bytes}, {0 if p.b_depth_major else far}, {TILE_ALIGNMENT});")


def _advance(p: Plan, body: Source) -> None:
    body.line(f"if (++stage == {p.stages}) {{ stage = 0; parity ^= 1; }}")


def _steps(p: Plan, body: Source) -> None:
    """Products of both operands from local memory, those of a step while the next one's are started."""
    instruction = _instruction(p)
    inner = p.products.depth // instruction.k
    # along the depth: 32 bytes within a row of 128, or 16 rows; descriptors count 16 bytes
    b_step = 2 if p.b_depth_major else instruction.k * ROW_BYTES // 16
    body.line("int before = 0;")
    with body.loop("step", p.steps):
        _wait(p, body)
        rows = f"from + team * {p.blocks * GROUP_ROWS * ROW_BYTES}"
        body.line(f"const ulong a = TW_DESCRIPTOR({rows}, 0, {TILE_ALIGNMENT});")
        body.line("TW_WG_FENCE();")
        for k in range(inner):
            for block in range(p.blocks):
                at_a = block * GROUP_ROWS * ROW_BYTES // 16 + 2 * k
                body.line(f"{instruction.name}(sums{block}, a + {at_a}, b + {b_step * k}, {1 if k else 'step > 0'});")
        body.line("TW_WG_COMMIT();")
        with body.block("if (step > 0)"):
            body.line("TW_WG_WAIT(1);")
            body.line("if (lane == 0) TW_BAR_ARRIVE(empty + 8 * before);")
        body.line("before = stage;")
        _advance(p, body)
    body.line("TW_WG_WAIT(0);")
    for block in range(p.blocks):
        body.line(f"TW_WG_PIN_{p.tile_n}(sums{block});")
    body.line("if (lane == 0) TW_BAR_ARRIVE(empty + 8 * before);")


def _split_steps(p: Plan, body: Source) -> None:
    """f32: A's parts from registers, B's from local memory, and ordinary sums of the steps' sums."""
    instruction, sums = _instruction(p), p.tile_n // 2
    inner = p.products.depth // instruction.k
    lower = p.tile_n * ROW_BYTES // 16
    with body.loop("step", p.steps):
        _wait(p, body)
        for block in range(p.blocks):
            with body.block(""):
                body.line(f"float part[{sums}];")
                _fragments(p, body, block, inner)
                body.line("TW_WG_FENCE();")
                for k in range(inner):
                    upper = ", ".join(f"upper[{4 * k + i}]" for i in range(4))
                    rest = ", ".join(f"lower[{4 * k + i}]" for i in range(4))
                    at = f"b + {2 * k}"
                    body.line(f"{instruction.name}(part, {rest}, {at}, {1 if k else 0});")
                    body.line(f"{instruction.name}(part, {upper}, {at} + {lower}, 1);")
                    body.line(f"{instruction.name}(part, {upper}, {at}, 1);")
                body.line("TW_WG_COMMIT();")
                body.line("TW_WG_WAIT(0);")
                body.line(f"TW_WG_PIN_{p.tile_n}(part);")
                _each(body, sums, f"sums{block}[i] += part[i];")
        body.line("if (lane == 0) TW_BAR_ARRIVE(empty + 8 * stage);")
        _advance(p, body)


def _fragments(p: Plan, body: Source, block: int, inner: int) -> None:
    """This item's elements of A for a whole step, as upper and lower parts.

    Of 64 x 8 elements it holds rows ``16*warp + lane/4`` and 8 below, depths ``lane % 4`` and 4 further.
    """
    first = f"(team * {p.blocks * GROUP_ROWS} + {block * GROUP_ROWS} + warp * 16 + (lane >> 2)) * {ROW_BYTES}"
    body.line(f"uint upper[{4 * inner}], lower[{4 * inner}];")
    body.line(f"const uint line = from + {first} + (lane & 3) * 4;")
    with body.loop("k", inner, unroll=True), body.loop("i", 4, unroll=True):
        body.line("uint bits;")
        place = f"(i & 1) * {8 * ROW_BYTES} + (((2 * k + (i >> 1)) ^ (lane >> 2)) << 4)"
        body.line(f"TW_LOCAL_WORD(bits, line + {place});")
        body.line("upper[4 * k + i] = bits & 0xffffe000u;")
        body.line("lower[4 * k + i] = as_uint(as_float(bits) - as_float(bits & 0xffffe000u));")
