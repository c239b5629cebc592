"""Chains over rows on CPUs: one work-item per run of rows, with vectors along a row or across neighbouring rows.

What a pass reads again comes from a cache; values that are costly to compute again lie in an array of the work-item.
Where a size does not divide, the last vector starts early: elements are written twice with the same value, and lanes
that were counted before are left out of reductions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.rows_chain import Kept
from tilewright.dsl.families.rows_plan import LONGEST_SUM, Plan
from tilewright.dsl.families.rows_writer import Writer
from tilewright.dsl.families.shared import SUM_BLOCK, Dimension, ceil_div, cpu_geometry, decode, share
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import Read
from tilewright.dsl.space import Configuration
from tilewright.dsl.writer import affine, argument, variable, vector_type


def lower(plan: Plan, configuration: Configuration) -> Launch:
    """The kernel of one configuration."""
    return _CpuWriter(plan, configuration).kernel()


def kept_values(plan: Plan, keep: str) -> tuple[Kept, ...]:
    """What is kept in arrays for a value of the parameter `keep`."""
    return {"nothing": (), "costly": plan.costly, "loads": plan.loaded}[keep]


def kept_bytes(plan: Plan, keep: str, lanes: int, vectors: int) -> int:
    """Bytes of a work-item's arrays of kept values."""
    rows = lanes * vectors if plan.across else 1
    return sum(plan.chain.length * rows * max(4, k.value.dtype.itemsize) for k in kept_values(plan, keep))


def ahead_reads(plan: Plan) -> tuple[Read, ...]:
    """The reads of the first pass that walk through memory row by row, in order."""
    if len(plan.chain.passes) < 2:
        return ()
    rows = {d.name for d in plan.chain.rows}
    first = dict.fromkeys(n for root in plan.chain.roots(0) for n in plan.chain.below(root) if isinstance(n, Read))
    found = []
    for e in first:
        if e.tensor not in plan.chain.values and not plan.chain.checks[e] and plan.chain.is_wide(e):
            address = plan.program.tensors[e.tensor].address(e.index)
            if address.is_linear and address.coefficient(plan.vector.name) == 1 and not rows.isdisjoint(address.names):
                found.append(e)
    return tuple(found)


class _CpuWriter(Writer):
    def __init__(self, plan: Plan, configuration: Configuration) -> None:
        super().__init__(plan, configuration, kept_values(plan, str(configuration["keep"])))
        self.unroll = configuration.integer("unroll")
        self.slots = configuration.integer("vectors") if plan.across else 1
        run = self.slots * self.lanes if plan.across else self.lanes
        self.multiples = {plan.vector.name: self.lanes} if plan.vector.extent % run == 0 else None
        self.streams = configuration["stream"] == 1
        self.ahead = configuration["ahead"] == "next"
        self.next_names: dict[str, str] = {}
        order = (*plan.inner, plan.vector) if not plan.across else plan.inner
        self.order = order
        self.flat = Affine()
        step = 1
        for d in reversed(order):
            self.flat, step = self.flat + Affine.of({d.name: step}), step * d.extent

    # --- kept values ---

    def _kept_place(self, number: int, place: Mapping[str, Affine], slot: int) -> str:
        at = self.flat.substitute(
            {n: a for n, a in place.items() if n != self.plan.vector.name or not self.plan.across}
        )
        if self.plan.across:
            at = at * self.slots + slot
        return affine(at.substitute({"<lane>": Affine((), 0)}), self.names)

    def kept_load(self, number: int, place: Mapping[str, Affine], slot: int) -> str:
        at = self._kept_place(number, place, slot)
        if self.plan.across or self.lanes == 1:
            return f"kept{number}[{at}]"
        return f"vload{self.lanes}(0, kept{number} + {at})"

    def kept_store(self, number: int, place: Mapping[str, Affine], slot: int, text: str) -> str:
        at = self._kept_place(number, place, slot)
        if self.plan.across or self.lanes == 1:
            return f"kept{number}[{at}] = {text};"
        return f"vstore{self.lanes}({text}, 0, kept{number} + {at});"

    def _declare_kept(self) -> None:
        for number, k in enumerate(self.kept):
            width, count = (self.lanes, self.slots) if self.plan.across else (1, 1)
            self.body.line(f"{vector_type(k.value.dtype, width)} kept{number}[{self.chain.length * count}];")

    # --- the kernel ---

    def kernel(self) -> Launch:
        plan, body, ctype = self.plan, self.body, self.ctype
        run = self.slots * self.lanes if plan.across else 1
        pieces = ceil_div(plan.vector.extent, run) if plan.across else 1
        one = run * self.chain.length * plan.element_bytes
        lines = max(1, min(plan.others, (self.configuration.integer("grain") << 10) // one))
        blocks = ceil_div(plan.others, lines)
        body.line(f"const {ctype} item = ({ctype})get_global_id(0);")
        decode(body, "item", [("block", blocks), ("piece", pieces)], ctype, ("block", "piece"))
        if plan.across:
            v, extent = self.names[plan.vector.name], plan.vector.extent
            first = "0" if pieces == 1 else f"piece * {run}"
            body.line(
                f"const {ctype} {v} = " + (f"min({first}, ({ctype}){extent - run});" if extent % run else f"{first};")
            )
        self._declare_kept()
        with share(body, ctype, "flat", "block", lines, plan.others):
            decode(body, "flat", [(variable(d.name), d.extent) for d in plan.rows], ctype)
            if self.ahead:
                self._declare_next(lines, run)
            self._row_values(self.chain.opening, -1)
            for position, step in enumerate(self.chain.passes):
                self._pass(position)
                self._row_values(step.scalars, position)
        remark = f"vectors run {'across rows' if plan.across else 'along rows'}"
        return self.launch(cpu_geometry(blocks * pieces), remark)

    # --- the next row ---

    def _declare_next(self, lines: int, run: int) -> None:
        """The loop variables of the row (or line of rows) that comes after this one."""
        plan, body, ctype = self.plan, self.body, self.ctype
        self.next_names = dict(self.names)
        if plan.across and lines == 1:
            v, extent = self.names[plan.vector.name], plan.vector.extent
            body.line(f"const {ctype} next_{v} = min({v} + {run}, ({ctype}){extent - run});")
            self.next_names[plan.vector.name] = f"next_{v}"
            return
        self.next_names |= {d.name: f"next_{variable(d.name)}" for d in plan.rows}
        body.line(f"const {ctype} next = min(flat + 1, ({ctype}){plan.others - 1});")
        decode(body, "next", [(self.next_names[d.name], d.extent) for d in plan.rows], ctype)

    def _fetch(self, position: int, offsets: Mapping[str, int], count: int) -> None:
        """Ask for the next row's elements, where those of this row come from a near cache."""
        if not self.ahead or position != 1:
            return
        place = self.place(offsets, 1)
        for e in ahead_reads(self.plan):
            tensor = self.plan.program.tensors[e.tensor]
            address = affine(tensor.address(e.index).substitute(place), self.next_names)
            kind = {DType.F16: "ushort", DType.BF16: "ushort"}.get(tensor.dtype, tensor.dtype.opencl)
            self.body.line(f"prefetch((const __global {kind}*){argument(tensor.name)} + {address}, {count});")

    def _row_values(self, targets: tuple[str, ...], position: int) -> None:
        for slot in range(self.slots):
            offsets = {self.plan.vector.name: slot * self.lanes} if self.plan.across else {}
            self.scalars(targets, position, slot, offsets)
            self.write_scalars(targets, slot, offsets)

    def _pass(self, position: int) -> None:
        step, chains = self.chain.passes[position], self.unroll * self.slots
        self.title(position)
        self.declare(step, chains)
        with self.body.block(""):
            self._loops(position)
        if not step.reduces:
            return
        self.merge(step, [(f"acc{k % self.slots}", f"acc{k}") for k in range(self.slots, chains)])
        for e in step.reduces:
            for slot in range(self.slots):
                value = self.accumulator(e, slot, False)
                if not self.plan.across:
                    value = self.lanes_combined(e, value)
                self.body.line(f"const {vector_type(e.dtype, self.width)} {self.result(e, slot)} = {value};")

    # --- loops over a row ---

    def _loops(self, position: int) -> None:
        """The loops of a pass; sums of many terms in parts, at the loop where the terms become many."""
        *outer, innermost = self.order
        step = 1 if self.plan.across else self.lanes
        counts = [d.extent for d in outer] + [ceil_div(innermost.extent, step * self.unroll)]
        level, inside = len(counts), 1
        while level and inside * counts[level - 1] <= LONGEST_SUM:
            level -= 1
            inside *= counts[level]
        sums = any(e.kind == "sum" and e.dtype.is_float for e in self.chain.passes[position].reduces)
        blocked = level - 1 if level and sums else None
        part = max(1, SUM_BLOCK // inside)
        with ExitStack() as stack:
            for number, d in enumerate(outer):
                stack.enter_context(self._outer(position, d, part if number == blocked else None))
            self._innermost(position, innermost, step, part if blocked == len(outer) else None, blocked is not None)

    @contextmanager
    def _outer(self, position: int, d: Dimension, part: int | None) -> Iterator[None]:
        u = self.names[d.name]
        if part is None:
            with self.body.loop(u, d.extent, ctype=self.ctype):
                yield
            return
        with self._parts(position, f"for ({self.ctype} {u}_first = 0; {u}_first < {d.extent}; {u}_first += {part})"):
            end = f"{u} < {u}_first + {part}" + (f" && {u} < {d.extent}" if d.extent % part else "")
            with self.body.block(f"for ({self.ctype} {u} = {u}_first; {end}; ++{u})"):
                yield

    @contextmanager
    def _parts(self, position: int, header: str) -> Iterator[None]:
        """A loop whose body adds to partial accumulators, which then are added to the row's."""
        step, chains = self.chain.passes[position], self.unroll * self.slots
        with self.body.block(header):
            self.declare(step, chains, partial=True)
            yield
            self.merge(step, [(f"acc{k}", f"part{k}") for k in range(chains)])

    def _innermost(self, position: int, d: Dimension, unit: int, part: int | None, partial: bool) -> None:
        """The innermost loop: `unroll` vectors at a time, single ones, and the odd rest as one that starts early."""
        body, ctype, u = self.body, self.ctype, self.names[d.name]
        stride, whole = unit * self.unroll, d.extent - d.extent % unit
        first, end = "0", str(whole)
        with ExitStack() as stack:
            if part is not None:
                length = part * stride
                header = f"for ({ctype} {u}_first = 0; {u}_first < {whole}; {u}_first += {length})"
                stack.enter_context(self._parts(position, header))
                last = f"min({u}_first + {length}, ({ctype}){whole})" if whole % length else f"{u}_first + {length}"
                body.line(f"const {ctype} {u}_end = {last};")
                first, end = f"{u}_first", f"{u}_end"
            body.line(f"{ctype} {u} = {first};")
            if self.unroll > 1 and whole >= stride:
                with body.block(f"for (; {u} <= {end} - {stride}; {u} += {stride})"):
                    if not self.plan.across:
                        self._fetch(position, {}, stride)
                    for chain in range(self.unroll):
                        self._vectors(position, d, chain, chain * unit, partial)
            if self.unroll == 1 or whole % stride:
                with body.block(f"for (; {u} < {end}; {u} += {unit})"):
                    if not self.plan.across:
                        self._fetch(position, {}, unit)
                    self._vectors(position, d, 0, 0, partial)
        if d.extent > whole:
            with body.block(""):
                body.line(f"const {ctype} {u} = {d.extent - unit};")
                self.step(position, {}, partial=partial and part is None, counted=unit - d.extent % unit)

    def _vectors(self, position: int, d: Dimension, chain: int, offset: int, partial: bool) -> None:
        if self.plan.across:
            self._fetch(position, {d.name: offset}, self.slots * self.lanes)
        for slot in range(self.slots):
            offsets = {d.name: offset}
            if self.plan.across:
                offsets[self.plan.vector.name] = slot * self.lanes
            self.step(position, offsets, chain * self.slots + slot, slot, partial)
