"""Runs a Lowering on a device with guard zones around every tensor, for tests of families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tilewright.dsl.families import Family
from tilewright.dsl.program import Program, Tensor
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import Buffer, Context

GUARD = 64
"""Elements on either side of every tensor that no kernel may change."""


def shaped(target: Target, shape: Shape) -> Target:
    """The device's target with the other lowering: GPU kernels run on CPU drivers too, if slowly."""
    if shape is target.shape:
        return target
    return replace(target, shape=shape, sub_group=1, max_work_group=min(target.max_work_group, 1024))


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
    """
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
    for s in lowering.scratch:
        buffers[s.name] = ctx.allocate(s.size * s.dtype.itemsize)
        ctx.fill(buffers[s.name], 7 if s.fill is None else s.fill, s.dtype)
    ctx.enqueue([ctx.bind(launch, buffers) for launch in lowering.launches])
    ctx.finish()
    results = {}
    for t in (*moved.inputs, *moved.outputs):
        after = ctx.read(buffers[t.name], before[t.name].shape, t.dtype.numpy)
        if t in moved.outputs:
            results[t.name] = _view(t, after).copy()
            _view(t, before[t.name])[...] = results[t.name]
        np.testing.assert_array_equal(after, before[t.name], err_msg=f"memory around {t.name} changed")
    return results


def _moved(t: Tensor) -> Tensor:
    return replace(t, offset=t.offset + GUARD)


def _sentinel(t: Tensor) -> float:
    return 77.0 if t.dtype.is_float else 7


def _view(t: Tensor, memory: np.ndarray) -> np.ndarray:
    return as_strided(memory[t.offset :], t.shape, [s * t.dtype.itemsize for s in t.strides])
