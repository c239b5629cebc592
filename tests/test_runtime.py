"""The runtime on every device: numbers, memory, errors before crashes, caches and drivers."""

from __future__ import annotations

import numpy as np

from tilewright.dsl.lowering import Launch
from tilewright.runtime import Context

SAXPY = """
__kernel void saxpy(__global const float* x, __global float* y) {
    size_t i = get_global_id(0);
    y[i] = 2.0f * x[i] + y[i];
}
"""


def test_a_kernel_computes_what_numpy_computes(ctx: Context) -> None:
    x, y = np.arange(256, dtype=np.float32), np.ones(256, np.float32)
    buffers = {"x": ctx.allocate(x.nbytes), "y": ctx.allocate(y.nbytes)}
    ctx.write(buffers["x"], x)
    ctx.write(buffers["y"], y)
    bound = ctx.bind(Launch("saxpy", SAXPY, (256,), (64,), ("x", "y"), ("y",)), buffers)
    ctx.enqueue([bound])
    np.testing.assert_array_equal(ctx.read(buffers["y"], (256,), np.float32), 2 * x + 1)
