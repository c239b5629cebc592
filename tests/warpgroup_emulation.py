"""Warpgroup instructions on a CPU: kernels compiled by clang, with the instructions as functions of `emulator.c`.

It shows mistakes in barriers, addresses, layouts and edges; it does not show missing fences, races between what runs
asynchronously on a GPU, or what the hardware does otherwise than the PTX ISA describes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import Family
from tilewright.dsl.lowering import Launch
from tilewright.dsl.matrix import AsyncCopy
from tilewright.dsl.program import Program, Tensor
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.warpgroup import Field, TensorMapFormat, WarpgroupInstruction

_PARTS = Path(__file__).parent / "warpgroup"
_KINDS = {"fp16": 0, "bf16": 1, "tf32": 2}
_DEADLINE = 60
"""Seconds after which a kernel counts as hanging."""

MAPS = TensorMapFormat(
    constant=(0,) * 16,
    rank=Field(1, 0, 3),
    dtype=Field(1, 3, 4),
    dtypes={dtype: dtype.itemsize for dtype in DType},
    sizes=tuple(Field(2 + d // 2, 32 * (d % 2), 32) for d in range(5)),
    strides=tuple(Field(5 + d // 2, 32 * (d % 2), 32) for d in range(4)),
    box=tuple(Field(8, 8 * d, 8) for d in range(5)),
    box_bytes=Field(9, 0, 32),
)
"""Tensor maps as `emulator.c` reads them."""


def available() -> bool:
    """Whether there is a compiler."""
    return shutil.which("clang") is not None


def emulated(target: Target) -> Target:
    """The target with the instructions as functions, and few compute units, so that work-groups go through tiles."""
    matrix = target.matrix
    assert matrix is not None
    assert matrix.warpgroup is not None
    instructions = tuple(replace(i, text=_macro(i)) for i in matrix.warpgroup.instructions)
    unit = replace(matrix.warpgroup, instructions=instructions, text="", maps=MAPS)
    return replace(target, matrix=replace(matrix, copy=AsyncCopy(""), warpgroup=unit), compute_units=2)


def _macro(i: WarpgroupInstruction) -> str:
    how = f"{i.n}, {i.k}, {_KINDS[i.products]}, {int(i.depth_major)}"
    pin = f"#define TW_WG_PIN_{i.n}(c)\n"
    if not i.a_in_registers:
        return f"#define {i.name}(c, a, b, add) emu_products(c, {how}, a, 0, b, add)\n{pin}"
    registers = "uint tw_a[4] = {a0, a1, a2, a3};"
    call = f"emu_products(c, {how}, 0, tw_a, b, add);"
    return f"#define {i.name}(c, a0, a1, a2, a3, b, add) do {{ {registers} {call} }} while (0)\n{pin}"


def emulate(
    family: Family,
    program: Program,
    target: Target,
    configuration: Configuration,
    arrays: Mapping[str, np.ndarray],
    folder: Path,
) -> np.ndarray:
    """The program's first output by one configuration; `folder` is for files that nobody needs afterwards."""
    lowering = family.lower(program, target, configuration)
    buffers = {t.name: np.zeros(t.span, t.dtype.numpy) for t in program.tensors.values()}
    for t in program.inputs:
        _view(t, buffers[t.name])[...] = arrays[t.name]
    for s in lowering.scratch:
        buffers[s.name] = np.zeros(s.size, s.dtype.numpy)
    for number, launch in enumerate(lowering.launches):
        _launch(launch, buffers, folder / str(number))
    return _view(program.outputs[0], buffers[program.outputs[0].name]).copy()


def _view(t: Tensor, memory: np.ndarray) -> np.ndarray:
    return as_strided(memory[t.offset :], t.shape, [s * t.dtype.itemsize for s in t.strides])


def _launch(launch: Launch, buffers: dict[str, np.ndarray], folder: Path) -> None:
    folder.mkdir()
    head = re.search(rf"__kernel void {launch.kernel}\((.*)\) {{", launch.source)
    assert head is not None
    types = re.findall(r"(__global (?:const )?[a-z]+\*)", head[1])
    call = ", ".join(f"({ctype})(size_t)arguments[{n}]" for n, ctype in enumerate(types))
    source = (
        f'#include "builtins.h"\n{launch.source}\nvoid run_kernel(void** arguments) {{ {launch.kernel}({call}); }}\n'
    )
    (folder / "kernel.cl").write_text(source)
    opencl = ["-x", "cl", "-cl-std=CL1.2", "-Xclang", "-finclude-default-header", "-target", "x86_64-linux-gnu"]
    near = ["-fno-pic", "-w", "-O1"]
    compiled = ["clang", *opencl, *near, f"-I{_PARTS}", "-c", "kernel.cl", "-o", "kernel.o"]
    linked = ["clang", "-no-pie", "-mf16c", *near, str(_PARTS / "emulator.c"), "kernel.o", "-lpthread", "-o", "run"]
    for command in (compiled, linked):
        subprocess.run(command, cwd=folder, check=True)
    files = []
    for name in launch.arguments:
        buffers[name].tofile(folder / name)
        files += [name, str(buffers[name].nbytes)]
    local = launch.local_size or (1,)
    groups = [a // b for a, b in zip(launch.global_size, local, strict=True)]
    words = [str(local[0]), *(str(n) for n in (*groups, 1, 1)[:3]), *files]
    subprocess.run([folder / "run", *words], cwd=folder, check=True, timeout=_DEADLINE)
    for name in launch.arguments:
        buffers[name] = np.fromfile(folder / name, buffers[name].dtype)
