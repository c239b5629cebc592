"""Matrix instructions for devices that have none: NVIDIA's layouts, with everything exchanged through local memory.

Every macro is called by all items of a work-group, as barriers demand; a kernel that calls one from some groups of
lanes alone hangs or fails here, though it may run on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.dsl.dtypes import DType
from tilewright.dsl.matrix import AsyncCopy, Fragment, MatrixInstruction, MatrixUnit
from tilewright.dsl.target import Target
from tilewright.runtime.nvidia import matrix_unit

_BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"
_VALUES = {
    DType.F32: "as_float(({bits}) & 0xffffe000u)",
    DType.F16: "tw_half_bits(({bits}) >> {shift})",
    DType.BF16: "as_float(({bits}) >> {shift} << 16)",
}
_HALF = "static inline float tw_half_bits(uint a) { const ushort b = a; return vload_half(0, (const half*)&b); }\n"


def _macro(head: str, lines: list[str]) -> str:
    return " \\\n".join((f"#define {head} do {{", *(f"    {line}" for line in lines), "} while (0)")) + "\n"


def _scatter(fragment: Fragment, dtype: DType, name: str, place: str, pitch: int) -> list[str]:
    """Statements that write a lane's elements to the matrix at `place`."""
    row, column = (fragment.lane_text("tw_lane", axis) for axis in (0, 1))
    lines = []
    for register in range(fragment.count):
        for element in range(1 << len(fragment.packed)):
            r, c = fragment.offset(register, element)
            value = _VALUES[dtype].format(bits=f"({name})[{register}]", shift=16 * element)
            lines.append(f"{place}[({row} + {r}) * {pitch} + {column} + {c}] = {value};")
    return lines


def _instruction(given: MatrixInstruction) -> MatrixInstruction:
    m, n, k = given.m, given.n, given.k
    row, column = (given.c.lane_text("tw_lane", axis) for axis in (0, 1))
    lines = [
        f"const int tw_lane = get_local_id(0) % {given.lanes};",
        f"__local float* const tw_a = tw_tiles + get_local_id(0) / {given.lanes} * {(m + n) * k};",
        f"__local float* const tw_b = tw_a + {m * k};",
        *_scatter(given.a, given.operand, "a", "tw_a", k),
        *_scatter(given.b, given.operand, "b", "tw_b", k),
        _BARRIER,
    ]
    for register in range(given.c.count):
        r, c = given.c.offset(register)
        product = f"tw_a[({row} + {r}) * {k} + tw_k] * tw_b[({column} + {c}) * {k} + tw_k]"
        lines.append(f"for (int tw_k = 0; tw_k < {k}; ++tw_k) (c)[{register}] += {product};")
    lines.append(_BARRIER)
    text = (_HALF if given.operand is DType.F16 else "") + _macro(f"{given.name}(c, a, b)", lines)
    setup = f"__local float tw_tiles[ITEMS / {given.lanes} * {(m + n) * k}];"
    return replace(given, text=text, setup=setup, pack="")


def _load(name: str, values: list[str]) -> str:
    lines = [
        "const int tw_lane = get_local_id(0) % 32, tw_first = get_local_id(0) - tw_lane;",
        "tw_addresses[get_local_id(0)] = (__local const ushort*)(address);",
        _BARRIER,
        *values,
        _BARRIER,
    ]
    return _macro(f"{name}(r0, r1, r2, r3, address)", lines)


def emulated_unit() -> MatrixUnit:
    """NVIDIA's unit with every macro in plain OpenCL C."""
    unit = matrix_unit((9, 0))
    assert unit is not None
    assert unit.load is not None
    rows = [f"tw_addresses[tw_first + {8 * i} + tw_lane / 4]" for i in range(4)]
    straight = [f"r{i} = *(__local const uint*)({row} + tw_lane % 4 * 2);" for i, row in enumerate(rows)]
    turned = []
    for i in range(4):
        low, high = (f"tw_addresses[tw_first + {8 * i} + tw_lane % 4 * 2 + {e}][tw_lane / 4]" for e in (0, 1))
        turned.append(f"r{i} = (uint){low} | (uint){high} << 16;")
    shuffle = [
        "tw_shuffled[get_local_id(0)] = (from);",
        _BARRIER,
        "to = tw_shuffled[get_local_id(0) ^ (mask)];",
        _BARRIER,
    ]
    copies = "".join(
        f"#define TW_COPY{size}(to, from, valid) "
        f"*(__local {word}*)(to) = (valid) ? *(__global const {word}*)(from) : ({word})(0)\n"
        for size, word in ((16, "uint4"), (4, "uint"))
    )
    return replace(
        unit,
        instructions=tuple(map(_instruction, unit.instructions)),
        copy=AsyncCopy(copies + "#define TW_COMMIT()\n#define TW_WAIT(n)\n"),
        load=replace(unit.load, text=_load(unit.load.name, straight) + _load(unit.load.transposed, turned)),
        shuffle=_macro("TW_SHUFFLE_XOR(to, from, mask)", shuffle),
        together=True,
        setup="__local float tw_shuffled[ITEMS]; __local const ushort* __local tw_addresses[ITEMS];",
    )


def with_matrix(target: Target, loads: bool = True) -> Target:
    """The target with emulated matrix instructions, and with loads of fragments or without them."""
    unit = emulated_unit()
    return replace(target, matrix=unit if loads else replace(unit, load=None))
