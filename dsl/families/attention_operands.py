"""Operands of matrix instructions from local memory and from accumulators, for one pass over keys."""

from __future__ import annotations

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_fragments import key_steps, loads_as_blocks, moved, weight_registers
from tilewright.dsl.families.attention_plan import Plan
from tilewright.dsl.matrix import Fragment, Step
from tilewright.dsl.writer import Source, storing_helpers

BLOCKS = 4
"""Blocks that one `MatrixLoad` loads."""


def query_tile(p: Plan, body: Source, helpers: dict[str, str], to: str) -> None:
    """``to[i][register]``: operand a for every row tile at step `k` of the depth."""
    fragment, count = p.instruction.a, p.instruction.a.count
    k = p.instruction.k
    base = f"query + (down * {p.tiles_m} + i) * {p.instruction.m * p.pitch_d} + k * {k}"
    with body.loop("i", p.tiles_m, unroll=True):
        registers = [f"{to}[i][{r}]" for r in range(count)]
        if p.unit.load and count == BLOCKS and loads_as_blocks(fragment, p.itemsize):
            address = f"{base} + {_block_address(fragment.registers, p.pitch_d, 1)}"
            body.line(f"{p.unit.load.name}({', '.join(registers)}, {address});")
        else:
            for r, register in enumerate(registers):
                body.line(f"{register} = {_element_bits(fragment, r, base, p.pitch_d, 1)};")
        if p.itemsize == 4 and not p.products.splits:
            helpers["tw_rounded"] = (
                "static inline uint tw_rounded(uint bits) "
                "{ return isnan(as_float(bits)) ? bits : (bits + 0x1000u) & 0xffffe000u; }"
            )
            body.line(" ".join(f"{register} = tw_rounded({register});" for register in registers))


def keys_tile(p: Plan, body: Source, block: str) -> None:
    """Declare ``b[2][register]``: operand b of key tiles `j` and `j + 1` at step `k` of the depth."""
    base = f"{block} + j * {p.instruction.n * p.pitch_d} + k * {p.instruction.k}"
    _pair(p, body, p.instruction.b, base, p.pitch_d, 1)


def values_tile(p: Plan, body: Source, block: str) -> None:
    """Declare ``b[2][register]``: operand b of column tiles `j` and `j + 1` at step `k` of the keys."""
    steps = key_steps(p.instruction)
    assert steps is not None
    base = f"{block} + k * {p.instruction.k * p.pitch_e} + j * {p.instruction.n}"
    _pair(p, body, moved(p.instruction.b, steps), base, 1, p.pitch_e)


def _pair(p: Plan, body: Source, fragment: Fragment, base: str, outer: int, depth: int) -> None:
    """Two neighbouring tiles; `outer` and `depth` are the distances in local memory along the two directions."""
    count, n = fragment.count, p.instruction.n
    body.line(f"uint b[2][{count}];")
    blocks = p.unit.load is not None and 2 * count == BLOCKS and loads_as_blocks(fragment, p.itemsize)
    if p.unit.load and blocks and (depth == 1 or p.itemsize == 2):
        name = p.unit.load.name if depth == 1 else p.unit.load.transposed
        registers = ", ".join(f"b[{t}][{r}]" for t in range(2) for r in range(count))
        body.line(f"{name}({registers}, {base} + {_block_address((*fragment.registers, (n, 0)), outer, depth)});")
        return
    for t in range(2):
        for r in range(count):
            at = f"{base} + {t * n * outer}" if t else base
            body.line(f"b[{t}][{r}] = {_element_bits(fragment, r, at, outer, depth)};")


def _block_address(steps: tuple[Step, ...], outer: int, depth: int) -> str:
    """Offset of the row of a block whose address a lane gives; `steps` per bit of the block's number."""
    parts = [f"lane % 8 * {max(outer, depth)}"]
    for bit, (o, d) in enumerate(steps):
        parts.append(f"(lane >> {3 + bit} & 1) * {o * outer + d * depth}")
    return " + ".join(parts)


def _element_bits(fragment: Fragment, register: int, base: str, outer: int, depth: int) -> str:
    """A register's bits, loaded element by element."""
    start = f"({fragment.lane_text('lane', 0)}) * {outer} + ({fragment.lane_text('lane', 1)}) * {depth}"
    each = 1 << len(fragment.packed)
    texts = []
    for e in range(each):
        o, d = fragment.offset(register, e)
        texts.append(f"({base})[{start} + {o * outer + d * depth}]")
    if each == 1:
        return f"as_uint({texts[0]})"
    width = 32 // each
    return " | ".join(f"(uint){text} << {width * e}" if e else f"(uint){text}" for e, text in enumerate(texts))


def weights_tile(p: Plan, body: Source, helpers: dict[str, str], to: str) -> None:
    """``to[i][register]``: the weights of the keys of step `k` as operand a, from accumulators in `scores`."""
    tiles = p.instruction.k // p.instruction.n
    pack = _packing(p, helpers)
    with body.loop("i", p.tiles_m, unroll=True):
        for register, elements in weight_registers(p.instruction):
            places = [f"scores[i][k * {tiles} + {tile}][{r}]" for tile, r in elements]
            body.line(f"{to}[i][{register}] = {pack}({', '.join(places)});")


def _packing(p: Plan, helpers: dict[str, str]) -> str:
    """The function that makes an operand's register of floats."""
    operand = p.instruction.operand
    if p.instruction.pack:
        return p.instruction.pack
    if operand is DType.F32 and p.products.splits:
        return "as_uint"
    if operand is DType.F32:
        # A NaN among the weights is in their total as well, which the sums are divided by.
        helpers["tw_pack_f32"] = "static inline uint tw_pack_f32(float a) { return as_uint(a) + 0x1000u; }"
        return "tw_pack_f32"
    if operand is DType.BF16:
        helpers |= storing_helpers(DType.BF16, (1,))
        helpers["tw_pack_narrow"] = (
            "static inline uint tw_pack_narrow(float a, float b) "
            "{ return (uint)tw_bf16_float(a) | (uint)tw_bf16_float(b) << 16; }"
        )
    else:
        helpers["tw_pack_narrow"] = (
            "static inline uint tw_pack_narrow(float a, float b) { ushort bits[2]; vstore_half(a, 0, (half*)bits); "
            "vstore_half(b, 1, (half*)bits); return (uint)bits[0] | (uint)bits[1] << 16; }"
        )
    return "tw_pack_narrow"
