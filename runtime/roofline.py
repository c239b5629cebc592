"""What a device can do at most, measured: bytes moved per second, multiply-adds per second, the cost of a launch.

A kernel that moves B bytes and does F operations takes at least ``launch + max(B / bandwidth, F / rate)``: the roofline
(Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009). The method, the best of `REPEATS` samples each:

* bandwidth: kernels that copy an array and that sum one up, the faster of the two, for working sets from 1 MiB to
  256 MiB. Runs are repeated, so small sets lie in caches, as they do when a kernel is timed.
* rate: independent chains of multiply-adds in registers, two operations each, on all units. Matrix units are not used.
* launch: a kernel that does nothing. It is taken off the times of the others.

Measured once per device and driver (some seconds), then read from the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.dsl.lowering import Launch
from tilewright.dsl.target import Shape, Target
from tilewright.errors import DeviceError, KernelError
from tilewright.folders import cache_directory, write_atomically
from tilewright.runtime.discovery import Device
from tilewright.runtime.execution import BoundLaunch, Context, context

log = logging.getLogger("tilewright")

VERSION = 2
"""Of the method: limits that were measured by another one are measured again."""
REPEATS = 7
WORKING_SETS = tuple(1 << shift for shift in (20, 22, 24, 26, 28))
"""Bytes read and written in one run."""
_CHAINS = 10
"""Multiply-adds under way at once: latency times issue rate is 8 on the processors that we know."""
_TURNS = {Shape.CPU: 1 << 18, Shape.GPU: 1 << 14}
"""Rounds of those: a processor's few work-items take a tenth of a millisecond for 2^14, which waking threads blurs."""


@dataclass(frozen=True)
class Limits:
    """The measured limits of one device."""

    device: str
    """The device's identity."""
    driver: str
    launch_seconds: float
    bandwidths: tuple[tuple[int, float], ...]
    """Bytes per second by bytes of the working set, smallest set first."""
    rates: Mapping[str, float]
    """Operations per second by element type (f32, and f64 where there is such)."""
    measured: str
    """When (UTC)."""
    version: int = VERSION

    def bandwidth(self, nbytes: int) -> float:
        """Bytes per second for a working set: between measured sizes by the logarithm of the size."""
        sizes = [math.log(size) for size, _ in self.bandwidths]
        return float(np.interp(math.log(max(nbytes, 1)), sizes, [speed for _, speed in self.bandwidths]))

    def rate(self, dtype: str) -> float:
        """Operations per second; f32's for types that were not measured."""
        return self.rates.get(dtype, self.rates["f32"])


def device_limits(device: Device, again: bool = False) -> Limits:
    """The limits of a device, measured on the first call (or ``again``); DeviceError if it cannot run the kernels."""
    file = limits_file(device)
    known = None if again else _read(file, device)
    if known is not None:
        return known
    found = measure(context(device))
    try:
        write_atomically(file, json.dumps(asdict(found)).encode())
    except OSError as error:
        log.info("the limits of %s are not kept: %s", device.name, error)
    return found


def known_limits(device: Device) -> Limits | None:
    """The limits of a device if they have been measured; this measures nothing."""
    return _read(limits_file(device), device)


def limits_file(device: Device) -> Path:
    """Where the limits of a device are kept."""
    key = hashlib.sha256(f"{device.identity}\0{device.driver}".encode()).hexdigest()[:32]
    return cache_directory() / "limits" / f"{key}.json"


def _read(file: Path, device: Device) -> Limits | None:
    """What the file says, None if it is missing, damaged or about something else."""
    try:
        fields: dict[str, Any] = json.loads(file.read_bytes())
        pairs = tuple((int(size), float(speed)) for size, speed in fields.pop("bandwidths"))
        rates = {str(dtype): float(rate) for dtype, rate in fields.pop("rates").items()}
        found = Limits(**fields, bandwidths=pairs, rates=rates)
        figures = (found.launch_seconds, *rates.values(), *(n for pair in pairs for n in pair))
        usable = all(isinstance(n, int | float) and math.isfinite(n) and n > 0 for n in figures) and pairs
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    same = (found.device, found.driver, found.version) == (device.identity, device.driver, VERSION)
    return found if usable and same and "f32" in rates else None


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(ctx: Context) -> Limits:
    """Measure now; takes a few seconds."""
    target = ctx.device.target
    try:
        launch = _launch_seconds(ctx)
        rates = {"f32": _rate(ctx, "float", 4, launch)}
        if target.has_f64:
            rates["f64"] = _rate(ctx, "double", 8, launch)
        bandwidths = _bandwidths(ctx, launch)
    except KernelError as error:
        raise DeviceError(f"the limits of {ctx.device.name} cannot be measured: {error}") from error
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Limits(ctx.device.identity, ctx.device.driver, launch, bandwidths, rates, now)


def _launch_seconds(ctx: Context) -> float:
    y = ctx.allocate(64)
    source = "__kernel void tw_limit_launch(__global float* y) { if (get_global_id(0) == 1) y[0] = 0.0f; }"
    bound = ctx.bind(Launch("tw_limit_launch", source, (1,), (1,), ("y",), ("y",)), {"y": y})
    return min(ctx.time([bound], REPEATS))


def _without_launch(seconds: float, launch: float) -> float:
    """A kernel's own time; at least a quarter of the whole, since the cost of a launch varies."""
    return max(seconds - launch, seconds / 4)


def _geometry(target: Target) -> tuple[int, int]:
    """Work-items and their groups' size that keep every unit busy."""
    if target.shape is Shape.CPU:
        return 8 * target.compute_units, 1
    group = min(256, target.max_work_group)
    return 16 * target.compute_units * group, group


def _rate(ctx: Context, scalar: str, itemsize: int, launch: float) -> float:
    """Operations per second of multiply-adds in registers."""
    bound, operations = multiply_adds(ctx, scalar, itemsize)
    return operations / _without_launch(min(ctx.time([bound], REPEATS)), launch)


def multiply_adds(ctx: Context, scalar: str = "float", itemsize: int = 4) -> tuple[BoundLaunch, float]:
    """A launch of nothing but multiply-adds in registers, and its operations: two for each element of a vector."""
    target = ctx.device.target
    lanes = target.lanes(itemsize) if target.shape is Shape.CPU else 1
    vector = scalar if lanes == 1 else f"{scalar}{lanes}"
    items, group = _geometry(target)
    chains, turns = range(_CHAINS), _TURNS[target.shape]
    extension = "#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n" if itemsize == 8 else ""
    steps = " ".join(f"a{n} = MAD(a{n}, m, s);" for n in chains)
    source = (
        f"{extension}#define MAD(a, b, c) ({target.fma})\n"
        f"__kernel __attribute__((reqd_work_group_size({group}, 1, 1)))\n"
        f"void tw_limit_{scalar}(__global const {scalar}* restrict x, __global {scalar}* restrict y) {{\n"
        f"    const {vector} m = ({vector})(x[0]), s = ({vector})(x[1]);\n"
        f"    {vector} {', '.join(f'a{n} = ({vector})(x[{n}])' for n in chains)};\n"
        f"    for (int turn = 0; turn < {turns}; ++turn) {{ {steps} }}\n"
        f"    const {vector} total = {' + '.join(f'a{n}' for n in chains)};\n"
        f"    y[get_global_id(0)] = {'total' if lanes == 1 else 'total.s0'};\n}}\n"
    )
    x, y = ctx.allocate(_CHAINS * itemsize), ctx.allocate(items * itemsize)
    ctx.write(x, np.linspace(0.5, 0.9, _CHAINS).astype(np.float64 if itemsize == 8 else np.float32))
    name = f"tw_limit_{scalar}"
    bound = ctx.bind(Launch(name, source, (items,), (group,), ("x", "y"), ("y",)), {"x": x, "y": y})
    return bound, 2.0 * items * _CHAINS * turns * lanes


_WALKS = """
#define AT(i) (BLOCKS ? get_global_id(0) * (size_t)block + (i) : get_global_id(0) + get_global_size(0) * (size_t)(i))
__kernel GROUP void tw_limit_copy(__global const int* n, __global const V* restrict x, __global V* restrict y) {
    const int block = n[0];
    for (int i = 0; i < block; ++i) y[AT(i)] = x[AT(i)];
}
__kernel GROUP void tw_limit_sum(__global const int* n, __global const V* restrict x, __global V* restrict y) {
    const int block = n[0];
    V a = (V)(0.0f), b = a, c = a, d = a;
    for (int i = 0; i < block; i += 4) { a += x[AT(i)]; b += x[AT(i + 1)]; c += x[AT(i + 2)]; d += x[AT(i + 3)]; }
    y[get_global_id(0)] = a + b + c + d;
}
"""
"""BLOCKS: an item walks over neighbours (CPUs), else neighbouring items do (GPUs)."""


def _bandwidths(ctx: Context, launch: float) -> tuple[tuple[int, float], ...]:
    """The faster of copying and summing, per working set that the device has room for."""
    target = ctx.device.target
    most = min(ctx.device.max_allocation, ctx.device.global_memory // 8)
    sets = [nbytes for nbytes in WORKING_SETS if nbytes <= most] or [WORKING_SETS[0]]
    buffers = {"n": ctx.allocate(4), "x": ctx.allocate(sets[-1]), "y": ctx.allocate(sets[-1] // 2)}
    ctx.write(buffers["x"], np.zeros(sets[-1], np.uint8))  # the system hands out memory at the first touch
    ctx.write(buffers["y"], np.zeros(sets[-1] // 2, np.uint8))
    on_cpu = target.shape is Shape.CPU
    vector, size = ("float16", 64) if on_cpu else ("float4", 16)
    items, group = _geometry(target)
    defines = {"V": vector, "BLOCKS": int(on_cpu), "GROUP": f"__attribute__((reqd_work_group_size({group}, 1, 1)))"}
    source = "".join(f"#define {name} {text}\n" for name, text in defines.items()) + _WALKS
    found = []
    for nbytes in sets:
        seconds = []
        for kernel, count in (("tw_limit_copy", nbytes // 2 // size), ("tw_limit_sum", nbytes // size)):
            used = max(group, min(items, count // 4) // group * group)
            block = count // used // 4 * 4
            ctx.write(buffers["n"], np.array([block], np.int32))
            bound = ctx.bind(Launch(kernel, source, (used,), (group,), ("n", "x", "y"), ("y",)), buffers)
            whole = _without_launch(min(ctx.time([bound], REPEATS)), launch)
            seconds.append(whole * count / (used * block))
        found.append((nbytes, nbytes / min(seconds)))
    return tuple(found)


__all__ = ["REPEATS", "WORKING_SETS", "Limits", "device_limits", "limits_file", "measure", "multiply_adds"]
