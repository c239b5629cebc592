"""The kernels of the `scan` family for GPUs; the family describes them."""

from __future__ import annotations

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.scan_writer import Step, Writer, column_block, column_carry, column_leave, column_sum
from tilewright.dsl.families.shared import Geometry, ceil_div, decode, gpu_geometry
from tilewright.dsl.program import Reduce
from tilewright.dsl.writer import LANE, Source, variable, vector_type


def columns(writer: Writer) -> Geometry:
    """One work-item per vector of neighbouring scans and part; some elements are read ahead."""
    plan, body, ctype, lanes = writer.plan, writer.body, writer.ctype, writer.lanes
    group, unroll = writer.configuration.integer("work_group"), writer.configuration.integer("unroll")
    name, v = plan.vector.name, writer.names[plan.vector.name]
    pieces = ceil_div(plan.vector.extent, lanes)
    count = plan.others * writer.splits * pieces
    whole = plan.vector.extent % lanes == 0
    writer.multiples = {name: lanes} if whole else {}
    place = {name: Affine.of({name: 1, LANE: 1})} if lanes > 1 else {}
    body.line(f"const {ctype} item = ({ctype})get_global_id(0);")
    with body.block(f"if (item < {count})"):
        parts = [("flat", plan.others), ("split", writer.splits), ("piece", pieces)]
        decode(body, "item", parts, ctype, ("split",))
        decode(body, "flat", [(variable(d.name), d.extent) for d in plan.kept], ctype)
        early = f"min(piece * {lanes}, ({ctype}){plan.vector.extent - lanes})"
        body.line(f"const {ctype} {v} = {f'piece * {lanes}' if whole else early};")
        for j, e in enumerate(plan.scans):
            body.line(f"{vector_type(e.dtype, lanes)} carry{j}{f', base{j}' if writer.blocked else ''};")
        column_carry(writer, "", place)
        with writer.blocks(*writer.ranges(1)) as (first, end):
            if writer.blocked:
                column_block(writer, "", begins=True)
            _column_range(writer, place, unroll, first, end)
            if writer.blocked:
                column_block(writer, "", begins=False)
        if writer.sums:
            column_sum(writer, "", place)
    return gpu_geometry(count, group)


def _column_range(writer: Writer, place: dict[str, Affine], unroll: int, first: str, end: str) -> None:
    """The elements from `first` to `end` of a vector of scans, `unroll` at a time."""
    body, t = writer.body, writer.t
    body.line(f"{writer.ctype} {t} = {first};")
    if unroll > 1:
        with body.block(f"for (; {t} <= {end} - {unroll}; {t} += {unroll})"):
            _column_steps(writer, place, unroll)
    with body.block(f"for (; {t} < {end}; ++{t})"):
        _column_steps(writer, place, 1)


def _column_steps(writer: Writer, place: dict[str, Affine], count: int) -> None:
    """Some elements of a vector of scans: all reads first, all writes last."""
    name = writer.plan.along.name
    writes = Source()
    steps = []
    for u in range(count):
        steps.append(Step(writer, writer.lanes, {**place, name: Affine.of({name: 1}, u)}, f"v{u}_"))
        steps[-1].enter()
    for step in steps:
        column_leave(writer, step, "", writes)
    if writes.text.strip():
        writer.body.line(writes.text.rstrip("\n"))


def rows(writer: Writer) -> Geometry:
    """A work-group for some rows, or for one part of a row, tile by tile.

    A tile is `vectors` times as many vectors as work-items share the row; those of one work-item are that number apart,
    so that neighbours access neighbouring memory.
    """
    return _Rows(writer).write()


class _Rows:
    """Writes the kernel for rows."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.lanes = writer.lanes
        self.vectors = writer.configuration.integer("vectors")
        self.group = writer.configuration.integer("work_group")
        self.sharers = writer.configuration.integer("sharers")
        self.tile = self.sharers * self.vectors * self.lanes
        self.slots = self.group // self.sharers
        self.extent = writer.plan.along.extent
        self.one_tile = writer.splits == 1 and self.tile >= self.extent
        writer.multiples = {writer.plan.along.name: self.lanes, "<t>": self.lanes}

    def write(self) -> Geometry:
        """The whole body; returns its geometry."""
        writer, plan, body, ctype = self.writer, self.writer.plan, self.writer.body, self.writer.ctype
        groups = ceil_div(plan.others, self.slots)
        body.line("const int local_id = (int)get_local_id(0);")
        body.line(f"const int sharer = {'local_id' if self.slots == 1 else f'local_id % {self.sharers}'};")
        body.line(f"const {ctype} group = ({ctype})get_group_id(0);")
        decode(body, "group", [("block", groups), ("split", writer.splits)], ctype, ("split",))
        body.line(f"const {ctype} wanted = block * {self.slots} + local_id / {self.sharers};")
        body.line(f"const {ctype} flat = min(wanted, ({ctype}){plan.others - 1});")
        decode(body, "flat", [(variable(d.name), d.extent) for d in plan.kept], ctype)
        first, end = writer.ranges(self.tile)
        self._declare()
        if self.one_tile:
            body.line(f"const {ctype} tile = 0;")
            self._tile(end)
        else:
            with body.block(f"for ({ctype} tile = {first}; tile < {end}; tile += {self.tile})"):
                self._tile(end)
        if writer.sums:
            self._store_sums()
        return gpu_geometry(groups * writer.splits * self.group, self.group)

    def _declare(self) -> None:
        """What is carried from tile to tile, and the local memory that sums are combined in."""
        writer, body = self.writer, self.writer.body
        for j, e in enumerate(writer.plan.scans):
            if writer.sums:
                start = writer.identity(e, self.lanes)
                names = ", ".join(f"sum{j}_{v} = {start}" for v in range(self.vectors))
                body.line(f"{vector_type(e.dtype, self.lanes)} {names};")
                body.line(f"__local {vector_type(e.dtype, 1)} shared{j}[{self.group}];")
                continue
            writer.declare(f"carry{j}", e, 1, writer.row_carry(j, e, "flat"))
            if self.sharers > 1:
                body.line(f"__local {vector_type(e.dtype, self.vectors)} shared{j}[2][{self.group}];")

    def _tile(self, end: str) -> None:
        """Read a tile, and scan and store it or add it to the sums."""
        writer, body, scans = self.writer, self.writer.body, self.writer.plan.scans
        steps = [self._read(v, end) for v in range(self.vectors)]
        if writer.sums:
            for v, step in enumerate(steps):
                for j, (e, x) in enumerate(zip(scans, step.entering, strict=True)):
                    body.line(f"sum{j}_{v} = {writer.combined(e, self.lanes, f'sum{j}_{v}', x)};")
            return
        for j, e in enumerate(scans):
            lasts = [writer.last(step.entering[j], self.lanes) for step in steps]
            text = lasts[0] if self.vectors == 1 else f"({vector_type(e.dtype, self.vectors)})({', '.join(lasts)})"
            writer.declare(f"total{j}", e, self.vectors, text)
        self._share()
        for v, step in enumerate(steps):
            results = [self._result(j, e, step, v) for j, e in enumerate(scans)]
            with body.block(self._guard(v)):
                step.leave(results, body)
        if len(self._distances) % 2 == 0 and not self.one_tile and self.sharers > 1:
            # The next tile begins with the half of `shared` that others may still be reading.
            body.line("barrier(CLK_LOCAL_MEM_FENCE);")

    @property
    def _whole(self) -> bool:
        """Whether rows are whole tiles."""
        return self.extent % self.tile == 0

    def _read(self, v: int, end: str) -> Step:
        """Read vector `v` of the tile, the identity behind the row's end, and scan it within."""
        writer, body, lanes = self.writer, self.writer.body, self.lanes
        at = f"tile + ({v * self.sharers} + sharer) * {lanes}"
        if not self._whole:
            body.line(f"const {writer.ctype} at{v} = {at};")
            at = f"min(at{v}, ({writer.ctype}){self.extent - lanes})"
        body.line(f"const {writer.ctype} t{v} = {at};")
        name = f"<t{v}>"
        writer.names[name] = f"t{v}"
        if writer.multiples is not None:
            writer.multiples[name] = lanes
        step = Step(
            writer, lanes, {writer.plan.along.name: Affine.of({name: 1, LANE: 1 if lanes > 1 else 0})}, f"v{v}_"
        )
        step.enter()
        for e, x in zip(writer.plan.scans, step.entering, strict=True):
            if not self._whole:
                body.line(f"if (at{v} >= {end}) {x} = {writer.identity(e, lanes)};")
            for lane in range(1, lanes if not writer.sums else 1):
                body.line(f"{x}.s{lane} = {writer.combined(e, 1, f'{x}.s{lane - 1}', f'{x}.s{lane}')};")
        return step

    def _guard(self, v: int) -> str:
        """The condition on storing vector `v`, as the header of a block."""
        tests = [] if self._whole else [f"at{v} < {self.extent}"]
        if self.writer.plan.others % self.slots:
            tests.append(f"wanted < {self.writer.plan.others}")
        return f"if ({' && '.join(tests)})" if tests else ""

    @property
    def _distances(self) -> list[int]:
        """Distances of the operands in the steps of the scan over work-items; each step adds up four."""
        found, distance = [], 1
        while distance < self.sharers:
            found.append(distance)
            distance *= 4
        return found

    def _share(self) -> None:
        """Scan `total` over the work-items of a row: `before` is the sum of those ahead, `whole` that of all.

        Each step reads one half of `shared` and writes the other, so that one barrier per step is enough.
        """
        writer, body, vectors = self.writer, self.writer.body, self.vectors
        scans = list(enumerate(writer.plan.scans))
        if self.sharers == 1:
            for j, e in scans:
                writer.declare(f"before{j}", e, vectors, writer.identity(e, vectors))
                writer.declare(f"whole{j}", e, vectors, f"total{j}")
            return
        half = 0
        self._publish(half)
        for distance in self._distances:
            for j, e in scans:
                for away in (distance, 2 * distance, 3 * distance):
                    if away < self.sharers:
                        other = f"shared{j}[{half}][local_id - {away}]"
                        body.line(
                            f"if (sharer >= {away}) total{j} = {writer.combined(e, vectors, other, f'total{j}')};"
                        )
            half = 1 - half
            self._publish(half)
        for j, e in scans:
            writer.declare(f"before{j}", e, vectors, writer.identity(e, vectors))
            body.line(f"if (sharer > 0) before{j} = shared{j}[{half}][local_id - 1];")
            writer.declare(f"whole{j}", e, vectors, f"shared{j}[{half}][local_id - sharer + {self.sharers - 1}]")

    def _publish(self, half: int) -> None:
        for j in range(len(self.writer.plan.scans)):
            self.writer.body.line(f"shared{j}[{half}][local_id] = total{j};")
        self.writer.body.line("barrier(CLK_LOCAL_MEM_FENCE);")

    def _result(self, j: int, e: Reduce, step: Step, v: int) -> str:
        """The scan of vector `v`, and the carry taken past it."""
        writer, x, lanes = self.writer, step.entering[j], self.lanes
        lane = f".s{v}" if self.vectors > 1 else ""
        start = writer.declare(f"{x}_start", e, 1, writer.combined(e, 1, f"carry{j}", f"before{j}{lane}"))
        mine = writer.shifted(e, x, lanes) if writer.plan.is_exclusive(e) else x
        splat = start if lanes == 1 else f"({vector_type(e.dtype, lanes)})({start})"
        result = writer.declare(f"{x}_y", e, lanes, writer.combined(e, lanes, splat, mine))
        self.writer.body.line(f"carry{j} = {writer.combined(e, 1, f'carry{j}', f'whole{j}{lane}')};")
        return result

    def _store_sums(self) -> None:
        """Combine the sums of all vectors, lanes and work-items, and store the part's."""
        writer, body = self.writer, self.writer.body
        for j, e in enumerate(writer.plan.scans):
            for v in range(1, self.vectors):
                body.line(f"sum{j}_0 = {writer.combined(e, self.lanes, f'sum{j}_0', f'sum{j}_{v}')};")
            body.line(f"shared{j}[local_id] = {writer.across(e, f'sum{j}_0', self.lanes)};")
        body.line("barrier(CLK_LOCAL_MEM_FENCE);")
        half = self.group // 2
        while half:
            with body.block(f"if (local_id < {half})"):
                for j, e in enumerate(writer.plan.scans):
                    mine, other = f"shared{j}[local_id]", f"shared{j}[local_id + {half}]"
                    body.line(f"{mine} = {writer.combined(e, 1, mine, other)};")
            body.line("barrier(CLK_LOCAL_MEM_FENCE);")
            half //= 2
        with body.block("if (local_id == 0)"):
            for j, e in enumerate(writer.plan.scans):
                writer.row_sum(j, e, "flat", f"shared{j}[0]")
