"""Chains over rows on GPUs: a team of work-items per row, several rows per work-group.

Neighbouring members of a team read neighbouring vectors of a row; where memory is contiguous across rows, neighbouring
work-items take neighbouring rows instead. What later passes need stays in registers (a member's loops have the same
trips in every pass) or in local memory, or is read again. A pass's reductions are combined through local memory: each
member stores its result, a few members combine equal parts, and every member combines what those found, so that all
have the same value with two barriers. All barriers stand outside of branches and loops.
"""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.rows_chain import Kept
from tilewright.dsl.families.rows_plan import LONGEST_SUM, Plan
from tilewright.dsl.families.rows_writer import Writer
from tilewright.dsl.families.shared import SUM_BLOCK, ceil_div, decode, gpu_geometry
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import Reduce
from tilewright.dsl.space import Configuration
from tilewright.dsl.writer import Source, variable, vector_type

DIRECT = 32
"""Largest team whose members each combine the results of all."""


def lower(plan: Plan, configuration: Configuration) -> Launch:
    """The kernel of one configuration."""
    return _GpuWriter(plan, configuration).kernel()


def vectors(plan: Plan, lanes: int) -> int:
    """Steps that a team takes over a row, one vector each."""
    return plan.steps * (1 if plan.across else plan.vector.extent // lanes)


def lines(plan: Plan, lanes: int) -> int:
    """Teams: rows, or vectors of them."""
    return plan.others * (plan.vector.extent // lanes if plan.across else 1)


def kept_bytes(plan: Plan, configuration: Configuration) -> int:
    """Bytes of kept values per work-item, in registers (at the pass where they are most) or in local memory."""
    lanes, group, rows = (configuration.integer(name) for name in ("lanes", "work_group", "rows"))
    trips = ceil_div(vectors(plan, lanes), group // rows)
    if configuration["keep"] == "registers":
        return trips * lanes * plan.live_bytes()
    arrays = dict(zip(arrays_of(plan.loaded), plan.loaded, strict=True))
    return trips * lanes * sum(max(4, k.value.dtype.itemsize) for k in arrays.values())


def arrays_of(kept: tuple[Kept, ...]) -> tuple[int, ...]:
    """The number of each value's array: it takes over that of a value of its type whose last pass is its first."""
    chosen: list[int] = []
    for n, k in enumerate(kept):
        free = [m for m in range(n) if kept[m].last <= k.first and kept[m].value.dtype is k.value.dtype]
        busy = {chosen[m] for m in range(n) if kept[m].last > k.first}
        chosen.append(next((chosen[m] for m in free if chosen[m] not in busy), n))
    return tuple(chosen)


def shared_bytes(plan: Plan, configuration: Configuration) -> int:
    """Bytes of local memory in which results are combined."""
    lanes, group, rows = (configuration.integer(name) for name in ("lanes", "work_group", "rows"))
    team = group // rows
    elements = (group + (collectors(team) * rows if team > DIRECT else 0)) * (lanes if plan.across else 1)
    return sum(elements * max(4, e.dtype.itemsize) for p in plan.chain.passes for e in p.reduces)


def collectors(team: int) -> int:
    """Members of a large team that combine equal parts: about its square root."""
    return 1 << (team.bit_length() // 2)


class _GpuWriter(Writer):
    def __init__(self, plan: Plan, configuration: Configuration) -> None:
        lanes = configuration.integer("lanes")
        self.keep = str(configuration["keep"])
        kept = () if self.keep == "nothing" else plan.loaded
        super().__init__(plan, configuration, kept, {plan.vector.name: lanes})
        self.arrays = arrays_of(kept)
        self.group = configuration.integer("work_group")
        self.rows = configuration.integer("rows")
        self.team = self.group // self.rows
        self.count = vectors(plan, lanes)
        self.trips = ceil_div(self.count, self.team)
        self.locals = Source()

    # --- kept values ---

    def _kept_place(self, number: int) -> str:
        array = self.arrays[number]
        return f"kept{array}[trip]" if self.keep == "registers" else f"kept{array}[trip * {self.group} + local_id]"

    def displaced(self, number: int) -> tuple[int, ...]:
        return tuple(m for m in range(number) if self.arrays[m] == self.arrays[number])

    def kept_load(self, number: int, place: Mapping[str, Affine], slot: int) -> str:
        return self._kept_place(number)

    def kept_store(self, number: int, place: Mapping[str, Affine], slot: int, text: str) -> str:
        return f"{self._kept_place(number)} = {text};"

    def _declare_kept(self) -> None:
        for number, k in enumerate(self.kept):
            if self.arrays[number] != number:
                continue
            kind = vector_type(k.value.dtype, self.lanes)
            if self.keep == "registers":
                self.body.line(f"{kind} kept{number}[{self.trips}];")
            else:
                self.locals.line(f"__local {kind} kept{number}[{self.trips * self.group}];")

    # --- the kernel ---

    def kernel(self) -> Launch:
        plan, body, ctype = self.plan, self.body, self.ctype
        lined = lines(plan, self.lanes)
        groups = ceil_div(lined, self.rows)
        body.line("const int local_id = (int)get_local_id(0);")
        if plan.across:
            body.line(f"const int member = local_id / {self.rows}, slot = local_id % {self.rows};")
        else:
            body.line(f"const int member = local_id % {self.team}, slot = local_id / {self.team};")
        body.line(f"const {ctype} wanted = ({ctype})get_group_id(0) * {self.rows} + slot;")
        self.spare = lined % self.rows != 0
        # Teams without a row of their own do the last one again, without writing.
        body.line(f"const {ctype} flat = " + (f"min(wanted, ({ctype}){lined - 1});" if self.spare else "wanted;"))
        decoded = [(variable(d.name), d.extent) for d in plan.rows]
        if plan.across:
            decoded.append(("vector", plan.vector.extent // self.lanes))
        decode(body, "flat", decoded, ctype)
        if plan.across:
            body.line(f"const {ctype} {self.names[plan.vector.name]} = vector * {self.lanes};")
        self._declare_kept()
        self._row_values(self.chain.opening, -1)
        for position, step in enumerate(self.chain.passes):
            self._pass(position)
            self._row_values(step.scalars, position)
        self.body = self._with_locals()
        remark = f"{self.team} work-items per row, {self.trips} vectors each; kept in {self.keep}"
        return self.launch(gpu_geometry(groups * self.group, self.group), remark)

    def _with_locals(self) -> Source:
        whole = Source()
        if self.locals.text.strip():
            whole.line(self.locals.text.rstrip("\n"))
        whole.line(self.body.text.rstrip("\n"))
        return whole

    def _row_values(self, targets: tuple[str, ...], position: int) -> None:
        self.scalars(targets, position, 0, {})
        written = [t for t in targets if self.chain.is_output(t)]
        if written:
            own = f" && wanted < {lines(self.plan, self.lanes)}" if self.spare else ""
            with self.body.block(f"if (member == 0{own})"):
                self.write_scalars(targets, 0, {})

    def _pass(self, position: int) -> None:
        step = self.chain.passes[position]
        self.title(position)
        self.declare(step, 1)
        sums = any(e.kind == "sum" and e.dtype.is_float for e in step.reduces)
        if sums and self.trips > LONGEST_SUM:
            header = f"for (int first = 0; first < {self.trips}; first += {SUM_BLOCK})"
            with self.body.block(header):
                self.declare(step, 1, partial=True)
                self._trips(position, f"int trip = first; trip < min(first + {SUM_BLOCK}, {self.trips})", True)
                self.merge(step, [("acc0", "part0")])
        else:
            self._trips(position, f"int trip = 0; trip < {self.trips}", False)
        self._combine(step.reduces)

    def _trips(self, position: int, header: str, partial: bool) -> None:
        plan, body, ctype = self.plan, self.body, self.ctype
        unroll = "" if self.keep == "registers" else f" {self.configuration.integer('unroll')}"
        if self.trips > 1:
            body.line(f"#pragma unroll{unroll}")
        with body.block(f"for ({header}; ++trip)"):
            body.line(f"const {ctype} step = trip * {self.team} + member;")
            guard = f"if (step < {self.count})" if self.count % self.team else ""
            with body.block(guard):
                loops = [(variable(d.name), d.extent) for d in plan.inner]
                if not plan.across:
                    loops.append(("part", plan.vector.extent // self.lanes))
                decode(body, "step", loops, ctype)
                if not plan.across:
                    body.line(f"const {ctype} {self.names[plan.vector.name]} = part * {self.lanes};")
                own = f"if (wanted < {lines(plan, self.lanes)})" if self.spare else ""
                self.step(position, {}, partial=partial, guard=own)

    # --- combination ---

    def _combine(self, reduces: tuple[Reduce, ...]) -> None:
        """Declare the results of a pass's reductions, the same for every member of a team."""
        body, team = self.body, self.team
        values = {e: self.accumulator(e, 0, False) for e in reduces}
        if not self.plan.across:
            values = {e: self.lanes_combined(e, value) for e, value in values.items()}
        kinds = {e: vector_type(e.dtype, self.width) for e in reduces}
        if team == 1 or not reduces:
            for e, value in values.items():
                body.line(f"const {kinds[e]} {self.result(e, 0)} = {value};")
            return
        few = collectors(team) if team > DIRECT else 0
        for e, value in values.items():
            self._array(e, "all", self.group)
            body.line(f"{self.numbers[e]}_all[local_id] = {value};")
        body.line("barrier(CLK_LOCAL_MEM_FENCE);")
        if not few:
            for e in reduces:
                self._gathered(e, "all", team, self.result(e, 0))
            return
        for e in reduces:
            self._array(e, "few", few * self.rows)
        with body.block(f"if (member < {few})"):
            for e in reduces:
                part = f"{self.numbers[e]}_part"
                self._strided(e, few, part)
                body.line(f"{self.numbers[e]}_few[{self._shared('member', few)}] = {part};")
        body.line("barrier(CLK_LOCAL_MEM_FENCE);")
        for e in reduces:
            self._gathered(e, "few", few, self.result(e, 0))

    def _shared(self, member: str, team: int) -> str:
        """Where the result of a member of the own team lies in an array with `team` results of each."""
        if self.rows == 1:
            return member
        return f"({member}) * {self.rows} + slot" if self.plan.across else f"slot * {team} + {member}"

    def _array(self, e: Reduce, part: str, size: int) -> None:
        """Declare a local array for results; where they are read four at a time, as an array of such vectors."""
        name = f"{self.numbers[e]}_{part}"
        kind = vector_type(e.dtype, self.width)
        if self._by_four(e, size // self.rows):
            self.locals.line(f"__local {kind}4 {name}4[{size // 4}];")
            self.locals.line(f"__local {kind}* const {name} = (__local {kind}*){name}4;")
        else:
            self.locals.line(f"__local {kind} {name}[{size}];")

    def _by_four(self, e: Reduce, count: int) -> bool:
        return not self.plan.across and count % 4 == 0 and vector_type(e.dtype, 1) in ("float", "int", "uint")

    def _strided(self, e: Reduce, few: int, result: str) -> None:
        """Combine every `few`-th member's result from the own one on."""
        name, kind = f"{self.numbers[e]}_all", vector_type(e.dtype, self.width)
        plain = self.plain(self.width)
        self.body.line(f"{kind} {result} = {name}[{self._shared('member', self.team)}];")
        self.body.line("#pragma unroll")
        with self.body.block(f"for (int i = {few}; i < {self.team}; i += {few})"):
            other = f"{name}[{self._shared('member + i', self.team)}]"
            self.body.line(plain.accumulate(e.kind, result, other, e.dtype))

    def _gathered(self, e: Reduce, part: str, count: int, result: str) -> None:
        """Combine the `count` results of the own team, as every member does."""
        name, kind = f"{self.numbers[e]}_{part}", vector_type(e.dtype, self.width)
        four = self._by_four(e, count)
        plain = self.plain(4 if four else self.width)
        array, total, steps = (f"{name}4", f"{result}_four", count // 4) if four else (name, result, count)

        def at(i: str) -> str:
            return f"{array}[{self._shared(i, steps)}]"

        self.body.line(f"{kind}{'4' if four else ''} {total} = {at('0')};")
        if steps > 1:
            self.body.line("#pragma unroll")
            with self.body.block(f"for (int i = 1; i < {steps}; ++i)"):
                self.body.line(plain.accumulate(e.kind, total, at("i"), e.dtype))
        if four:
            self.body.line(
                f"const {kind}2 {total}_2 = {self.plain(2).combined(e.kind, f'{total}.lo', f'{total}.hi', e.dtype)};"
            )
            two = self.plain(1).combined(e.kind, f"{total}_2.x", f"{total}_2.y", e.dtype)
            self.body.line(f"const {kind} {result} = {two};")
