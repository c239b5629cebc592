"""Runs cases in Oclgrind: one JSON object per line in, one out. Started by `simulator.py`.

A case is `{"family", "program", "target", "configuration", "fault"}`, all by name, the answer `{"wrong": text}`. What
the simulator has to say stands in its log.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from oracle import reference
from running import compare, relative, values

from memory.faults import FAULTS
from memory.programs import TARGETS, programs
from memory.simulator import is_scalar
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import by_name
from tilewright.dsl.lowering import Launch, Lowering
from tilewright.dsl.program import Program, Tensor
from tilewright.dsl.space import Configuration
from tilewright.errors import TilewrightError
from tilewright.runtime import Buffer, Context, context, devices

_LOCAL = re.compile(r"^( *)__local \w+ (\w+)(?:\[\w+\])+;$", re.MULTILINE)
_NAN_BITS = 0x7FC00000

_kept: list[Buffer] = []


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the simulator's compiler writes remarks to the standard output
    (device,) = (d for d in devices() if d.name.startswith("oclgrind"))
    ctx = context(device)
    ctx.keeps_binaries = False
    known = {name: programs(target) for name, target in TARGETS.items()}
    for line in sys.stdin:
        answers.write(json.dumps({"wrong": _checked(ctx, known, json.loads(line))}) + "\n")
        answers.flush()


def _checked(ctx: Context, known: dict[str, dict[str, Program]], case: dict[str, Any]) -> str:
    """What is wrong with a case's numbers, '' if nothing is."""
    program, target = known[case["target"]][case["program"]], TARGETS[case["target"]]
    lowering = by_name(case["family"]).lower(program, target, Configuration.of(case["configuration"]))
    if case["fault"]:
        lowering = FAULTS[case["fault"]].planted(lowering)
    arrays = values(program, 1)
    expected = reference(program, arrays)
    try:
        found = _run(ctx, program, lowering, arrays)
        for t in program.outputs:
            compare(found[t.name], expected[t.name], relative(program, t), t.name)
    except (AssertionError, TilewrightError) as error:
        return str(error)
    return ""


def _run(ctx: Context, program: Program, lowering: Lowering, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs, from memory that is exactly as large as each tensor.

    Outputs and scratch are left as they are where the simulator watches uninitialised values, else filled with NaN.
    """
    scalar = all(is_scalar(launch.source) for launch in lowering.launches)
    buffers: dict[str, Buffer] = {}
    for t in (*program.inputs, *program.outputs):
        buffers[t.name] = _allocate(ctx, t.span * t.dtype.itemsize)
        if t.name in arrays or not scalar:
            memory = np.full(t.span, _poison(t.dtype), t.dtype.numpy)
            if t.name in arrays:
                _view(t, memory)[...] = arrays[t.name]
            ctx.write(buffers[t.name], memory)
    for s in lowering.scratch:
        buffers[s.name] = _allocate(ctx, s.size * s.dtype.itemsize)
        if s.fill is not None or not scalar:
            ctx.write(buffers[s.name], np.full(s.size, _poison(s.dtype) if s.fill is None else s.fill, s.dtype.numpy))
    launches = lowering.launches if scalar else tuple(map(_poisoned, lowering.launches))
    ctx.enqueue([ctx.bind(launch, buffers) for launch in launches])
    ctx.finish()
    return {t.name: _view(t, ctx.read(buffers[t.name], (t.span,), t.dtype.numpy)).copy() for t in program.outputs}


def _allocate(ctx: Context, nbytes: int) -> Buffer:
    """A buffer without the spare bytes of the pool's blocks, which would hide small overruns.

    It is never released: the simulator confuses what it knows of a buffer with that of an earlier one at its place.
    """
    import pyopencl as cl

    handle = cl.Buffer(ctx.pool._context, cl.mem_flags.READ_WRITE, max(nbytes, 1))
    _kept.append(Buffer(handle, nbytes, ctx.pool, nbytes))
    return _kept[-1]


def _poisoned(launch: Launch) -> Launch:
    """The launch with its local memory full of NaN at the start."""

    def filled(found: re.Match[str]) -> str:
        indent, name = found[1], found[2]
        words = f"(__local uint*)&{name}"
        loop = f"for (int poison = get_local_id(0); poison < sizeof({name}) / 4; poison += get_local_size(0))"
        return f"{found[0]}\n{indent}{loop} ({words})[poison] = {_NAN_BITS}u;\n{indent}barrier(CLK_LOCAL_MEM_FENCE);"

    return replace(launch, source=_LOCAL.sub(filled, launch.source))


def _poison(dtype: DType) -> float:
    return np.nan if dtype.is_float else 77 if dtype is not DType.BOOL else 1


def _view(t: Tensor, memory: np.ndarray) -> np.ndarray:
    return as_strided(memory[t.offset :], t.shape, [s * t.dtype.itemsize for s in t.strides])


if __name__ == "__main__":
    main()
