"""Packing of a contraction's operands on CPUs: panels of one register tile's width, depth by depth, as one stream.

Weights are packed once, ahead of all runs; other operands at every run, which pays where they are read many times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.contraction import (
    NAMES,
    Contraction,
    Operand,
    decompose,
    element,
    linear_stride,
    parted,
)
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import Index, Program, reads
from tilewright.dsl.writer import Source, affine, argument
from tilewright.dsl.writer import element as memory_element

CPU_KERNEL = "__attribute__((reqd_work_group_size(1, 1, 1)))\n__kernel void"
"""What kernels of one work-item per work-group begin with."""

KEEP_LOOP = "#pragma unroll 1"
"""Before the outer depth loops: Intel's compiler otherwise unrolls a 3x3 window whole and takes 30 s over it."""

RUN = 4
"""Elements along the depth that are turned at a time: as many as the smallest vector has in f32."""
RUNS = 16
"""Places of a panel up to which they are turned so; each takes a register."""


@dataclass(frozen=True)
class Panels:
    """One operand and the panels it is packed into: `into[group][panel][depth][width]`."""

    c: Contraction
    program: Program
    operand: Operand
    into: str
    """Name of the scratch: packed_a or packed_b."""
    across: tuple[Index, ...]
    """The rows of A, or the columns of B."""
    total: int
    """How many rows or columns there are; what is in the places beyond does not matter."""
    count: int
    """Number of panels."""
    width: int
    ctype: str

    @property
    def scalar(self) -> str:
        """OpenCL type of a packed element."""
        return self.c.dtype.opencl


def pack(p: Panels, helpers: dict[str, str]) -> Launch:
    """The kernel that fills the panels; `helpers` gets the functions it calls."""
    c, into = p.c, p.into
    inputs = tuple(dict.fromkeys(r.tensor for r in reads(p.operand.value)))
    parameters = [f"__global const {p.program.tensors[n].dtype.opencl}* restrict {argument(n)}" for n in inputs]
    parameters.append(f"__global {p.scalar}* restrict {argument(into)}")
    body = Source()
    with body.block(f"{CPU_KERNEL} {into}({', '.join(parameters)})"):
        body.line(f"const {p.ctype} panel = get_global_id(0), group = get_global_id(1);")
        for text in decompose("group", c.groups, lambda i: NAMES[i.name], p.ctype):
            body.line(text)
        start = f"(group * {p.count} + panel) * ({p.ctype}){c.k * p.width}"
        body.line(f"__global {p.scalar}* to = {argument(into)} + {start};")
        step = _step(p)
        if step is None:
            _pack_each(p, body, helpers)
        else:
            _pack_strided(p, body, step)
    src = Source()
    src.line(f"// Operand {into[-1].upper()} as panels of {p.width}, one after the other, depth by depth.")
    src.line(body.text)
    return Launch(into, src.text, (p.count, c.g), (1, 1), (*inputs, into), (into,))


def _step(p: Panels) -> int | None:
    """The step across the panel of an operand that is one unchecked read; None if it is not that simple."""
    if p.operand.read is None:
        return None
    place = p.c.access(p.operand.read)
    return None if place.checks else linear_stride(place.address, p.across)


def _pack_strided(p: Panels, body: Source, step: int) -> None:
    assert p.operand.read is not None
    width, total, place = p.width, p.total, p.c.access(p.operand.read)
    address, _ = parted(place.address, [i.name for i in p.across])
    base, inner = parted(address, [i.name for i in p.c.depth])
    source, dtype = argument(place.tensor.name), place.tensor.dtype.opencl
    body.line(f"const {p.ctype} count = min(({p.ctype}){width}, ({p.ctype})({total} - panel * {width}));")
    body.line(f"__global const {dtype}* from = {source} + {affine(base, NAMES)} + panel * {width * step};")

    def copy(value: str) -> Callable[[], None]:
        def write() -> None:
            body.line(f"for ({p.ctype} lane = 0; lane < {width}; ++lane) to[lane] = {value};")
            body.line(f"to += {width};")

        return write

    if _runs_along_depth(p, inner):
        _pack_runs(p, body, inner, step)
        return
    one = memory_element("from", f"{affine(inner, NAMES)} + lane * {step}", place.tensor.dtype)
    value = f"({p.scalar}){one}"
    if step == 1:
        with body.block(f"if (count == {width})"):
            _nest(body, p.c.depth, copy(value), p.ctype)
            body.line("return;")
    if total % width or step != 1:
        _nest(body, p.c.depth, copy(f"lane < count ? {value} : 0"), p.ctype)


def _runs_along_depth(p: Panels, inner: Affine) -> bool:
    """Whether the operand lies in memory along the last depth index, in the type that it is packed as."""
    assert p.operand.read is not None
    last = p.c.depth[-1] if p.c.depth else None
    long = last is not None and last.extent >= RUN and inner.coefficient(last.name) == 1
    return long and p.c.access(p.operand.read).tensor.dtype is p.c.dtype and p.width <= RUNS


def _pack_runs(p: Panels, body: Source, inner: Affine, step: int) -> None:
    """Turn tiles of `width` places, `RUN` elements of the depth each.

    Places beyond the last one repeat it, those of panels that lie beyond it altogether too: their `count` is negative.
    """
    outer, last = p.c.depth[:-1], p.c.depth[-1]
    before, _ = parted(inner, [last.name])
    vector, whole = f"{p.scalar}{RUN}", last.extent - last.extent % RUN
    for lane in range(p.width):
        at = f"min(({p.ctype}){lane}, count - 1) * {step}" if p.total < p.count * p.width else lane * step
        body.line(f"__global const {p.scalar}* from{lane} = from + {at};")

    def write() -> None:
        body.line(f"const {p.ctype} start = {affine(before, NAMES)};")
        with body.block(f"for ({p.ctype} k = start; k < start + {whole}; k += {RUN})"):
            for lane in range(p.width):
                body.line(f"const {vector} x{lane} = vload{RUN}(0, from{lane} + k);")
            turned = [f"x{lane}.s{k}" for k in range(RUN) for lane in range(p.width)]
            for at in range(0, len(turned), RUN):
                body.line(f"vstore{RUN}(({vector})({', '.join(turned[at : at + RUN])}), 0, to + {at});")
            body.line(f"to += {len(turned)};")
        if last.extent > whole:
            with body.block(f"for ({p.ctype} k = start + {whole}; k < start + {last.extent}; ++k)"):
                for lane in range(p.width):
                    body.line(f"to[{lane}] = from{lane}[k];")
                body.line(f"to += {p.width};")

    _nest(body, outer, write, p.ctype)


def _pack_each(p: Panels, body: Source, helpers: dict[str, str]) -> None:
    def write() -> None:
        with body.block(f"for (int lane = 0; lane < {p.width}; ++lane)"):
            body.line(f"const {p.ctype} flat = panel * {p.width} + lane;")
            for text in decompose("flat", p.across, lambda i: NAMES[i.name], p.ctype):
                body.line(text)
            value = element(p.c, p.operand.value, NAMES, p.program, helpers)
            body.line(f"to[lane] = flat < {p.total} ? {value} : 0;")
        body.line(f"to += {p.width};")

    _nest(body, p.c.depth, write, p.ctype)


def _nest(body: Source, indices: tuple[Index, ...], inside: Callable[[], None], ctype: str) -> None:
    """Loops over `indices` around what `inside` writes."""
    if not indices:
        inside()
        return
    body.line(KEEP_LOOP)
    with body.loop(NAMES[indices[0].name], indices[0].extent, ctype=ctype):
        _nest(body, indices[1:], inside, ctype)
