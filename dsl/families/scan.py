"""Scans: prefix sums, products, maxima and minima along an output index, with pointwise code around them.

    acc = identity;  for t in 0..K-1:  acc = acc (+) body[t];  y[t] = f(acc)          inclusive
                     for t in 0..K-1:  y[t] = f(acc);  acc = acc (+) body[t]          exclusive

A scan from the end is one from the start with the index turned round. Two forms. *Rows*: memory is contiguous along
the scan; vectors run along it and are scanned within. *Columns*: memory is contiguous along another index; the vector
holds neighbouring scans.

CPU: one work-item per run of rows, which scans each vector in registers in log2(lanes) steps (Hillis and Steele, Data
parallel algorithms, 1986) and carries the sum on; or per block of columns.
GPU: rows are shared by work-items, whose sums are scanned in local memory with four operands per step, a carry going
from tile to tile; in columns a work-item owns a vector of scans.
Where scans are few and long they are split: sums of the parts, a scan of these, and a scan of each part that starts
from there (reduce-then-scan). The single pass of Merrill and Garland (Single-pass parallel prefix scan with decoupled
look-back, 2016) reads once instead of twice, but needs work-groups that wait for each other, which OpenCL does not
promise to end. Carries of parts, tiles and vectors are sums of sums, so that rounding errors grow with the number of
parts and tiles rather than with the scan's length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.reduce import accumulator
from tilewright.dsl.families.shared import (
    Collapsed,
    Dimension,
    aligned,
    ceil_div,
    collapse,
    needs_f64,
    power_below,
    round_up,
    same_outputs,
)
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import (
    Expr,
    Index,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    free_indices,
    substitute_indices,
    transform,
    walk,
)
from tilewright.dsl.space import Configuration, Space
from tilewright.dsl.target import Shape, Target

SPLITS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Scan:
    """Prefix reductions along one output index."""

    name = "scan"

    def refusal(self, program: Program, target: Target) -> str | None:
        """Anything but prefix reductions, all along one output index and up to it or to its neighbour."""
        if any(i.extent == 0 for s in program.statements for i in s.indices):
            return "it has no elements"
        refused = same_outputs(program) or needs_f64(program, target)
        if refused:
            return refused
        ways: set[tuple[str, int] | None] = set()
        for s in aligned(program):
            found = [n for n in walk(s.value) if isinstance(n, Reduce)]
            if not found or any(n.until is None for n in found):
                return "a statement has a reduction that is no prefix, or none"
            if any(isinstance(inner, Reduce) for n in found for inner in walk(n.body)):
                return "it has a reduction within a reduction"
            ways.update(_way(n, s) for n in found)
        if None in ways:
            return "a prefix does not end at an output index or next to it"
        return None if len(ways) == 1 else "its prefixes run along different indices"

    def space(self, program: Program, target: Target) -> Space:
        """Vector width, how scans are shared by work-items, and into how many parts they are split."""
        from tilewright.dsl.families import scan_space

        return scan_space.space(Plan.of(program), target)

    def default(self, program: Program, target: Target) -> Configuration:
        """The native width, and parts only where there are too few scans for the device."""
        from tilewright.dsl.families import scan_space

        return scan_space.default(Plan.of(program), target)

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """One launch, or three if scans are split: the parts' sums, the scan of these, and the scans."""
        plan = Plan.of(program)
        if configuration.integer("splits") == 1:
            return Lowering((_launch(plan, target, configuration),))
        middle = plan.carries(configuration.integer("splits"))
        single = Configuration.of({**self.default(middle, target), "splits": 1})
        if self.space(middle, target).violated(single) is not None:
            raise AssertionError("the scan of sums has no configuration without parts")
        launches = (
            _launch(plan, target, configuration, sums=True),
            _launch(Plan.of(middle), target, single, part="_carries"),
            _launch(plan, target, configuration),
        )
        tensors = (*middle.inputs, *middle.outputs)
        return Lowering(launches, tuple(Scratch(t.name, t.dtype, t.size) for t in tensors))


def _launch(plan: Plan, target: Target, configuration: Configuration, sums: bool = False, part: str = "") -> Launch:
    """One launch: the scans, or with ``sums`` the sums of their parts. ``part`` ends the kernel's name."""
    from tilewright.dsl.families import scan_cpu, scan_gpu
    from tilewright.dsl.families.scan_writer import Writer

    writer = Writer(plan, configuration, sums, part)
    if target.shape is Shape.CPU:
        geometry = scan_cpu.rows(writer) if plan.rows else scan_cpu.columns(writer)
    else:
        geometry = scan_gpu.rows(writer) if plan.rows else scan_gpu.columns(writer)
    return writer.launch(geometry)


def _way(e: Reduce, s: Statement) -> tuple[str, int] | None:
    """The output index that a prefix runs along and its direction (1 or -1); None if it is no such prefix."""
    if e.until is None or len(e.until.terms) != 1 or len(e.indices) != 1:
        return None
    term, direction = e.until.terms[0]
    along = next((i for i in s.indices if i.name == term), None)
    if along is None or direction not in (1, -1) or e.indices[0].extent < along.extent:
        return None
    if along.name in free_indices(e.body):
        return None
    shift = e.until.constant - (along.extent - 1 if direction < 0 else 0)
    return (along.name, direction) if shift in (0, -1) else None


@dataclass(frozen=True)
class Plan:
    """A scan as loops. The scan's loop variable counts in the direction of the scan."""

    program: Program
    loops: Collapsed
    scans: tuple[Reduce, ...]
    """The distinct prefix reductions: no indices, the body as a function of the scan's loop variable, which ``until``
    is for an inclusive scan; it is one less for an exclusive one."""
    along: Dimension
    """The scan's dimension."""
    rows: bool
    """The vector runs along the scan."""
    vector: Dimension
    """The vector's dimension."""
    kept: tuple[Dimension, ...]
    """Dimensions other than the scan's and the vector's."""

    @staticmethod
    def of(program: Program) -> Plan:
        """The loops of a program that the family does not refuse."""
        statements = aligned(program)
        first = next(n for n in walk(statements[0].value) if isinstance(n, Reduce))
        way = _way(first, statements[0])
        if way is None:
            raise ValueError("the program is no scan")
        name, direction = way
        extent = next(i.extent for i in statements[0].indices if i.name == name)
        turned = Affine.of({name: -1}, extent - 1)
        loops = collapse(program, tuple(_pointwise(s, name, direction, turned) for s in statements))
        if direction < 0:
            writes = {target: a.substitute({name: turned}) for target, a in loops.writes.items()}
            loops = replace(loops, writes=writes)
        scans = tuple(dict.fromkeys(n for v in loops.values.values() for n in walk(v) if isinstance(n, Reduce)))
        along = next((d for d in loops.kept if d.name == name), Dimension(name, 1))
        others = [d for d in loops.kept if d != along]
        weights = {d.name: _contiguity(program, loops, d.name) for d in (along, *others)}
        best = max(others, key=lambda d: weights[d.name], default=None)
        rows = best is None or (extent > 1 and weights[name] >= weights[best.name])
        vector = along if rows or best is None else best
        return Plan(program, loops, scans, along, rows, vector, tuple(d for d in others if d != vector))

    @property
    def others(self) -> int:
        """Scans, or in columns runs of neighbouring scans."""
        return math.prod(d.extent for d in self.kept)

    @property
    def element_bytes(self) -> int:
        """Bytes read and written per output element."""
        found = dict.fromkeys(self.loops.reads)
        names = [r.tensor for r in found] + list(self.loops.writes)
        return sum(self.program.tensors[name].dtype.itemsize for name in names)

    @property
    def itemsize(self) -> int:
        """Bytes of the largest value that is carried."""
        return max(accumulator(e).itemsize for e in self.scans)

    def is_exclusive(self, e: Reduce) -> bool:
        """Whether a scan leaves out the element that it stands at."""
        return e.until is not None and e.until.constant < 0

    def widths(self, most: int, whole: bool = False) -> tuple[int, ...]:
        """Vector widths that fit the vector's dimension; with ``whole``, those that divide it.

        Truth values, which differ between scalars and vectors, are scanned one by one in rows.
        """
        if self.rows and any(e.dtype is DType.BOOL for e in self.scans):
            return (1,)
        extent = self.vector.extent
        fitting = (w for w in (1, 2, 4, 8, 16) if w <= min(most, power_below(extent)))
        return tuple(w for w in fitting if not whole or extent % w == 0)

    def splits(self, tile: int = 4) -> tuple[int, ...]:
        """Numbers of parts that have at least `tile` elements each."""
        return tuple(n for n in SPLITS if n == 1 or n * tile <= self.along.extent)

    def part(self, splits: int, tile: int) -> int:
        """Elements per part, whole tiles."""
        return round_up(ceil_div(self.along.extent, splits), tile)

    @property
    def stem(self) -> str:
        """How names of scratch buffers start, which no tensor's does."""
        stem = "part"
        while any(name.startswith(stem) for name in self.program.tensors):
            stem += "_"
        return stem

    def carries(self, splits: int) -> Program:
        """The program that scans the sums of the parts: rows of `splits` sums, or as many rows of columns."""
        columns = self.others * (1 if self.rows else self.vector.extent)
        shape = (columns, splits) if self.rows else (splits, columns)
        along, across = Index("part", splits), Index("scan", columns)
        indices = (across, along) if self.rows else (along, across)
        inputs, outputs, statements = [], [], []
        for number, e in enumerate(self.scans):
            sums = Tensor(f"{self.stem}_sum{number}", kept(e), shape)
            before = Tensor(f"{self.stem}_carry{number}", kept(e), shape)
            place = tuple(Affine.index("before" if i is along else i.name) for i in indices)
            body = Read(sums.name, place, sums.dtype)
            until = Affine.index("part") + (-1)
            value = Reduce(e.kind, (Index("before", splits),), body, sums.dtype, until)
            inputs.append(sums)
            outputs.append(before)
            statements.append(Statement(before.name, indices, value))
        return Program(self.program.name, tuple(inputs), tuple(outputs), tuple(statements))


def kept(e: Reduce) -> DType:
    """The type in which sums of parts are kept in memory: that of registers, and truth values as such."""
    return DType.BOOL if e.dtype is DType.BOOL else accumulator(e)


def _pointwise(s: Statement, name: str, direction: int, turned: Affine) -> Statement:
    """The statement with its prefixes as `Plan.scans` has them; with direction -1 the index `name` is turned round."""

    def change(node: Expr) -> Expr:
        if not isinstance(node, Reduce):
            return node
        body = substitute_indices(node.body, {node.indices[0].name: Affine.index(name)})
        return replace(node, indices=(), body=body)

    value = substitute_indices(s.value, {name: turned}) if direction < 0 else s.value
    return replace(s, value=transform(value, change))


def _contiguity(program: Program, loops: Collapsed, name: str) -> int:
    """How many accesses are contiguous along a loop; outputs count double."""
    addresses = [program.tensors[r.tensor].address(r.index) for r in loops.reads]
    found = sum(abs(a.coefficient(name)) == 1 and not a.bends(name) for a in addresses)
    return found + 2 * sum(abs(a.coefficient(name)) == 1 for a in loops.writes.values())


SCAN = Scan()
