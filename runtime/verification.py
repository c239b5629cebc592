"""A one-second test of a device with numbers that are checked against NumPy."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from tilewright.dsl.lowering import Launch
from tilewright.errors import TilewrightError
from tilewright.runtime.discovery import Device
from tilewright.runtime.execution import Context, context

_GROUP = 64
_GROUPS = 4096
_LAUNCHES = 500

_SOURCE = f"""
__kernel void selftest_sum(__global const float* x, __global float* sums) {{
    __local float part[{_GROUP}];
    const size_t l = get_local_id(0);
    part[l] = x[get_global_id(0)];
    for (size_t half_way = {_GROUP // 2}; half_way > 0; half_way /= 2) {{
        barrier(CLK_LOCAL_MEM_FENCE);
        if (l < half_way) part[l] += part[l + half_way];
    }}
    if (l == 0) sums[get_group_id(0)] = part[0];
}}
__kernel void selftest_saxpy(__global const float4* x, __global float4* y) {{
    const size_t i = get_global_id(0);
    y[i] = 2.0f * x[i] + 1.0f;
}}
"""


@dataclass(frozen=True)
class SelfTest:
    """What a device did in its test."""

    device: str
    passed: bool
    message: str
    """'' if it passed, else what went wrong."""
    max_error: float
    """Largest relative difference from NumPy."""
    bandwidth: float
    """Bytes per second of a kernel that reads one array and writes another (256 MiB on GPUs, 32 MiB on CPUs)."""
    launch_seconds: float
    """Python and driver together, per launch of a kernel that does nearly nothing."""
    seconds: float
    """How long the test took."""


def selftest(device: Device) -> SelfTest:
    """Compare a reduction through local memory and a vector kernel with NumPy, and measure; raises nothing of ours."""
    start = time.perf_counter()
    try:
        ctx = context(device)
        error = max(_reduction_error(ctx), _saxpy_error(ctx))
        bandwidth, launch_seconds = _bandwidth(ctx), _launch_seconds(ctx)
    except TilewrightError as problem:
        return SelfTest(device.name, False, str(problem), float("inf"), 0.0, 0.0, time.perf_counter() - start)
    passed = error < 1e-5
    message = "" if passed else f"the results differ from NumPy's by {error:.2g} (relative); do not trust this driver"
    return SelfTest(device.name, passed, message, error, bandwidth, launch_seconds, time.perf_counter() - start)


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference by the expected values' scale; infinite where NaN turns up."""
    error = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
    return error if np.isfinite(error) else float("inf")


def _reduction_error(ctx: Context) -> float:
    size = _GROUP * _GROUPS
    values = np.random.default_rng(1).random(size, np.float32)
    x, sums = ctx.allocate(values.nbytes), ctx.allocate(4 * _GROUPS)
    ctx.write(x, values)
    launch = Launch("selftest_sum", _SOURCE, (size,), (_GROUP,), ("x", "sums"), ("sums",))
    ctx.enqueue([ctx.bind(launch, {"x": x, "sums": sums})])
    found = ctx.read(sums, (_GROUPS,), np.float32)
    return _relative(found, values.reshape(_GROUPS, _GROUP).astype(np.float64).sum(1))


def _saxpy_error(ctx: Context) -> float:
    values = np.random.default_rng(2).standard_normal(1 << 16, np.float32)
    x, y = ctx.allocate(values.nbytes), ctx.allocate(values.nbytes)
    ctx.write(x, values)
    launch = Launch("selftest_saxpy", _SOURCE, (values.size // 4,), (_GROUP,), ("x", "y"), ("y",))
    ctx.enqueue([ctx.bind(launch, {"x": x, "y": y})])
    return _relative(ctx.read(y, values.shape, np.float32), 2 * values + 1)


def _bandwidth(ctx: Context) -> float:
    """Bytes per second of reading one array and writing another, too large for the caches of most processors."""
    nbytes = (256 if ctx.device.kind == "gpu" else 32) << 20
    nbytes = min(nbytes, ctx.device.max_allocation, ctx.device.global_memory // 8)
    x, y = ctx.allocate(nbytes), ctx.allocate(nbytes)
    for buffer in (x, y):  # the system hands out CPU memory at the first touch
        ctx.write(buffer, np.zeros(nbytes, np.uint8))
    launch = Launch("selftest_saxpy", _SOURCE, (nbytes // 16 // _GROUP * _GROUP,), (_GROUP,), ("x", "y"), ("y",))
    return 2 * nbytes / min(ctx.time([ctx.bind(launch, {"x": x, "y": y})], 3))


def _launch_seconds(ctx: Context) -> float:
    x, y = ctx.allocate(1024), ctx.allocate(1024)
    ctx.write(x, np.zeros(1024, np.uint8))
    launch = Launch("selftest_saxpy", _SOURCE, (_GROUP,), (_GROUP,), ("x", "y"), ("y",))
    bound = ctx.bind(launch, {"x": x, "y": y})
    ctx.enqueue([bound])
    ctx.finish()
    start = time.perf_counter()
    ctx.enqueue([bound] * _LAUNCHES)
    ctx.finish()
    return (time.perf_counter() - start) / _LAUNCHES
