"""What tests of families share: layouts, inputs, tolerances, and running a Lowering with guard zones around tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import Family
from tilewright.dsl.program import Program, Tensor, walk
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import Buffer, Context, Device

GUARD = 64
"""Elements on either side of every tensor that no kernel may change."""
RELATIVE = {DType.F16: 2e-3, DType.BF16: 1.6e-2, DType.F32: 3e-6, DType.F64: 1e-14}
"""Error allowed per output, relative to the largest magnitude."""


def shaped(target: Target, shape: Shape) -> Target:
    """The device's target with the other lowering: GPU kernels run on CPU drivers too, if slowly."""
    if shape is target.shape:
        return target
    return replace(target, shape=shape, sub_group=1, max_work_group=min(target.max_work_group, 1024))


def compiling(ctx: Context, target: Target) -> Context:
    """The context that a test's kernels are compiled in; on PoCL one that takes a fraction of the time.

    PoCL compiles a kernel a second time, for any work-group, when it is asked for the binary, and up to 30 s over the
    loops with barriers of kernels for GPUs. So no binaries are kept of kernels that run once, and those of the shape
    that its device has not, which nobody runs there, are not optimised (Intel's driver optimises them).
    """
    device = ctx.device
    return _compiling_once(device, target.shape is device.target.shape) if device.name == "pocl" else ctx


@cache
def _compiling_once(device: Device, optimised: bool) -> Context:
    options = device.target.build_options if optimised else f"{device.target.build_options} -cl-opt-disable"
    made = Context(replace(device, target=replace(device.target, build_options=options)))
    made.keeps_binaries = False
    return made


def run(
    ctx: Context,
    family: Family,
    program: Program,
    target: Target,
    configuration: Configuration,
    arrays: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Outputs of one configuration; asserts that nothing outside the tensors was written.

    Every tensor is moved by GUARD elements into its buffer, so that reads and writes before its start show as well.
    What a launch can compute in place is computed in place.
    """
    ctx = compiling(ctx, target)
    moved = replace(
        program,
        inputs=tuple(_moved(t) for t in program.inputs),
        outputs=tuple(_moved(t) for t in program.outputs),
    )
    lowering = family.lower(moved, target, configuration)
    buffers: dict[str, Buffer] = {}
    before: dict[str, np.ndarray] = {}
    for t in (*moved.inputs, *moved.outputs):
        memory = np.full(t.span + GUARD, _sentinel(t), t.dtype.numpy)
        if t.name in arrays:
            _view(t, memory)[...] = arrays[t.name]
        before[t.name] = memory
        buffers[t.name] = ctx.allocate(memory.nbytes)
        ctx.write(buffers[t.name], memory)
    in_place = dict((written, read) for launch in lowering.launches for read, written in launch.in_place)
    for written, read in in_place.items():
        before[written] = before[read].copy()
        ctx.write(buffers[written], before[written])
        buffers[read] = buffers[written]
    for s in lowering.scratch:
        buffers[s.name] = ctx.allocate(s.size * s.dtype.itemsize)
        ctx.fill(buffers[s.name], 7 if s.fill is None else s.fill, s.dtype)
    ctx.enqueue([ctx.bind(launch, buffers) for launch in lowering.launches])
    ctx.finish()
    results = {}
    for t in (*(t for t in moved.inputs if t.name not in in_place.values()), *moved.outputs):
        after = ctx.read(buffers[t.name], before[t.name].shape, t.dtype.numpy)
        if t in moved.outputs:
            results[t.name] = _view(t, after).copy()
            _view(t, before[t.name])[...] = results[t.name]
        np.testing.assert_array_equal(after, before[t.name], err_msg=f"memory around {t.name} changed")
    return results


def laid_out(made: Program, layout: str) -> Program:
    """The program with its tensors in row-major order, channels last, or scattered with gaps and offsets."""
    place = {"rows": lambda t: t, "last": _channels_last, "scattered": _scattered}[layout]
    return replace(made, inputs=tuple(map(place, made.inputs)), outputs=tuple(map(place, made.outputs)))


def _channels_last(t: Tensor) -> Tensor:
    rank = len(t.shape)
    if rank > 2 and t.name != "w":
        return _ordered(t, (0, *range(2, rank), 1), 1, 0)
    return _ordered(t, (*range(1, rank), *range(min(rank, 1))), 1, 0)


def _scattered(t: Tensor) -> Tensor:
    rng = random.Random(f"{t.name}{t.shape}")
    order = rng.sample(range(len(t.shape)), len(t.shape))
    return _ordered(t, tuple(order), rng.choice((1, 1, 2, 3)), rng.randrange(6))


def _ordered(t: Tensor, order: tuple[int, ...], step: int, offset: int) -> Tensor:
    strides = [0] * len(t.shape)
    for d in reversed(order):
        strides[d] = step
        step = step * t.shape[d] + (1 if offset else 0)
    return replace(t, strides=tuple(strides), offset=offset)


def values(made: Program, seed: int) -> dict[str, np.ndarray]:
    """Numbers around zero for every input; small whole ones for integers."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for t in made.inputs:
        drawn = rng.standard_normal(t.shape)
        if t.dtype is DType.BOOL:
            arrays[t.name] = drawn > 0
        else:
            arrays[t.name] = (drawn if t.dtype.is_float else np.abs(np.rint(drawn * 4))).astype(t.dtype.numpy)
    return arrays


def relative(made: Program, output: Tensor) -> float:
    """The error allowed for an output: that of the coarsest type in the program, 0 for integers."""
    if not output.dtype.is_float:
        return 0.0
    nodes = {n.dtype for s in made.statements for n in walk(s.value)}
    return 10 * max(RELATIVE.get(dtype, 0.0) for dtype in nodes | {output.dtype})


def compare(found: np.ndarray, expected: np.ndarray, allowed: float, place: str) -> None:
    """Assert that they differ by `allowed` at most, relative to the largest expected magnitude (1 at least)."""
    wide = expected.astype(np.float64)
    scale = max(float(np.abs(wide[np.isfinite(wide)]).max(initial=0)), 1.0)
    np.testing.assert_allclose(found.astype(np.float64), wide, 0, allowed * scale, err_msg=place)


def _moved(t: Tensor) -> Tensor:
    return replace(t, offset=t.offset + GUARD)


def _sentinel(t: Tensor) -> float:
    return 77.0 if t.dtype.is_float else 7


def _view(t: Tensor, memory: np.ndarray) -> np.ndarray:
    return as_strided(memory[t.offset :], t.shape, [s * t.dtype.itemsize for s in t.strides])
