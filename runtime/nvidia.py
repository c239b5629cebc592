"""NVIDIA's tensor cores as data, spelled in inline PTX, which NVIDIA's OpenCL compiler passes on.

Fragment layouts: PTX ISA 8.5, "Matrix Fragments for mma.m16n8k8" and "mma.m16n8k16"; `ldmatrix` and `cp.async` are
described there too.
"""

from __future__ import annotations

from tilewright.dsl.dtypes import DType
from tilewright.dsl.matrix import AsyncCopy, Fragment, MatrixInstruction, MatrixLoad, MatrixUnit
from tilewright.dsl.target import Handoff
from tilewright.runtime.nvidia_wgmma import warpgroup_unit

_ACCUMULATORS = Fragment(((0, 1), (8, 0)), ((0, 2), (0, 4), (1, 0), (2, 0), (4, 0)))


def _mma(name: str, shape: str, dtype: str) -> str:
    return (
        f"#define {name}(c, a, b) \\\n"
        f'    asm("mma.sync.aligned.{shape}.row.col.f32.{dtype}.{dtype}.f32 '
        '{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \\\n'
        '        : "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3]) \\\n'
        '        : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "r"((b)[0]), "r"((b)[1]))\n'
    )


_TF32 = MatrixInstruction(
    "TW_MMA_TF32",
    "tf32",
    DType.F32,
    16,
    8,
    8,
    Fragment(((8, 0), (0, 4)), ((0, 1), (0, 2), (1, 0), (2, 0), (4, 0))),
    Fragment(((0, 4),), ((0, 1), (0, 2), (1, 0), (2, 0), (4, 0))),
    _ACCUMULATORS,
    _mma("TW_MMA_TF32", "m16n8k8", "tf32"),
)


_PACK = """static inline uint tw_pack_SPELLING(float first, float second) {
    uint both;
    asm("cvt.rn.SPELLINGx2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}
"""


def _narrow(name: str, products: str, dtype: DType, spelling: str) -> MatrixInstruction:
    return MatrixInstruction(
        name,
        products,
        dtype,
        16,
        8,
        16,
        Fragment(((8, 0), (0, 8)), ((0, 2), (0, 4), (1, 0), (2, 0), (4, 0)), ((0, 1),)),
        Fragment(((0, 8),), ((0, 2), (0, 4), (1, 0), (2, 0), (4, 0)), ((0, 1),)),
        _ACCUMULATORS,
        _mma(name, "m16n8k16", spelling) + _PACK.replace("SPELLING", spelling),
        pack=f"tw_pack_{spelling}",
    )


_LOAD = MatrixLoad(
    "TW_LOAD_MATRIX",
    "TW_LOAD_MATRIX_T",
    "".join(
        f"#define {name}(r0, r1, r2, r3, address) \\\n"
        f'    asm volatile("ldmatrix.sync.aligned.m8n8.x4{form}.shared.b16 {{%0, %1, %2, %3}}, [%4];" \\\n'
        '        : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"((uint)(size_t)(address)) : "memory")\n'
        for name, form in (("TW_LOAD_MATRIX", ""), ("TW_LOAD_MATRIX_T", ".trans"))
    ),
)

_SHUFFLE = (
    "#define TW_SHUFFLE_XOR(to, from, mask) \\\n"
    '    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" : "=f"(to) : "f"(from), "n"(mask))\n'
)

_COPY = AsyncCopy(
    "#define TW_COPY16(to, from, valid) \\\n"
    '    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" \\\n'
    '        :: "r"((uint)(size_t)(to)), "l"(from), "r"((valid) ? 16 : 0) : "memory")\n'
    "#define TW_COPY4(to, from, valid) \\\n"
    '    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" \\\n'
    '        :: "r"((uint)(size_t)(to)), "l"(from), "r"((valid) ? 4 : 0) : "memory")\n'
    '#define TW_COMMIT() asm volatile("cp.async.commit_group;" ::: "memory")\n'
    '#define TW_WAIT(n) asm volatile("cp.async.wait_group %0;" :: "n"(n) : "memory")\n'
)


_HANDOFF = Handoff(
    """static inline uint tw_count(volatile __global uint* counter) {
    uint count;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    return count;
}
#define TW_COUNT(counter) tw_count(counter)
#define TW_PAUSE() asm volatile("nanosleep.u32 20;" ::: "memory")
#define TW_FENCE() asm volatile("fence.acq_rel.gpu;" ::: "memory")
#define TW_FENCE_COPIES() asm volatile("fence.proxy.async.global;" ::: "memory")
#define TW_BARRIER(items) asm volatile("bar.sync 1, %0;" :: "n"(items) : "memory")
""",
    some_items=True,
)
"""PTX ISA 8.5: chapter 8 (memory consistency model), 9.7.12 (barriers and fences)."""


def handoff(capability: tuple[int, int]) -> Handoff | None:
    """How work-groups wait for each other; None before 7.0, whose PTX has no such loads and fences."""
    return _HANDOFF if capability >= (7, 0) else None


def matrix_unit(capability: tuple[int, int]) -> MatrixUnit | None:
    """The tensor cores of a compute capability; None before 8.0, which has none of tf32, bf16 and cp.async."""
    if capability < (8, 0):
        return None
    half = _narrow("TW_MMA_F16", "fp16", DType.F16, "f16")
    brain = _narrow("TW_MMA_BF16", "bf16", DType.BF16, "bf16")
    return MatrixUnit((_TF32, half, brain), _COPY, _LOAD, _SHUFFLE, warpgroup=warpgroup_unit(capability))
