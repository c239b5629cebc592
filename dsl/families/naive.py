"""The family that fits everything: one work-item per output element, scalar code, plain loops.

    acc = identity; for every reduction index: acc = acc (+) body;  y[i] = value

It serves what no other family takes, and is the program's reference for correctness. Each statement is a launch of its
own, so statements may read what earlier ones wrote; intermediates live in scratch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.shared import (
    SUM_BLOCK,
    Geometry,
    banner,
    ceil_div,
    decode,
    gpu_geometry,
    kernel_name,
    launch,
    needs_f64,
)
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import Index, Program, Read, Reduce, Statement, checked_dimensions, extents
from tilewright.dsl.space import Configuration, Parameter, Space
from tilewright.dsl.target import Shape, Target
from tilewright.dsl.writer import (
    Expressions,
    Names,
    Source,
    affine,
    argument,
    identity,
    index_type,
    lanes_read,
    store,
    variable,
    vector_type,
)


class Naive:
    """Scalar code for any legal program."""

    name = "naive"

    def refusal(self, program: Program, target: Target) -> str | None:
        """None unless the device lacks the program's element type."""
        return needs_f64(program, target)

    def space(self, program: Program, target: Target) -> Space:
        """Nothing to choose on CPUs; the work-group's size on GPUs."""
        if target.shape is Shape.CPU:
            return Space()
        sizes = tuple(n for n in (32, 64, 128, 256) if n <= target.max_work_group) or (1,)
        return Space((Parameter("work_group", sizes, "work-items per work-group, typically 64 to 256"),))

    def default(self, program: Program, target: Target) -> Configuration:
        """Work-groups of 64 on GPUs."""
        if target.shape is Shape.CPU:
            return Configuration.of({})
        sizes = self.space(program, target).parameters[0].values
        return Configuration.of({"work_group": 64 if 64 in sizes else sizes[-1]})

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """One launch per statement."""
        scratch = tuple(Scratch(t.name, t.dtype, t.span) for t in program.intermediates)
        numbers = range(len(program.statements))
        return Lowering(tuple(_launch(program, n, target, configuration) for n in numbers), scratch)


def _launch(program: Program, number: int, target: Target, configuration: Configuration) -> Launch:
    s = program.statements[number]
    count = math.prod(i.extent for i in s.indices)
    ctype = index_type(program)
    body = Source()
    if target.shape is Shape.CPU:
        # Runs of outputs per work-item: starting a work-item costs more than computing one element.
        grain = max(1, min(256, count // (4 * target.compute_units)))
        geometry = Geometry((ceil_div(count, grain),), (1,))
        body.line(f"const {ctype} first = ({ctype})get_global_id(0) * {grain};")
        header = f"for ({ctype} flat = first; flat < first + {grain} && flat < {count}; ++flat)"
    else:
        geometry = gpu_geometry(count, configuration.integer("work_group"))
        body.line(f"const {ctype} flat = ({ctype})get_global_id(0);")
        header = f"if (flat < {count})"
    helpers: dict[str, str] = {}
    with body.block(header):
        decode(body, "flat", [(variable(i.name), i.extent) for i in s.indices], ctype)
        _element(body, program, s, ctype, helpers)
    part = f"_{number}" if len(program.statements) > 1 else ""
    return launch(
        kernel_name("naive", program, part),
        program,
        geometry,
        body,
        helpers,
        banner("naive", program, configuration),
        writes=(s.target,),
    )


def _element(body: Source, program: Program, s: Statement, ctype: str, helpers: dict[str, str]) -> None:
    tensor = program.tensors[s.target]
    names = Names({name: variable(name) for name in extents(s)}, program.tensors, extents(s), helpers)
    scope = Scalars(body, program, extents(s), names, ctype, helpers)
    expressions = scope.expressions()
    value = expressions.converted(expressions(s.value), s.value.dtype, tensor.dtype)
    address = tensor.address(tuple(Affine.index(i.name) for i in s.indices))
    body.line(store(argument(s.target), address, names, tensor.dtype, 1, value))


@dataclass
class Scalars:
    """Writes scalar code for expressions with reductions in them: each becomes loops ahead of its use."""

    body: Source
    program: Program
    extent: Mapping[str, int]
    names: Names
    ctype: str
    helpers: dict[str, str]
    scopes: int = 0
    """Scopes opened so far; numbers the variables of each."""

    def expressions(self) -> Expressions:
        """A renderer whose variables live in the current scope."""
        prefix = f"{'abcdefgh'[min(self.scopes, 7)]}{self.scopes if self.scopes > 7 else ''}_"
        self.scopes += 1
        found: dict[Reduce, str] = {}

        def reduction(e: Reduce) -> str:
            if e not in found:
                found[e] = self.reduction(e, f"{prefix}{e.kind}{len(found)}")
            return found[e]

        tensors, fast = self.program.tensors, self.program.fast_math
        return Expressions(
            self.read, self.names, tensors, reduction, 1, self.helpers, self.body, prefix, self.extent, fast
        )

    def read(self, e: Read) -> str:
        """One element, checked where it may lie outside."""
        tensor = self.program.tensors[e.tensor]
        return lanes_read(e, tensor, self.names, checked_dimensions(e.index, tensor.shape, self.extent), 1)

    def reduction(self, e: Reduce, name: str) -> str:
        """Write the loops of one reduction; returns the variable that holds the result."""
        self.body.line(f"{vector_type(e.dtype, 1)} {name} = {identity(e.kind, e.dtype)};")
        self._loops(e, e.indices, name)
        return name

    def _loops(self, e: Reduce, indices: tuple[Index, ...], total: str) -> None:
        if not indices:
            inner = self.expressions()
            value = inner.converted(inner(e.body), e.body.dtype, e.dtype)
            self.body.line(inner.accumulate(e.kind, total, value, e.dtype))
            return
        index, *rest = indices
        i = variable(index.name)
        if e.until is not None:
            last = f"min(({self.ctype}){index.extent - 1}, ({self.ctype})({affine(e.until, self.names)}))"
            with self.body.block(f"for ({self.ctype} {i} = 0; {i} <= {last}; ++{i})"):
                self._loops(e, tuple(rest), total)
            return
        blocked = not rest and index.extent > SUM_BLOCK and e.dtype.is_float and e.kind == "sum"
        if not blocked:
            with self.body.loop(i, index.extent, ctype=self.ctype):
                self._loops(e, tuple(rest), total)
            return
        # Partial sums of a block: rounding errors grow with a block's length, not with the whole reduction's.
        with self.body.loop(f"{i}_block", index.extent, SUM_BLOCK, self.ctype):
            self.body.line(f"{vector_type(e.dtype, 1)} {total}_part = {identity(e.kind, e.dtype)};")
            end = f"{i}_block + {SUM_BLOCK}"
            with self.body.block(f"for ({self.ctype} {i} = {i}_block; {i} < {end} && {i} < {index.extent}; ++{i})"):
                self._loops(e, (), f"{total}_part")
            self.body.line(f"{total} += {total}_part;")


NAIVE = Naive()
