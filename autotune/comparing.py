"""Comparing a candidate's output with the reference on the device, so that large results need not be copied back.

Both lie between guard zones of the same pattern, so whatever should not have been written is compared along with the
elements. Each work-item goes through a part of both and writes three numbers; the host combines them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Launch
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import BoundLaunch, Buffer, Context

GPU_ITEMS = 1 << 15
CPU_ITEMS = 64

_VALUES = {
    DType.F32: ("uint", "as_float(bits)", "0x7F800000u"),
    DType.F16: ("ushort", "vload_half(n, (__global const half *)memory)", "0x7C00u"),
    DType.BF16: ("ushort", "as_float((uint)bits << 16)", "0x7F80u"),
}
"""Per type: what holds its bits, its value (of element n, with these bits, in this memory), and the exponent's bits."""
_NO_VALUES = ("uint", "0.0f", "0u")

_SOURCE = """
#define VALUE(n, bits, memory) {value}
#define FINITE(bits) (((bits) & {exponent}) != {exponent})

__kernel void tw_compare(__global const {element} *found, __global const {element} *wanted,
                         __global const ulong *size, __global float *parts) {{
    const ulong count = size[0], item = get_global_id(0), items = get_global_size(0);
    float off = 0.0f, scale = 0.0f, odd = 0.0f;
    {loop} {{
        const {element} a = found[n], b = wanted[n];
        const float y = VALUE(n, b, wanted);
        if (FINITE(b)) scale = fmax(scale, fabs(y));
        if (a != b) {{
            if (FINITE(a) && FINITE(b)) off = fmax(off, fabs(VALUE(n, a, found) - y));
            else odd = 1.0f;
        }}
    }}
    parts[3 * item] = off;
    parts[3 * item + 1] = scale;
    parts[3 * item + 2] = odd;
}}
"""
_SIDE_BY_SIDE = "for (ulong n = item; n < count; n += items)"
_PIECES = """const ulong piece = (count + items - 1) / items;
    const ulong end = min(count, (item + 1) * piece);
    for (ulong n = item * piece; n < end; ++n)"""


@dataclass(frozen=True)
class Difference:
    """What the device says of two buffers."""

    error: float
    """Largest difference between finite elements, relative to the largest magnitude expected; 0 for other types than
    f16, bf16 and f32."""
    is_odd: bool
    """True if there are differences that no error describes: in guards and gaps, NaN, infinities, other types."""


def comparison(target: Target, dtype: DType) -> Launch:
    """The kernel: all of ``found`` and ``wanted``, as many elements as ``size`` says, into three numbers per item."""
    element, value, exponent = _VALUES.get(dtype, _NO_VALUES)
    loop, items = (_PIECES, CPU_ITEMS) if target.shape is Shape.CPU else (_SIDE_BY_SIDE, GPU_ITEMS)
    source = _SOURCE.format(element=element, value=value, exponent=exponent, loop=loop)
    return Launch("tw_compare", source, (items,), None, ("found", "wanted", "size", "parts"), ("parts",))


class Comparison:
    """The comparison of two buffers of the same size, ready to be run any number of times.

    Sizes are multiples of 4 bytes. KernelError or DeviceError if the device cannot do it.
    """

    def __init__(self, ctx: Context, dtype: DType, found: Buffer, wanted: Buffer) -> None:
        launch = comparison(ctx.device.target, dtype)
        self._ctx = ctx
        self._shape = (launch.global_size[0], 3)
        self._parts = ctx.allocate(12 * launch.global_size[0])
        size = ctx.allocate(8)
        element = 2 if dtype in (DType.F16, DType.BF16) else 4
        ctx.write(size, np.array([wanted.nbytes // element], np.uint64))
        buffers = {"found": found, "wanted": wanted, "size": size, "parts": self._parts}
        self._launch: BoundLaunch = ctx.bind(launch, buffers)

    def run(self) -> Difference:
        """How they differ now; DeviceError if the device has failed."""
        self._ctx.enqueue([self._launch])
        off, scale, odd = self._ctx.read(self._parts, self._shape, np.float32).max(axis=0)
        return Difference(float(off) / (float(scale) or 1.0), bool(odd))


__all__ = ["Comparison", "Difference", "comparison"]
