"""NVIDIA's warpgroup instructions as data, and the way they take through NVIDIA's OpenCL compiler.

The compiler writes PTX for `.target sm_90`, which lacks these instructions: they belong to `sm_90a`. Each is therefore
written as inline assembly that is a PTX comment, behind `MARK`. The compiler gives registers to the comment's operands
as to any other's, and hands out the PTX as the program's binary; `retargeted` takes the marks away and names the target
that the instructions need, and the driver loads the result like any binary.

Spellings: PTX ISA 8.5, chapters 9.7.13 (mbarrier, cp.async.bulk), 9.7.15 (wgmma) and 9.7.9.27 (tensor maps).
"""

from __future__ import annotations

import re
from functools import cache

from tilewright.dsl.dtypes import DType
from tilewright.dsl.warpgroup import Field, TensorMapFormat, WarpgroupInstruction, WarpgroupUnit

MARK = "//sm_90a "
_LEAST_VERSION = (8, 3)
"""The PTX version that knows all the instructions below."""
_WIDTHS = (32, 64, 96, 128, 192, 256)


def _macro(head: str, instruction: str, operands: str, volatile: str = " volatile") -> str:
    return f'#define {head} \\\n    asm{volatile}("{MARK}{instruction}" {operands})\n'


_MEMORY = ' : "memory"'


def _tile(rank: int) -> str:
    """The copy of a tile of a tensor of `rank` dimensions."""
    places = [f"c{d}" for d in range(rank)]
    numbers = ", ".join(f"%{d + 3}" for d in range(rank))
    operands = ", ".join(f'"r"({place})' for place in places)
    return _macro(
        f"TW_TILE{rank}(to, map, {', '.join(places)}, b)",
        f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes "
        f"[%0], [%1, {{{numbers}}}], [%2];",
        f':: "r"(to), "l"(map), "r"(b), {operands}{_MEMORY}',
    )


_TEXT = "".join(
    (
        # barriers: count of arrivals, and of bytes that copies have yet to bring
        _macro("TW_BAR_INIT(b, n)", "mbarrier.init.shared::cta.b64 [%0], %1;", ':: "r"(b), "r"(n)' + _MEMORY),
        _macro("TW_BAR_VISIBLE()", "fence.mbarrier_init.release.cluster;", "::" + _MEMORY),
        _macro("TW_BAR_ARRIVE(b)", "mbarrier.arrive.shared::cta.b64 _, [%0];", ':: "r"(b)' + _MEMORY),
        _macro(
            "TW_BAR_EXPECT(b, n)",
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;",
            ':: "r"(b), "r"(n)' + _MEMORY,
        ),
        _macro(
            "TW_BAR_WAIT(b, parity)",
            "{ .reg .pred p; L: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra L; }",
            ':: "r"(b), "r"(parity)' + _MEMORY,
        ),
        # copies: of consecutive bytes, and of tiles of a tensor of 2 to 4 dimensions
        _macro(
            "TW_BULK(to, from, n, b)",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];",
            ':: "r"(to), "l"(from), "r"(n), "r"(b)' + _MEMORY,
        ),
        *(_tile(rank) for rank in (2, 3, 4, 5)),
        _macro("TW_MAP_RELEASE()", "fence.proxy.tensormap::generic.release.gpu;", "::" + _MEMORY),
        _macro("TW_MAP_ACQUIRE(p)", "fence.proxy.tensormap::generic.acquire.gpu [%0], 128;", ':: "l"(p)' + _MEMORY),
        # what ordinary stores and cp.async wrote becomes visible to the matrix instructions
        _macro("TW_FENCE_ASYNC()", "fence.proxy.async.shared::cta;", "::" + _MEMORY),
        _macro("TW_WG_FENCE()", "wgmma.fence.sync.aligned;", "::" + _MEMORY),
        _macro("TW_WG_COMMIT()", "wgmma.commit_group.sync.aligned;", "::" + _MEMORY),
        _macro("TW_WG_WAIT(n)", "wgmma.wait_group.sync.aligned %0;", ':: "n"(n)' + _MEMORY),
        '#define TW_WARP_SYNC() asm volatile("bar.warp.sync 0xffffffff;" ::: "memory")\n',
        '#define TW_LOCAL_WORD(to, address) asm volatile("ld.shared.b32 %0, [%1];" : "=r"(to) : "r"(address))\n',
        '#define TW_LOCAL_PIECE(to, a, b, c, d) asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" \\\n'
        '    :: "r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory")\n',
        # addresses, offsets in bytes: start, step between 64 columns (where rows are depths), step between 8 rows
        "#define TW_DESCRIPTOR(start, far, near) \\\n"
        "    (0x4000000000000000ul | ((ulong)((near) >> 4) << 32) | ((ulong)((far) >> 4) << 16) | ((start) >> 4))\n",
    )
)


def _instruction(products: str, operand: DType, n: int, depth_major: bool, registers: bool) -> WarpgroupInstruction:
    k = 8 if operand is DType.F32 else 16
    kind = {"tf32": "tf32", "fp16": "f16", "bf16": "bf16"}[products]
    name = f"TW_WG_{kind.upper()}_{n}{'' if depth_major else '_T'}{'_R' if registers else ''}"
    sums = n // 2
    a = f"{{{', '.join(f'%{sums + i}' for i in range(4))}}}" if registers else f"%{sums}"
    at_b = sums + (4 if registers else 1)
    flags = "1, 1" if products == "tf32" else f"1, 1, 0, {0 if depth_major else 1}"
    text = (
        f"{{ .reg .pred p; setp.ne.b32 p, %{at_b + 1}, 0; wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kind}.{kind} "
        f"{{{', '.join(f'%{i}' for i in range(sums))}}}, {a}, %{at_b}, p, {flags}; }}"
    )
    outputs = ", ".join(f'"+f"((c)[{i}])' for i in range(sums))
    a_names = ("a0", "a1", "a2", "a3") if registers else ("a",)
    inputs = ", ".join(f'"{"r" if registers else "l"}"({x})' for x in a_names)
    operands = f': {outputs} : {inputs}, "l"(b), "r"(add)'
    pin = f'#define TW_WG_PIN_{n}(c) asm volatile("" : {outputs} :: "memory")\n'
    macro = _macro(f"{name}(c, {', '.join(a_names)}, b, add)", text, operands)
    return WarpgroupInstruction(name, products, operand, n, k, depth_major, registers, macro + pin)


_MAPS = TensorMapFormat(
    # swizzle of 128 bytes, lines of 128 bytes fetched into L2, alignment in local memory
    constant=(0, 3 << 13 | 2 << 17, *[0] * 7, 1024, *[0] * 6),
    rank=Field(1, 4, 3),
    dtype=Field(1, 7, 4),
    dtypes={DType.F16: 6, DType.F32: 7, DType.BF16: 10},
    sizes=(Field(4, 0, 32), Field(4, 32, 32), Field(5, 0, 32), Field(5, 32, 32), Field(6, 0, 32)),
    strides=(Field(1, 32, 32), Field(2, 0, 32), Field(2, 32, 32), Field(3, 0, 32)),
    box=(Field(6, 56, 8), Field(7, 0, 8), Field(7, 8, 8), Field(7, 16, 8), Field(7, 24, 8)),
    box_bytes=Field(8, 0, 32),
)
"""The format is not published; it was read off what `cuTensorMapEncodeTiled` writes when one argument changes (driver
580.159), and is of compute capability 9.0. Elements that lie outside are 0 (no flag), steps between elements 1."""


@cache
def warpgroup_unit(capability: tuple[int, int]) -> WarpgroupUnit | None:
    """The warpgroup instructions of a compute capability; None for any but 9.0, the only one that has them."""
    if capability != (9, 0):
        return None
    narrow = (("fp16", DType.F16), ("bf16", DType.BF16))
    instructions = [_instruction(p, t, n, major, False) for n in _WIDTHS for p, t in narrow for major in (True, False)]
    instructions += [
        _instruction("tf32", DType.F32, n, True, registers) for n in _WIDTHS for registers in (False, True)
    ]
    return WarpgroupUnit(tuple(instructions), _TEXT, _MAPS)


def needs_retargeting(source: str) -> bool:
    """Whether a source holds instructions that its compiler takes for comments."""
    return MARK in source


def retargeted(binary: bytes) -> bytes | None:
    """A program's PTX with the marked instructions in force, or None if the binary is no PTX that keeps the marks."""
    text = binary.rstrip(b"\0 \n").decode("latin-1")
    version = re.search(r"^\.version (\d+)\.(\d+)", text, re.MULTILINE)
    if version is None or MARK not in text:
        return None
    text, count = re.subn(r"^\.target sm_90\b(?!a)", ".target sm_90a", text, count=1, flags=re.MULTILINE)
    if not count:
        return None
    if (int(version[1]), int(version[2])) < _LEAST_VERSION:
        text = text.replace(version[0], ".version {}.{}".format(*_LEAST_VERSION), 1)
    return (text.replace(MARK, "") + "\n").encode("latin-1")
